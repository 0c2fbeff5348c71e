"""Moving averages of weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from rdcache.methods.averaging import MovingAverage


def test_the_average_follows_its_formula_and_shortens_at_the_start() -> None:
    module = nn.Linear(1, 1, bias=False)
    nn.init.constant_(module.weight, 0.0)
    average = MovingAverage(module, decay=0.5)
    expected = 0.0
    for update in range(20):
        nn.init.constant_(module.weight, float(update))
        average.update(module)
        decay = min(0.5, (1 + update) / (10 + update))
        expected = decay * expected + (1 - decay) * update
    assert average.averaged.weight.item() == pytest.approx(expected)  # type: ignore[union-attr]


def test_statistics_are_averaged_and_counters_copied() -> None:
    module = nn.BatchNorm1d(2)
    average = MovingAverage(module, decay=0.5)
    module(torch.tensor([[0.0, 10.0], [2.0, 30.0]]))
    average.update(module)
    buffers = dict(average.averaged.named_buffers())
    assert int(buffers["num_batches_tracked"]) == 1
    assert torch.allclose(buffers["running_mean"], 0.9 * module.running_mean)


def test_the_average_stays_in_evaluation_mode_and_survives_its_state_dict() -> None:
    module = nn.BatchNorm1d(2)
    average = MovingAverage(module, decay=0.9)
    average.train()
    assert not average.averaged.training
    average.update(module)
    other = MovingAverage(nn.BatchNorm1d(2), decay=0.9)
    other.load_state_dict(average.state_dict())
    assert other.updates == 1
