"""What all baselines share: where teacher logits come from, what trains when, KD beside a term."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch.nn import functional as F

from rdcache.errors import UsageError
from rdcache.methods import CachedBatch, MethodContext, TrainingProgress, create_method
from rdcache.methods.baseline import Baseline
from rdcache.models import StudentOutput
from rdcache.store import TapSpec

BuildContext = Callable[..., MethodContext]
ComputeOutput = Callable[[MethodContext], StudentOutput]
START = TrainingProgress(epoch=0, epochs=10)


def baseline(name: str, context: MethodContext, **options: object) -> Baseline:
    torch.manual_seed(3)
    method = create_method(name, options, context)
    assert isinstance(method, Baseline)
    method.begin_stage("student")
    return method


def divergence(z_t: torch.Tensor, z_s: torch.Tensor, temperature: float) -> float:
    p_t, p_s = (z_t.double() / temperature).softmax(1), (z_s.double() / temperature).softmax(1)
    return temperature**2 * (p_t * (p_t / p_s).log()).sum(1).mean().item()


def test_a_linear_probe_on_the_pooled_tap_gives_the_logits_of_kd(
    context: BuildContext, batch: CachedBatch, student_output: ComputeOutput
) -> None:
    weight, bias = torch.randn(3, 16), torch.randn(3)
    asked: list[str] = []

    def probe(tap: str) -> tuple[torch.Tensor, torch.Tensor]:
        asked.append(tap)
        return weight, bias

    setting = context(probe=probe)
    method = baseline("kd", setting, weight=2.0, temperature=3.0)
    assert (asked, method.taps, method.teacher_epochs) == (["pooled"], ("pooled",), 0)
    student = student_output(setting)
    terms = method(batch, student, START)
    z_t = batch.taps["pooled"].float() @ weight.T + bias
    assert terms.keys() == {"ce", "kl"}
    assert terms["kl"].item() == pytest.approx(2 * divergence(z_t, student.logits, 3.0), rel=1e-4)
    assert not list(method.trainable_parameters("student"))
    torch.testing.assert_close(method.teacher_branch(batch.taps)[1], z_t)


def test_without_a_pooled_tap_the_default_map_is_averaged_and_probed(
    context: BuildContext, batch: CachedBatch
) -> None:
    setting = context(taps={"s4": TapSpec("s4", "map2d", (16, 3, 3))})
    method = baseline("kd", setting)
    assert method.taps == ("s4",)
    features, _ = method.teacher_branch(batch.taps)
    torch.testing.assert_close(features, batch.taps["s4"].float().mean((2, 3)))


def test_logits_that_the_store_holds_for_these_classes_come_first(
    context: BuildContext, batch: CachedBatch, student_output: ComputeOutput
) -> None:
    logits = torch.randn(8, 3).half()
    taps = {**context().taps, "logits": TapSpec("logits", "logits", (3,))}
    setting = context(taps=taps)
    method = baseline("kd", setting)
    assert method.taps == ("logits",)
    own = CachedBatch(batch.samples, {**batch.taps, "logits": logits}, batch.target)
    student = student_output(setting)
    expected = divergence(logits, student.logits, 4.0)
    assert method(own, student, START)["kl"].item() == pytest.approx(expected, rel=1e-4)
    # A thousand ImageNet classes are not these three.
    foreign = context(taps={**context().taps, "logits": TapSpec("logits", "logits", (1000,))})
    assert baseline("kd", foreign).taps == ("pooled",)
    with pytest.raises(UsageError, match="no logits of its 3 classes"):
        create_method("kd", {"teacher_head": "own"}, foreign)
    # Nor are three classes of another dataset, which a teacher was adapted to.
    others = context(taps=taps, foreign_logits=frozenset({"logits"}))
    assert baseline("kd", others).taps == ("pooled",)
    with pytest.raises(UsageError, match="no logits of its 3 classes"):
        create_method("kd", {"teacher_head": "own"}, others)


def test_the_rd_head_trains_in_a_first_stage_and_is_frozen_then(
    context: BuildContext, batch: CachedBatch, student_output: ComputeOutput
) -> None:
    setting = context()
    method = baseline("kd", setting, teacher_head="rd", teacher_epochs=3)
    assert method.teacher_epochs == 3
    stages = create_method("at", {"teacher_head": "rd", "kd_weight": 1.0}, setting)
    assert stages.branch_taps == method.branch_taps == ("s4",)
    assert set(stages.taps) > {"s4"}
    of_the_branch = CachedBatch(batch.samples, {"s4": batch.taps["s4"]}, batch.target)
    assert stages.teacher_terms(of_the_branch, START)["teacher_ce"] > 0
    method.begin_stage("teacher")
    method.train()
    method.teacher_terms(batch, START)["teacher_ce"].backward()
    assert all(p.grad is not None for p in method.trainable_parameters("teacher"))
    method.begin_stage("student")
    method.train()
    before = {name: value.clone() for name, value in method.state_dict().items()}
    method.zero_grad()
    sum(method(batch, student_output(setting), START).values()).backward()
    assert not list(method.trainable_parameters("student"))
    assert all(p.grad is None for p in method.parameters())
    for name, value in method.state_dict().items():
        assert torch.equal(value, before[name]), "batch-norm statistics moved"


def test_without_a_head_kd_refuses_and_hint_does_not_miss_it(context: BuildContext) -> None:
    with pytest.raises(UsageError, match="needs logits of the teacher"):
        create_method("kd", {"teacher_head": "none"}, context())
    assert not baseline("hint", context(), teacher_head="none").has_teacher_branch
    with pytest.raises(UsageError, match="needs logits of the teacher"):
        create_method("hint", {"teacher_head": "none", "kd_weight": 1.0}, context())


def test_hint_regresses_the_standardised_map_at_the_coarser_grid(
    context: BuildContext, batch: CachedBatch, student_output: ComputeOutput
) -> None:
    setting = context()
    method = baseline("hint", setting, weight=10.0, kd_weight=0.5)
    student = student_output(setting)
    terms = method(batch, student, START)
    assert terms.keys() == {"ce", "hint", "kd"}
    assert method.student_stages == ("s4",)
    assert set(method.taps) == {"s4", "pooled"}
    theirs = F.adaptive_avg_pool2d(batch.taps["s4"].double(), 2)  # statistics: mean 0, std 1
    mine = method.connector.double()(student.stages["s4"].double())  # type: ignore[operator]
    expected = 10 * ((mine - theirs) ** 2).mean()
    assert terms["hint"].item() == pytest.approx(expected.item(), rel=1e-4)
    trained = set(method.trainable_parameters("student"))
    assert trained == set(method.connector.parameters())  # type: ignore[operator]


def test_a_probe_judges_in_float32_under_autocast_too(
    context: BuildContext, batch: CachedBatch
) -> None:
    method = baseline("kd", context(probe=lambda tap: (torch.randn(3, 16), torch.randn(3))))
    expected = method.teacher_logits(batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(method.teacher_logits(batch), expected)
