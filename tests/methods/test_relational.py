"""SP, RKD, CC and PKT: which features they compare, how they weigh them, what trains."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch.nn import functional as F

from rdcache.errors import UsageError
from rdcache.methods import (
    CachedBatch,
    ChannelStatistics,
    MethodContext,
    TrainingProgress,
    create_method,
)
from rdcache.methods.baseline import Baseline
from rdcache.models import StudentOutput

BuildContext = Callable[..., MethodContext]
ComputeOutput = Callable[[MethodContext], StudentOutput]
START = TrainingProgress(epoch=0, epochs=10)
STATISTICS = ChannelStatistics(torch.linspace(-1, 1, 16), torch.linspace(1, 3, 16))


def method_named(name: str, context: MethodContext, **options: object) -> Baseline:
    torch.manual_seed(3)
    method = create_method(name, options, context)
    assert isinstance(method, Baseline)
    method.begin_stage("student")
    return method


def standardised_mean(batch: CachedBatch) -> torch.Tensor:
    mean, std = STATISTICS.mean.double(), STATISTICS.std.double()
    return (batch.taps["pooled"].double() - mean) / std


def test_sp_compares_gram_matrices_of_the_maps_as_they_are(
    context: BuildContext, batch: CachedBatch, student_output: ComputeOutput
) -> None:
    setting = context(statistics=lambda name: STATISTICS)
    method = method_named("sp", setting)
    assert (method.taps, method.student_stages) == (("s4",), ("s4",))
    student = student_output(setting)
    terms = method(batch, student, START)
    assert terms.keys() == {"ce", "sp"}
    grams = []
    for maps in (student.stages["s4"], batch.taps["s4"]):
        rows = maps.double().flatten(1)
        grams.append(F.normalize(rows @ rows.T))
    expected = 3000 * ((grams[0] - grams[1]) ** 2).sum() / 8**2
    assert terms["sp"].item() == pytest.approx(expected.item(), rel=1e-4)
    terms["sp"].backward()
    assert student.stages["s4"].grad is not None
    assert not list(method.trainable_parameters("student"))


def test_rkd_weighs_distances_and_angles_of_standardised_pooled_features(
    context: BuildContext, batch: CachedBatch, student_output: ComputeOutput
) -> None:
    setting = context(statistics=lambda name: STATISTICS)
    method = method_named("rkd", setting)
    student = student_output(setting)
    terms = method(batch, student, START)
    assert terms.keys() == {"ce", "distance", "angle"}
    d_s, d_t = (torch.cdist(z, z) for z in (student.features.double(), standardised_mean(batch)))
    d_s, d_t = (d / (d.sum() / (8 * 7)) for d in (d_s, d_t))
    expected = 25 * F.smooth_l1_loss(d_s, d_t)
    assert terms["distance"].item() == pytest.approx(expected.item(), rel=1e-4)
    angles = []
    for z in (student.features.double(), standardised_mean(batch)):
        rays = F.normalize(z[None, :] - z[:, None], dim=2)
        angles.append(rays @ rays.transpose(1, 2))
    expected = 50 * F.smooth_l1_loss(*angles)
    assert terms["angle"].item() == pytest.approx(expected.item(), rel=1e-4)


def test_cc_embeds_both_sides_and_trains_both_embeddings(
    context: BuildContext, batch: CachedBatch, student_output: ComputeOutput
) -> None:
    setting = context(statistics=lambda name: STATISTICS)
    method = method_named("cc", setting, embedding=5)
    student = student_output(setting)
    terms = method(batch, student, START)
    mine = method.student_embedding.double()(student.features.double())  # type: ignore[operator]
    theirs = method.teacher_embedding.double()(standardised_mean(batch))  # type: ignore[operator]
    delta = (mine - theirs).abs()
    expected = 0.02 * (delta[:-1] * delta[1:]).sum() / 7
    assert terms["cc"].item() == pytest.approx(expected.item(), rel=1e-4)
    assert sum(p.numel() for p in method.trainable_parameters("student")) == 5 * (13 + 17)


def test_pkt_compares_neighbours_by_the_cosines_of_the_features_as_they_are(
    context: BuildContext, batch: CachedBatch, student_output: ComputeOutput
) -> None:
    setting = context(statistics=lambda name: STATISTICS)
    method = method_named("pkt", setting)
    student = student_output(setting)
    terms = method(batch, student, START)
    distributions = []
    for z in (student.features.double(), batch.taps["pooled"].double()):
        similarity = (F.cosine_similarity(z[:, None], z[None, :], dim=2) + 1) / 2
        distributions.append(similarity / similarity.sum(1, keepdim=True))
    p_s, p_t = distributions
    expected = 30000 * (p_t * ((p_t + 1e-7) / (p_s + 1e-7)).log()).mean()
    assert terms["pkt"].item() == pytest.approx(expected.item(), rel=1e-3)


@pytest.mark.parametrize("name", ["sp", "rkd", "cc", "pkt"])
def test_tokens_and_vectors_are_compared_as_the_maps_that_they_stand_for(
    name: str, context: BuildContext, batch: CachedBatch, student_output: ComputeOutput
) -> None:
    setting = context(statistics=lambda name: STATISTICS)
    folded = {
        "tokens": batch.taps["tokens"].transpose(1, 2).reshape(8, 16, 3, 3),
        "pooled": batch.taps["pooled"][:, :, None, None].expand(-1, -1, 3, 3),
    }
    for tap, maps in folded.items():
        found = method_named(name, setting, tap=tap)(batch, student_output(setting), START)
        same = CachedBatch(batch.samples, {"s4": maps}, batch.target)
        as_map = method_named(name, setting, tap="s4")(same, student_output(setting), START)
        for term, value in as_map.items():
            assert found[term].item() == pytest.approx(value.item(), rel=1e-4), (tap, term)


@pytest.mark.parametrize("name", ["rkd", "cc", "pkt", "vkd", "crd"])
def test_pooled_features_are_the_stored_ones_where_there_are_any(
    name: str, context: BuildContext
) -> None:
    assert method_named(name, context()).taps == ("pooled",)
    taps = {"s4": context().taps["s4"]}
    assert method_named(name, context(taps=taps)).taps == ("s4",)


@pytest.mark.parametrize("name", ["sp", "rkd", "cc", "pkt"])
def test_a_single_sample_has_no_relations(name: str, context: BuildContext) -> None:
    with pytest.raises(UsageError, match="too small"):
        create_method(name, {}, context(batch_size=1))
