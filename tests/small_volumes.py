"""A dataset of small drawn volumes, in memory, and black boxes of volumes."""

from __future__ import annotations

import hashlib
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from rdcache.data import DatasetSpec, Sample, Volume, VolumeDataset
from rdcache.data.leaks import LeakReport

COUNT = 12


class PoolingOfVolumes(nn.Module):
    """A black box with a map and a vector: average-pooled voxels, times a gain."""

    def __init__(self, sides: tuple[int, int, int] = (8, 8, 8), channels: int = 1) -> None:
        super().__init__()
        self.input_size = sides
        self.input_channels = channels
        self.gain = 3.0

    def forward(self, volumes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        pooled = nn.functional.avg_pool3d(volumes, 4) * self.gain
        return pooled, pooled.mean(dim=[2, 3, 4])


def scripted(module: nn.Module, folder: Path) -> str:
    """Write a module as a TorchScript file and return the teacher name that loads it."""
    path = folder / f"{type(module).__name__.lower()}.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch deprecates what users still have
        torch.jit.script(module.eval()).save(path)
    return f"torchscript:{path}"


def drawn_volume(number: int, channels: int = 1) -> Volume:
    """Noise around a bright ball, of sides and spacings that differ."""
    random = np.random.default_rng(number)
    depth, height, width = (int(n) for n in random.integers(9, 15, 3))
    values = random.normal(100, 20, (channels, depth, height, width)).astype(np.float32)
    values[:, 3:6, 2:7, 3:8] += 80 if number % 2 else 40
    return Volume(values, (2.0, 1.0, 1.0), np.eye(4), np.float32(50), np.float32(250))


def drawn_dataset(
    task: str = "multiclass", channels: int = 1, spec: DatasetSpec | None = None
) -> VolumeDataset:
    """Twelve volumes: eight to train on, two to validate, two to test."""
    volumes = {Path(f"{number}"): drawn_volume(number, channels) for number in range(COUNT)}
    splits = ["train"] * 8 + ["val"] * 2 + ["test"] * 2
    samples = tuple(
        Sample(
            uid=hashlib.blake2b(str(path).encode(), digest_size=16).hexdigest(),
            path=path,
            name=str(path),
            label=0 if task == "segmentation" else number % 2,
            split=splits[number],
            group=None,
            size=volume.shape,
            stamp=(0, 0),
        )
        for number, (path, volume) in enumerate(volumes.items())
    )
    return VolumeDataset(
        spec=spec or DatasetSpec("balls"),
        title="balls",
        classes=("background", "ball") if task == "segmentation" else ("dim", "bright"),
        symmetry="hflip",
        samples=samples,
        skipped=(),
        leaks=LeakReport(),
        read=lambda path: volumes[path],  # type: ignore[arg-type,return-value]
        stamp=lambda path: (0, 0),
        task=task,  # type: ignore[arg-type]
        dimensions=3,
        channels=channels,
    )


def use_drawn_volumes(
    monkeypatch: pytest.MonkeyPatch, task: str = "multiclass", channels: int = 1
) -> None:
    """Have every extraction find the drawn dataset, under whatever name."""

    def load(spec: DatasetSpec, *args: object, **options: object) -> VolumeDataset:
        return drawn_dataset(task, channels, replace(spec, name="balls"))

    monkeypatch.setattr("rdcache.extraction.plan.load_dataset", load)
