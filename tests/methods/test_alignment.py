"""RCKA and PCKA: which rows are compared by CKA, with few classes and on few pixels."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from rdcache.errors import UsageError
from rdcache.methods import (
    CachedBatch,
    ChannelStatistics,
    MethodContext,
    TrainingProgress,
    create_method,
    task_loss,
)
from rdcache.methods.pcka import PatchAlignment, patch_rows
from rdcache.models import StudentOutput
from rdcache.store import TapSpec

BuildContext = Callable[..., MethodContext]
ComputeOutput = Callable[[MethodContext], StudentOutput]
START = TrainingProgress(epoch=0, epochs=10)


def biased_cka(x: np.ndarray, y: np.ndarray) -> float:
    n = len(x)
    H = np.eye(n) - np.ones((n, n)) / n
    K, L = H @ x @ x.T @ H, H @ y @ y.T @ H
    return float((K * L).sum() / np.sqrt((K * K).sum() * (L * L).sum()))


def unbiased_cka(x: np.ndarray, y: np.ndarray) -> float:
    n = len(x)
    K, L = (z @ z.T - np.diag((z**2).sum(1)) for z in (x, y))

    def hsic(a: np.ndarray, b: np.ndarray) -> float:
        product = a @ b
        corrected = np.trace(product) + a.sum() * b.sum() / ((n - 1) * (n - 2))
        return float(corrected - 2 / (n - 2) * product.sum())

    return hsic(K, L) / np.sqrt(hsic(K, K) * hsic(L, L))


def with_classes(context: BuildContext, classes: int) -> MethodContext:
    torch.manual_seed(0)
    return context(
        num_classes=classes,
        classifier=torch.nn.Linear(12, classes),
        task_loss=task_loss("multiclass", [4] * classes),
        taps={"logits": TapSpec("logits", "logits", (classes,))},
    )


def logits_of(batch: CachedBatch, classes: int) -> CachedBatch:
    logits = torch.randn(8, classes, generator=torch.Generator().manual_seed(4))
    return CachedBatch(batch.samples, {"logits": logits}, batch.target % classes)


def test_rcka_aligns_samples_and_classes(
    context: BuildContext, batch: CachedBatch, student_output: ComputeOutput
) -> None:
    setting, batch = with_classes(context, 5), logits_of(batch, 5)
    method = create_method("rcka", {}, setting)
    student = student_output(setting)
    terms = method(batch, student, START)
    assert terms.keys() == {"ce", "samples", "classes"}
    mine, theirs = student.logits.detach().double().numpy(), batch.taps["logits"].double().numpy()
    expected = 15 * (1 - biased_cka(mine, theirs))
    assert terms["samples"].item() == pytest.approx(expected, rel=1e-4)
    expected = 15 * (1 - biased_cka(mine.T, theirs.T))
    assert terms["classes"].item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("classes", [2, 3])
def test_rcka_leaves_out_relations_of_two_or_three_classes(
    classes: int, context: BuildContext, batch: CachedBatch, student_output: ComputeOutput
) -> None:
    setting, batch = with_classes(context, classes), logits_of(batch, classes)
    student = student_output(setting)
    terms = create_method("rcka", {}, setting)(batch, student, START)
    assert terms.keys() == {"ce", "samples"}
    terms["samples"].backward()
    assert student.features.grad is not None
    assert student.features.grad.abs().max() > 1e-3
    # What it leaves out: two centred points are collinear, whatever they are.
    two = np.random.default_rng(0).normal(size=(2, 2, 8))
    assert biased_cka(two[0], two[1]) == pytest.approx(1)


def test_a_row_is_one_patch_of_one_sample() -> None:
    maps = torch.arange(2 * 3 * 4 * 6).reshape(2, 3, 4, 6)
    rows = patch_rows(maps, 2)
    assert rows.shape == (3, 8, 6)
    assert torch.equal(rows[1, 0], maps[0, 1, :2, :3].flatten())
    assert torch.equal(rows[1, 1], maps[0, 1, :2, 3:].flatten())
    assert torch.equal(rows[2, 4 + 2], maps[1, 2, 2:, :3].flatten())
    assert patch_rows(maps, 1).shape == (3, 2, 24)
    assert patch_rows(maps.float(), 5).shape == (3, 32, 1)
    assert patch_rows(torch.randn(2, 3, 7, 7), 2).shape == (3, 8, 9)
    assert patch_rows(torch.randn(2, 3, 1, 1), 2).shape == (3, 2, 1)


@pytest.mark.parametrize("patches", [1, 2])
def test_pcka_averages_the_alignment_of_patches_over_channels(
    patches: int, context: BuildContext, batch: CachedBatch, student_output: ComputeOutput
) -> None:
    mean, std = torch.linspace(-1, 1, 16), torch.linspace(1, 3, 16)
    setting = context(statistics=lambda name: ChannelStatistics(mean, std))
    method = create_method("pcka", {"patches": patches, "weight": 2.0}, setting)
    assert isinstance(method, PatchAlignment)
    student = student_output(setting)
    terms = method(batch, student, START)
    assert terms.keys() == {"ce", "pcka"}
    expected = 0.0
    for stage, connector in zip(("s3", "s4"), method.connectors, strict=True):
        weight = connector.weight[:, :, 0, 0].detach().double()  # type: ignore[index,union-attr]
        mine = torch.einsum("oc,bchw->bohw", weight, student.stages[stage].detach().double())
        theirs = torch.nn.functional.adaptive_avg_pool2d(
            (batch.taps[stage].double() - mean.view(-1, 1, 1).double())
            / std.view(-1, 1, 1).double(),
            mine.shape[2],
        )
        side = mine.shape[2] // patches
        alignments = []
        for channel in range(16):
            rows = [
                np.stack(
                    [
                        sample[channel, i : i + side, j : j + side].numpy().flatten()
                        for sample in maps
                        for i in range(0, side * patches, side)
                        for j in range(0, side * patches, side)
                    ]
                )
                for maps in (mine, theirs)
            ]
            alignments.append(biased_cka(*rows))
        expected += 1 - np.mean(alignments)
    assert terms["pcka"].item() == pytest.approx(2 * expected, rel=1e-4)
    terms["pcka"].backward()
    assert all(p.grad is not None for p in method.trainable_parameters("student"))


def test_pcka_of_vectors_compares_samples(
    context: BuildContext, batch: CachedBatch, student_output: ComputeOutput
) -> None:
    setting = context(taps={"s4": TapSpec("s4", "vector", (16,))})
    vectors = CachedBatch(batch.samples, {"s4": batch.taps["pooled"]}, batch.target)
    method = create_method("pcka", {"cka_estimator": "unbiased"}, setting)
    assert isinstance(method, PatchAlignment)
    student = student_output(setting)
    terms = method(vectors, student, START)
    weight = method.connectors[0].weight[:, :, 0, 0].detach().double()  # type: ignore[index,union-attr]
    mine = (student.stages["s4"].detach().double().mean((2, 3)) @ weight.T).numpy()
    theirs = batch.taps["pooled"].double().numpy()
    each = [unbiased_cka(mine[:, [c]], theirs[:, [c]]) for c in range(16)]
    assert terms["pcka"].item() == pytest.approx(15 * (1 - np.mean(each)), rel=1e-4)


def test_pcka_has_no_option_that_it_cannot_see(context: BuildContext) -> None:
    with pytest.raises(UsageError, match="feature_norm"):
        create_method("pcka", {"feature_norm": "channel"}, context())


@pytest.mark.parametrize("name", ["rcka", "pcka"])
def test_batches_that_are_too_small_for_cka_are_refused(name: str, context: BuildContext) -> None:
    with pytest.raises(UsageError, match="too small"):
        create_method(name, {}, context(batch_size=3))
