"""The script that `pipelines/drd_hippocampus.yaml` begins with."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parent.parent / "pipelines" / "hippocampus_halves.py"


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SCRIPT), *map(str, arguments)], capture_output=True, text=True
    )


def test_every_case_is_in_one_half_with_its_mask(tmp_path: Path) -> None:
    task, out = tmp_path / "msd" / "Task04_Hippocampus", tmp_path / "out"
    for folder in ("imagesTr", "labelsTr"):
        (task / folder).mkdir(parents=True)
        for case in ("001", "003", "004", "007", "008"):
            (task / folder / f"hippocampus_{case}.nii.gz").touch()
    (task / "imagesTr" / "._hippocampus_001.nii.gz").touch()  # as macOS leaves it
    assert run(task, out).returncode == 0
    halves = []
    for half in "ab":
        with (out / f"hippocampus-{half}.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert all((out / row[name]).is_file() for row in rows for name in ("path", "mask"))
        assert all("labelsTr" in row["mask"] for row in rows)
        halves.append({Path(row["path"]).name[12:15] for row in rows})
    assert halves == [{"001", "004", "008"}, {"003", "007"}]
    assert (out / "classes.txt").read_text().split() == ["background", "anterior", "posterior"]


def test_a_folder_without_cases_is_named(tmp_path: Path) -> None:
    finished = run(tmp_path, tmp_path / "out")
    assert finished.returncode == 1
    assert f"{tmp_path / 'imagesTr'} has no hippocampus_*.nii.gz" in finished.stderr
    assert not (tmp_path / "out").exists()
