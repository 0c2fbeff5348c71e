"""Decoding, the teacher and writing at the same time: in order, bounded, and safe to interrupt."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_inputs import LargeOnBright, Pooling, save_image
from torch import nn

from rdcache.errors import DeviceMemoryError, StoreWriteError, TeacherOutputError
from rdcache.extraction import ExtractConfig, ExtractionPlan, plan_extraction, run_extraction
from rdcache.extraction import shards as shards_module
from rdcache.extraction.forward import BATCHES_AHEAD, CutImages, TeacherForward, forward_of
from rdcache.extraction.reuse import Donors
from rdcache.extraction.shards import ShardArrays, ShardInMemory, filled_shards
from rdcache.store import Store, StoreWriter, open_store, verify_store

Script = Callable[[nn.Module], str]
SHARD = 4


def planned(teacher: str, folder: Path, root: Path | None = None, **options: Any) -> ExtractionPlan:
    """Shards of one batch each, so that there are many."""
    given: dict[str, Any] = {"views": "flip", "batch_size": SHARD, "root": root, **options}
    plan = plan_extraction(ExtractConfig(teacher=teacher, dataset=f"folder:{folder}", **given))
    return replace(plan, layout=replace(plan.layout, shard_samples=SHARD))


def chunks(store: Store) -> dict[str, bytes]:
    return {
        path.relative_to(store.location).as_posix(): path.read_bytes()
        for path in Path(str(store.location)).rglob("*")
        if path.is_file() and path.name != "zarr.json"
    }


@pytest.fixture
def teacher(script: Script) -> str:
    return script(Pooling(1.0))


@pytest.fixture
def undisturbed(teacher: str, few: Path, tmp_path: Path) -> dict[str, bytes]:
    return chunks(run_extraction(planned(teacher, few, tmp_path / "undisturbed")).store)


def writer_of(plan: ExtractionPlan) -> StoreWriter:
    """The writer of a store that is begun and has no shards."""
    store = run_extraction(plan).store
    writer = StoreWriter(store.location, dict(store.manifest))
    writer.forget(writer.layout.shards())
    return writer


def test_shards_are_pulled_a_few_batches_ahead_and_come_in_order(teacher: str, few: Path) -> None:
    plan = planned(teacher, few)
    writer = writer_of(plan)
    pulled = []
    shards = (pulled.append(shard) or shard for shard in writer.layout.shards())
    ahead = []
    filled = []
    for each in filled_shards(shards, writer, forward_of(plan), Donors([])):
        ahead.append(len(pulled) - len(filled) - 1)
        filled.append(each.shard)
    assert filled == writer.layout.shards()
    assert 1 <= max(ahead) <= BATCHES_AHEAD + 1, "ahead, but not all at once"


def test_shards_that_need_no_teacher_are_not_all_pulled_at_once(teacher: str, few: Path) -> None:
    plan = planned(teacher, few)
    store = run_extraction(plan).store
    writer = StoreWriter(store.location, dict(store.manifest))
    pulled = []
    shards = (pulled.append(shard) or shard for shard in writer.layout.shards())
    first = next(filled_shards(shards, writer, forward_of(plan), Donors([store])))
    assert not len(first.lacking)
    assert len(pulled) <= 2, "there is nothing to decode ahead"


def test_the_teacher_is_at_work_while_a_shard_is_written(
    teacher: str, few: Path, monkeypatch: pytest.MonkeyPatch, undisturbed: dict[str, bytes]
) -> None:
    ahead, write, forward = threading.Event(), ShardInMemory.write, TeacherForward._forward
    passes: list[bool] = []

    def patient(self: ShardInMemory) -> bool:
        assert ahead.wait(60), "the teacher waits for the disk"
        return write(self)

    def counted(self: TeacherForward, images: CutImages) -> dict[str, torch.Tensor]:
        passes.append(True)
        if len(passes) == 4:  # one looks for large numbers; then one a shard
            ahead.set()
        return forward(self, images)

    monkeypatch.setattr(ShardInMemory, "write", patient)
    monkeypatch.setattr(TeacherForward, "_forward", counted)
    assert chunks(run_extraction(planned(teacher, few)).store) == undisturbed


def test_arrays_of_shards_are_used_again(
    teacher: str, few: Path, monkeypatch: pytest.MonkeyPatch, undisturbed: dict[str, bytes]
) -> None:
    taken, take = [], ShardArrays.take

    def noted(self: ShardArrays) -> dict[str, np.ndarray]:
        taken.append(take(self))
        return taken[-1]

    monkeypatch.setattr(ShardArrays, "take", noted)
    assert chunks(run_extraction(planned(teacher, few)).store) == undisturbed
    assert len(taken) >= 6
    assert len({id(arrays) for arrays in taken}) <= 3, "filled, waiting, being written"


def test_a_failing_disk_stops_the_teacher_at_its_next_batch(
    teacher: str, few: Path, monkeypatch: pytest.MonkeyPatch, undisturbed: dict[str, bytes]
) -> None:
    failed, forward = threading.Event(), TeacherForward._forward
    after: list[bool] = []

    def refuse(self: StoreWriter, *given: object) -> None:
        failed.set()
        raise StoreWriteError("the store cannot be written.")

    def counted(self: TeacherForward, images: CutImages) -> dict[str, torch.Tensor]:
        if failed.is_set():
            after.append(True)
        return forward(self, images)

    plan = planned(teacher, few)
    with monkeypatch.context() as patch:
        patch.setattr(StoreWriter, "write", refuse)
        patch.setattr(TeacherForward, "_forward", counted)
        with pytest.raises(StoreWriteError, match="cannot be written"):
            run_extraction(plan)
    assert len(after) <= 3
    assert chunks(run_extraction(plan).store) == undisturbed


def test_who_interrupts_finds_the_shard_that_was_being_written_whole(
    teacher: str, few: Path, monkeypatch: pytest.MonkeyPatch, undisturbed: dict[str, bytes]
) -> None:
    begun, interrupted = threading.Event(), threading.Event()
    write, add = ShardInMemory.write, ShardInMemory.add

    def slow(self: ShardInMemory) -> bool:
        begun.set()
        interrupted.wait(1)
        return write(self)

    def interrupt(self: ShardInMemory, batch: dict[str, torch.Tensor]) -> int:
        if begun.is_set():
            interrupted.set()
            raise KeyboardInterrupt
        return add(self, batch)

    plan = planned(teacher, few)
    with monkeypatch.context() as patch:
        patch.setattr(ShardInMemory, "write", slow)
        patch.setattr(ShardInMemory, "add", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run_extraction(plan)
    assert not [thread for thread in threading.enumerate() if "write-shard" in thread.name]
    store = open_store(plan.location, allow_incomplete=True)
    assert store.available(range(SHARD), 0).all()
    assert not list(plan.location.rglob("*.partial"))  # type: ignore[union-attr]
    resumed = run_extraction(plan)
    assert resumed.status == "resumed"
    assert chunks(resumed.store) == undisturbed


def test_a_tap_that_overflows_while_a_shard_is_written_ends_in_a_sound_store(
    script: Script, few: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_image(few / "malignant" / "white.png", np.full((40, 40, 3), 255, np.uint8))
    write = ShardInMemory.write
    overflowed = threading.Event()
    as_stored = shards_module._as_stored

    def slow(self: ShardInMemory) -> bool:
        overflowed.wait(1)
        return write(self)

    def noted(*given: Any) -> Any:
        try:
            return as_stored(*given)
        except ArithmeticError:
            overflowed.set()
            raise

    monkeypatch.setattr(ShardInMemory, "write", slow)
    monkeypatch.setattr(shards_module, "_as_stored", noted)
    extraction = run_extraction(planned(script(LargeOnBright()), few, views="clean"))
    assert extraction.promoted == ("out0",)
    assert overflowed.is_set()
    assert verify_store(extraction.store.location) == []


def small_memory(monkeypatch: pytest.MonkeyPatch, images: int) -> list[int]:
    """A device on which no more than so many images fit; sizes of the passes that were tried."""
    tried: list[int] = []
    forward = TeacherForward._forward

    def limited(self: TeacherForward, batch: CutImages) -> dict[str, torch.Tensor]:
        tried.append(len(batch))
        if len(batch) > images:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        return forward(self, batch)

    monkeypatch.setattr(TeacherForward, "_forward", limited)
    return tried


def test_a_batch_that_does_not_fit_is_halved_for_good(
    teacher: str, few: Path, monkeypatch: pytest.MonkeyPatch, undisturbed: dict[str, bytes]
) -> None:
    tried = small_memory(monkeypatch, 2)
    assert chunks(run_extraction(planned(teacher, few)).store) == undisturbed
    assert tried[:3] == [4, 2, 2]
    assert max(tried[1:]) == 2, "it is not tried again"


def test_a_single_image_that_does_not_fit_is_one_sentence(
    teacher: str, few: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = small_memory(monkeypatch, 0)
    with pytest.raises(DeviceMemoryError, match="with a single image") as caught:
        run_extraction(planned(teacher, few))
    assert tried == [4, 2, 1]
    assert caught.value.facts["why"] == "CUDA out of memory"


def test_no_sample_is_left_out_when_batches_become_smaller_within_a_request(
    teacher: str, few: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = forward_of(planned(teacher, few), batch_size=2)
    expected = torch.cat([batch["out0"] for batch in forward.batches(0, range(16))])
    tried = small_memory(monkeypatch, 1)
    batches = list(forward.batches(0, range(16)))
    assert tried == [2] + [1] * 16
    assert torch.equal(torch.cat([batch["out0"] for batch in batches]), expected)


def test_a_compiled_batch_that_is_filled_up_with_blanks_is_halved_by_its_whole_size(
    teacher: str, few: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = forward_of(planned(teacher, few))
    sizes: list[int] = []
    compute = forward.teacher._forward

    def limited(images: torch.Tensor, names: tuple[str, ...]) -> dict[str, torch.Tensor]:
        sizes.append(len(images))
        if len(images) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        return compute(images, names)

    monkeypatch.setattr(forward.teacher, "_forward", limited)
    monkeypatch.setattr(forward.teacher, "compiled", True)
    assert len(list(forward.batches(0, [0]))) == 1
    assert sizes == [4, 2, 1]


def test_a_shard_that_is_not_full_is_not_written(teacher: str, few: Path) -> None:
    plan = planned(teacher, few)
    writer = writer_of(plan)
    shard = writer.layout.shards()[0]
    filled = ShardInMemory(shard, writer, ShardArrays(writer.layout))
    (batch,) = forward_of(plan).batches(0, range(SHARD - 1))
    filled.add(batch)
    with pytest.raises(TeacherOutputError, match="lacks samples"):
        filled.write()
    assert writer.lacks(shard)


def test_too_little_memory_for_a_shard_is_what_is_said(
    teacher: str, few: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: ShardArrays) -> dict[str, np.ndarray]:
        raise MemoryError

    writer = writer_of(planned(teacher, few))
    monkeypatch.setattr(ShardArrays, "take", refuse)
    filled = ShardInMemory(writer.layout.shards()[0], writer, ShardArrays(writer.layout))
    filled.lacking = filled.lacking[:0]
    with pytest.raises(MemoryError):
        filled.write()
