"""Sixty small images in a folder, and a store of invented taps that tell their classes apart."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from rdcache.data import ImageDataset, ViewSpec, load_dataset, view_columns, view_parameters
from rdcache.store import (
    Fingerprint,
    SampleTable,
    Store,
    StoreContent,
    StoreLayout,
    TapSpec,
    create_store,
)
from rdcache.store.gather import as_stored
from rdcache.store.quantisation import quantised, with_scales

CLASSES, PER_CLASS, VIEWS = ("benign", "malignant", "normal"), 20, 3
TAPS = (TapSpec("s4", "map2d", (8, 3, 3)), TapSpec("tokens", "tokens", (4, 6)))
QUICK: dict[str, Any] = {
    "student": "shufflenet-x0.5",
    "image_size": 32,
    "batch_size": 8,
    "epochs": 2,
    "device": "cpu",
    "checkpoint_seconds": 0,  # one after every epoch
}


@dataclass(frozen=True)
class Tiny:
    """The images' folder, the data folder around it, the dataset as it was, and the store."""

    images: Path
    data_dir: Path
    dataset: ImageDataset
    store: Store


def draw_images(folder: Path) -> None:
    """Noise whose brightness and stripes depend on the class."""
    random = np.random.default_rng(0)
    for label, name in enumerate(CLASSES):
        (folder / name).mkdir(parents=True)
        for number in range(PER_CLASS):
            pixels = random.integers(0, 80, (36, 40, 3)) + 40 * label
            pixels[:: 2 + label] += 40
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{number:02}.png")


def write_store(
    location: Path,
    dataset: ImageDataset,
    not_finite: tuple[tuple[int, int], ...] = (),
    taps: tuple[TapSpec, ...] = TAPS,
    patch: tuple[int, int, int] | None = None,
) -> Store:
    """Taps are the class plus noise; pairs (sample, view) in `not_finite` are left out."""
    spec = ViewSpec.parse(str(VIEWS), symmetry=dataset.symmetry, patch=patch)
    parameters = view_parameters(spec, dataset.uids, [s.size for s in dataset.samples])
    training = int((dataset.splits == "train").sum())
    findings = len(dataset.classes) if dataset.task == "multilabel" else 0
    extents = (len(dataset), *[training] * (VIEWS - 1))
    layout = StoreLayout.plan(with_scales(taps), extents, findings=findings)
    samples = SampleTable(
        tuple(dataset.uids), dataset.labels, tuple(dataset.splits), dataset.group_codes
    )
    facts = {
        "dataset": {
            "name": dataset.name,
            "spec": dataset.spec.to_dict(),
            "digest": dataset.digest,
            "classes": list(dataset.classes),
            "task": dataset.task,
            "dimensions": dataset.dimensions,
            "leaks": {"leaked_test_uids": []},
        },
        "teacher": {"name": "invented", "weights": {"source": "random"}, "default_tap": "s4"},
        "views": spec.to_dict(),
    }
    fingerprint = Fingerprint({"dataset": dataset.digest, "left out": list(map(list, not_finite))})
    content = StoreContent(
        layout, fingerprint, samples, parameters, view_columns(dataset.dimensions), facts
    )
    writer = create_store(location, content)
    dtypes = {tap.name: tap.dtype for tap in layout.taps}
    for shard in writer.missing():
        random = np.random.default_rng(shard.view)
        rows = range(shard.start, shard.stop)
        signal = dataset.labels.reshape(len(dataset), -1).sum(axis=1)[list(rows)]
        values = {}
        for tap in taps:
            shape = (len(rows), *tap.shape)
            if tap.name == "tokens":  # which know nothing of labels
                values[tap.name] = random.normal(5, 2, shape)
            else:
                mean = signal.reshape(-1, *[1] * len(tap.shape))
                values[tap.name] = random.normal(mean, 0.5, shape)
        batch = {name: torch.from_numpy(each).float() for name, each in values.items()}
        tensors = {
            name: as_stored(tensor.to(getattr(torch, dtypes[name])))
            for name, tensor in quantised(batch, taps).items()
        }
        outcome = [2 if (row, shard.view) in not_finite else 1 for row in rows]
        writer.write(shard, tensors, np.array(outcome, np.uint8))
    return writer.commit({"provenance": {}})


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    data_dir = tmp_path_factory.mktemp("data")
    images = data_dir / "images"
    draw_images(images)
    dataset = load_dataset(f"folder:{images}")
    return Tiny(images, data_dir, dataset, write_store(data_dir / "store", dataset))


@pytest.fixture
def options(tiny: Tiny, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Options of a quick run on the tiny store, with changes."""

    def build(**changes: Any) -> dict[str, Any]:
        return {**QUICK, "data_dir": tiny.data_dir, "out": tmp_path / "runs", **changes}

    return build
