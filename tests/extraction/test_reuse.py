"""A dataset that grew, or more views: the teacher runs over what is new, and over nothing else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from small_inputs import Pooling, save_image
from torch import nn

from rdcache.extraction import ExtractConfig, plan_extraction, run_extraction
from rdcache.extraction.forward import TeacherForward
from rdcache.store import Store

Script = Callable[[nn.Module], str]


@pytest.fixture
def forwards(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many images each forward pass held."""
    counts: list[int] = []
    forward = TeacherForward._forward

    def counted(self: TeacherForward, images: list[object]) -> dict[str, torch.Tensor]:
        counts.append(len(images))
        return forward(self, images)  # type: ignore[arg-type]

    monkeypatch.setattr(TeacherForward, "_forward", counted)
    return counts


def extracted(teacher: str, folder: Path, views: str, **options: object) -> Store:
    config = ExtractConfig(
        teacher=teacher,
        dataset=f"folder:{folder}",
        views=views,
        batch_size=4,
        **options,  # type: ignore[arg-type]
    )
    return run_extraction(plan_extraction(config)).store


def test_what_is_copied_is_counted(script: Script, folder: Path) -> None:
    teacher = script(Pooling(1.0))
    first = extracted(teacher, folder, "clean")
    config = ExtractConfig(teacher=teacher, dataset=f"folder:{folder}", views="flip")
    assert run_extraction(plan_extraction(config)).copied == first.samples


def test_more_views_cost_the_new_ones_alone_and_give_the_same_numbers(
    script: Script, folder: Path, forwards: list[int], tmp_path: Path
) -> None:
    teacher = script(Pooling(1.0))
    few = extracted(teacher, folder, "2")
    probe, forwards[:] = forwards[0], []
    many = extracted(teacher, folder, "4")
    training = int((many.splits == "train").sum())
    assert sum(forwards) - probe == 2 * training
    assert few.location != many.location
    fresh = extracted(teacher, folder, "4", root=tmp_path / "elsewhere")
    for view, extent in enumerate(many.extents):
        for tap in many.taps:
            assert torch.equal(
                many.read(range(extent), view)[tap], fresh.read(range(extent), view)[tap]
            )


def test_new_images_are_extracted_and_old_ones_copied(
    script: Script, folder: Path, forwards: list[int]
) -> None:
    teacher = script(Pooling(1.0))
    extracted(teacher, folder, "clean")
    probe, forwards[:] = forwards[0], []
    random = np.random.default_rng(9)
    for number in range(3):
        image = random.integers(0, 255, (50, 50, 3)).astype(np.uint8)
        save_image(folder / "benign" / f"new{number}.png", image)
    grown = extracted(teacher, folder, "clean")
    assert grown.samples == 43
    assert sum(forwards) - probe == 3


def test_another_teacher_gives_nothing_away(
    script: Script, folder: Path, forwards: list[int]
) -> None:
    extracted(script(Pooling(1.0)), folder, "clean")
    forwards.clear()
    other = extracted(script(Pooling(2.0)), folder, "clean")
    assert sum(forwards) == other.samples + 4


def test_a_damaged_donor_is_passed_over(script: Script, folder: Path, forwards: list[int]) -> None:
    teacher = script(Pooling(1.0))
    few = extracted(teacher, folder, "clean")
    shard = next(path for path in few.location.glob("taps/out0/c/**/*") if path.is_file())
    data = bytearray(shard.read_bytes())
    data[10] ^= 1
    shard.write_bytes(data)
    forwards.clear()
    many = extracted(teacher, folder, "flip")
    training = int((many.splits == "train").sum())
    assert sum(forwards) == 4 + many.samples + training
