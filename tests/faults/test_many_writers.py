"""Several processes extract one store at once, some of them are killed: nothing is lost."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from small_inputs import Pooling
from torch import nn

from rdcache.store import open_store

Script = Callable[[nn.Module], str]
TESTS = Path(__file__).parents[1]
ENVIRONMENT = {
    **os.environ,
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)]),
}
ALONE = {"join": False, "processes": 1, "kills": 0, "shards_apart": 0, "seed": 0}


def extract(teacher: str, folder: Path, plans: list[dict[str, object]]) -> list[list[str]]:
    order = json.dumps({"teacher": teacher, "folder": str(folder), "plans": plans})
    done = subprocess.run(
        [sys.executable, "-m", "faults.extract_many", order],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    statuses: list[list[str]] = json.loads(done.stdout)
    return statuses


def chunks(root: Path) -> dict[str, bytes]:
    """Every chunk of the only store under a root."""
    (location,) = (path.parent for path in root.glob("*/*/*/zarr.json"))
    assert open_store(location).complete
    return {
        path.relative_to(location).as_posix(): path.read_bytes()
        for path in location.rglob("*")
        if path.is_file() and path.name != "zarr.json"
    }


def test_whoever_is_killed_the_store_is_the_one_that_a_single_process_makes(
    script: Script, folder: Path, tmp_path: Path
) -> None:
    joined = {"join": True, "processes": 4, "kills": 2, "shards_apart": 5}
    plans: list[dict[str, object]] = [
        {**ALONE, "root": str(tmp_path / "alone")},
        {**joined, "seed": 1, "root": str(tmp_path / "a")},
        {**joined, "seed": 2, "root": str(tmp_path / "b")},
        {**joined, "processes": 8, "kills": 7, "seed": 3, "root": str(tmp_path / "c")},
    ]
    alone, *others = extract(script(Pooling(1.0)), folder, plans)
    assert alone == ["extracted"]
    undisturbed = chunks(tmp_path / "alone")
    for statuses, plan in zip(others, plans[1:], strict=True):
        root = Path(str(plan["root"]))
        assert statuses.count("killed") == plan["kills"]
        assert set(statuses) <= {"extracted", "resumed", "joined", "unchanged", "killed"}
        assert chunks(root) == undisturbed
        assert not list(root.rglob("*.partial"))
        assert not list(root.rglob("*.claims")), "the last one cleans up"


def test_a_second_process_waits_and_takes_over_only_from_a_dead_one(
    script: Script, folder: Path, tmp_path: Path
) -> None:
    waiting = {"join": False, "processes": 2, "shards_apart": 5, "seed": 0}
    plans: list[dict[str, object]] = [
        {**waiting, "kills": 0, "root": str(tmp_path / "patient")},
        {**waiting, "kills": 1, "root": str(tmp_path / "heir")},
    ]
    patient, heir = extract(script(Pooling(1.0)), folder, plans)
    assert sorted(patient) == ["extracted", "unchanged"]
    assert sorted(heir)[0] in ("extracted", "killed", "resumed")
    assert heir.count("killed") == 1
    assert chunks(tmp_path / "heir") == chunks(tmp_path / "patient")
