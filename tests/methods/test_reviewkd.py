"""ReviewKD: levels are fused from the deepest up, and compared at the coarser grid."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch.nn import functional as F

from rdcache.errors import UsageError
from rdcache.methods import CachedBatch, MethodContext, TrainingProgress, create_method
from rdcache.methods.reviewkd import Fusion, KnowledgeReview
from rdcache.models import StudentOutput

BuildContext = Callable[..., MethodContext]
ComputeOutput = Callable[[MethodContext], StudentOutput]
AFTER_WARMUP = TrainingProgress(epoch=5, epochs=10)


def create(context: MethodContext, **options: object) -> KnowledgeReview:
    torch.manual_seed(3)
    method = create_method("reviewkd", options, context)
    assert isinstance(method, KnowledgeReview)
    method.begin_stage("student")
    return method


def multi_scale_error(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    errors = [((x - y) ** 2).mean()]
    for side in (4, 2, 1):
        if side < x.shape[2]:
            errors.append(((F.adaptive_avg_pool2d(x - y, side)) ** 2).mean())
    weights = [0.5**i for i in range(len(errors))]
    return sum(w * e for w, e in zip(weights, errors, strict=True)) / sum(weights)  # type: ignore


def test_the_loss_fuses_levels_from_the_pooled_features_up(
    context: BuildContext, batch: CachedBatch, student_output: ComputeOutput
) -> None:
    setting = context()
    method = create(setting, weight=2.0, stages=["s4", "s3"])
    assert method.taps == ("s3", "s4")
    student = student_output(setting)
    terms = method(batch, student, AFTER_WARMUP)
    assert terms.keys() == {"ce", "review"}

    # The same by hand: batch norm in training mode is its batch's mean and variance.
    method = method.double()
    fine, coarse, pooled = method.fusions
    assert isinstance(fine, Fusion)
    assert isinstance(coarse, Fusion)
    assert isinstance(pooled, Fusion)
    s3, s4 = (student.stages[name].double() for name in ("s3", "s4"))
    t4 = F.adaptive_avg_pool2d(batch.taps["s4"].double(), 2)
    t3 = F.adaptive_avg_pool2d(batch.taps["s3"].double(), 4)
    residue = pooled.enter(student.features.double()[:, :, None, None])
    level = pooled.leave(residue)
    expected = multi_scale_error(level, batch.taps["s4"].double().mean((2, 3), keepdim=True))
    for fusion, own, teacher in ((coarse, s4, t4), (fine, s3, t3)):
        repeat = own.shape[2] // residue.shape[2]
        deeper = residue.repeat_interleave(repeat, 2).repeat_interleave(repeat, 3)
        entered = fusion.enter(own)
        assert fusion.attention is not None
        shares = torch.sigmoid(fusion.attention(torch.cat([entered, deeper], 1)))
        residue = shares[:, 0:1] * entered + shares[:, 1:2] * deeper
        expected = expected + multi_scale_error(fusion.leave(residue), teacher)
    assert terms["review"].item() == pytest.approx(2 * expected.item(), rel=1e-4)


def test_every_level_reaches_the_student_and_every_fusion_trains(
    context: BuildContext, batch: CachedBatch, student_output: ComputeOutput
) -> None:
    setting = context()
    method = create(setting)
    student = student_output(setting)
    method(batch, student, AFTER_WARMUP)["review"].backward()
    reached = (student.features, student.stages["s3"], student.stages["s4"])
    assert all(part.grad is not None and part.grad.any() for part in reached)
    assert all(p.grad is not None for p in method.trainable_parameters("student"))
    assert [fusion.enter[0].out_channels for fusion in method.fusions] == [12] * 3  # feature width
    assert create(setting, width=5).fusions[0].enter[0].out_channels == 5  # type: ignore


def test_the_weight_grows_over_the_first_twelfth_of_the_training(
    context: BuildContext, batch: CachedBatch, student_output: ComputeOutput
) -> None:
    setting = context()
    method, student = create(setting), student_output(setting)
    at = {
        step: method(batch, student, TrainingProgress(0, 12, step, 4))["review"].item()
        for step in range(4)
    }
    full = method(batch, student, TrainingProgress(1, 12, 0, 4))["review"].item()
    assert list(at.values()) == pytest.approx([0, full / 4, full / 2, 3 * full / 4], rel=1e-5)
    at_once = create(setting, warmup=0)
    first = at_once(batch, student, TrainingProgress(0, 12))["review"].item()
    assert first == pytest.approx(full, rel=1e-5)


def test_a_teacher_that_is_coarser_than_the_student_is_met_at_its_own_grid(
    context: BuildContext, batch: CachedBatch, student_output: ComputeOutput
) -> None:
    setting = context()
    method, student = create(setting, stages=["s3"]), student_output(setting)
    coarse = CachedBatch(batch.samples, {"s3": batch.taps["s3"][:, :, :3, :3]}, batch.target)
    value = method(coarse, student, AFTER_WARMUP)["review"].item()
    method = method.double()
    fine, pooled = method.fusions
    assert isinstance(fine, Fusion)
    assert isinstance(pooled, Fusion)
    assert fine.attention is not None
    teacher = coarse.taps["s3"].double()
    residue = pooled.enter(student.features.double()[:, :, None, None])
    expected = multi_scale_error(pooled.leave(residue), teacher.mean((2, 3), keepdim=True))
    entered, deeper = fine.enter(student.stages["s3"].double()), residue.expand(-1, -1, 4, 4)
    shares = torch.sigmoid(fine.attention(torch.cat([entered, deeper], 1)))
    residue = shares[:, 0:1] * entered + shares[:, 1:2] * deeper
    level = fine.leave(F.adaptive_avg_pool2d(residue, 3))
    expected = expected + multi_scale_error(level, teacher)
    assert value == pytest.approx(expected.item(), rel=1e-4)


def test_a_store_without_stages_is_refused(context: BuildContext) -> None:
    taps = {"pooled": context().taps["pooled"]}
    with pytest.raises(UsageError, match="no stage in common"):
        create(context(taps=taps))
