"""A bucket that answers with errors, late, in part or not at all; processes that die on the way."""

from __future__ import annotations

import re
import signal
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import torch
from forked import Forked, finished
from s3_server import KINDS, S3Server
from small_inputs import Pooling
from store.conftest import begin, fill
from torch import nn

from rdcache.store import RemotePath, Store, StoreLayout, TapSpec, open_store, verify_store
from rdcache.store.objects import objects_at
from rdcache.store.remote import PIECE_BYTES
from rdcache.store.transfer import copy_store

from .copy_store import copy
from .test_many_writers import ALONE, chunks, extract

Script = Callable[[nn.Module], str]
# Every tenth request fails at once, others in ways that are harder to see.
FAULTS = {"error": 0.1, "lost_answer": 0.05, "cut": 0.08, "slow": 0.1, "hang": 0.05}
TAPS = (
    TapSpec("map", "map2d", (64, 14, 14), "float16"),
    TapSpec("pooled", "vector", (64,), "float32"),
)
LAYOUT = StoreLayout(samples=120, extents=(120, 100), taps=TAPS, shard_samples=8)
SHORT = StoreLayout(samples=60, extents=(60, 50), taps=TAPS, shard_samples=8)


@pytest.fixture
def big(tmp_path: Path) -> Store:
    """Six MB in 28 shards of each tap."""
    return filled(tmp_path / "source", LAYOUT)


def filled(place: Path, layout: StoreLayout) -> Store:
    writer = begin(place, layout)
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
    bucket: RemotePath, impatient: S3Server, tmp_path: Path
) -> None:
    source = filled(tmp_path / "source", SHORT)
    with impatient.failing(**FAULTS):
        place = copy_store(source.location, bucket).store.location
        pulled = copy_store(place, tmp_path / "pulled").store
    with impatient.failing(**FAULTS):
        remote = open_store(place)
        for view, extent in enumerate(source.extents):
            here, there = (it.read(range(extent), view, verify=True) for it in (source, remote))
            assert all(torch.equal(here[tap], there[tap]) for tap in source.taps)
    assert all(impatient.struck[kind] for kind in KINDS), impatient.struck
    assert isinstance(place, RemotePath)
    assert bytes_of(place) == all_bytes(source.location)
    assert all_bytes(Path(str(pulled.location))) == all_bytes(source.location)


def all_bytes(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def shards_in(names: Iterable[str], array: str) -> set[tuple[int, int]]:
    """View and number of each shard that has an object of an array among these names."""
    found = (re.search(rf"/{array}/c/(\d+)/(\d+)/", name) for name in names)
    return {(int(it[1]), int(it[2])) for it in found if it}


def finished_shards(root: RemotePath) -> set[tuple[int, int]]:
    """Those with a receipt, which is what is written last."""
    return shards_in(objects_at(root).sizes(""), "receipt")


def test_a_push_that_is_killed_again_and_again_goes_on(
    big: Store, bucket: RemotePath, s3: S3Server
) -> None:
    order = (copy, str(big.location), str(bucket))
    everything = {(shard.view, shard.index) for shard in LAYOUT.shards()}
    whole = all_bytes(big.location)
    finished_before = finished_shards(bucket)
    for begun in (1, 5, 3, 6):  # by four threads, so that the fifth follows a finished one
        s3.requests.clear()
        process = Forked(*order)
        while s3.count("PUT", "/taps/map/c/") < begun and process.wait(0.002) is None:
            pass
        process.kill()
        assert process.code == -signal.SIGKILL
        assert not shards_in(puts(s3), "map") & finished_before, "what was finished is sent again"
        finished_now = finished_shards(bucket)
        assert finished_now >= finished_before, "what was finished is gone"
        finished_before = finished_now
        place = place_in(bucket)
        for name, data in bytes_of(bucket / place).items():
            found = shards_in([f"/{name}/"], "taps/(?:map|pooled)")
            assert not found or found - finished_now or data == whole[name]
    assert set() < finished_before < everything
    s3.requests.clear()
    done = finished(*order)
    assert done.code == 0, done.stderr
    assert done.stdout.strip() == "copied"
    for array in ("map", "pooled", "receipt"):
        assert shards_in(puts(s3), array) == everything - finished_before
    assert bytes_of(bucket / place) == whole
    assert verify_store(bucket / place) == []


def puts(s3: S3Server) -> list[str]:
    return [path for method, path in list(s3.requests) if method == "PUT"]


def place_in(root: RemotePath) -> str:
    """Where the only store under a root lies."""
    names = objects_at(root).sizes("")
    (place,) = {"/".join(name.split("/")[:3]) for name in names if ".claims" not in name}
    return place


def test_objects_of_many_pieces_lose_nothing_whatever_the_server_does(
    bucket: RemotePath, impatient: S3Server, tmp_path: Path
) -> None:
    tap = TapSpec("map", "map2d", (64, 96, 96), "float16")
    large = filled(tmp_path / "source", StoreLayout(32, (32,), (tap,), shard_samples=16))
    size = (Path(large.location) / "taps/map/c/0/0/0/0/0").stat().st_size
    assert size > 2 * PIECE_BYTES
    with impatient.failing(**FAULTS):
        place = copy_store(large.location, bucket).store.location
        pulled = copy_store(place, tmp_path / "pulled").store
    assert isinstance(place, RemotePath)
    for shard in range(2):
        name = f"/taps/map/c/0/{shard}/"
        pieces = -(-size // PIECE_BYTES)
        assert impatient.count("POST", name) >= 2, "begun and completed"
        assert impatient.count("PUT", name) >= pieces
        assert impatient.count("GET", name) >= pieces
    assert bytes_of(place) == all_bytes(large.location)
    assert all_bytes(Path(pulled.location)) == all_bytes(large.location)


def test_extractions_into_a_bucket_share_the_work_and_survive_a_kill(
    script: Script, few: Path, tmp_path: Path, bucket: RemotePath
) -> None:
    teacher = script(Pooling(1.0))
    joined = {"join": True, "processes": 3, "kills": 1, "shards_apart": 3, "seed": 1}
    plans: list[dict[str, object]] = [
        {**ALONE, "root": str(tmp_path / "alone")},
        {**joined, "root": str(bucket)},
    ]
    alone, statuses = extract(teacher, few, plans)
    assert alone == ["extracted"]
    assert statuses.count("killed") == 1
    assert set(statuses) <= {"extracted", "resumed", "joined", "unchanged", "killed"}
    place = bucket / place_in(bucket)
    found = {n: d for n, d in bytes_of(place).items() if not n.endswith("zarr.json")}
    assert found == chunks(tmp_path / "alone")
    assert verify_store(place) == []
