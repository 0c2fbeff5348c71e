"""Which rate and which decay each trained tensor has."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any, cast

import pytest
import torch
from torch import nn

from rdcache.adaptation import AdaptConfig
from rdcache.adaptation.optimisation import create_optimiser
from rdcache.adaptation.training import AdaptTrainer, Stage, divided
from rdcache.errors import UsageError
from rdcache.models import load_teacher
from rdcache.models.adapters import build_adapted, find_adapter


def settled(**options: object) -> AdaptConfig:
    return AdaptConfig(teacher="timm:test_vit", dataset="phantom", **options).resolved()


def test_rates_fall_from_block_to_block_towards_the_image() -> None:
    names = {
        "base.model.cls_token": (1, 1, 4),
        "base.model.patch_embed.proj.weight": (4, 3, 2, 2),
        "base.model.blocks.0.attn.qkv.weight": (12, 4),
        "base.model.blocks.1.attn.qkv.bias": (12,),
        "base.model.norm.weight": (4,),
        "head.weight": (2, 4),
    }
    trained = {name: nn.Parameter(torch.zeros(shape)) for name, shape in names.items()}
    optimiser = create_optimiser(trained, settled(method="full", lr=1.0), 0.5)
    found = {
        name: (group["largest"], group["weight_decay"])
        for group in optimiser.param_groups
        for name, parameter in trained.items()
        if any(parameter is each for each in group["params"])
    }
    assert found == {
        "base.model.cls_token": (0.125, 0.05),
        "base.model.patch_embed.proj.weight": (0.125, 0.05),
        "base.model.blocks.0.attn.qkv.weight": (0.25, 0.05),
        "base.model.blocks.1.attn.qkv.bias": (0.5, 0.0),
        "base.model.norm.weight": (1.0, 0.0),
        "head.weight": (1.0, 0.05),
    }


@pytest.mark.parametrize(
    ("name", "rates"),
    [("timm:test_vit", 8), ("timm:test_efficientnet", 1)],  # patches, 6 blocks, norm and head
)
def test_networks_whose_blocks_are_not_alike_have_one_rate(name: str, rates: int) -> None:
    card, teacher = find_adapter("full"), load_teacher(name, "random")
    names = [name for name, _ in teacher.network.named_parameters()]
    assert any(".blocks.1." in name for name in names), "both call their parts so"
    network = build_adapted(card, teacher, card.settled({}), 2)
    unused = cast(Any, None)  # neither images nor losses say what is trained at what rate
    trainer = AdaptTrainer(
        settled(method="full", lr=1.0), 0, network, card.whole, unused, unused, nullcontext
    )
    largest = {group["largest"] for group in trainer._begin().param_groups}
    assert max(largest) == 1.0
    assert len(largest) == rates


@pytest.mark.parametrize(
    ("method", "kind", "rate"),
    [
        ("lora", torch.optim.AdamW, 1e-3),
        ("adaptformer", torch.optim.SGD, 0.1 * 64 / 256),
        ("lpt", torch.optim.SGD, 0.02 * 64 / 256),
    ],
)
def test_a_method_is_trained_as_its_authors_do(
    method: str, kind: type[torch.optim.Optimizer], rate: float
) -> None:
    config = settled(method=method, batch_size=64)
    optimiser = create_optimiser({"head.weight": nn.Parameter(torch.zeros(2, 2))}, config, 1.0)
    assert isinstance(optimiser, kind)
    assert optimiser.param_groups[0]["largest"] == pytest.approx(rate)
    assert settled(method=method, lr=0.5, optimiser="sgd").lr == 0.5, "what is given stays"


def test_another_optimiser_than_the_methods_own_wants_a_rate() -> None:
    with pytest.raises(UsageError, match=r"rate of adaptformer is not one for adamw[\s\S]*--lr"):
        settled(method="adaptformer", optimiser="adamw")
    assert settled(method="adaptformer", optimiser="adamw", lr=1e-3).optimiser == "adamw"
    assert settled(method="lora", optimiser="adamw").lr == 1e-3, "its own, if it is named"


@pytest.mark.parametrize("option", [{"class_weights": "balanced"}, {"label_smoothing": 0.1}])
def test_a_method_with_losses_of_its_own_refuses_options_of_cross_entropy(
    option: dict[str, object],
) -> None:
    with pytest.raises(UsageError, match="lpt has losses of its own"):
        settled(method="lpt", **option)
    settled(method="vpt", **option)


def test_stages_share_the_epochs() -> None:
    assert divided(5, ("shared", "groups")) == [Stage("shared", 2), Stage("groups", 3)]
    assert divided(1, ("shared", "groups")) == [Stage("groups", 1)]
