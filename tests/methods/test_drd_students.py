"""Every student of the catalogue learns by DRD from every kind of teacher's tap."""

from __future__ import annotations

import pytest
import torch

from rdcache.methods import CachedBatch, ChannelStatistics, MethodContext, create_method, task_loss
from rdcache.methods.base import TrainingProgress
from rdcache.methods.drd import DeepReprogrammingDistillation
from rdcache.models import Student, create_student, list_students
from rdcache.store import TapSpec

CLASSES, CHANNELS, BATCH = 3, 6, 2
SIDES = {2: 64, 3: 32}  # of inputs
PYRAMID = {2: (16, 8, 4, 2), 3: (8, 4, 2, 1)}
TRANSFORMER = {2: 5, 3: 3}  # patches along an axis
STUDENTS = [card.name for card in list_students()]


def taps_of(family: str, dimensions: int) -> dict[str, TapSpec]:
    kind = "map3d" if dimensions == 3 else "map2d"
    if family == "CNN":
        sides = PYRAMID[dimensions]
        shapes = [(CHANNELS, *(side,) * dimensions) for side in sides]
        return {f"s{i + 1}": TapSpec(f"s{i + 1}", kind, it) for i, it in enumerate(shapes)}
    tokens = (TRANSFORMER[dimensions] ** dimensions, CHANNELS)
    return {f"s{i}": TapSpec(f"s{i}", "tokens", tokens) for i in (1, 2, 3, 4)}


def method_for(student: Student, taps: dict[str, TapSpec]) -> DeepReprogrammingDistillation:
    task = "segmentation" if student.task_kind == "segmentation" else "multiclass"
    context = MethodContext(
        taps=taps,
        default_tap="s4",
        feature_dim=student.feature_dim,
        student_stages=student.stages,
        num_classes=CLASSES,
        classifier=student.classifier,
        task_loss=task_loss(task, [1, 1, 1]),
        statistics=lambda name: ChannelStatistics(torch.zeros(CHANNELS), torch.ones(CHANNELS)),
        probe=lambda name: (torch.zeros(CLASSES, CHANNELS), torch.zeros(CLASSES)),
        folds=lambda count: torch.arange(BATCH) % count,
        labels=torch.arange(BATCH),
        views=1,
        epochs=1,
        batch_size=BATCH,
        student=student,
        task=task,
        dimensions=student.dimensions,
    )
    torch.manual_seed(1)
    # Classifiers' CKA of two samples is of nothing; that of masks is of positions.
    options = {} if task == "segmentation" else {"cka_weight": 0}
    method = create_method("drd", {"projector_width": 8, "width": 8, **options}, context)
    assert isinstance(method, DeepReprogrammingDistillation)
    return method


@pytest.fixture(scope="module", params=STUDENTS)
def student(request: pytest.FixtureRequest) -> Student:
    torch.manual_seed(0)
    return create_student(request.param, CLASSES)


@pytest.mark.parametrize("family", ["CNN", "ViT"])
def test_every_student_takes_every_familys_taps_for_its_stages(
    student: Student, family: str
) -> None:
    dimensions = student.dimensions
    taps = taps_of(family, dimensions)
    method = method_for(student, taps).train()
    student.train().zero_grad()
    space = (SIDES[dimensions],) * dimensions
    output = student(torch.randn(BATCH, student.channels, *space), method.student_stages)
    before = {name: it.clone() for name, it in student.named_buffers()}
    is_mask = student.task_kind == "segmentation"
    batch = CachedBatch(
        torch.arange(BATCH),
        {name: torch.randn(BATCH, *tap.shape) for name, tap in taps.items()},
        torch.randint(0, CLASSES, (BATCH, *space)) if is_mask else torch.arange(BATCH),
    )
    terms = method(batch, output, TrainingProgress(0, 1))
    torch.stack(list(terms.values())).sum().backward()
    assert all(torch.isfinite(term) for term in terms.values())
    assert len(method.projectors) >= 2
    assert all(p.grad is not None for p in method.projectors.parameters())
    assert all(torch.equal(it, before[name]) for name, it in student.named_buffers())


def test_every_students_streams_run_together_as_they_do_apart(student: Student) -> None:
    dimensions = student.dimensions
    method = method_for(student, taps_of("CNN", dimensions))
    assert method.hybrids is not None
    space = (SIDES[dimensions],) * dimensions
    student.eval()  # else batches of two make what is small too sensitive to rounding
    with torch.no_grad():
        own = student(torch.randn(BATCH, student.channels, *space), tuple(student.stages)).stages
        stages = [it.pair.stage for it in method._projectors()]
        injected = {stage: torch.randn_like(own[stage]) for stage in stages}
        together = method.hybrids(injected, own)
        for stage, maps in injected.items():
            alone = student.resume(stage, maps, own).logits
            torch.testing.assert_close(together[stage], alone, rtol=1e-3, atol=1e-4)
