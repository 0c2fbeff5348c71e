"""VkD: the projection stays orthogonal, and the loss is that of the projected features."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch.nn import functional as F

from rdcache.methods import (
    CachedBatch,
    ChannelStatistics,
    MethodContext,
    TrainingProgress,
    create_method,
)
from rdcache.methods.vkd import OrthogonalProjection, OrthogonalProjectionDistillation
from rdcache.models import StudentOutput

START = TrainingProgress(epoch=0, epochs=10)


def trained_projection(inputs: int, outputs: int, rank: int) -> OrthogonalProjection:
    """A projection some steps away from where it began."""
    torch.manual_seed(0)
    projection = OrthogonalProjection(inputs, outputs, rank)
    optimiser = torch.optim.AdamW(projection.parameters(), lr=0.05)
    features, target = torch.randn(16, inputs), torch.randn(16, outputs)
    for _ in range(20):
        optimiser.zero_grad()
        F.mse_loss(projection(features), target).backward()
        optimiser.step()
    return projection


@pytest.mark.parametrize(("inputs", "outputs"), [(6, 10), (10, 6), (7, 7)])
@pytest.mark.parametrize("rank", [1, 3, 64])
def test_a_trained_projection_is_still_semi_orthogonal(
    inputs: int, outputs: int, rank: int
) -> None:
    projection = trained_projection(inputs, outputs, rank).double()
    matrix = projection(torch.eye(inputs, dtype=torch.float64)).T.detach()
    gram = matrix.T @ matrix if outputs >= inputs else matrix @ matrix.T
    identity = torch.eye(min(inputs, outputs), dtype=torch.float64)
    torch.testing.assert_close(gram, identity, atol=1e-6, rtol=0)  # the fixed part is float32
    assert not torch.allclose(matrix, projection.base), "it did not train"


def test_the_rotation_is_the_cayley_transform_of_its_skew_matrix() -> None:
    projection = trained_projection(6, 10, 3).double()
    u, v = projection.u, projection.v
    skew = u @ v.T - v @ u.T
    identity = torch.eye(10, dtype=torch.float64)
    rotation = torch.linalg.inv(identity - skew / 2) @ (identity + skew / 2)
    x = torch.randn(4, 6, dtype=torch.float64)
    torch.testing.assert_close(projection(x), x @ projection.base.T @ rotation.T)


def test_gradients_pass_the_finite_difference_check() -> None:
    projection = OrthogonalProjection(3, 5, 2).double()
    x = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, u, v: projection(x), (x, projection.u, projection.v))


def test_vkd_projects_pooled_features_onto_layer_normalised_ones(
    context: Callable[..., MethodContext],
    batch: CachedBatch,
    student_output: Callable[[MethodContext], StudentOutput],
) -> None:
    mean, std = torch.linspace(-1, 1, 16), torch.linspace(1, 3, 16)
    setting = context(statistics=lambda name: ChannelStatistics(mean, std))
    method = create_method("vkd", {"weight": 3.0, "rank": 2}, setting)
    assert isinstance(method, OrthogonalProjectionDistillation)
    student = student_output(setting)
    terms = method(batch, student, START)
    assert terms.keys() == {"ce", "vkd"}
    theirs = (batch.taps["pooled"].double() - mean.double()) / std.double()
    theirs = (theirs - theirs.mean(1, keepdim=True)) / theirs.var(
        1, unbiased=False, keepdim=True
    ).add(1e-5).sqrt()
    difference = (method.projection.double()(student.features.double()) - theirs).abs()
    expected = 3 * torch.where(difference < 1, difference**2 / 2, difference - 0.5).mean()
    assert terms["vkd"].item() == pytest.approx(expected.item(), rel=1e-4)
    trained = {name for name, _ in method.named_parameters()}
    assert trained == {"projection.u", "projection.v"}
