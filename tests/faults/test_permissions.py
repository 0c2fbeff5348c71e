"""A root that a group shares: rights come from the umask and the folder alone."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from small_inputs import Pooling
from torch import nn

import rdcache
from rdcache.store import open_store, verify_store

PACKAGE = Path(rdcache.__file__).parent
GROUP, FIRST, SECOND = 4711, 4801, 4802
CHILD = """
import json, os, sys
order = json.loads(sys.argv[1])
def refuse(*arguments, **options):
    raise AssertionError("chmod")
os.chmod = os.fchmod = os.lchmod = refuse
import torch
torch.set_num_threads(1)
import rdcache.extraction.run as run
from dataclasses import replace
from rdcache.cli import run_command_line
from rdcache.extraction import ExtractConfig, plan_extraction, run_extraction
from rdcache.store import StoreWriter
config = ExtractConfig(teacher=order["teacher"], dataset=order["dataset"], views="flip",
                       root=order["root"], batch_size=4)
if order["user"]:
    # Everything is imported by then, also where Python itself is not for other users to read.
    run_extraction(plan_extraction(config.model_copy(update={"root": order["warm"]})))
    os.setgroups([order["group"]])
    os.setgid(order["user"])
    os.setuid(order["user"])
os.umask(order["umask"])
plan = plan_extraction(config)
plan = replace(plan, layout=replace(plan.layout, shard_samples=4))
written = []
write = StoreWriter.write
def write_some(self, *arguments):
    write(self, *arguments)
    written.append(1)
    if len(written) == order["stop_after"]:
        os._exit(9)
StoreWriter.write = write_some
done = run_extraction(plan)
for arguments in order["then"]:
    filled = [argument.replace("STORE", str(done.store.location)) for argument in arguments]
    if run_command_line(filled):
        raise SystemExit(f"failed: {arguments}")
print(json.dumps({"status": done.status, "written": len(written)}))
"""


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
) -> subprocess.CompletedProcess[str]:
    order = {"root": str(root), "teacher": teacher, "dataset": dataset, "umask": umask}
    order |= {"user": user, "group": GROUP, "stop_after": stop_after, "then": then}
    folder = root.parent / f"own-{user}"
    folder.mkdir(exist_ok=True)
    os.chown(folder, user or -1, -1)
    order["warm"] = str(folder / "warm")
    folders = {name: str(folder) for name in ("RDCACHE_CACHE", "HOME", "TMPDIR")}
    return subprocess.run(
        [sys.executable, "-c", CHILD, json.dumps(order)],
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, **folders, "PYTHONPATH": str(PACKAGE.parent), "OMP_NUM_THREADS": "1"},
    )


def modes(folder: Path) -> dict[str, int]:
    return {
        path.relative_to(folder).as_posix(): stat.S_IMODE(path.stat().st_mode)
        for path in folder.rglob("*")
    }


@pytest.mark.parametrize(("umask", "rights"), [(0o002, 0o775), (0o022, 0o755), (0o077, 0o700)])
def test_everything_that_is_written_has_the_rights_that_the_umask_leaves(
    tmp_path: Path, folder: Path, teacher: str, umask: int, rights: int
) -> None:
    root = tmp_path / "shared"
    where = ["--dataset", f"folder:{folder}", "--store", "STORE", "--out", str(root / "runs")]
    distill = ["distill", *where, "--method", "none", "--epochs", "1", "--batch-size", "4"]
    commands = (
        ["sign", "--new-key", str(tmp_path / f"key-{umask}")],
        ["sign", "STORE", "--key", str(tmp_path / f"key-{umask}.pem")],
        ["export", "STORE", str(root / "out.h5")],
        ["import", str(root / "out.h5"), "--root", str(root / "imported")],
        [*distill, "--image-size", "32", "--student", "shufflenet-x0.5"],
    )
    done = extract(root, teacher, f"folder:{folder}", umask=umask, then=commands)
    assert done.returncode == 0, done.stderr
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
    public: Path, folder: Path, teacher: str
) -> None:
    root = public / "shared"
    root.mkdir()
    os.chown(root, FIRST, GROUP)
    root.chmod(0o2775)
    family, _, file = teacher.partition(":")
    teacher = f"{family}:{shutil.copy(file, public)}"
    dataset = f"folder:{shutil.copytree(folder, public / 'images')}"
    begun = extract(root, teacher, dataset, umask=0o002, user=FIRST, stop_after=3)
    assert begun.returncode == 9, begun.stderr
    done = extract(root, teacher, dataset, umask=0o002, user=SECOND)
    assert done.returncode == 0, done.stderr
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
