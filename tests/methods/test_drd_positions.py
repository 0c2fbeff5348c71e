"""DRD where every position has a label: its KL over positions, and what it refuses."""

from __future__ import annotations

import pytest
import torch

from rdcache.errors import UsageError
from rdcache.methods import (
    CachedBatch,
)
from tests.methods.drd_case import (
    SIDE,
    Case,
)


def test_positions_of_the_kl_are_balanced_or_drawn_where_that_is_asked_for() -> None:
    case = Case("segmentation")
    plain, balanced, drawn = (
        case.terms(case.drd(**options))["kl_s3"].item()
        for options in ({}, {"kl_balanced": True}, {"kl_positions": 50, "kl_balanced": True})
    )
    assert len({plain, balanced, drawn}) == 3
    assert drawn == pytest.approx(plain, rel=0.5)


def test_a_rare_foreground_is_half_of_a_drawn_kl_too() -> None:
    case = Case("segmentation")
    target = torch.zeros_like(case.batch.target)
    target[0, 0, :5] = 1
    batch = CachedBatch(case.batch.samples, case.batch.taps, target)
    mine, theirs = torch.zeros(8, 2, SIDE, SIDE), torch.zeros(8, 2, SIDE, SIDE)
    theirs[0, 1, 0, :5] = 2.0  # all that differs is in the foreground
    expected = case.drd(kl_balanced=True)._kl(batch, mine, theirs).item()
    method = case.drd(kl_balanced=True, kl_positions=100)
    assert method._kl(batch, mine, theirs).item() == pytest.approx(expected, rel=1e-5)


def test_the_kl_of_positions_does_not_depend_on_how_many_there_are() -> None:
    case = Case("segmentation")
    method = case.drd()
    mine, theirs = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    small = method._kl(case.batch, mine, theirs).item()
    larger = [it.repeat_interleave(2, 2).repeat_interleave(2, 3) for it in (mine, theirs)]
    assert method._kl(case.batch, *larger).item() == pytest.approx(small, rel=1e-5)


def test_masks_have_no_branch_that_labels_positions_by_itself() -> None:
    case = Case("segmentation")
    method = case.drd()
    assert not method.has_teacher_branch
    assert method.teacher_epochs == 0
    given = ({"teacher_ema": 0.5, "cka_target": "reprogrammed"}, {"tap": "s3"}, {"finer_tap": True})
    for options in given:
        with pytest.raises(UsageError, match="every position by itself"):
            case.drd(**options)
