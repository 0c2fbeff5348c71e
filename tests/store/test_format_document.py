"""`docs/store-format.md` is true: its snippets run, and read what was written."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from rdcache.store import Store, StoreLayout, TapSpec
from rdcache.store.quantisation import with_scales

DOCUMENT = Path(__file__).parents[2] / "docs" / "store-format.md"
SNIPPETS = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)
LAYOUT = StoreLayout(
    samples=7,
    extents=(7, 4),
    taps=(
        TapSpec("s4", "map2d", (3, 2, 2), "float16"),
        TapSpec("tokens", "tokens", (4, 5), "bfloat16"),
        *with_scales([TapSpec("s3", "map2d", (2, 3, 3), "int8", "zstd")]),
    ),
    shard_samples=4,
)


def snippet(mention: str) -> str:
    """The one snippet that mentions something."""
    (found,) = [text for text in SNIPPETS if mention in text]
    return found


def run(text: str, store: Store) -> dict[str, Any]:
    names: dict[str, Any] = {"location": str(store.location)}
    exec(compile(text, str(DOCUMENT), "exec"), names)
    return names


@pytest.fixture
def documented(build: Callable[..., Store]) -> Store:
    """A store as the document assumes it, with one sample that was not finite."""
    return build(layout=LAYOUT, outcomes={(0, 5): 2})


def test_every_snippet_runs(documented: Store) -> None:
    assert len(SNIPPETS) == 8
    for text in SNIPPETS:
        run(text, documented)


@pytest.mark.parametrize(
    "mention", ["open_group", "torch.bfloat16", "tensorstore.open", "xarray.open_zarr", "def read_"]
)
def test_every_way_of_reading_gives_the_stores_own_bits(documented: Store, mention: str) -> None:
    features = torch.as_tensor(run(snippet(mention), documented)["features"])
    tap = "tokens" if "bfloat16" in mention else "s4"
    expected = documented.read([2, 3, 4], 0, [tap])[tap]
    assert features.dtype == expected.dtype
    assert torch.equal(features.view(torch.int16), expected.view(torch.int16))


@pytest.mark.parametrize("mention", ["open_group", "xarray.open_zarr"])
def test_outcome_tells_stored_samples_from_zeros(documented: Store, mention: str) -> None:
    stored = run(snippet(mention), documented)["stored"]
    assert stored.tolist() == documented.available(range(7), 0).tolist()
    assert not stored[5]


def test_the_reader_without_zarr_knows_what_is_absent(documented: Store) -> None:
    read_sample = run(snippet("def read_"), documented)["read_sample"]
    assert read_sample(documented.location, "s4", 0, 5) is None
    assert read_sample(documented.location, "s4", 1, 3) is not None


@pytest.mark.parametrize("codec", ["none", "zstd", "blosc"])
def test_the_reader_without_zarr_decompresses(build: Callable[..., Store], codec: str) -> None:
    taps = tuple(replace(tap, codec=codec) for tap in LAYOUT.taps[:2])
    store = build(layout=replace(LAYOUT, taps=taps))
    features = torch.from_numpy(run(snippet("def read_"), store)["features"])
    assert torch.equal(features, store.read([2, 3, 4], 0, ["s4"])["s4"])


def test_int8_numbers_are_multiplied_with_their_scales(documented: Store) -> None:
    features = torch.from_numpy(run(snippet("taps/s3.scale"), documented)["features"])
    assert torch.equal(features, documented.read([2, 3, 4], 0, ["s3"])["s3"])


def test_the_check_finds_a_changed_byte_and_names_its_object(documented: Store) -> None:
    check = snippet("damaged.append")
    assert run(check, documented)["damaged"] == []
    name = "taps/tokens/c/0/1/0/0"
    path = documented.location / name
    data = bytearray(path.read_bytes())
    data[3] ^= 1
    path.write_bytes(data)
    assert run(check, documented)["damaged"] == [name]
