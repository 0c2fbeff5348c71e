"""`python -m benchmarks.faults` still runs, counts every failure, and gives up where all fail."""

from __future__ import annotations

import importlib
import os
import random
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
from forked import finished

REPOSITORY = Path(__file__).parents[2]
SMALL = {"kills": 2, "seconds": 1, "damages": 10, "views": 3, "images": 12}


def run_benchmark(arguments: list[str]) -> None:
    """As `python -m benchmarks.faults` does, in this process."""
    sys.path.insert(0, str(REPOSITORY))
    sys.argv[1:] = arguments
    runpy.run_module("benchmarks.faults", run_name="__main__", alter_sys=True)


def extract_with_failures(part: str, folder: Path, failures: int) -> None:
    """One part of the benchmark, in which so many extractions fail at once."""
    sys.path.insert(0, str(REPOSITORY))
    faults: Any = importlib.import_module("benchmarks.faults")
    extract = faults.run_extraction

    def fail_first(plan: Any) -> None:
        for number in range(failures):
            try:
                os.close(os.open(folder / f"failed-{number}", os.O_CREAT | os.O_EXCL))
            except FileExistsError:
                continue
            raise RuntimeError("an error to order")
        extract(plan)

    faults.draw_images(folder / "images", 4)
    teacher = f"torchscript:{faults.save_teacher(folder / 'teacher.pt')}"
    config = faults.ExtractConfig(
        teacher=teacher, dataset=f"folder:{folder / 'images'}", views="2", device="cpu"
    )
    faults.wait(faults.start(config, folder / "undisturbed"))
    right = faults.contents(folder / "undisturbed")
    faults.run_extraction = fail_first
    generator = random.Random(0)
    if part == "killed":
        outcome = faults.killed(config, folder, right, 1, 1.0, generator)
    else:
        outcome = faults.together(config, folder, right, 0.1, generator)
    print(f"{outcome.lost} lost")


def test_the_long_form_of_these_tests_still_runs() -> None:
    small = [word for name, value in SMALL.items() for word in (f"--{name}", str(value))]
    done = finished(run_benchmark, small)
    assert done.code == 0, done.stdout + done.stderr
    assert "what was lost" in done.stdout


@pytest.mark.parametrize("part", ["killed", "together"])
def test_a_process_that_fails_is_counted(part: str, tmp_path: Path) -> None:
    done = finished(extract_with_failures, part, tmp_path, 1)
    assert done.code == 0, done.stderr
    assert done.stdout == "1 lost\n"


@pytest.mark.parametrize("part", ["killed", "together"])
def test_where_every_process_fails_it_says_so_and_ends(part: str, tmp_path: Path) -> None:
    done = finished(extract_with_failures, part, tmp_path, 10**6)
    assert done.code == 1
    assert "5 extractions have failed and written nothing" in done.stderr
    assert "RuntimeError: an error to order" in done.stderr
