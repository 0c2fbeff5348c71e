"""What every room's tests share: quiet threads, isolated folders, the way to real images."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch


def pytest_configure() -> None:
    """One thread per test process: two cores are shared by all of them."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _isolated_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or writes the user's own root, data or cache."""
    monkeypatch.setenv("RDCACHE_ROOT", str(tmp_path / "root"))
    monkeypatch.setenv("RDCACHE_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("RDCACHE_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real medical images named by RDCACHE_TEST_DATA; skips where there is none."""
    folder = os.environ.get("RDCACHE_TEST_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("RDCACHE_TEST_DATA names no folder of real images")
    return Path(folder)
