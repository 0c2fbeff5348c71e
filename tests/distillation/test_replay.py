"""Training from the cache is training with the teacher at hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rdcache.data import cut_view
from rdcache.distillation import DistillConfig
from rdcache.distillation.preparing import create_trainer
from rdcache.extraction import extract
from rdcache.methods import CachedBatch, TrainingProgress
from rdcache.models import load_teacher

from .conftest import QUICK, Tiny


def test_the_loss_from_cached_taps_is_the_loss_of_the_live_teacher_on_the_same_views(
    tiny: Tiny, tmp_path: Path
) -> None:
    store = extract(
        teacher="efficientnet-lite0",
        dataset=f"folder:{tiny.images}",
        views="3",
        taps=("s4",),
        root=tmp_path,
        device="cpu",
    )
    config = DistillConfig(**{**QUICK, "data_dir": tiny.data_dir}).resolved()
    trainer = create_trainer(store, tiny.dataset, config, 0, torch.device("cpu"))
    picks = trainer.training.batches(8, epoch=1)[0]
    assert len(set(picks.views.tolist())) > 1
    cached = trainer.source.cached(picks, trainer.method.taps)

    teacher = load_teacher("efficientnet-lite0")
    images = [
        cut_view(
            tiny.dataset.decode(int(sample)),
            store.view_parameters[view, sample],
            teacher.preprocessing.size,
            teacher.preprocessing.interpolation,
        )
        for sample, view in zip(picks.samples, picks.views, strict=True)
    ]
    pixels = torch.stack([torch.from_numpy(image) for image in images])
    live_taps = teacher.forward_taps(teacher.preprocessing.normalise(pixels), ["s4"])
    live = CachedBatch(cached.samples, live_taps, cached.target)

    student = next(trainer.source.clean.images(picks.samples))
    progress = TrainingProgress(epoch=0, epochs=2)
    output = trainer.student(student)
    from_cache = trainer.method(cached, output, progress)
    from_teacher = trainer.method(live, output, progress)
    assert from_cache.keys() == {"ce", "teacher_ce", "kl", "cka"}
    for name, value in from_teacher.items():
        assert from_cache[name].item() == pytest.approx(value.item(), rel=1e-3), name
