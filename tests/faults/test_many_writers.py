"""Several processes extract one store at once, some of them are killed: nothing is lost."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from forked import finished
from small_inputs import Pooling
from torch import nn

from rdcache.store import open_store

from .extract_many import extract_all

Script = Callable[[nn.Module], str]
ALONE = {"join": False, "processes": 1, "kills": 0, "shards_apart": 0, "seed": 0}


def extract(
    teacher: str, folder: Path, plans: list[dict[str, object]], **options: object
) -> list[list[str]]:
    done = finished(extract_all, teacher, str(folder), options, plans)
    assert done.code == 0, done.stderr
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
    script: Script, few: Path, tmp_path: Path
) -> None:
    joined = {"join": True, "processes": 4, "kills": 2, "shards_apart": 5, "seed": 3}
    plans: list[dict[str, object]] = [
        {**ALONE, "root": str(tmp_path / "alone")},
        {**joined, "seed": 1, "root": str(tmp_path / "a")},
        {**joined, "seed": 2, "root": str(tmp_path / "b")},
        {**joined, "processes": 8, "kills": 7, "shards_apart": 2, "root": str(tmp_path / "c")},
    ]
    alone, *others = extract(script(Pooling(1.0)), few, plans)
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
    script: Script, few: Path, tmp_path: Path
) -> None:
    waiting = {"join": False, "processes": 2, "shards_apart": 5, "seed": 0}
    plans: list[dict[str, object]] = [
        {**waiting, "kills": 0, "root": str(tmp_path / "patient")},
        {**waiting, "kills": 1, "root": str(tmp_path / "heir")},
    ]
    patient, heir = extract(script(Pooling(1.0)), few, plans)
    assert sorted(patient) == ["extracted", "unchanged"]
    assert sorted(heir)[0] in ("extracted", "killed", "resumed")
    assert heir.count("killed") == 1
    assert chunks(tmp_path / "heir") == chunks(tmp_path / "patient")


def test_two_processes_write_the_int8_and_projected_store_of_one(
    script: Script, few: Path, tmp_path: Path
) -> None:
    options = {"dtype": "int8", "codec": "zstd", "pool": "out0=2", "project": "out0=2"}
    joined = {"join": True, "processes": 2, "kills": 0, "seed": 0}
    plans: list[dict[str, object]] = [
        {**ALONE, "root": str(tmp_path / "alone")},
        {**joined, "shards_apart": 0, "root": str(tmp_path / "together")},
    ]
    alone, together = extract(script(Pooling(1.0)), few, plans, **options)
    assert alone == ["extracted"]
    assert sorted(together) == ["extracted", "joined"]
    undisturbed = chunks(tmp_path / "alone")
    assert any(".basis/" in name for name in undisturbed)
    assert any(".scale/" in name for name in undisturbed)
    assert chunks(tmp_path / "together") == undisturbed
