"""Wherever taps are kept, training gets the same numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rdcache.distillation import distill
from rdcache.distillation.residency import ReadTaps, ResidentTaps, as_numbers, choose_residency
from rdcache.distillation.subset import Subset
from rdcache.errors import UsageError
from rdcache.memory import available_memory
from rdcache.store import Store

from .conftest import TAPS, Tiny, write_store
from .test_resume import assert_same

Options = Callable[..., dict[str, Any]]
CPU = torch.device("cpu")


@pytest.fixture(params=["float16", "bfloat16", "int8"])
def compressed(tiny: Tiny, tmp_path: Path, request: pytest.FixtureRequest) -> Store:
    taps = (replace(TAPS[0], codec="zstd", dtype=request.param), replace(TAPS[1], codec="zstd"))
    return write_store(tmp_path / "compressed", tiny.dataset, ((3, 0), (7, 1)), taps)


def test_resident_taps_are_those_of_the_store_bit_for_bit(compressed: Store) -> None:
    random = np.random.default_rng(0)
    resident = ResidentTaps(compressed, ["s4", "tokens"], 2, CPU)
    there = np.stack([compressed.available(range(compressed.samples), v) for v in (0, 1)], axis=1)
    samples, views = np.nonzero(there)
    chosen = random.permutation(len(samples))[:40]
    expected = compressed.read(samples[chosen].tolist(), views[chosen].tolist(), ["tokens", "s4"])
    for source in (resident, ReadTaps(compressed)):
        stored = source.read(samples[chosen], views[chosen], ["tokens", "s4"])
        found = as_numbers(compressed, stored, ["tokens", "s4"])
        assert list(found) == ["tokens", "s4"]
        for name, tensor in expected.items():
            assert found[name].dtype == tensor.dtype
            assert torch.equal(found[name], tensor), name


def test_a_view_that_is_not_stored_is_refused_as_the_store_refuses_it(compressed: Store) -> None:
    resident = ResidentTaps(compressed, ["s4"], 2, CPU)
    with pytest.raises(UsageError, match="NaN or Inf"):
        resident.read(np.array([2, 3]), np.array([0, 0]), ["s4"])
    with pytest.raises(UsageError, match="not resident"):
        resident.read(np.array([2]), np.array([2]), ["s4"])


def test_of_a_part_of_the_training_images_no_other_is_kept(compressed: Store) -> None:
    part = Subset(0.5, seed=1)
    resident = ResidentTaps(compressed, ["s4"], 2, CPU, part)
    training, chosen = compressed.samples_of("train"), part.of_training(compressed)
    others = np.setdiff1d(training, chosen)
    rest = np.setdiff1d(np.arange(compressed.samples), training)
    read = np.concatenate([chosen[compressed.available(chosen.tolist(), 0)], rest])
    clean = np.zeros(len(read), np.int64)
    for name, tensor in compressed.read_stored(read, clean, list(resident._tensors)).items():
        assert torch.equal(resident._tensors[name][resident._rows[0, read]], tensor)
    with pytest.raises(UsageError, match="training sample that is not resident"):
        resident.read(others[-1:], np.zeros(1, np.int64), ["s4"])
    kept = len(read) + int(compressed.available(chosen.tolist(), 1).sum())
    assert all(len(tensor) == kept for tensor in resident._tensors.values())
    planned = choose_residency(compressed, ("s4",), 2, "host", CPU, part)
    assert planned.nbytes == sum(it.nbytes for it in resident._tensors.values())


def test_runs_from_memory_and_from_disk_are_the_same(
    compressed: Store, options: Options, tmp_path: Path
) -> None:
    places = {name: tmp_path / name for name in ("host", "disk")}
    part = {"train_fraction": 0.6}
    runs = [
        distill(compressed, resident=name, **options(**part, out=out))
        for name, out in places.items()
    ]
    assert_same(*runs)
    assert [run.result["environment"]["taps"].split()[0] for run in runs] == ["host", "disk"]


def test_auto_keeps_in_memory_what_would_be_decompressed_again(
    tiny: Tiny, compressed: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def chosen(store: Store, taps: tuple[str, ...] = ("s4",)) -> tuple[str, str]:
        found = choose_residency(store, taps, store.views, "auto", CPU)
        return found.where, found.why

    assert chosen(tiny.store)[0] == "disk"
    assert "share" in chosen(tiny.store)[1]
    assert chosen(compressed)[0] == "host"
    assert "decompressed" in chosen(compressed)[1]
    monkeypatch.setattr("rdcache.distillation.residency.available_memory", lambda: 1000)
    assert chosen(compressed)[0] == "disk"
    assert chosen(compressed, ()) == ("disk", "the method reads none")


def test_taps_leave_room_for_images_and_cuts(
    compressed: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    needed = choose_residency(compressed, ("s4",), compressed.views, "host", CPU).nbytes
    for available, where in ((4 * needed, "host"), (4 * needed - 1, "disk")):
        monkeypatch.setattr(
            "rdcache.distillation.residency.available_memory", lambda free=available: free
        )
        assert choose_residency(compressed, ("s4",), compressed.views, "auto", CPU).where == where


def test_taps_on_the_device_need_a_gpu(tiny: Tiny, options: Options) -> None:
    with pytest.raises(UsageError, match="GPU"):
        distill(tiny.store, resident="device", **options())


def test_a_job_is_never_promised_more_memory_than_the_machine_has() -> None:
    total = int(Path("/proc/meminfo").read_text().split()[1]) * 1024
    assert 0 < available_memory() <= total
