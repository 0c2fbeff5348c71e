"""int8 taps and projected taps: how near they come, and who can read them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of

from rdcache.errors import StoreFormatError, UnknownNameError
from rdcache.store import Store, StoreLayout, TapSpec, open_store, verify_store
from rdcache.store.hdf5_export import export_hdf5
from rdcache.store.hdf5_import import import_hdf5
from rdcache.store.projection import Projection
from rdcache.store.quantisation import dequantise, quantise, quantised, with_scales

from .conftest import begin, contents

INT8 = {
    "map": TapSpec("map", "map2d", (3, 2, 4), "int8"),
    "volume": TapSpec("volume", "map3d", (2, 1, 3, 2), "int8"),
    "tokens": TapSpec("tokens", "tokens", (5, 3), "int8"),
    "pooled": TapSpec("pooled", "vector", (6,), "int8"),
    "logits": TapSpec("logits", "logits", (4,), "int8", "zstd"),
}
BASIS = Projection(torch.arange(7.0), torch.linalg.qr(torch.randn(7, 2))[0].T.contiguous())
PROJECTED = TapSpec("s4", "map2d", (2, 3, 3), "float32", projected_from=7)
LAYOUT = StoreLayout(6, (6, 4), (*with_scales(INT8.values()), PROJECTED), 4)


def features(samples: int) -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(3)
    return {
        tap.name: torch.randn((samples, *tap.shape), generator=random) * 7 for tap in LAYOUT.public
    }


@pytest.fixture
def store(tmp_path: Path) -> Store:
    writer = begin(tmp_path / "store", LAYOUT, projections={"s4": BASIS})
    batch = quantised(features(LAYOUT.samples), LAYOUT.taps)
    for shard in writer.missing():
        rows = {name: values[shard.start : shard.stop].numpy() for name, values in batch.items()}
        writer.write(shard, rows, np.ones(shard.stop - shard.start, np.uint8))
    return writer.commit({})


def channel_maxima(values: np.ndarray, tap: TapSpec) -> np.ndarray:
    """Largest magnitude of each group of numbers that share a scale, spread over the group."""
    axes = {"tokens": (1,), "vector": (1,), "logits": (1,)}.get(
        tap.kind, tuple(range(2, values.ndim))
    )
    return np.broadcast_to(np.abs(values).max(axis=axes, keepdims=True), values.shape)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), name=st.sampled_from(sorted(INT8)))
def test_what_comes_back_is_within_half_a_step(data: st.DataObject, name: str) -> None:
    tap = INT8[name]
    numbers = st.floats(-(2.0**100), 2.0**100, width=32)
    values = data.draw(arrays_of.arrays(np.float32, (2, *tap.shape), elements=numbers))
    rounded, scales = quantise(torch.from_numpy(values), tap)
    back = dequantise(rounded, scales, tap).double().numpy()
    steps = channel_maxima(values.astype(np.float64), tap) / 127
    smallest = np.finfo(np.float32).tiny
    allowed = np.where(steps < smallest * 1.001, 127 * smallest, steps * 0.50001)
    assert (np.abs(values - back) <= allowed).all()
    assert rounded.abs().max() <= 127
    assert ((back == 0) | (np.sign(back) == np.sign(values))).all()


def test_halves_are_rounded_to_even() -> None:
    tap = TapSpec("v", "vector", (6,), "int8")
    values = torch.tensor([[127.0, 0.5, 1.5, 2.5, -0.5, -1.5]])
    assert quantise(values, tap)[0].tolist() == [[127, 0, 2, 2, 0, -2]]


def test_a_channel_of_zeros_has_scale_zero_and_comes_back_as_zeros() -> None:
    values = torch.zeros(1, 3, 2, 4)
    values[0, 1] = 5.0
    rounded, scales = quantise(values, INT8["map"])
    assert scales[0].tolist() == [0.0, pytest.approx(5 / 127), 0.0]
    assert torch.allclose(dequantise(rounded, scales, INT8["map"]), values)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_sample_that_is_not_finite_shows_it_in_its_scales(bad: float) -> None:
    values = torch.ones(2, 6)
    values[1, 3] = bad
    _, scales = quantise(values, INT8["pooled"])
    assert scales.isfinite().tolist() == [[True], [False]]


def test_maps_have_a_scale_a_channel_tokens_too_and_vectors_one(store: Store) -> None:
    shapes = {tap.name: tap.shape for tap in store.layout.taps if tap.name.endswith(".scale")}
    assert shapes == {
        "map.scale": (3,),
        "volume.scale": (2,),
        "tokens.scale": (3,),
        "pooled.scale": (1,),
        "logits.scale": (1,),
    }


def test_a_store_gives_floats_back_and_hides_the_scales(store: Store) -> None:
    assert set(store.taps) == {*INT8, "s4"}
    batch = store.read([4, 1], 0, verify=True)
    for name, values in features(6).items():
        assert batch[name].dtype == torch.float32
        error = (batch[name] - values[[4, 1]]).abs().max()
        assert error <= values.abs().max() / 127 / 2 * 1.001
    stored = store.read_stored([4, 1], 0)
    assert stored["map"].dtype == torch.int8
    assert stored["map.scale"].shape == (2, 3)
    with pytest.raises(UnknownNameError):
        store.read([0], 0, ["map.scale"])
    assert verify_store(store.location) == []


def test_xarray_multiplies_with_the_scales(store: Store) -> None:
    taps = xarray.open_zarr(str(store.location), group="taps", consolidated=False)
    scales = taps["map.scale"].rename({"map.scale_channel": "map_channel"})
    values = (taps["map"] * scales).isel(view=0, sample=[2]).to_numpy()
    assert torch.equal(torch.from_numpy(values), store.read([2], 0, ["map"])["map"])


def test_zarr_python_finds_the_basis_and_goes_back(store: Store) -> None:
    taps = zarr.open_group(str(store.location), mode="r")["taps"]
    coordinates = taps["s4"][0, 2].reshape(2, -1)
    restored = taps["s4.basis"][:].T @ coordinates + taps["s4.mean"][:][:, None]
    values = store.read([2], 0, ["s4"])["s4"]
    expected = store.projections["s4"].restore(values, PROJECTED)[0].reshape(7, -1)
    np.testing.assert_allclose(restored, expected.numpy(), rtol=1e-5, atol=1e-5)


def test_a_projection_onto_all_its_directions_loses_nothing_of_them() -> None:
    inside = torch.randn(3, 2, 4, 4)
    restored = BASIS.restore(inside, PROJECTED)
    torch.testing.assert_close(BASIS.project(restored, PROJECTED), inside)
    tokens = TapSpec("t", "tokens", (5, 2), projected_from=7)
    inside = torch.randn(3, 5, 2)
    torch.testing.assert_close(BASIS.project(BASIS.restore(inside, tokens), tokens), inside)


@pytest.mark.parametrize("name", ["basis", "mean"])
def test_a_changed_basis_is_found(store: Store, name: str) -> None:
    (path,) = (path for path in (store.location / f"taps/s4.{name}/c").rglob("*") if path.is_file())
    data = bytearray(path.read_bytes())
    data[2] ^= 1
    path.write_bytes(data)
    with pytest.raises(StoreFormatError, match=f"s4.{name}"):
        open_store(store.location)
    assert any(f"s4.{name}" in problem.name for problem in verify_store(store.location))


def test_such_a_store_is_exported_and_imported_to_the_same_bytes(
    store: Store, tmp_path: Path
) -> None:
    export_hdf5(store, tmp_path / "out.h5")
    import_hdf5(tmp_path / "out.h5", tmp_path / "imported")
    assert contents(tmp_path / "imported") == contents(store.location)


def test_an_int8_tap_without_its_scales_is_refused(build: Callable[..., Store]) -> None:
    with pytest.raises(StoreFormatError, match="scales"):
        StoreLayout(6, (6,), (INT8["map"],), 4)
    wrong = replace(INT8["map"].scales or INT8["map"], shape=(4,))
    with pytest.raises(StoreFormatError, match="scales"):
        StoreLayout(6, (6,), (INT8["map"], wrong), 4)


def test_a_projection_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    narrow = Projection(torch.zeros(6), torch.zeros(2, 6))
    for projections in ({}, {"s4": narrow}):
        with pytest.raises(StoreFormatError, match="does not fit"):
            begin(tmp_path / "store", LAYOUT, projections=projections)
