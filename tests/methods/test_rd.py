"""RD's terms against the equations, and which term moves which part."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from rdcache.errors import UnknownNameError, UsageError
from rdcache.methods import CachedBatch, MethodContext, TrainingProgress, create_method, find_method
from rdcache.methods.rd import ReprogrammingDistillation, decayed
from rdcache.methods.rd_options import RDConfig
from rdcache.models import StudentOutput

BuildContext = Callable[..., MethodContext]
ComputeOutput = Callable[[MethodContext], StudentOutput]
START = TrainingProgress(epoch=0, epochs=10)


def rd(context: MethodContext, preset: str = "rd", **options: Any) -> ReprogrammingDistillation:
    torch.manual_seed(3)
    method = create_method(preset, {"width": 8, **options}, context)
    assert isinstance(method, ReprogrammingDistillation)
    return method


def unbiased_cka(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """By the formula of Song et al., from Gram matrices without their diagonals."""
    n = len(x)
    K, L = (z @ z.T - torch.diag((z @ z.T).diagonal()) for z in (x, y))

    def hsic(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        product = a @ b
        corrected = product.trace() + a.sum() * b.sum() / ((n - 1) * (n - 2))
        return (corrected - 2 / (n - 2) * product.sum()) / (n * (n - 3))

    return hsic(K, L) / (hsic(K, K) * hsic(L, L)).sqrt()


def gradient_norms(method: ReprogrammingDistillation, term: torch.Tensor) -> dict[str, float]:
    """How much a term moves the reprogrammer and the classifier."""
    method.zero_grad()
    term.backward(retain_graph=True)
    return {
        name: sum(p.grad.norm().item() for p in module.parameters() if p.grad is not None)
        for name, module in (
            ("reprogrammer", method.branch.reprogrammer),
            ("classifier", method.branch.classifier),
        )
    }


@pytest.mark.parametrize("epoch", [0, 4])
def test_the_terms_are_the_papers_equations(
    context: BuildContext, batch: CachedBatch, student_output: ComputeOutput, epoch: int
) -> None:
    setting = context()
    method = rd(setting, "rd-paper", alpha=0.5, beta=2.0, temperature=3.0)
    student = student_output(setting)
    terms = method(batch, student, TrainingProgress(epoch, 10))
    f_t, z_t = method.branch(batch.taps["s4"])
    f_s, z_s, y = student.features.double(), student.logits.double(), batch.target
    f_t, z_t = f_t.double(), z_t.double()
    p_t, p_s = (z_t / 3).softmax(1), (z_s / 3).softmax(1)
    H = torch.eye(8).double() - 1 / 8
    K, L = H @ f_t @ f_t.T @ H, H @ f_s @ f_s.T @ H
    left = 1 - epoch / 10
    expected = {
        "ce": F.cross_entropy(z_s, y),
        "teacher_ce": 0.5 * left * F.cross_entropy(z_t, y),
        "kl": 2.0 * left * 9 * (p_t * (p_t / p_s).log()).sum(1).mean(),
        "cka": 1 - (K * L).sum() / ((K * K).sum() * (L * L).sum()).sqrt(),
    }
    assert terms.keys() == expected.keys()
    for name, value in expected.items():
        assert terms[name].item() == pytest.approx(value.item(), rel=1e-5), name


@pytest.mark.parametrize(
    ("kind", "share", "floor", "expected"),
    [
        ("linear", 0.0, 0.0, 1.0),
        ("linear", 0.25, 0.0, 0.75),
        ("linear", 1.0, 0.2, 0.2),
        ("linear", 0.5, 0.2, 0.6),
        ("cosine", 0.5, 0.0, 0.5),
        ("cosine", 0.25, 0.0, (1 + math.cos(math.pi / 4)) / 2),
        ("none", 0.7, 0.0, 1.0),
    ],
)
def test_decays_follow_their_curve(kind: Any, share: float, floor: float, expected: float) -> None:
    assert decayed(kind, share, floor) == pytest.approx(expected)


def test_weights_fall_by_epoch_or_by_step(
    context: BuildContext, batch: CachedBatch, student_output: ComputeOutput
) -> None:
    setting = context()
    later = TrainingProgress(epoch=0, epochs=2, step=5, steps=10)
    for unit, factor in (("epoch", 1.0), ("step", 0.75)):
        method = rd(setting, decay_unit=unit)
        output = student_output(setting)
        before = method(batch, output, TrainingProgress(0, 2, 0, 10))["teacher_ce"]
        assert method(batch, output, later)["teacher_ce"].item() == pytest.approx(
            factor * before.item()
        )


@pytest.mark.parametrize("term", ["kl", "cka"])
@pytest.mark.parametrize("side", ["both", "student", "teacher"])
def test_a_term_moves_only_the_sides_it_should(
    context: BuildContext,
    batch: CachedBatch,
    student_output: ComputeOutput,
    term: str,
    side: str,
) -> None:
    setting = context()
    method = rd(setting, **{f"{term}_grad": side}, cka_target="reprogrammed")
    student = student_output(setting)
    moved = gradient_norms(method, method(batch, student, START)[term])
    assert (student.features.grad is not None) == (side != "teacher")
    assert (moved["reprogrammer"] > 0) == (side in ("both", "teacher"))


def test_the_recommended_preset_compares_with_the_teachers_own_features(
    context: BuildContext, batch: CachedBatch, student_output: ComputeOutput
) -> None:
    setting = context()
    student = student_output(setting)
    method = rd(setting)
    term = method(batch, student, START)["cka"]
    own = batch.taps[method.tap].float().mean((2, 3))
    expected = 1 - unbiased_cka(student.features.detach().double(), own.double())
    assert term.item() == pytest.approx(expected.item(), abs=1e-5)
    term.backward()
    assert student.features.grad is not None
    with pytest.raises(UsageError, match="frozen"):
        rd(setting, cka_grad="teacher")


def test_the_recommended_preset_keeps_the_student_from_pulling_on_the_reprogrammer(
    context: BuildContext, batch: CachedBatch, student_output: ComputeOutput
) -> None:
    setting = context()
    method = rd(setting)
    terms = method(batch, student_output(setting), START)
    assert gradient_norms(method, terms["kl"] + terms["cka"])["reprogrammer"] == 0
    assert gradient_norms(method, terms["teacher_ce"])["reprogrammer"] > 0


def test_the_classifier_is_shared_unless_told_otherwise(context: BuildContext) -> None:
    setting = context()
    assert rd(setting).branch.classifier is setting.classifier
    apart = rd(setting, share_classifier=False)
    assert apart.branch.classifier is not setting.classifier
    assert not any(p is setting.classifier.weight for p in apart.parameters())


def test_the_averaged_teacher_branch_is_the_target_and_gets_no_gradient(
    context: BuildContext, batch: CachedBatch, student_output: ComputeOutput
) -> None:
    setting = context()
    method = rd(
        setting, teacher_ema=0.9, kl_grad="both", cka_grad="both", cka_target="reprogrammed"
    )
    terms = method(batch, student_output(setting), START)
    assert gradient_norms(method, terms["kl"] + terms["cka"])["reprogrammer"] == 0
    assert method.average is not None
    assert not any(p.requires_grad for p in method.average.parameters())
    before = method.teacher_branch(batch.taps)[1].clone()
    with torch.no_grad():
        method.branch.classifier.weight.mul_(2)
    assert torch.equal(method.teacher_branch(batch.taps)[1], before)
    method.after_step()
    assert not torch.equal(method.teacher_branch(batch.taps)[1], before)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"kl_grad": "teacher", "folds": 2, "teacher_epochs": 1}, "kl_grad=student or both"),
        (
            {"kl_grad": "teacher", "teacher_ema": 0.9, "cka_target": "reprogrammed"},
            "kl_grad=student or both",
        ),
        (
            {"cka_grad": "teacher", "teacher_ema": 0.9, "cka_target": "reprogrammed"},
            "cka_grad=student or both",
        ),
        ({"teacher_ema": 0.9, "folds": 2, "teacher_epochs": 1}, "teacher_ema would teach nothing"),
    ],
)
def test_targets_that_do_not_train_are_not_to_be_moved(
    context: BuildContext, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        rd(context(), **options)


def test_with_folds_the_average_waits_for_the_branch_to_train(context: BuildContext) -> None:
    own = {"teacher_ema": 0.9, "teacher_epochs": 1, "cka_target": "reprogrammed"}
    for folds, moves in ((2, 0), (0, 1)):
        method = rd(context(), folds=folds, **own)
        assert method.average is not None
        method.begin_stage("teacher")
        method.after_step()
        assert method.average.updates == moves
        method.begin_stage("student")
        method.after_step()
        assert method.average.updates == moves + 1


def test_kl_in_both_directions_is_their_mean(
    context: BuildContext, batch: CachedBatch, student_output: ComputeOutput
) -> None:
    setting = context()
    student = student_output(setting)
    forth, back, both = (
        rd(setting, kl_direction=direction, tap="s4")(batch, student, START)["kl"].item()
        for direction in ("t2s", "s2t", "sym")
    )
    assert forth != pytest.approx(back, rel=1e-3)
    assert both == pytest.approx((forth + back) / 2)


def test_terms_without_weight_are_left_out(
    context: BuildContext, batch: CachedBatch, student_output: ComputeOutput
) -> None:
    setting = context(batch_size=2)  # too few samples for CKA, which nobody asks for
    method = rd(setting, cka_weight=0, beta=0)
    assert method(batch, student_output(setting), START).keys() == {"ce", "teacher_ce"}


def test_batches_too_small_for_cka_are_refused(context: BuildContext) -> None:
    with pytest.raises(UsageError, match="batch of 4 is too small"):
        rd(context(batch_size=4))
    rd(context(batch_size=4), cka_min_batch=4)
    with pytest.raises(UsageError, match="cka_min_batch"):
        rd(context(batch_size=3), cka_min_batch=3)


def test_a_tap_the_store_lacks_is_named_with_what_to_do(context: BuildContext) -> None:
    with pytest.raises(UnknownNameError, match=r"no tap in this store named 's2'[\s\S]*extract"):
        rd(context(), tap="s2")


@pytest.mark.parametrize("tap", ["s4", "tokens", "pooled"])
@pytest.mark.parametrize("block", ["basic_block", "bottleneck", "conv3", "mlp"])
@pytest.mark.parametrize("norm", ["bn", "gn", "ln"])
def test_every_kind_of_tap_and_block_reaches_the_students_width(
    context: BuildContext, batch: CachedBatch, tap: str, block: str, norm: str
) -> None:
    for spatial in ("map", "pooled"):
        method = rd(context(), tap=tap, block=block, norm=norm, spatial=spatial)
        features, logits = method.branch(batch.taps[tap])
        assert features.shape == (8, 12)
        assert logits.shape == (8, 3)
        logits.sum().backward()
        assert all(p.grad is not None for p in method.branch.parameters())


def test_the_papers_preset_depends_on_no_default_of_the_recommended_one() -> None:
    paper = find_method("rd-paper")
    left_open = {"tap", "cka_min_batch"}
    assert set(RDConfig.model_fields) - left_open == set(paper.options)


def test_the_branch_reads_a_map_that_is_finer_than_the_default_tap(context: BuildContext) -> None:
    setting = context()
    assert rd(setting).tap == rd(setting).config.tap == "s3"
    assert rd(setting, tap="pooled").tap == "pooled"
    assert rd(setting, finer_tap=False).tap == rd(setting, preset="rd-paper").tap == "s4"


def test_without_a_finer_map_the_branch_reads_the_default_tap(context: BuildContext) -> None:
    coarse = {name: tap for name, tap in context().taps.items() if name in ("s4", "pooled")}
    assert rd(context(taps=coarse)).tap == "s4"
