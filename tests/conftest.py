"""What every room's tests share: quiet threads, isolated folders, the way to real images."""

from __future__ import annotations

import os
import secrets
import urllib.request
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from s3_server import S3Server
from small_inputs import save_image
from torch import nn

from rdcache.store import RemotePath


def pytest_configure() -> None:
    """One thread per test process: two cores are shared by all of them."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where what is known of images is kept from test to test: drawn and real ones take seconds to
    look at, and all others have another folder in each test.
    """
    return tmp_path_factory.mktemp("scans")


@pytest.fixture
def cache(scans: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The user's cache of this test: empty but for scans."""
    folder = tmp_path_factory.mktemp("cache")
    (folder / "scans").symlink_to(scans)
    return folder


@pytest.fixture(autouse=True)
def _isolated_folders(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or writes the user's own root, data or cache."""
    monkeypatch.setenv("RDCACHE_ROOT", str(tmp_path / "root"))
    monkeypatch.setenv("RDCACHE_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("RDCACHE_CACHE", str(cache))


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real medical images named by RDCACHE_TEST_DATA; skips where there is none."""
    folder = os.environ.get("RDCACHE_TEST_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("RDCACHE_TEST_DATA names no folder of real images")
    return Path(folder)


@pytest.fixture
def script(tmp_path: Path) -> Callable[[nn.Module], str]:
    """Write a module as a TorchScript file and return the teacher name that loads it."""

    def write(module: nn.Module) -> str:
        path = tmp_path / f"{type(module).__name__.lower()}.pt"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torch deprecates what users still have
            images = torch.randn(2, 3, 224, 224)
            torch.jit.trace(module.eval(), images, check_trace=False).save(path)
        return f"torchscript:{path}"

    return write


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes of twenty small images each, of differing sizes."""
    random = np.random.default_rng(0)
    for label, offset in (("benign", 60), ("malignant", 140)):
        for number in range(20):
            height, width = random.integers(32, 64, 2)
            noise = random.integers(0, 60, (height, width, 3))
            save_image(
                tmp_path / "images" / label / f"{number:02}.png", (noise + offset).astype(np.uint8)
            )
    return tmp_path / "images"


@pytest.fixture
def few(folder: Path) -> Path:
    """Eight images of each class, for tests to which their number proves nothing."""
    for path in folder.rglob("*.png"):
        if int(path.stem) >= 8:
            path.unlink()
    return folder


@pytest.fixture(scope="session")
def _s3_server() -> Iterator[S3Server]:
    server = S3Server()
    yield server
    server.stop()


@pytest.fixture
def s3(_s3_server: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> S3Server:
    """A real S3 server on loopback, and the environment of someone who uses it."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", _s3_server.url)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "somebody")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    monkeypatch.setenv("RDCACHE_PATIENCE", "20")
    _s3_server.requests.clear()
    return _s3_server


@pytest.fixture
def bucket(s3: S3Server) -> RemotePath:
    """A root in a new bucket."""
    name = f"team-{secrets.token_hex(6)}"
    urllib.request.urlopen(urllib.request.Request(f"{s3.url}/{name}", method="PUT")).close()
    return RemotePath(f"s3://{name}/rdcache")
