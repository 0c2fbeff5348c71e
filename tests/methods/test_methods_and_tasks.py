"""Which methods serve which tasks: baselines of maps all of them, others say no."""

from __future__ import annotations

import pytest
import torch

from rdcache.errors import UsageError
from rdcache.methods import create_method
from tests.methods.drd_case import EVERY_TASK, IMAGES_AND_VOLUMES, Case


@pytest.mark.parametrize("name", ["rd", "kd", "crd", "norm"])
def test_methods_that_classify_samples_refuse_masks(name: str) -> None:
    with pytest.raises(UsageError, match=rf"{name} is not for segmentation of images[\s\S]*hint"):
        create_method(name, {}, Case("segmentation").context)


@EVERY_TASK
@IMAGES_AND_VOLUMES
@pytest.mark.parametrize("name", ["none", "hint", "at", "sp"])
def test_baselines_of_maps_serve_every_task(task: str, dimensions: int, name: str) -> None:
    case = Case(task, dimensions)
    options = (
        {} if name == "none" else {"stages": ["s1", "s2"]} if name == "at" else {"stage": "s3"}
    )
    torch.manual_seed(1)
    method = create_method(name, options, case.context)
    terms = case.terms(method)
    torch.stack(list(terms.values())).sum().backward()
    assert all(torch.isfinite(term) for term in terms.values())
    assert all(p.grad is not None for p in method.parameters())


def test_logits_of_positions_are_nothing_a_teacher_has() -> None:
    with pytest.raises(UsageError, match="no logits of the teacher for every position"):
        create_method("hint", {"kd_weight": 1.0, "stage": "s3"}, Case("segmentation").context)
