"""`rdcache export-student`: a finished run's student as one file for elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from rdcache.cli.output import in_bytes, json_option, print_facts, print_json
from rdcache.distillation import load_run
from rdcache.errors import UsageError
from rdcache.models import export_onnx, save_student


@click.command(epilog="Example:  rdcache export-student runs/busi-…/seed0 student.onnx")
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--overwrite", is_flag=True, help="Replace FILE if it is there already.")
@json_option
def command(run: Path, file: Path, overwrite: bool, as_json: bool) -> None:
    """Write the student of RUN to FILE: .onnx, for inputs of the size that it was trained at, or
    .safetensors, which any reader of that format opens.
    """
    loaded = load_run(run)
    if file.suffix not in (".onnx", ".safetensors"):
        raise UsageError("a student is written as .onnx or .safetensors.", given=file)
    if file.exists() and not overwrite:
        raise UsageError("this file is there already.", file=file, next="--overwrite")
    student, sides = loaded.student, loaded.input_size
    if file.suffix == ".onnx":
        export_onnx(student, file, sides)
    else:
        save_student(student, file)
    facts: dict[str, Any] = {
        "file": str(file),
        "student": student.name,
        "classes": list(loaded.result["dataset"]["classes"]),
        "input": [student.channels, *sides],
        "mean": list(student.mean),
        "std": list(student.std),
        "bytes": file.stat().st_size,
    }
    if as_json:
        print_json(facts)
        return
    shown = {
        "input": f"{'×'.join(map(str, [student.channels, *sides]))}, normalised by mean and std",
        "mean": ", ".join(f"{value:g}" for value in student.mean),
        "std": ", ".join(f"{value:g}" for value in student.std),
        "classes": ", ".join(facts["classes"]),
        "size": in_bytes(facts["bytes"]),
    }
    print_facts(f"{student.name} written to {file}.", dict(shown))
