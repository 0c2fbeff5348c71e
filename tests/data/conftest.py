"""Real datasets, looked at once for all tests that need them."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

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
