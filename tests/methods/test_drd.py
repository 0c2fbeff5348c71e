"""DRD: what is injected where, what the passes leave behind, and that one stage is RD."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from rdcache.errors import UnknownNameError, UsageError
from rdcache.methods import (
    CachedBatch,
    ChannelStatistics,
    Method,
    MethodContext,
    TrainingProgress,
    create_method,
    find_method,
    task_loss,
)
from rdcache.methods.drd import DeepReprogrammingDistillation
from rdcache.methods.drd_options import DRDConfig
from rdcache.models import StudentOutput
from rdcache.store import TapSpec
from tests.methods.small_students import WIDTHS, SmallClassifier, SmallStudent, SmallUNet

CLASSES, SIDE, CHANNELS = 3, 32, 5
TASKS = ("multiclass", "multilabel", "segmentation")
EVERY_TASK = pytest.mark.parametrize("task", TASKS)
IMAGES_AND_VOLUMES = pytest.mark.parametrize("dimensions", [2, 3])
NORMS = pytest.mark.parametrize("norms", ["batch", "split", "shared"])
START = TrainingProgress(epoch=0, epochs=10)
LATER = TrainingProgress(epoch=4, epochs=10)


class Case:
    """A student, a store's taps and a batch for a task."""

    def __init__(
        self, task: str = "multiclass", dimensions: int = 2, batch: int = 8, **changes: Any
    ) -> None:
        torch.manual_seed(0)
        kind = SmallUNet if task == "segmentation" else SmallClassifier
        self.student: SmallStudent = kind(CLASSES, dimensions)
        space = (SIDE,) * dimensions
        self.images = torch.randn(batch, 3, *space)
        taps = {
            f"s{stage}": TapSpec(
                f"s{stage}",
                "map3d" if dimensions == 3 else "map2d",
                (CHANNELS, *(side,) * dimensions),
            )
            for stage, side in ((1, 6), (2, 4), (3, 3))
        }
        target = torch.arange(batch) % CLASSES
        if task == "multilabel":
            target = (torch.rand(batch, CLASSES) > 0.5).float()
        elif task == "segmentation":
            target = torch.randint(0, CLASSES, (batch, *space))
        self.batch = CachedBatch(
            torch.arange(batch),
            {name: torch.randn(batch, *tap.shape).half() for name, tap in taps.items()},
            target,
        )
        values: dict[str, Any] = {
            "taps": taps,
            "default_tap": "s3",
            "feature_dim": self.student.feature_dim,
            "student_stages": self.student.stages,
            "num_classes": CLASSES,
            "classifier": self.student.classifier,
            "task_loss": task_loss(task, [4, 4, 4]),
            "statistics": lambda name: ChannelStatistics(
                torch.zeros(CHANNELS), torch.ones(CHANNELS)
            ),
            "probe": lambda name: (torch.randn(CLASSES, CHANNELS), torch.randn(CLASSES)),
            "labels": torch.arange(batch) % CLASSES,
            "folds": lambda count: torch.arange(batch) % count,
            "views": 4,
            "epochs": 10,
            "batch_size": batch,
            "student": self.student,
            "task": task,
            "dimensions": dimensions,
        }
        self.context = MethodContext(**{**values, **changes})

    def method(self, name: str = "drd", **options: Any) -> Method:
        torch.manual_seed(1)
        own = {"width": 8, "projector_width": 8} if name.startswith("drd") else {"width": 8}
        method = create_method(name, {**own, **options}, self.context)
        method.begin_stage("student")
        return method.train()

    def drd(self, name: str = "drd", **options: Any) -> DeepReprogrammingDistillation:
        method = self.method(name, **options)
        assert isinstance(method, DeepReprogrammingDistillation)
        return method

    def output(self, method: Method) -> StudentOutput:
        self.student.train()
        return self.student(self.images, method.student_stages)

    def terms(self, method: Method, progress: TrainingProgress = START) -> dict[str, torch.Tensor]:
        torch.manual_seed(5)
        return method(self.batch, self.output(method), progress)


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
    drd, rd = one.method("drd", stages=1, **options), other.method("rd", **options)
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


@IMAGES_AND_VOLUMES
@pytest.mark.parametrize("task", ["multiclass", "segmentation"])
@pytest.mark.parametrize("kind", ["map", "tokens", "tokens with a class token"])
def test_any_tap_with_positions_fits_any_stage(task: str, dimensions: int, kind: str) -> None:
    case = Case(task, dimensions, batch=4)
    positions = 2**dimensions if task == "segmentation" else 3**dimensions
    side = 2 if task == "segmentation" else 3
    tap = TapSpec("x", "map3d" if dimensions == 3 else "map2d", (CHANNELS, *(side,) * dimensions))
    if kind != "map":
        tap = TapSpec("x", "tokens", (positions + kind.endswith("a class token"), CHANNELS))
    taps = {"x": tap, "last": TapSpec("last", "vector", (CHANNELS,))}
    case = Case(task, dimensions, batch=4, taps=taps, default_tap="last")
    method = case.drd(pairs="x:s1", cka_mode="positions", cka_weight=0.5)
    assert method.projectors[0].pair.teacher_sides == (side,) * dimensions
    output = case.output(method)
    maps = method.projectors[0].maps(torch.randn(4, *tap.shape).half())
    size = output.stages["s1"].shape
    assert method.projectors[0](maps, size[2:]).shape == size


def test_taps_of_other_names_are_matched_from_the_deepest_up() -> None:
    taps = {
        name: TapSpec(name, "map2d", (CHANNELS, side, side))
        for name, side in (("deep", 2), ("fine", 9), ("middle", 5))
    }
    seg = Case("segmentation", taps=taps, default_tap="deep").drd()
    assert [(it.pair.tap.name, it.pair.stage) for it in seg._projectors()] == [
        ("fine", "s1"),
        ("middle", "s2"),
        ("deep", "s3"),
    ]
    cls = Case(taps=taps, default_tap="deep").drd()
    assert [(it.pair.tap.name, it.pair.stage) for it in cls._projectors()] == [
        ("fine", "s1"),
        ("middle", "s2"),
    ]


def test_pyramids_are_matched_by_stride_and_transformers_by_depth() -> None:
    strides = {name: (channels, 2 ** (i + 1)) for i, (name, channels) in enumerate(WIDTHS.items())}
    pyramid = {
        name: TapSpec(name, "map2d", (CHANNELS, side, side))
        for name, side in (("stride2", 12), ("s1", 6), ("s2", 3))
    }
    depths = {name: TapSpec(name, "map2d", (CHANNELS, 4, 4)) for name in ("s1", "s2", "s3")}
    for taps, expected in (
        (pyramid, {"s1": "stride2", "s2": "s1", "s3": "s2"}),
        (depths, {"s1": "s1", "s2": "s2", "s3": "s3"}),
    ):
        method = Case("segmentation", taps=taps, student_stages=strides).drd()
        pairs = {it.pair.stage: it.pair.tap.name for it in method._projectors()}
        assert pairs == expected


def test_stages_are_the_deepest_of_those_that_can_be_matched() -> None:
    case, seg = Case(), Case("segmentation")
    assert [it.pair.stage for it in case.drd(stages=2)._projectors()] == ["s2"]
    assert [it.pair.stage for it in seg.drd(stages=2)._projectors()] == ["s2", "s3"]
    assert [it.pair.stage for it in seg.drd(pairs="s1:s3, s3:s1")._projectors()] == ["s1", "s3"]
    with pytest.raises(UsageError, match="3 taps are wanted for stages of the student, and 2 fit"):
        case.drd(stages=4)


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"pairs": "s1"}, UsageError, "TAP:STAGE"),
        ({"pairs": "s1:s9"}, UsageError, "another stage of the student"),
        ({"pairs": "s1:s2,s2:s2"}, UsageError, "another stage of the student"),
        ({"pairs": "s7:s2"}, UnknownNameError, "s7"),
        ({"pairs": "s1:s2", "stages": 2}, UsageError, "stages or pairs"),
    ],
)
def test_pairs_that_cannot_be_are_refused(
    options: dict[str, Any], error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        Case().drd(**options)


def test_a_store_with_one_tap_is_for_rd() -> None:
    taps = {"s3": TapSpec("s3", "map2d", (CHANNELS, 3, 3))}
    with pytest.raises(UsageError, match=r"no tap can stand in[\s\S]*stages=1, which is rd"):
        Case(taps=taps).drd()
    assert Case(taps=taps).drd(stages=1).hybrids is None


@IMAGES_AND_VOLUMES
def test_masks_come_in_batches_of_two(dimensions: int) -> None:
    case = Case("segmentation", dimensions, batch=2)
    for mode in ("auto", "positions", "patch"):
        terms = case.terms(case.drd(cka_mode=mode))
        case.student.zero_grad()
        terms["cka_s2"].backward()
        assert case.student.segments["s2"][0].weight.grad.abs().sum() > 0
    with pytest.raises(UsageError, match=r"batch of 2 is too small[\s\S]*cka_mode=positions"):
        case.drd(cka_mode="pooled")


@pytest.mark.parametrize(
    ("sides", "options", "said"),
    [
        ((16, 16, 16), {}, r"at s3 a batch has 2 of them[\s\S]*1×1×1 at s3[\s\S]*--patch"),
        ((32, 32, 32), {"cka_mode": "patch", "cka_patches": 1}, "at s1 a batch has 2"),
    ],
)
def test_patches_too_small_for_cka_are_refused_when_the_method_is_built(
    sides: tuple[int, ...], options: dict[str, Any], said: str
) -> None:
    case = Case("segmentation", 3, batch=2, sides=sides)
    with pytest.raises(UsageError, match=said):
        case.drd(**options)
    case.drd(**{**options, "cka_weight": 0})
    Case("segmentation", 3, batch=2, sides=(32, 32, 32)).drd()
    Case("segmentation", 3, batch=4, sides=(16, 16, 16)).drd()


def test_classifiers_of_small_batches_compare_positions_too() -> None:
    case = Case(dimensions=3, batch=2)
    with pytest.raises(UsageError, match="too small"):
        case.drd()
    method = case.drd(cka_mode="positions")
    terms = case.terms(method)
    assert {"cka", "cka_s1", "cka_s2"} <= terms.keys()
    terms["cka"].backward()
    assert case.student.segments["s3"][0].weight.grad.abs().sum() > 0
    with pytest.raises(UsageError, match="no positions of its own"):
        case.drd(cka_mode="positions", cka_target="reprogrammed")


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
    with pytest.raises(UsageError, match="every position by itself"):
        case.drd(teacher_ema=0.5, cka_target="reprogrammed")
    with pytest.raises(UsageError, match="every position by itself"):
        case.drd(tap="s3")


def test_the_papers_preset_depends_on_no_default_of_the_recommended_one() -> None:
    paper = find_method("drd-paper")
    assert set(DRDConfig.model_fields) - {"tap", "cka_min_batch"} == set(paper.options)
    config = paper.config({})
    assert isinstance(config, DRDConfig)
    assert config.hybrid_bn == "shared"
    assert config.kl_grad == config.cka_grad == "both"


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
