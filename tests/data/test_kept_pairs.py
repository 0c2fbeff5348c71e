"""Pictures of large datasets are compared once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from rdcache.data import kept_pairs
from rdcache.data.kept_pairs import known_duplicates
from rdcache.data.leaks import Duplicate, find_duplicates

random = np.random.default_rng(0)
THUMBNAILS = random.integers(0, 256, (6, 32, 32), np.uint8)
THUMBNAILS[3] = THUMBNAILS[4] = THUMBNAILS[1]
PERCEPTUAL = np.array([1, 2**60, 2**40, 2**60, 2**60, 7], np.uint64)
PIXELS = [b"a", b"b", b"c", b"b", b"d", b"a"]


@pytest.fixture
def compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for each time that pictures are compared."""
    calls: list[int] = []

    def counting(pixels: list[bytes], *rest: np.ndarray) -> list[Duplicate]:
        calls.append(len(pixels))
        return find_duplicates(pixels, *rest)

    monkeypatch.setenv("RDCACHE_CACHE", str(tmp_path))
    monkeypatch.setattr(kept_pairs, "find_duplicates", counting)
    monkeypatch.setattr(kept_pairs, "KEPT_FROM", 6)
    return calls


def test_the_same_pictures_are_compared_once_with_the_same_result(compared: list[int]) -> None:
    first, again = (known_duplicates(PIXELS, PERCEPTUAL, THUMBNAILS) for _ in range(2))
    assert compared == [6]
    assert again == first == find_duplicates(PIXELS, PERCEPTUAL, THUMBNAILS)
    assert {pair.kind for pair in first} == {"exact", "near"}


def test_other_pictures_are_compared_anew(compared: list[int]) -> None:
    known_duplicates(PIXELS, PERCEPTUAL, THUMBNAILS)
    others = [b"%d" % number for number in range(6)]
    found = known_duplicates(others, PERCEPTUAL, THUMBNAILS)
    assert compared == [6, 6]
    assert found == find_duplicates(others, PERCEPTUAL, THUMBNAILS)


@pytest.mark.parametrize("content", [b"", b"rubbish"])
def test_what_was_kept_and_is_damaged_is_found_again(
    content: bytes, compared: list[int], tmp_path: Path
) -> None:
    first = known_duplicates(PIXELS, PERCEPTUAL, THUMBNAILS)
    (file,) = tmp_path.rglob("*.pairs.npy")
    file.write_bytes(content)
    assert known_duplicates(PIXELS, PERCEPTUAL, THUMBNAILS) == first
    assert compared == [6, 6]
