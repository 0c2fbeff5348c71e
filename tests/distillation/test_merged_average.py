"""Where the student's moving average counts, so does that of what is merged into it."""

from __future__ import annotations

from typing import Any

import torch

from rdcache.distillation import DistillConfig
from rdcache.distillation.preparing import create_trainer
from rdcache.distillation.together import train_together
from rdcache.distillation.training import Trainer

from .conftest import QUICK, Tiny


def new_trainer(tiny: Tiny) -> Trainer:
    own: dict[str, Any] = {"method": "norm", "ema": 0.9, "method_options": {"width": 16}}
    config = DistillConfig(**{**QUICK, "data_dir": tiny.data_dir, **own}).resolved()
    return create_trainer(tiny.store, tiny.dataset, config, 0, torch.device("cpu"))


def test_norm_deploys_averaged_layers_and_goes_on_with_them(tiny: Tiny) -> None:
    trainer = new_trainer(tiny)
    next(train_together([trainer], lambda done: None))
    assert trainer.average is not None
    assert trainer.merged_average is not None
    averaged: Any = trainer.average.averaged
    evaluated = trainer.evaluated
    found = evaluated.classifier.weight
    layers = trainer.merged_average.averaged
    assert torch.equal(found, trainer.method.deployed(averaged, layers).classifier.weight)
    assert not torch.allclose(found, trainer.method.deployed(averaged).classifier.weight)

    resumed = new_trainer(tiny)
    resumed.restore(trainer.state())
    assert resumed.average is not None
    assert resumed.merged_average is not None
    assert resumed.merged_average.updates == resumed.average.updates == trainer.steps_per_epoch
    theirs = resumed.evaluated.state_dict()
    for name, value in evaluated.state_dict().items():
        assert torch.equal(value, theirs[name]), name
