"""What a student learns depends on how far images are reduced, not on where they are kept."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from rdcache.distillation import distill, evaluate_run

from .conftest import Tiny

Options = Callable[..., dict[str, Any]]


def test_reduced_images_train_the_same_student_from_memory_and_from_disk(
    tiny: Tiny, options: Options, tmp_path: Path
) -> None:
    reduced = options(epochs=1, image_size=16, working_scale=1.0)
    memory = distill(tiny.store, **reduced)
    disk, again = (
        distill(tiny.store, **{**reduced, "out": tmp_path / name, "inputs_cache": tmp_path})
        for name in ("first", "second")
    )
    weights = memory.student.state_dict()
    for run in (disk, again):
        assert run.path.relative_to(run.path.parents[1]) == memory.path.relative_to(
            memory.path.parents[1]
        )
        for name, value in run.student.state_dict().items():
            assert torch.equal(value, weights[name]), name
    assert "kept in memory" in memory.result["environment"]["images"]
    assert "kept on disk" in again.result["environment"]["images"]
    assert ", 0 of them reduced" not in memory.result["environment"]["images"]
    assert str(tmp_path) not in again.result["environment"]["images"]


def test_what_is_reported_of_a_student_is_of_the_original_images(
    tiny: Tiny, options: Options
) -> None:
    """`evaluate_run` cuts from the originals, and knows nothing of how the run was fed."""
    run = distill(tiny.store, **options(epochs=1, image_size=16, working_scale=1.0))
    again = evaluate_run(run, data_dir=tiny.data_dir, device="cpu")
    assert again["nll"] == run.metrics["nll"]
    assert again["accuracy"] == run.metrics["accuracy"]
