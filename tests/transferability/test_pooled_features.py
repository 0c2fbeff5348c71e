"""Pooled features against NumPy, tap by tap."""

from __future__ import annotations

import importlib
from collections.abc import Callable

import numpy as np
import pytest

from rdcache.errors import UnknownNameError
from rdcache.store import TapSpec
from rdcache.transferability import pooled_features, usable_rows

from .conftest import Images

POOLED: dict[str, tuple[TapSpec, Callable[[np.ndarray], np.ndarray]]] = {
    "map": (TapSpec("s4", "map2d", (5, 3, 2), "float32"), lambda x: x.mean((2, 3))),
    "volume": (TapSpec("s4", "map3d", (5, 3, 2, 2), "float32"), lambda x: x.mean((2, 3, 4))),
    "patches": (TapSpec("tokens", "tokens", (9, 4), "float32"), lambda x: x.mean(1)),
    "class token": (TapSpec("tokens", "tokens", (10, 4), "float32"), lambda x: x[:, 1:].mean(1)),
    "vector": (TapSpec("pooled", "vector", (7,), "float32"), lambda x: x),
    "logits": (TapSpec("logits", "logits", (3,), "float32"), lambda x: x),
}


@pytest.mark.parametrize("kind", POOLED)
def test_positions_are_averaged_and_a_class_token_is_left_out(
    images: Images, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = importlib.import_module("rdcache.transferability.pooled_features")
    monkeypatch.setattr(module, "BYTES_AT_ONCE", 1000)
    tap, expected = POOLED[kind]
    values = np.random.default_rng(0).normal(0, 1, (len(images.labels), *tap.shape))
    store = images.store("one", {tap: values})
    rows = [3, 140, 0]
    found = pooled_features(store, tap.name, rows)
    np.testing.assert_allclose(found, expected(values)[rows], rtol=1e-5, atol=1e-6)
    everything = pooled_features(store, tap.name, "val")
    np.testing.assert_allclose(
        everything, expected(values)[store.samples_of("val")], rtol=1e-5, atol=1e-6
    )


def test_int8_taps_are_multiplied_with_their_scales_first(images: Images) -> None:
    tap = TapSpec("s4", "map2d", (5, 3, 2), "int8")
    values = np.random.default_rng(0).normal(0, 10, (len(images.labels), *tap.shape))
    found = pooled_features(images.store("one", {tap: values}), "s4", "train")
    np.testing.assert_allclose(found, values[:90].mean((2, 3)), atol=0.1)


def test_a_split_stands_for_the_samples_whose_features_are_there(images: Images) -> None:
    store = images.store("one", {"pooled": np.ones((165, 2))}, lacking=(1, 100))
    assert usable_rows(store, "train").tolist() == [0, *range(2, 90)]
    assert len(pooled_features(store, "pooled", "val")) == 44


def test_a_tap_that_is_not_there_is_named(images: Images) -> None:
    store = images.store("one", {"pooled": np.ones((165, 2))})
    with pytest.raises(UnknownNameError, match="s4"):
        pooled_features(store, "s4", "train")
