"""A root that a group shares: rights come from the umask and the folder alone."""

from __future__ import annotations

import json
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from forked import Forked, finished
from small_inputs import Pooling
from torch import nn

from rdcache.store import open_store, verify_store

from .extract_as import extract_as

GROUP, FIRST, SECOND = 4711, 4801, 4802


@pytest.fixture
def teacher(script: Callable[[nn.Module], str]) -> str:
    return script(Pooling(1.0))


@pytest.fixture
def public() -> Iterator[Path]:
    """A folder that every user may look into, unlike pytest's own."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


def extract(
    root: Path,
    teacher: str,
    dataset: str,
    *,
    umask: int,
    user: int = 0,
    stop_after: int = 0,
    then: tuple[list[str], ...] = (),
) -> Forked:
    order = {"root": str(root), "teacher": teacher, "dataset": dataset, "umask": umask}
    order |= {"user": user, "group": GROUP, "stop_after": stop_after, "then": then}
    folder = root.parent / f"own-{user}"
    folder.mkdir(exist_ok=True)
    os.chown(folder, user or -1, -1)
    order["warm"] = str(folder / "warm")
    folders = {name: str(folder) for name in ("RDCACHE_CACHE", "HOME", "TMPDIR")}
    environment = {**os.environ, **folders}
    return finished(extract_as, order, environment=environment, folder=folder)


def modes(folder: Path) -> dict[str, int]:
    return {
        path.relative_to(folder).as_posix(): stat.S_IMODE(path.stat().st_mode)
        for path in folder.rglob("*")
    }


@pytest.mark.parametrize(("umask", "rights"), [(0o002, 0o775), (0o022, 0o755), (0o077, 0o700)])
def test_everything_that_is_written_has_the_rights_that_the_umask_leaves(
    tmp_path: Path, few: Path, teacher: str, umask: int, rights: int
) -> None:
    root = tmp_path / "shared"
    where = ["--dataset", f"folder:{few}", "--store", "STORE", "--out", str(root / "runs")]
    distill = ["distill", *where, "--method", "none", "--epochs", "1", "--batch-size", "4"]
    commands = (
        ["sign", "--new-key", str(tmp_path / f"key-{umask}")],
        ["sign", "STORE", "--key", str(tmp_path / f"key-{umask}.pem")],
        ["export", "STORE", str(root / "out.h5")],
        ["import", str(root / "out.h5"), "--root", str(root / "imported")],
        [*distill, "--image-size", "32", "--student", "shufflenet-x0.5"],
    )
    done = extract(root, teacher, f"folder:{few}", umask=umask, then=commands)
    assert done.code == 0, done.stderr
    found = modes(root)
    kinds = ("zarr.json", "out.h5", "student.safetensors", "result.json", "/c/0/0")
    for kind in kinds:
        assert any(name.endswith(kind) for name in found), kind
    for name, mode in found.items():
        expected = rights if (root / name).is_dir() else rights & 0o666
        assert mode == expected, (name, oct(mode))
    assert stat.S_IMODE((tmp_path / f"key-{umask}.pem").stat().st_mode) == 0o600


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be two users")
def test_another_user_goes_on_with_what_the_first_began(
    public: Path, few: Path, teacher: str
) -> None:
    root = public / "shared"
    root.mkdir()
    os.chown(root, FIRST, GROUP)
    root.chmod(0o2775)
    family, _, file = teacher.partition(":")
    teacher = f"{family}:{shutil.copy(file, public)}"
    dataset = f"folder:{shutil.copytree(few, public / 'images')}"
    begun = extract(root, teacher, dataset, umask=0o002, user=FIRST, stop_after=3)
    assert begun.code == 9, begun.stderr
    done = extract(root, teacher, dataset, umask=0o002, user=SECOND)
    assert done.code == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["status"] == "resumed"
    (location,) = (path.parent for path in root.glob("*/*/*/zarr.json"))
    store = open_store(location)
    assert report["written"] == len(store.layout.shards()) - 3
    assert verify_store(location) == []
    assert {path.stat().st_gid for path in root.rglob("*")} == {GROUP}
    owners = {path.stat().st_uid for path in location.rglob("*") if path.is_file()}
    assert owners == {FIRST, SECOND}

    alone = extract(root, teacher, dataset, umask=0o077, user=SECOND)
    assert json.loads(alone.stdout)["status"] == "unchanged"
