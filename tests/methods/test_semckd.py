"""SemCKD: which stages it pairs, its attention, its bounded regressors."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from rdcache.errors import UsageError
from rdcache.methods import CachedBatch, MethodContext, TrainingProgress, create_method
from rdcache.methods.semckd import SemanticCalibration
from rdcache.models import StudentOutput
from rdcache.store import TapSpec

BuildContext = Callable[..., MethodContext]
ComputeOutput = Callable[[MethodContext], StudentOutput]
START = TrainingProgress(epoch=0, epochs=10)


def semckd(context: MethodContext, **options: object) -> SemanticCalibration:
    torch.manual_seed(3)
    method = create_method("semckd", options, context)
    assert isinstance(method, SemanticCalibration)
    return method


def embedded(layers: torch.nn.Module, maps: torch.Tensor) -> np.ndarray:
    """The query or key of every sample, written out."""
    first, _, last = (layer for layer in layers.children())
    flat = maps.detach().flatten(1).double()
    rows = flat @ flat.T / flat.shape[1]
    hidden = (rows @ first.weight.double().T + first.bias.double()).clamp_min(0)  # type: ignore[operator,union-attr]
    vectors = (hidden @ last.weight.double().T + last.bias.double()).detach().numpy()  # type: ignore[operator,union-attr]
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))


def test_attended_errors_of_all_pairs_are_the_formula(
    context: BuildContext, batch: CachedBatch, student_output: ComputeOutput
) -> None:
    setting = context()
    method, student = semckd(setting, weight=2.0, grid=3), student_output(setting)
    assert set(method.taps) == set(method.student_stages) == {"s3", "s4"}
    terms = method(batch, student, START)
    assert terms.keys() == {"ce", "semckd"}
    stages = {"s3": 0, "s4": 1}
    queries = [embedded(method.queries[i], student.stages[name]) for name, i in stages.items()]
    keys = [embedded(method.keys[i], batch.taps[name].float()) for name, i in stages.items()]
    expected = 0.0
    # Grid 3: the student's 4×4 is compared at 3×3 with the teacher's 6×6 and 3×3; its 2×2 at 2×2.
    for s, (stage, side) in enumerate((("s3", 3), ("s4", 2))):
        energies = np.stack([(queries[s] * key).sum(axis=1) for key in keys], axis=1)
        attention = np.exp(energies) / np.exp(energies).sum(axis=1, keepdims=True)
        mine = F.adaptive_avg_pool2d(student.stages[stage], side)
        for t, tap in enumerate(("s3", "s4")):
            theirs = F.adaptive_avg_pool2d(batch.taps[tap].float(), min(3, side))
            if tap == "s3":
                theirs = F.adaptive_avg_pool2d(
                    F.adaptive_avg_pool2d(batch.taps[tap].float(), 3), side
                )
            regressed = method.regressors[s][t](mine)  # type: ignore[index]
            errors = (regressed - theirs).square().flatten(1).mean(1).detach().double().numpy()
            expected += float((attention[:, t] * errors).sum())
    assert terms["semckd"].item() == pytest.approx(2 * expected / (8 * 2), rel=1e-4)
    terms["semckd"].backward()
    assert all(p.grad is not None for p in method.trainable_parameters("student"))


def test_attention_sums_to_one_over_the_teachers_stages(
    context: BuildContext, batch: CachedBatch
) -> None:
    method = semckd(context())
    maps = [batch.taps["s3"].float(), batch.taps["s4"].float()]
    attention = method.attention([torch.randn(8, 3, 2, 2)] * 2, maps)
    assert attention.shape == (8, 2, 2)
    torch.testing.assert_close(attention.sum(2), torch.ones(8, 2))


def test_a_store_of_one_tap_teaches_all_stages_of_the_student(
    context: BuildContext, batch: CachedBatch, student_output: ComputeOutput
) -> None:
    setting = context(taps={"pooled": TapSpec("pooled", "vector", (16,))}, default_tap="pooled")
    method = semckd(setting)
    assert (method.taps, method.student_stages) == (("pooled",), ("s3", "s4"))
    value = method(batch, student_output(setting), START)["semckd"]
    assert torch.isfinite(value)


def test_regressors_are_no_wider_than_told(context: BuildContext) -> None:
    def widest(method: SemanticCalibration) -> int:
        return max(p.shape[1] for p in method.regressors.parameters() if p.ndim == 4)

    assert widest(semckd(context(), width=14)) == 14
    assert widest(semckd(context(), width=None)) == 32


def test_a_batch_without_room_for_attention_and_a_student_without_stages_are_refused(
    context: BuildContext,
) -> None:
    with pytest.raises(UsageError, match="none of the stages"):
        semckd(context(student_stages={}))
    # From batches of 4 to 7 queries and keys would be ±1, with a gradient of 0.
    with pytest.raises(UsageError, match="a batch of 7 is too small"):
        semckd(context(batch_size=7))
