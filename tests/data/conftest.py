"""Real datasets, looked at once for all tests that need them; how often images are decoded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from rdcache.data import DatasetSpec, ImageDataset, load_dataset

LoadReal = Callable[[DatasetSpec], ImageDataset]


@pytest.fixture(scope="session")
def load_real(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> LoadReal:
    """Loads a dataset of the folder of real images; scans are kept for the session."""
    kept = str(tmp_path_factory.mktemp("scans"))

    @cache
    def load(spec: DatasetSpec) -> ImageDataset:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("RDCACHE_CACHE", kept)
            return load_dataset(spec, real_data)

    return load


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> Counter[int]:
    """How often each image is decoded."""
    return _counted(monkeypatch, "decode")


@pytest.fixture
def decoded_masks(monkeypatch: pytest.MonkeyPatch) -> Counter[int]:
    """How often each mask is decoded."""
    return _counted(monkeypatch, "decode_mask")


def _counted(monkeypatch: pytest.MonkeyPatch, method: str) -> Counter[int]:
    counts: Counter[int] = Counter()
    decode = getattr(ImageDataset, method)

    def counting(self: ImageDataset, index: int) -> np.ndarray:
        counts[index] += 1
        pixels: np.ndarray = decode(self, index)
        return pixels

    monkeypatch.setattr(ImageDataset, method, counting)
    return counts
