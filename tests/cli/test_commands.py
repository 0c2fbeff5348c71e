"""The commands as a user types them: what they print, what they leave, how they fail."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
from click.testing import CliRunner
from small_inputs import Pooling
from torch import nn

from rdcache.cli import cli, run_command_line
from rdcache.cli.extract import _print_extraction
from rdcache.extraction import ExtractConfig, plan_extraction, run_extraction
from rdcache.extraction.run import Status

SMALL = ("--epochs", "2", "--image-size", "32", "--batch-size", "8", "--select", "last")


@pytest.fixture
def teacher(script: Callable[[nn.Module], str]) -> str:
    return script(Pooling(1.0))


def succeed(*arguments: str) -> str:
    result = CliRunner().invoke(cli, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def as_json(*arguments: str) -> Any:
    return json.loads(succeed(*arguments, "--json"))


def test_both_phases_from_the_command_line(teacher: str, folder: Path, tmp_path: Path) -> None:
    extract = ("extract", "--teacher", teacher, "--dataset", f"folder:{folder}", "--views", "2")
    first = as_json(*extract)
    assert first["status"] == "extracted"
    assert (first["samples"], first["views"]) == (40, 2)
    assert first["taps"] == {"out0": {"shape": [3, 4, 4], "dtype": "float16"}}
    assert first["bytes"] > 0
    assert first["skipped"] == []
    assert as_json(*extract)["status"] == "unchanged"

    manifest = as_json("info", first["store"])
    assert manifest["complete"]
    assert str(folder.parent) not in json.dumps(manifest), "a shared store tells nobody's folders"
    stores = as_json("list", "stores")["stores"]
    assert [store["store"] for store in stores] == [first["store"]]
    assert stores[0]["made"] == manifest["created"]
    table = succeed("list", "stores")
    assert manifest["created"][:16] in table
    assert manifest["created"][:17] not in table

    distill = (
        *("distill", "--student", "shufflenet-x0.5", "--dataset", f"folder:{folder}", *SMALL),
        *("--out", str(tmp_path / "runs")),
    )
    report = as_json(*distill, "--seed", "0,1")
    assert report["store"] == first["store"]
    (student,) = report["students"]
    assert [run["seed"] for run in student["runs"]] == [0, 1]
    assert student["summary"]["accuracy"]["n"] == 2
    assert (report["runs"], report["summary"]) == (student["runs"], student["summary"])
    again = as_json(*distill, "--seed", "0,1")
    assert [run["status"] for run in again["students"][0]["runs"]] == ["done before"] * 2

    run = student["runs"][0]
    metrics = as_json("evaluate", run["run"], "--dataset", f"folder:{folder}")["metrics"]
    assert metrics["confusion"] == run["metrics"]["confusion"]
    assert "accuracy" in succeed("evaluate", run["run"], "--dataset", f"folder:{folder}")


def test_several_students_are_reported_run_by_run_and_student_by_student(
    teacher: str, folder: Path, tmp_path: Path
) -> None:
    as_json("extract", "--teacher", teacher, "--dataset", f"folder:{folder}", "--views", "clean")
    report = as_json(
        *("distill", "--student", "shufflenet-x0.5,mobilenet", "--dataset", f"folder:{folder}"),
        *(*SMALL, "--epochs", "1", "--method", "none", "--out", str(tmp_path / "runs")),
    )
    assert [run["student"] for run in report["runs"]] == ["shufflenet-x0.5", "mobilenet"]
    assert [each["student"] for each in report["students"]] == ["shufflenet-x0.5", "mobilenet"]
    assert all(each["summary"]["accuracy"]["n"] == 1 for each in report["students"])
    assert "summary" not in report


def test_a_damaged_shard_is_noticed_by_distill_if_it_is_told_to_look(
    capsys: pytest.CaptureFixture[str], teacher: str, folder: Path, tmp_path: Path
) -> None:
    where = ("--dataset", f"folder:{folder}")
    store = as_json("extract", "--teacher", teacher, *where, "--views", "clean")["store"]
    shard = next(path for path in Path(store).glob("taps/out0/c/0/**/*") if path.is_file())
    content = bytearray(shard.read_bytes())
    content[0] ^= 1  # the last bit of a number: nothing else would notice
    shard.write_bytes(content)
    distill = ("distill", "--student", "shufflenet-x0.5", *where, *SMALL, "--set", "width=16")
    status, text = failure(capsys, *distill, "--out", str(tmp_path / "checked"), "--verify-shards")
    assert status == 1
    assert "does not match its checksum" in text
    assert str(shard.relative_to(store)) in text
    succeed(*distill, "--out", str(tmp_path / "unchecked"))


def test_a_dry_run_says_what_would_be_written_and_writes_nothing(
    teacher: str, folder: Path, tmp_path: Path
) -> None:
    root = tmp_path / "fresh"
    facts = as_json(
        *("extract", "--teacher", teacher, "--dataset", f"folder:{folder}", "--views", "flip"),
        *("--root", str(root), "--dry-run"),
    )
    training = facts["forwards"] - facts["samples"]
    assert facts["samples"] == 40
    assert 20 < training < 40
    assert facts["taps"]["out0"]["bytes"] == facts["forwards"] * 3 * 4 * 4 * 2 == facts["bytes"]
    assert facts["free_bytes"] > 0
    assert not root.exists()


def test_a_recipe_runs_once_and_its_table_shows_the_gain(
    teacher: str, folder: Path, tmp_path: Path
) -> None:
    recipe = tmp_path / "grid.yaml"
    recipe.write_text(
        f"""
title: A small grid
teachers: ["{teacher}"]
datasets: ["folder:{folder}"]
students: [shufflenet-x0.5]
methods: [none, rd]
seeds: [0, 1]
extract: {{views: 2}}
distill: {{epochs: 1, image_size: 32, batch_size: 8, select: last}}
per_method: {{rd: {{method_options: {{width: 16}}}}}}
"""
    )
    arguments = ("run", str(recipe), "--out", str(tmp_path / "runs"))
    report = as_json(*arguments, "--table", str(tmp_path / "table.md"))
    assert [row["method"] for row in report["rows"]] == ["none", "rd"]
    assert report["rows"][1]["gain"]["pairs"] == 2
    assert "gain" in (tmp_path / "table.md").read_text()
    results = {p: p.stat().st_mtime_ns for p in (tmp_path / "runs").rglob("result.json")}
    assert len(results) == 4
    again = CliRunner().invoke(cli, arguments)
    assert "A small grid" in again.stdout
    assert again.stderr.count("precision of shufflenet-x0.5") == 1, "of one student said once"
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "runs").rglob("result.json")} == results


@pytest.mark.parametrize(
    "kind", ["teachers", "datasets", "students", "methods", "adapters", "stores"]
)
def test_every_catalogue_can_be_listed(kind: str) -> None:
    rows = as_json("list", kind)[kind]
    assert isinstance(rows, list)
    assert succeed("list", kind)


def test_the_problems_of_a_dataset_are_printed(folder: Path) -> None:
    (folder / "benign" / "broken.png").write_bytes(b"no image")
    assert "broken.png" in succeed("check", f"folder:{folder}")
    report = as_json("check", f"folder:{folder}")
    assert report["samples"] == 40
    assert [skipped["path"] for skipped in report["skipped"]] == ["benign/broken.png"]


def failure(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    """Exit status and what is printed on standard error; a traceback would be an exception."""
    status = run_command_line(arguments)
    return status, capsys.readouterr().err


def test_mistakes_get_one_sentence_and_the_right_status(
    capsys: pytest.CaptureFixture[str], teacher: str, folder: Path, tmp_path: Path
) -> None:
    extract = ("extract", "--teacher", teacher, "--dataset")
    status, text = failure(capsys, "extract", "--teacher", "pmcclip", "--dataset", "busi")
    assert status == 2
    assert "did you mean" in text
    assert "pmc-clip" in text
    status, text = failure(capsys, *extract, "busi")
    assert status == 1
    assert "expected" in text
    assert "Kaggle" in text
    status, text = failure(capsys, *extract, "bussi")
    assert status == 2
    assert "busi" in text
    status, text = failure(capsys, *extract, f"folder:{folder}", "--views", "many")
    assert status == 2
    assert "--views" in text
    status, text = failure(capsys, "extract", "--teacher", "lvm-med", "--dataset", "phantom")
    assert status == 1
    assert "lvmmed_vit.pth" in text
    status, text = failure(capsys, "distill", "--student", "shufflenet")
    assert status == 1
    assert "rdcache extract" in text
    status, text = failure(capsys, "extract", "--no-such-option")
    assert status == 2
    blocked = tmp_path / "a file"
    blocked.write_text("")
    status, text = failure(capsys, *extract, f"folder:{folder}", "--root", str(blocked / "root"))
    assert status == 1
    assert "cannot be written" in text


GRID = (
    "{title: x, teachers: [efficientnet-lite0], datasets: [phantom], students: [shufflenet],"
    " methods: [rd], }"
)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("title: x\n  bad: [", "not YAML"),
        ("title: x", "teachers"),
        (
            GRID.replace("}", "distill: {epochz: 3}}"),
            "epochz",
        ),
        (GRID.replace("}", "distill: {epochs: 0}}"), "greater than 0"),
        (GRID.replace("}", "distill: {seeds: [1]}}"), "seeds is given by the grid"),
        (GRID.replace("}", "distill: {method_options: {foo: 1}}}"), "option of rd named 'foo'"),
        (GRID.replace("}", "per_dataset: {phantmo: {}}}"), "did you mean   phantom"),
        (GRID.replace("}", "per_method: {none: {}}}"), "no method in this recipe named 'none'"),
        (GRID.replace("shufflenet", "shufflenet, shuflenet"), "no student named 'shuflenet'"),
        (GRID.replace("lite0", "lite0, pmcclip"), "no teacher named 'pmcclip'"),
        (GRID.replace("[rd]", "[rd, rd]"), "listed twice"),
        ("title: caf\udce9", "not YAML"),
    ],
)
def test_a_recipe_is_checked_before_anything_runs(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, content: str, complaint: str
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(content, encoding="utf-8", errors="surrogateescape")
    status, text = failure(capsys, "run", str(recipe))
    assert status == 2
    assert complaint in text


def test_help_answers_without_loading_torch() -> None:
    code = (
        "import sys; from rdcache.cli import run_command_line; "
        "run_command_line(['--help']); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "extract" in done.stdout
    assert done.stdout.strip().endswith("False")


def test_every_way_an_extraction_can_end_has_a_headline(
    capsys: pytest.CaptureFixture[str], teacher: str, folder: Path
) -> None:
    plan = plan_extraction(ExtractConfig(teacher=teacher, dataset=f"folder:{folder}"))
    done = run_extraction(plan)
    for status in get_args(Status):
        _print_extraction(plan, replace(done, status=status, copied=7))
        assert "7 views of images from other stores" in capsys.readouterr().out


def test_a_teacher_of_random_weights_is_told_before_and_after_extraction(folder: Path) -> None:
    extract = ("extract", "--teacher", "timm:test_resnet", "--weights", "random")
    extract += ("--dataset", f"folder:{folder}")
    warning = "the teacher's weights are random: its tensors mean nothing"
    assert as_json(*extract, "--dry-run")["warning"] == warning
    assert warning in " ".join(succeed(*extract, "--dry-run").split())
    assert warning in " ".join(succeed(*extract).split())
    assert as_json(*extract)["warning"] == warning
