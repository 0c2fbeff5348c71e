"""Real datasets, looked at once for all tests that need them."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from rdcache.data import ImageDataset, load_dataset


@pytest.fixture(scope="session")
def load_real(real_data: Path) -> Callable[[str], ImageDataset]:
    """Loads a dataset of the folder of real images, once a session."""
    return cache(lambda name: load_dataset(name, real_data))
