"""DRD: its terms, what the hybrid passes leave behind, and that one stage is RD."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from rdcache.methods import (
    Method,
    TrainingProgress,
    find_method,
)
from rdcache.methods.drd_options import DRDConfig
from tests.methods.drd_case import (
    EVERY_TASK,
    IMAGES_AND_VOLUMES,
    LATER,
    NORMS,
    START,
    Case,
)


def trained(case: Case, method: Method, steps: int = 3) -> dict[str, torch.Tensor]:
    """Weights of the student and buffers after a few steps."""
    parameters = dict.fromkeys(
        [*case.student.parameters(), *method.trainable_parameters("student")]
    )
    optimiser = torch.optim.AdamW(parameters, lr=1e-2)
    for step in range(steps):
        terms = case.terms(method, TrainingProgress(step, steps))
        optimiser.zero_grad(set_to_none=True)
        torch.stack(list(terms.values())).sum().backward()
        optimiser.step()
        method.after_step()
    return {name: it.clone() for name, it in case.student.state_dict().items()}


@pytest.mark.parametrize("task", ["multiclass", "multilabel"])
@IMAGES_AND_VOLUMES
@pytest.mark.parametrize("options", [{}, {"teacher_ema": 0.9, "cka_target": "reprogrammed"}])
def test_one_stage_is_rd_bit_for_bit(task: str, dimensions: int, options: dict[str, Any]) -> None:
    one, other = Case(task, dimensions), Case(task, dimensions)
    branch = {"finer_tap": False, "spatial": "map", "map_side": 9, "width": 8}
    drd, rd = (
        case.method(name, **branch, **own, **options)
        for case, name, own in ((one, "drd", {"stages": 1}), (other, "rd", {}))
    )
    mine, theirs = one.terms(drd), other.terms(rd)
    assert list(mine) == list(theirs)
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    after, expected = trained(one, drd), trained(other, rd)
    assert all(torch.equal(after[name], expected[name]) for name in expected)
    for pair in zip(
        drd.teacher_branch(one.batch.taps), rd.teacher_branch(one.batch.taps), strict=True
    ):
        assert torch.equal(*pair)


def unbiased_cka(x: torch.Tensor, y: torch.Tensor) -> float:
    """By the formula of Song et al., in float64."""
    x, y, n = x.detach().double(), y.detach().double(), len(x)
    K, L = (z @ z.T - torch.diag((z @ z.T).diagonal()) for z in (x, y))

    def hsic(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        product = a @ b
        second = a.sum() * b.sum() / ((n - 1) * (n - 2))
        return product.trace() + second - 2 / (n - 2) * product.sum()

    return (hsic(K, L) / (hsic(K, K) * hsic(L, L)).sqrt()).item()


def test_the_terms_of_a_stage_are_those_of_what_the_student_makes_of_the_map() -> None:
    case = Case()
    method = case.drd(alpha=0.5, beta=2.0, temperature=3.0, stage_weight=0.7)
    output = case.output(method)
    terms = method(case.batch, output, LATER)
    projector = method.projectors[1]
    theirs = case.batch.taps["s2"].float()
    reached = case.student.resume("s2", projector(theirs, output.stages["s2"].shape[2:]), {}).logits
    z_t, z_s = reached.detach().double(), output.logits.detach().double()
    p_t, p_s = (z_t / 3).softmax(1), (z_s / 3).softmax(1)
    left = 0.7 * 0.6
    expected = {
        "hybrid_s2": left * 0.5 * F.cross_entropy(z_t, case.batch.target).item(),
        "kl_s2": left * 2.0 * 9 * (p_t * (p_t / p_s).log()).sum(1).mean().item(),
        "cka_s2": 0.7 * (1 - unbiased_cka(output.stages["s2"].mean((2, 3)), theirs.mean((2, 3)))),
    }
    for name, value in expected.items():
        assert terms[name].item() == pytest.approx(value, rel=1e-4), name


@EVERY_TASK
@IMAGES_AND_VOLUMES
@pytest.mark.parametrize("name", ["drd", "drd-paper"])
def test_every_task_has_its_terms_and_all_that_trains_gets_gradients(
    task: str, dimensions: int, name: str
) -> None:
    case = Case(task, dimensions)
    method = case.drd(name)
    terms = case.terms(method)
    stages = ["s1", "s2", "s3"] if task == "segmentation" else ["s1", "s2"]
    rd = ["ce"] if task == "segmentation" else ["ce", "teacher_ce", "kl", "cka"]
    own = [f"{kind}_{stage}" for stage in stages for kind in ("hybrid", "kl", "cka")]
    assert list(terms) == rd + own
    assert all(torch.isfinite(term) and term != 0 for term in terms.values())
    torch.stack(list(terms.values())).sum().backward()
    assert all(p.grad is not None for p in method.trainable_parameters("student"))
    assert all(p.grad is not None for p in case.student.parameters())


@EVERY_TASK
@NORMS
def test_only_shared_norms_notice_the_hybrid_passes(task: str, norms: str) -> None:
    case = Case(task)
    method = case.drd(hybrid_bn=norms)
    output = case.output(method)
    plain = {name: it.clone() for name, it in case.student.named_buffers()}
    method(case.batch, output, START)["hybrid_s1"].backward()
    same = [torch.equal(it, plain[name]) for name, it in case.student.named_buffers()]
    assert all(same) == (norms != "shared")
    assert all(
        "forward" not in vars(module) and getattr(module, "track_running_stats", True)
        for module in case.student.modules()
    )


@EVERY_TASK
@IMAGES_AND_VOLUMES
@NORMS
def test_streams_that_run_as_one_batch_are_those_that_run_one_by_one(
    task: str, dimensions: int, norms: str
) -> None:
    case = Case(task, dimensions)
    method = case.drd(hybrid_bn=norms)
    output = case.output(method)
    assert method.hybrids is not None
    injected = {
        projector.pair.stage: torch.randn_like(output.stages[projector.pair.stage])
        for projector in method._projectors()
    }
    if norms == "split":
        with torch.no_grad():
            for own in method.hybrids.own_norms.parameters():
                own.add_(0.1 * torch.randn_like(own))
    own_maps = output.stages if task == "segmentation" else {}
    together = method.hybrids(injected, own_maps)
    for number, (stage, maps) in enumerate(injected.items()):
        if norms == "split":  # what this stage's norms do, put into the student for once
            own = method.hybrids.own_norms[number].state_dict()
            theirs = [
                it
                for it in case.student.modules()
                if isinstance(it, torch.nn.modules.batchnorm._BatchNorm)
            ]
            for i, norm in enumerate(theirs):
                norm.weight.data, norm.bias.data = own[f"{i}.weight"], own[f"{i}.bias"]
        alone = case.student.resume(stage, maps, own_maps).logits
        torch.testing.assert_close(together[stage], alone, rtol=1e-4, atol=1e-5)


def test_own_norms_train_in_place_of_the_students() -> None:
    case = Case()
    method = case.drd(hybrid_bn="split")
    terms = case.terms(method)
    case.student.zero_grad()
    terms["hybrid_s2"].backward()
    assert case.student.segments["s3"][1].weight.grad is None
    assert method.hybrids is not None
    first, second = (
        sum(p.grad.abs().sum().item() for p in norms.parameters() if p.grad is not None)
        for norms in method.hybrids.own_norms
    )
    assert first == 0
    assert second > 0


@EVERY_TASK
def test_the_students_tail_learns_from_hybrid_passes_only_if_it_is_to(task: str) -> None:
    for trains in (True, False):
        case = Case(task)
        method = case.drd(hybrid_train_student_tail=trains)
        terms = case.terms(method)
        terms["hybrid_s2"].backward()
        assert any(p.grad is not None for p in case.student.parameters()) == trains
        assert all(p.grad is not None for p in method.projectors[1].parameters())
        assert all(p.requires_grad for p in case.student.parameters())


@pytest.mark.parametrize("term", ["kl", "cka"])
@pytest.mark.parametrize("side", ["both", "student", "teacher"])
def test_a_term_moves_only_the_sides_it_should(term: str, side: str) -> None:
    case = Case()
    method = case.drd(
        **{f"{term}_grad": side}, cka_target="reprogrammed", hybrid_train_student_tail=False
    )
    case.terms(method)[f"{term}_s2"].backward()
    moved = any(p.grad is not None for p in method.projectors[1].parameters())
    assert moved == (side != "student")
    assert (case.student.segments["s1"][0].weight.grad is not None) == (side != "teacher")


def test_nothing_of_the_student_becomes_the_methods_but_the_shared_classifier() -> None:
    case = Case()
    method = case.drd(hybrid_bn="split")
    shared = set(case.student.parameters()) & set(method.parameters())
    assert shared == set(case.student.classifier.parameters())
    names = {name.split(".")[0] for name in method.state_dict()}
    assert names == {"rd", "projectors", "hybrids"}
    assert {name.split(".")[0] for name in method.teacher_state()} == {"rd"}
    assert method.branch_taps == ("s3",)
    assert method.taps == ("s3", "s1", "s2")
    student: Any = case.student
    assert method.deployed(student) is student


def test_the_papers_preset_depends_on_no_default_of_the_recommended_one() -> None:
    paper = find_method("drd-paper")
    assert set(DRDConfig.model_fields) - {"tap", "cka_min_batch"} == set(paper.options)
    config = paper.config({})
    assert isinstance(config, DRDConfig)
    assert config.hybrid_bn == "shared"
    assert config.kl_grad == config.cka_grad == "both"
