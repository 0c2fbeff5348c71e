"""SDD: what teacher and student say of the parts of an image."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from rdcache.errors import UsageError
from rdcache.methods import CachedBatch, MethodContext, TrainingProgress, create_method
from rdcache.methods.sdd import ScaleDecoupledDistillation
from rdcache.methods.teacher_logits import linear_logits
from rdcache.models import StudentOutput, create_student
from rdcache.store import TapSpec

BuildContext = Callable[..., MethodContext]
START = TrainingProgress(epoch=0, epochs=10)
BATCH, WIDTH = 8, 12


def output(context: MethodContext, side: int) -> StudentOutput:
    """Of a student that classifies the mean of its last map."""
    generator = torch.Generator().manual_seed(2)
    maps = torch.randn(BATCH, WIDTH, side, side, generator=generator, requires_grad=True)
    features = maps.mean((2, 3))
    return StudentOutput(features, context.classifier(features), {"s4": maps})


def sdd(context: MethodContext, **options: object) -> ScaleDecoupledDistillation:
    method = create_method("sdd", options, context)
    assert isinstance(method, ScaleDecoupledDistillation)
    method.begin_stage("student")
    return method


def test_local_logits_average_to_the_logits() -> None:
    maps = torch.randn(2, 5, 3, 4)
    layer = torch.nn.Linear(5, 3)
    local = linear_logits(maps, layer.weight, layer.bias)
    assert local.shape == (2, 3, 3, 4)
    assert torch.allclose(local.mean((2, 3)), layer(maps.mean((2, 3))), atol=1e-6)


def test_the_students_map_decides_which_scales_remain(
    context: BuildContext, batch: CachedBatch
) -> None:
    """Of a 2×2 map: the whole and its quarters, at which this reference looks one by one."""
    weight, bias = torch.randn(3, 16), torch.randn(3)
    setting = context(probe=lambda tap: (weight, bias))
    method = sdd(setting, weight=2.0, temperature=3.0, tap="s3")
    assert method.taps == ("s3",)
    student = output(setting, side=2)
    term = method(batch, student, START)["sdd"].item()
    theirs = np.einsum("kc,bchw->bkhw", weight.double(), batch.taps["s3"].double().numpy())
    theirs += bias.double().numpy()[:, None, None]
    layer = setting.classifier
    mine = np.einsum("kc,bchw->bkhw", layer.weight.detach(), student.stages["s4"].detach())
    mine = mine.astype(np.float64) + layer.bias.detach().numpy()[:, None, None]
    total = 0.0
    for z_s, z_t, right in zip(mine, theirs, batch.target.numpy(), strict=True):
        whole = z_t.mean((1, 2))
        cells = [(z_s.mean((1, 2)), whole)]
        cells += [
            (z_s[:, i, j], z_t[:, 3 * i : 3 * i + 3, 3 * j : 3 * j + 3].mean((1, 2)))
            for i in (0, 1)
            for j in (0, 1)
        ]
        for cell_s, cell_t in cells:
            p_s, p_t = (np.exp(z / 3) / np.exp(z / 3).sum() for z in (cell_s, cell_t))
            complements = (cell_t.argmax() == right) != (whole.argmax() == right)
            total += (1 + complements) * 9 * (p_t * np.log(p_t / p_s)).sum() / (5 * BATCH)
    assert term == pytest.approx(2 * total, rel=1e-4)


def test_with_scale_one_alone_sdd_is_kd_on_a_probe_of_the_map(
    context: BuildContext, batch: CachedBatch
) -> None:
    weight, bias = torch.randn(3, 16), torch.randn(3)
    taps = {name: spec for name, spec in context().taps.items() if name != "pooled"}
    setting = context(taps=taps, probe=lambda tap: (weight, bias))
    student = output(setting, side=2)
    kd = create_method("kd", {}, setting)
    assert sdd(setting, scales=(1,))(batch, student, START)["sdd"].item() == pytest.approx(
        kd(batch, student, START)["kl"].item(), rel=1e-5
    )


def test_tokens_are_a_map_of_their_grid_and_the_classifier_learns_from_every_cell(
    context: BuildContext, batch: CachedBatch
) -> None:
    setting = context()
    method = sdd(setting, tap="tokens", scales=(2,))
    term = method(batch, output(setting, side=4), START)["sdd"]
    term.backward()
    assert setting.classifier.weight.grad is not None
    assert set(method.trainable_parameters("student")) == set(setting.classifier.parameters())


def test_a_student_that_does_more_than_average_its_last_map_is_refused(
    context: BuildContext, batch: CachedBatch
) -> None:
    setting = context()
    other = output(setting, side=2)
    normalised = StudentOutput(other.features + 1, other.logits, other.stages)
    with pytest.raises(UsageError, match="classifies the mean of its last map"):
        sdd(setting)(batch, normalised, START)
    with pytest.raises(UsageError, match="classifies the mean of its last map"):
        sdd(context(student_stages={"s4": (6, 32)}))


def test_the_catalogues_students_average_their_last_map() -> None:
    for name in ("resnet18", "mobilenet", "shufflenet-x0.5"):
        student = create_student(name, 3).eval()
        with torch.no_grad():
            result = student(torch.randn(1, 3, 64, 64), ("s4",))
        assert torch.allclose(result.stages["s4"].mean((2, 3)), result.features, atol=1e-5)


def test_maps_without_parts_are_refused(context: BuildContext, batch: CachedBatch) -> None:
    with pytest.raises(UsageError, match=r"fewer than 2×2 positions[\s\S]*pooled 16"):
        sdd(context(), tap="pooled")
    with pytest.raises(UsageError, match="fewer than 2×2"):
        sdd(context(taps={"t": TapSpec("t", "tokens", (7, 16))}, default_tap="t"))
    with pytest.raises(UsageError, match=r"every scale is finer[\s\S]*1×1"):
        sdd(setting := context(), scales=(2, 4))(batch, output(setting, side=1), START)
    with pytest.raises(UsageError, match="at least 1"):
        sdd(context(), scales=(0, 1))


@pytest.mark.parametrize("head", ["own", "rd"])
def test_heads_without_a_linear_layer_for_the_map_are_refused(
    context: BuildContext, head: str
) -> None:
    with pytest.raises(UsageError, match=r"linear layer[\s\S]*--teacher-head linear-probe"):
        sdd(context(), teacher_head=head)


def test_a_store_with_logits_of_its_own_is_probed_all_the_same(context: BuildContext) -> None:
    taps = {**context().taps, "logits": TapSpec("logits", "logits", (3,))}
    assert sdd(context(taps=taps)).taps == ("s4",)
