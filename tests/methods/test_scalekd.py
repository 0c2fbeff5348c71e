"""ScaleKD: queries on the teacher's grid, and two errors of directions."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.fft import dctn, idctn
from torch.nn import functional as F

from rdcache.errors import UsageError
from rdcache.losses import without_dc
from rdcache.methods import (
    CachedBatch,
    ChannelStatistics,
    MethodContext,
    TrainingProgress,
    create_method,
)
from rdcache.methods.scalekd import AttentionProjector, ScaleKD
from rdcache.models import StudentOutput
from rdcache.store import TapSpec

BuildContext = Callable[..., MethodContext]
ComputeOutput = Callable[[MethodContext], StudentOutput]
START = TrainingProgress(epoch=0, epochs=10)
STATISTICS = ChannelStatistics(torch.linspace(-1, 1, 16), torch.linspace(1, 3, 16))


def create(context: MethodContext, **options: object) -> ScaleKD:
    torch.manual_seed(3)
    method = create_method("scalekd", {"width": 64, **options}, context)
    assert isinstance(method, ScaleKD)
    method.begin_stage("student")
    return method


def directions(maps: np.ndarray) -> np.ndarray:
    return np.asarray(maps / np.sqrt((maps**2).sum(axis=1, keepdims=True)))


def without_lowest(maps: np.ndarray) -> np.ndarray:
    coefficients = dctn(maps, type=2, axes=(2, 3))
    coefficients[:, :, 0, 0] = 0
    return np.asarray(idctn(coefficients, type=2, axes=(2, 3)))


def test_both_errors_are_the_formula_on_the_projected_maps(
    context: BuildContext, batch: CachedBatch, student_output: ComputeOutput
) -> None:
    setting = context(statistics=lambda name: STATISTICS)
    method = create(setting, grid=3)
    assert (set(method.taps), method.student_stages) == ({"s3", "s4"}, ("s3", "s4"))
    student = student_output(setting)
    terms = method(batch, student, START)
    assert terms.keys() == {"ce", "spatial", "frequency"}
    method = method.double()
    mean, std = (part.double().view(1, -1, 1, 1) for part in (STATISTICS.mean, STATISTICS.std))
    spatial = frequency = 0.0
    for i, stage in enumerate(("s3", "s4")):
        theirs = (batch.taps[stage].double() - mean) / std
        pooled = F.adaptive_avg_pool2d(theirs, 3).numpy()
        own = student.stages[stage].double()
        mine = method.spatial[i](own).detach().numpy()
        each = {"s3": 4, "s4": 1}[stage]  # positions of the tap, 6×6 or 3×3, for one of the grid
        spatial += each * float(((directions(mine) - directions(pooled)) ** 2).sum() / 8)
        mine = method.frequency[i](own).detach().numpy()
        varying = [directions(without_lowest(maps)) for maps in (mine, pooled)]
        frequency += each * float(((varying[0] - varying[1]) ** 2).sum() / 8)
    assert terms["spatial"].item() == pytest.approx(0.08 * spatial, rel=1e-4)
    assert terms["frequency"].item() == pytest.approx(0.06 * frequency, rel=1e-4)


def test_a_projector_attends_from_every_query_to_every_position_of_the_student() -> None:
    torch.manual_seed(0)
    projector = AttentionProjector(inputs=5, outputs=6, sides=(3, 2), width=128).double().eval()
    maps = torch.randn(2, 5, 4, 4, dtype=torch.float64)
    places = F.interpolate(projector.places, (4, 4), mode="bilinear")
    tokens = (projector.enter(maps) + places).flatten(2).transpose(1, 2)
    asked = projector.ask(projector.queries)
    keys, values = projector.key(tokens), projector.value(tokens)
    expected = []
    for sample in range(2):
        heads = []
        for head in (slice(0, 64), slice(64, 128)):
            logits = 5 * asked[:, head] @ keys[sample, :, head].T / 8
            heads.append(logits.softmax(1) @ values[sample, :, head])
        answer = projector.answer(torch.cat(heads, 1))
        expected.append(projector.leave(answer + projector.think(answer)).T.reshape(6, 3, 2))
    torch.testing.assert_close(projector(maps), torch.stack(expected))


def test_gradients_reach_the_student_and_all_of_both_projectors(
    context: BuildContext, batch: CachedBatch, student_output: ComputeOutput
) -> None:
    setting = context()
    method, student = create(setting, grid=3), student_output(setting)
    terms = method(batch, student, START)
    (terms["spatial"] + terms["frequency"]).backward()
    for stage in ("s3", "s4"):
        grad = student.stages[stage].grad
        assert grad is not None
        assert grad.any()
    assert all(p.grad is not None for p in method.trainable_parameters("student"))


def test_a_student_of_one_position_is_not_asked_for_frequencies(
    context: BuildContext, batch: CachedBatch, student_output: ComputeOutput
) -> None:
    """What would be compared is the rounding of a constant map."""
    setting = context()
    student = student_output(setting)
    maps = {**student.stages, "s4": student.stages["s4"].mean((2, 3), keepdim=True)}
    student = StudentOutput(student.features, student.logits, maps)
    method = create(setting, stages=["s4"])
    assert method(batch, student, START).keys() == {"ce", "spatial"}
    projected = method.frequency[0](maps["s4"])
    assert not without_dc(projected).any()
    both = create(setting, stages=["s3", "s4"])
    alone = create(setting, stages=["s3"])
    alone.frequency[0].load_state_dict(both.frequency[0].state_dict())
    found = both(batch, student, START)["frequency"].item()
    assert found == pytest.approx(alone(batch, student, START)["frequency"].item(), rel=1e-6)


def test_larger_maps_of_the_teacher_are_averaged_to_the_grid(context: BuildContext) -> None:
    method = create(context(), grid=4)
    assert method.sides == [(4, 4), (3, 3)]
    assert [len(projector.queries) for projector in method.spatial] == [16, 9]  # type: ignore


def test_one_stage_will_do_and_a_vector_has_no_frequencies(
    context: BuildContext, batch: CachedBatch, student_output: ComputeOutput
) -> None:
    taps = {"s4": TapSpec("s4", "vector", (16,))}
    setting = context(taps=taps)
    method = create(setting)
    vectors = CachedBatch(batch.samples, {"s4": batch.taps["pooled"]}, batch.target)
    terms = method(vectors, student_output(setting), START)
    assert terms.keys() == {"ce", "spatial"}
    assert terms["spatial"].item() > 0
    with pytest.raises(UsageError, match="no stage in common"):
        create(context(taps={"pooled": context().taps["pooled"]}))
    with pytest.raises(UsageError, match="width"):
        create(context(), width=100)
