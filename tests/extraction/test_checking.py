"""A store beside its teacher: agreement within rounding, damage mended, strangers refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from small_inputs import Pooling
from torch import nn

from rdcache.errors import StaleStoreError
from rdcache.extraction import ExtractConfig, plan_extraction, run_extraction
from rdcache.extraction.checking import compare_with_teacher, mend_shards, plan_again
from rdcache.extraction.forward import TeacherForward
from rdcache.store import Store, open_store, verify_store

Script = Callable[[nn.Module], str]


def extracted(teacher: str, folder: Path, **options: object) -> Store:
    config = ExtractConfig(
        teacher=teacher,
        dataset=f"folder:{folder}",
        **{"views": "flip", "fit": "center", "seed": 3, **options},  # type: ignore[arg-type]
    )
    return run_extraction(plan_extraction(config)).store


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_what_is_stored_is_what_the_teacher_gives_again(
    script: Script, folder: Path, dtype: str
) -> None:
    teacher = script(Pooling(1.0))
    store = extracted(teacher, folder, dtype=dtype)
    plan = plan_again(store.location, teacher=teacher, dataset=f"folder:{folder}")
    assert plan.location == store.location
    (agreement,) = compare_with_teacher(store, plan, count=20)
    assert agreement.samples == 20
    assert agreement.ok
    assert agreement.cosine > 0.999
    assert (agreement.error == 0) == (dtype == "float32")


def test_tensors_of_other_images_do_not_agree(script: Script, folder: Path) -> None:
    teacher = script(Pooling(1.0))
    store = extracted(teacher, folder)
    plan = plan_again(store.location, teacher=teacher, dataset=f"folder:{folder}")
    plan.view_parameters[:] = np.roll(plan.view_parameters, 1, axis=0)
    agreements = compare_with_teacher(store, plan, count=30)
    assert not all(agreement.ok for agreement in agreements)


def test_only_broken_shards_are_extracted_again(script: Script, folder: Path) -> None:
    teacher = script(Pooling(1.0))
    store = extracted(teacher, folder)
    before = {path: path.read_bytes() for path in store.location.rglob("*") if path.is_file()}
    broken = next(path for path in before if "taps/out0/c/1/" in path.as_posix())
    middle = len(before[broken]) // 2
    data = before[broken]
    broken.write_bytes(data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :])
    times = {path: path.stat().st_mtime_ns for path in before}

    problems = verify_store(store.location)
    assert [problem.shard.view for problem in problems if problem.shard] == [1]
    mend_shards(plan_again(store.location, teacher=teacher, dataset=f"folder:{folder}"), problems)
    assert verify_store(store.location) == []
    assert broken.read_bytes() == data
    untouched = [path for path in before if "taps/out0/c/0/" in path.as_posix()]
    assert all(path.stat().st_mtime_ns == times[path] for path in untouched)


def test_another_teacher_or_other_images_are_refused(script: Script, folder: Path) -> None:
    store = extracted(script(Pooling(1.0)), folder)
    with pytest.raises(StaleStoreError, match="weights"):
        plan_again(store.location, teacher=script(Pooling(2.0)), dataset=f"folder:{folder}")


@pytest.mark.parametrize("array", ["taps/out0/c/1", "outcome/c/1", "receipt/c/1"])
@pytest.mark.parametrize("lost", [False, True], ids=["flipped", "lost"])
def test_a_moved_store_is_mended_where_it_lies_even_if_a_machine_gives_other_bits(
    script: Script,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    array: str,
    lost: bool,
) -> None:
    teacher = script(Pooling(1.0))
    location = extracted(teacher, folder).location.rename(tmp_path / "moved")
    chunk = next(path for path in (location / array).rglob("*") if path.is_file())
    data = chunk.read_bytes()
    chunk.unlink()
    if not lost:
        chunk.write_bytes(bytes([data[0] ^ 1]) + data[1:])
    problems = verify_store(location)
    assert any(problem.shard is not None and problem.shard.view == 1 for problem in problems)

    forward = TeacherForward._forward
    monkeypatch.setattr(
        TeacherForward,
        "_forward",
        lambda self, images: {name: tap + 1 for name, tap in forward(self, images).items()},
    )
    mend_shards(plan_again(location, teacher=teacher, dataset=f"folder:{folder}"), problems)
    assert verify_store(location) == []
    assert open_store(location).complete
