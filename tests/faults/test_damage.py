"""Flipped bits, cut files, deleted files: `verify` finds each, and no reader takes one for good."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from store.conftest import LAYOUT, begin, fill

from rdcache.errors import RdcacheError
from rdcache.store import Store, open_store, verify_store

TRIALS = 150  # benchmarks/faults.py does a thousand


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    writer = begin(tmp_path_factory.mktemp("damage") / "store", LAYOUT)
    fill(writer)
    return writer.commit({"dataset": {"name": "invented"}})


def flip(data: bytes, random: random.Random) -> bytes:
    position = random.randrange(len(data))
    flipped = data[position] ^ (1 << random.randrange(8))
    return data[:position] + bytes([flipped]) + data[position + 1 :]


def cut(data: bytes, random: random.Random) -> bytes:
    return data[: random.randrange(len(data))]


def remove(data: bytes, random: random.Random) -> None:
    return None


def found(location: Path) -> bool:
    """Whether verify finds something, or refuses the store altogether."""
    try:
        return bool(verify_store(location))
    except RdcacheError:
        return True


def test_an_undamaged_store_has_no_problems(store: Store) -> None:
    assert verify_store(store.location) == []


def test_every_kind_of_damage_to_every_file_is_found(store: Store) -> None:
    files = sorted(path for path in store.location.rglob("*") if path.is_file())
    for path in files:
        good = path.read_bytes()
        for damage in (flip, cut, remove):
            data = damage(good, random.Random(str(path)))
            path.unlink()
            if data is not None:
                path.write_bytes(data)
            assert found(store.location), (path, damage.__name__)
            path.write_bytes(good)
    assert verify_store(store.location) == []


def test_random_damage_is_found_and_never_read_for_good(store: Store) -> None:
    files = sorted(path for path in store.location.rglob("*") if path.is_file())
    everything = store.read(range(LAYOUT.samples), 0)
    generator = random.Random(0)
    for _ in range(TRIALS):
        path = generator.choice(files)
        good = path.read_bytes()
        damage: Callable[[bytes, random.Random], bytes | None]
        damage = generator.choice([flip, flip, cut, remove])
        data = damage(good, generator)
        path.unlink()
        if data is not None:
            path.write_bytes(data)
        assert found(store.location), (path, damage.__name__)
        try:
            read = open_store(store.location).read(range(LAYOUT.samples), 0, verify=True)
        except RdcacheError:
            pass
        else:  # the damage is elsewhere: in a receipt, another view, or the space of a JSON file
            for tap, values in everything.items():
                assert torch.equal(read[tap].view(torch.uint8), values.view(torch.uint8)), (
                    path,
                    tap,
                )
        path.write_bytes(good)


def test_what_belongs_to_nothing_is_named(store: Store) -> None:
    stranger = store.location / "notes.txt"
    stranger.write_text("hello")
    (problem,) = verify_store(store.location)
    stranger.unlink()
    assert (problem.name, problem.shard) == ("notes.txt", None)


def test_a_problem_names_shard_and_tap(store: Store) -> None:
    path = store.location / "taps/pooled/c/0/1/0"
    good = path.read_bytes()
    path.write_bytes(good[:-1])
    (problem,) = verify_store(store.location)
    path.write_bytes(good)
    assert problem.tap == "pooled"
    assert problem.shard is not None
    assert (problem.shard.view, problem.shard.index) == (0, 1)
