"""A bucket that answers with errors, late, in part or not at all; processes that die on the way."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from s3_server import KINDS, S3Server
from small_inputs import Pooling
from store.conftest import begin, fill
from torch import nn

from rdcache.store import RemotePath, Store, StoreLayout, TapSpec, open_store, verify_store
from rdcache.store.objects import objects_at
from rdcache.store.transfer import copy_store

from .test_many_writers import ALONE, ENVIRONMENT, chunks, extract

Script = Callable[[nn.Module], str]
# Every tenth request fails at once, others in ways that are harder to see.
FAULTS = {"error": 0.1, "lost_answer": 0.05, "cut": 0.08, "slow": 0.1, "hang": 0.01}
TAPS = (
    TapSpec("map", "map2d", (64, 14, 14), "float16"),
    TapSpec("pooled", "vector", (64,), "float32"),
)
LAYOUT = StoreLayout(samples=240, extents=(240, 200), taps=TAPS, shard_samples=16)


@pytest.fixture
def big(tmp_path: Path) -> Store:
    """Thirteen MB in 28 shards of each tap."""
    writer = begin(tmp_path / "source", LAYOUT)
    fill(writer)
    return writer.commit({})


@pytest.fixture
def impatient(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    """Wait three seconds for an answer; a server that hangs takes five."""
    monkeypatch.setenv("RDCACHE_PATIENCE", "6")
    s3.struck = dict.fromkeys(s3.struck, 0)
    return s3


def bytes_of(place: RemotePath) -> dict[str, bytes]:
    objects = objects_at(place)
    return {name: objects.read(name) or b"" for name in objects.sizes("")}


def test_push_pull_and_reading_lose_nothing_whatever_the_server_does(
    big: Store, bucket: RemotePath, impatient: S3Server, tmp_path: Path
) -> None:
    with impatient.failing(**FAULTS):
        place = copy_store(big.location, bucket).store.location
        pulled = copy_store(place, tmp_path / "pulled").store
        remote = open_store(place)
        for view, extent in enumerate(big.extents):
            here, there = (it.read(range(extent), view, verify=True) for it in (big, remote))
            assert all(torch.equal(here[tap], there[tap]) for tap in big.taps)
    assert {kind for kind, often in impatient.struck.items() if often} >= set(KINDS) - {"hang"}
    assert isinstance(place, RemotePath)
    assert bytes_of(place) == all_bytes(big.location)
    assert all_bytes(Path(str(pulled.location))) == all_bytes(big.location)


def all_bytes(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_a_push_that_is_killed_again_and_again_goes_on(
    big: Store, bucket: RemotePath, s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = {**os.environ, **{k: ENVIRONMENT[k] for k in ("OMP_NUM_THREADS", "PYTHONPATH")}}
    command = [sys.executable, "-m", "faults.copy_store", str(big.location), str(bucket)]
    random, progress = np.random.default_rng(3), []
    for _ in range(4):
        before = s3.count("PUT")
        kill_at = before + int(random.integers(10, 30))
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
        while process.poll() is None and s3.count("PUT") < kill_at:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.002)
        process.send_signal(signal.SIGKILL)
        process.wait()
        progress.append(len(objects_at(bucket).sizes("")))
    assert progress == sorted(progress)
    s3.requests.clear()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "copied"
    # What had been finished before was not sent again.
    assert s3.count("PUT", "/taps/map/c/") < len(LAYOUT.shards())
    (place,) = {"/".join(name.split("/")[:3]) for name in objects_at(bucket).sizes("")}
    assert bytes_of(bucket / place) == all_bytes(big.location)
    assert verify_store(bucket / place) == []


def test_extractions_into_a_bucket_share_the_work_and_survive_a_kill(
    script: Script,
    folder: Path,
    tmp_path: Path,
    bucket: RemotePath,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION"):
        monkeypatch.setitem(ENVIRONMENT, name, os.environ[name])
    teacher = script(Pooling(1.0))
    (alone,) = extract(teacher, folder, [{**ALONE, "root": str(tmp_path / "alone")}])
    assert alone == ["extracted"]
    joined = {"join": True, "processes": 3, "kills": 1, "shards_apart": 3, "seed": 1}
    (statuses,) = extract(teacher, folder, [{**joined, "root": str(bucket)}])
    assert statuses.count("killed") == 1
    assert set(statuses) <= {"extracted", "resumed", "joined", "unchanged", "killed"}
    undisturbed = chunks(tmp_path / "alone")
    names = objects_at(bucket).sizes("")
    (place,) = {"/".join(name.split("/")[:3]) for name in names if ".claims" not in name}
    found = {n: d for n, d in bytes_of(bucket / place).items() if not n.endswith("zarr.json")}
    assert found == undisturbed
    assert verify_store(bucket / place) == []
