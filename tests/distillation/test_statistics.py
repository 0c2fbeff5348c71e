"""Channel statistics of cached taps against NumPy in float64."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from rdcache.distillation.statistics import channel_statistics

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
