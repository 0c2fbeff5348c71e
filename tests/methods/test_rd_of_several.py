"""RD from several teachers: its terms against the formula, and against RD from one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from rdcache.errors import UnknownNameError, UsageError
from rdcache.methods import (
    CachedBatch,
    MethodContext,
    RDOfSeveralTeachers,
    ReprogrammingDistillation,
    TrainingProgress,
    create_method,
)
from rdcache.methods.rd_options import RDConfig
from rdcache.models import StudentOutput

BuildContext = Callable[..., MethodContext]
ComputeOutput = Callable[[MethodContext], StudentOutput]
PROGRESS = TrainingProgress(3, 10)
TEACHERS = {"a": "s4", "b": "tokens", "c": "pooled"}
NARROW = {"width": 8}


def several(context: MethodContext, preset: str = "rd", **options: Any) -> RDOfSeveralTeachers:
    torch.manual_seed(3)
    method = create_method(preset, {**NARROW, **options}, context)
    assert isinstance(method, RDOfSeveralTeachers)
    return method


def centred_gram(features: torch.Tensor) -> torch.Tensor:
    n = len(features)
    centring = torch.eye(n, dtype=torch.float64) - 1 / n
    return centring @ features @ features.T @ centring


def kl(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    return (p * (p / q).log()).sum(1).mean()


@pytest.mark.parametrize("weights", ["0.5,0.3,0.2", None])
def test_each_term_is_the_weighted_sum_over_teachers(
    context: BuildContext, batch: CachedBatch, student_output: ComputeOutput, weights: str | None
) -> None:
    setting = context(teachers=TEACHERS)
    own = {"alpha": 0.5, "beta": 2.0, "temperature": 3.0, "teacher_weights": weights}
    method = several(setting, "rd-paper", **own)
    student = student_output(setting)
    terms = method(batch, student, PROGRESS)
    f_s, z_s, y = student.features.double(), student.logits.double(), batch.target
    p_s, gram_s = (z_s / 3).softmax(1), centred_gram(f_s)
    zero = torch.zeros((), dtype=torch.float64)
    expected = {"ce": F.cross_entropy(z_s, y), "teacher_ce": zero, "kl": zero, "cka": zero}
    shares = (0.5, 0.3, 0.2) if weights else (1 / 3, 1 / 3, 1 / 3)
    for rd, tap, share in zip(method.each, TEACHERS.values(), shares, strict=True):
        assert isinstance(rd, ReprogrammingDistillation)
        f_t, z_t = (each.double() for each in rd.branch(batch.taps[tap]))
        gram_t = centred_gram(f_t)
        cka = (gram_t * gram_s).sum() / (gram_t.norm() * gram_s.norm())
        parts = {
            "teacher_ce": 0.5 * 0.7 * F.cross_entropy(z_t, y),
            "kl": 2.0 * 0.7 * 9 * kl((z_t / 3).softmax(1), p_s),
            "cka": 1 - cka,
        }
        expected |= {name: expected[name] + share * part for name, part in parts.items()}
    assert terms.keys() == expected.keys()
    for name, value in expected.items():
        assert terms[name].item() == pytest.approx(value.item(), rel=1e-5), name


def test_with_learned_weights_the_student_imitates_the_mixture(
    context: BuildContext, batch: CachedBatch, student_output: ComputeOutput
) -> None:
    setting = context(teachers=TEACHERS)
    own = {"temperature": 3.0, "cka_weight": 0.0, "teacher_weights": "learned"}
    method = several(setting, "rd-paper", **own)
    assert method.scores is not None
    with torch.no_grad():
        method.scores.copy_(torch.tensor([0.4, -1.0, 0.1]))
    student = student_output(setting)
    terms = method(batch, student, PROGRESS)
    weights = torch.tensor([0.4, -1.0, 0.1], dtype=torch.float64).softmax(0)
    logits = [rd.branch(batch.taps[rd.tap])[1].double() for rd in method._rds()]
    mixture = sum(weight * each for weight, each in zip(weights, logits, strict=True))
    assert isinstance(mixture, torch.Tensor)
    p_s = (student.logits.double() / 3).softmax(1)
    expected = {
        "ce": F.cross_entropy(student.logits.double(), batch.target),
        "teacher_ce": 0.7 * torch.stack([F.cross_entropy(z, batch.target) for z in logits]).mean(),
        "kl": 0.7 * 9 * kl((mixture / 3).softmax(1), p_s),
        "mixture_ce": F.cross_entropy(mixture, batch.target),
    }
    assert terms.keys() == expected.keys()
    for name, value in expected.items():
        assert terms[name].item() == pytest.approx(value.item(), rel=1e-5), name
    method.eval()  # as it is asked by `teacher_branch`
    features, judged = method.teacher_branch(batch.taps)
    with torch.no_grad():
        outputs = [[it.double() for it in rd.branch(batch.taps[rd.tap])] for rd in method._rds()]
    mixture = torch.stack([z for _, z in outputs], dim=2) @ weights
    torch.testing.assert_close(judged.double(), mixture, rtol=1e-5, atol=1e-5)
    # A linear kernel of these is Σ w·⟨f, f'⟩/D, every teacher's own kernel with its weight.
    kernel = sum(w * f @ f.T / 12 for w, (f, _) in zip(weights, outputs, strict=True))
    found = features.double() @ features.double().T
    torch.testing.assert_close(found, kernel, rtol=1e-5, atol=1e-5)
    learned = {f"weight {tap}": it for tap, it in zip(TEACHERS.values(), weights, strict=True)}
    assert method.numbers() == pytest.approx({k: float(v) for k, v in learned.items()})


def test_learned_weights_are_moved_by_the_mixtures_cross_entropy_alone(
    context: BuildContext, batch: CachedBatch, student_output: ComputeOutput
) -> None:
    setting = context(teachers=TEACHERS)
    method = several(setting, "rd-paper", teacher_weights="learned")
    terms = method(batch, student_output(setting), PROGRESS)
    assert method.scores is not None
    for name, term in terms.items():
        method.zero_grad()
        term.backward(retain_graph=True)
        moved = {key for key, p in method.named_parameters() if p.grad is not None}
        assert ("scores" in moved) == (name == "mixture_ce"), name
        assert (moved == {"scores"}) == (name == "mixture_ce"), name


def test_learned_weights_leave_a_teacher_that_knows_nothing(
    context: BuildContext, batch: CachedBatch
) -> None:
    method = several(context(teachers=TEACHERS), teacher_weights="learned")
    assert method.scores is not None
    right = 2 * F.one_hot(batch.target, 3).float()
    wrong = 2 * F.one_hot((batch.target + 1) % 3, 3).float()
    nothing = torch.zeros_like(right)
    optimiser = torch.optim.AdamW([method.scores], lr=0.05)
    for _ in range(100):
        targets = [(right, logits) for logits in (right, nothing, wrong)]
        optimiser.zero_grad()
        method._mixture_loss(targets, batch.target).backward()
        optimiser.step()
    assert next(iter(method.numbers().values())) > 0.9


@pytest.mark.parametrize("preset", ["rd", "rd-paper"])
def test_with_one_teacher_it_is_rd_to_the_bit(
    context: BuildContext, batch: CachedBatch, student_output: ComputeOutput, preset: str
) -> None:
    """Terms, gradients and the teacher branch, with everything that draws random numbers."""
    own = {"dropout": 0.3, "teacher_ema": 0.9, "folds": 2, "teacher_epochs": 1, **NARROW}
    own["cka_target"] = "reprogrammed"  # what the average is for, beside folds
    found = []
    for build in (ReprogrammingDistillation, RDOfSeveralTeachers):
        setting = context()
        torch.manual_seed(3)
        options = create_method(preset, own, setting).config
        assert isinstance(options, RDConfig)
        torch.manual_seed(3)
        method = build(options, setting)
        student = student_output(setting)
        numbers = dict(method.teacher_terms(batch, PROGRESS))
        numbers |= method(batch, student, PROGRESS)
        torch.stack(list(numbers.values())).sum().backward()
        method.after_step()
        gradients = [p.grad for p in dict.fromkeys(method.parameters()) if p.grad is not None]
        parameters = [p.shape for p in method.trainable_parameters("student")]
        method.eval()
        _, judged = method.teacher_branch(batch.taps)
        found.append((numbers, gradients, parameters, judged, student.features.grad))
    one, other = found
    assert one[0].keys() == other[0].keys()
    assert all(torch.equal(one[0][name], other[0][name]) for name in one[0])
    assert len(one[1]) == len(other[1]) > 0
    assert all(torch.equal(*pair) for pair in zip(one[1], other[1], strict=True))
    assert one[2] == other[2]
    assert torch.equal(one[3], other[3])
    assert one[4] is not None
    assert other[4] is not None
    assert torch.equal(one[4], other[4])


def test_all_branches_share_the_students_classifier_and_train(
    context: BuildContext, batch: CachedBatch
) -> None:
    setting = context(teachers=TEACHERS)
    method = several(setting, teacher_weights="learned")
    assert all(rd.branch.classifier is setting.classifier for rd in method._rds())
    trained = set(method.trainable_parameters("student"))
    assert trained == set(method.parameters())
    assert method.scores not in set(method.trainable_parameters("teacher"))
    features, logits = method.teacher_branch(batch.taps)
    assert (len(features), logits.shape) == (8, (8, 3))


def test_methods_of_one_tap_refuse_several_teachers_unless_one_tap_is_named(
    context: BuildContext,
) -> None:
    setting = context(teachers=TEACHERS)
    for name in ("direct", "kd", "hint"):
        with pytest.raises(UsageError, match="reads one tap, and there are several") as caught:
            create_method(name, {}, setting)
        advice = caught.value.facts["next"]
        assert "--method rd" in advice
        assert ("--set tap=s4" in advice) == (name != "kd")  # which has no such option
    create_method("direct", {"tap": "tokens"}, setting)
    create_method("none", {}, setting)
    assert isinstance(create_method("rd", {"tap": "s3"}, setting), ReprogrammingDistillation)
    assert several(setting, tap="s3, s4").taps == ("s3", "s4")
    with pytest.raises(UnknownNameError, match="s9"):
        several(setting, tap="s3,s9")


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        ("0.5,0.5", "2 teacher_weights are given for 3 taps"),
        ("0.5,0.3,0.3", "sum to 1"),
        ("1.0,-0.5,0.5", "positive"),
        ("equal", "teacher_weights"),
    ],
)
def test_weights_that_do_not_fit_are_refused(
    context: BuildContext, weights: str, said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        several(context(teachers=TEACHERS), teacher_weights=weights)


def test_weights_of_a_single_teacher_are_refused(context: BuildContext) -> None:
    with pytest.raises(UsageError, match="several teachers"):
        create_method("rd", {"teacher_weights": "learned"}, context())
