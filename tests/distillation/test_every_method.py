"""Every method of the catalogue learns from one cache: drawn images through a small network."""

from __future__ import annotations

import math

import pytest
import torch

import rdcache
from rdcache.distillation import DistillConfig, Run, distill_many
from rdcache.methods import list_methods
from rdcache.store import Store

METHODS = [card.name for card in list_methods()]
ONE_STAGE = "drd of one stage"
OPTIONS = {
    "rd": {"width": 16},
    "rd-paper": {"width": 16},
    "direct": {"teacher_epochs": 1},
    "drd": {"width": 16, "projector_width": 16},
    "drd-paper": {"width": 16, "projector_width": 16},
    "reviewkd": {"width": 32},
    "scalekd": {"width": 64, "grid": 3},
}


@pytest.fixture(scope="module")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Drawn images through a small network with four stages, two views of each."""
    return rdcache.extract(
        teacher="timm:test_resnet",
        weights="random",
        dataset="phantom",
        taps=("s1", "s2", "s3", "s4", "pooled"),
        views="2",
        pool={"s1": 8, "s2": 8},
        root=tmp_path_factory.mktemp("root"),
    )


@pytest.fixture(scope="module")
def runs(phantom: Store, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    """One epoch over a sixth of the images by each method, side by side."""
    each = {name: (name, OPTIONS.get(name, {})) for name in METHODS}
    own = {"finer_tap": True, "spatial": "map", "map_side": 9}  # what drd leaves to rd
    each[ONE_STAGE] = ("drd", {**OPTIONS["rd"], **own, "stages": 1})
    configs = [
        DistillConfig(
            student="shufflenet-x0.5",
            method=name,
            method_options=options,
            epochs=1,
            train_fraction=0.17,
            image_size=32,
            batch_size=32,
            lr=1e-3,
            device="cpu",
            out=tmp_path_factory.mktemp("runs"),
        )
        for name, options in each.values()
    ]
    return dict(zip(each, distill_many(phantom, configs), strict=True))


@pytest.mark.parametrize("name", METHODS)
def test_a_method_trains_an_epoch_from_the_cache(runs: dict[str, Run], name: str) -> None:
    run = runs[name]
    line = run.history[-1]
    assert line["stage"] == "student"
    terms = line.keys() - {"stage", "epoch", "lr", "loss", "seconds"}
    losses = {term: line[term] for term in terms if not term.startswith("val_")}
    assert "ce" in losses
    assert all(math.isfinite(value) for value in losses.values())
    # A term that is 0 all along would not be one.
    assert all(value != 0 for value in losses.values())
    assert line["loss"] == pytest.approx(sum(losses.values()), rel=1e-4)
    assert 0 < run.metrics["accuracy"] <= 1


def test_methods_of_one_seed_begin_at_the_same_student_and_end_at_others(
    runs: dict[str, Run],
) -> None:
    weights = {
        name: torch.cat([p.flatten() for p in run.student.parameters()])
        for name, run in runs.items()
    }
    same, rd = weights.pop(ONE_STAGE), weights["rd"]
    assert torch.equal(same, rd)
    plain = weights["none"]
    for name, other in weights.items():
        if name != "none":
            assert not torch.equal(plain, other), name


def test_the_catalogue_says_what_each_needs_and_where_it_comes_from() -> None:
    for card in list_methods():
        assert card.title
        if card.name != "none":
            assert card.needs != "labels only"
            assert card.year is not None
            assert card.paper != "–"
