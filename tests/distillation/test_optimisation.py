"""Learning rates over time, and what is decayed."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from rdcache.distillation.optimisation import create_optimiser, learning_rate
from rdcache.errors import UsageError


def test_cosine_rises_linearly_and_falls_to_zero() -> None:
    rates = [learning_rate("cosine", step, 1000, 100, 1.0) for step in range(1000)]
    assert rates[0] == pytest.approx(1 / 101)
    assert rates[50] == pytest.approx(51 / 101)
    assert rates[100] == 1.0
    assert rates[550] == pytest.approx(0.5)
    assert rates[999] == pytest.approx((1 + math.cos(math.pi * 899 / 900)) / 2)


def test_the_papers_steps_scale_with_the_training() -> None:
    for epochs in (240, 24):
        rates = [learning_rate("step", e, epochs, 0, 5e-3) for e in range(epochs)]
        changes = [e for e in range(1, epochs) if rates[e] != rates[e - 1]]
        assert changes == [epochs * e // 240 for e in (150, 180, 210)]
        assert rates[-1] == pytest.approx(5e-6)


def test_onecycle_peaks_once() -> None:
    rates = [learning_rate("onecycle", step, 100, 0, 1.0) for step in range(100)]
    assert rates[0] == pytest.approx(1 / 25)
    assert max(rates) == rates[30] == 1.0
    assert rates[:31] == sorted(rates[:31])
    assert rates[30:] == sorted(rates[30:], reverse=True)


def test_a_warm_up_takes_at_most_a_fifth_of_the_training() -> None:
    rates = [learning_rate("constant", step, 10, 100, 1.0) for step in range(10)]
    assert rates == pytest.approx([1 / 3, 2 / 3, *[1.0] * 8])


def test_an_unknown_schedule_is_refused() -> None:
    with pytest.raises(UsageError, match="no schedule"):
        learning_rate("poly", 0, 10, 0, 1.0)


def test_norms_and_biases_are_not_decayed_and_shared_layers_are_listed_once() -> None:
    shared = nn.Linear(3, 2)
    network = nn.Sequential(nn.Conv2d(1, 3, 1), nn.BatchNorm2d(3), shared)
    optimiser = create_optimiser([*network.parameters(), *shared.parameters()], 0.1, 0.5)
    decayed, kept = optimiser.param_groups
    assert (decayed["weight_decay"], kept["weight_decay"]) == (0.5, 0.0)
    assert all(p.ndim > 1 for p in decayed["params"])
    assert len(decayed["params"]) + len(kept["params"]) == len(list(network.parameters()))


def test_adamw_decays_towards_zero_without_gradients_only_where_it_should() -> None:
    layer = nn.Linear(2, 2)
    before = {name: value.clone() for name, value in layer.named_parameters()}
    for parameter in layer.parameters():
        parameter.grad = torch.zeros_like(parameter)
    create_optimiser(layer.parameters(), lr=0.1, weight_decay=0.5).step()
    assert torch.allclose(layer.weight, before["weight"] * (1 - 0.1 * 0.5))
    assert torch.equal(layer.bias, before["bias"])
