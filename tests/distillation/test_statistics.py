"""Channel statistics of cached taps against NumPy in float64."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch

from rdcache.distillation.statistics import channel_statistics
from rdcache.methods.teacher_maps import TeacherMaps
from rdcache.store import Store, TapSpec

from .conftest import Tiny, write_store


@pytest.mark.parametrize(("tap", "channel_axis"), [("s4", 1), ("tokens", 2)])
def test_statistics_are_over_training_samples_and_positions_of_the_clean_view(
    tiny: Tiny, tap: str, channel_axis: int
) -> None:
    train = np.flatnonzero(tiny.store.splits == "train").tolist()
    values = tiny.store.read(train, 0, [tap])[tap].numpy().astype(np.float64)
    axes = tuple(axis for axis in range(values.ndim) if axis != channel_axis)
    found = channel_statistics(tiny.store, tap)
    np.testing.assert_allclose(found.mean, values.mean(axes), rtol=1e-5)
    np.testing.assert_allclose(found.std, values.std(axes), rtol=1e-5)


def test_samples_without_tensors_do_not_count(tiny: Tiny, tmp_path: Path) -> None:
    store = write_store(tmp_path / "store", tiny.dataset, not_finite=((0, 0),))
    train = np.flatnonzero(store.splits == "train")[1:].tolist()
    values = store.read(train, 0, ["s4"])["s4"].numpy().astype(np.float64)
    np.testing.assert_allclose(
        channel_statistics(store, "s4").mean, values.mean((0, 2, 3)), rtol=1e-5
    )


class OneTap:
    """As much of a store as statistics need."""

    def __init__(self, spec: TapSpec, values: torch.Tensor) -> None:
        self.taps, self.values = {spec.name: spec}, values

    def samples_of(self, split: str) -> np.ndarray:
        return np.arange(len(self.values))

    def available(self, samples: np.ndarray, view: int) -> np.ndarray:
        return np.ones(len(samples), bool)

    def read(self, samples: list[int], view: int, taps: list[str]) -> dict[str, torch.Tensor]:
        return {taps[0]: self.values[samples]}


def test_a_class_token_counts_as_little_as_it_does_where_tokens_are_read() -> None:
    spec = TapSpec("tokens", "tokens", (5, 6))
    values = torch.randn(9, 5, 6, generator=torch.Generator().manual_seed(0))
    values[:, 0] += 100  # unlike all patches
    store = cast(Store, OneTap(spec, values))
    found = channel_statistics(store, "tokens")
    patches = values[:, 1:].double().numpy()
    np.testing.assert_allclose(found.mean, patches.mean((0, 1)), atol=1e-5)
    np.testing.assert_allclose(found.std, patches.std((0, 1)), rtol=1e-5)
    standardised = TeacherMaps(spec, found)(values)
    np.testing.assert_allclose(standardised.mean((0, 2, 3)), np.zeros(6), atol=1e-5)
    np.testing.assert_allclose(standardised.std((0, 2, 3), correction=0), np.ones(6), rtol=1e-4)
