"""Datasets of every task are extracted alike; what is learnt from them lies beside the tensors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from small_inputs import Pooling, save_image
from torch import nn

import rdcache
from rdcache.cli import cli
from rdcache.data import load_dataset
from rdcache.extraction import ExtractConfig
from rdcache.store import open_store

Script = Callable[[nn.Module], str]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Twelve images with masks, and a table of their findings."""
    random = np.random.default_rng(0)
    rows = ["path,labels"]
    for number in range(12):
        pixels = random.integers(0, 256, (20, 24, 3), np.uint8)
        save_image(tmp_path / "set" / "images" / f"{number}.png", pixels)
        mask = np.zeros((20, 24), np.uint8)
        mask[:, :number] = 255
        save_image(tmp_path / "set" / "masks" / f"{number}.png", mask)
        rows.append(f"images/{number}.png,{'; '.join(['a'][: number % 2] + ['b'] * (number > 5))}")
    (tmp_path / "set" / "table.csv").write_text("\n".join(rows))
    return tmp_path / "set"


@pytest.mark.parametrize(
    ("dataset", "task", "shape"),
    [("table:{}/table.csv", "multilabel", (12, 2)), ("folder:{}", "segmentation", (12,))],
)
def test_a_store_keeps_the_labels_of_its_task(
    dataset: str, task: str, shape: tuple[int, ...], script: Script, root: Path
) -> None:
    name = dataset.format(root)
    config = ExtractConfig(teacher=script(Pooling(1.0)), dataset=name, views="flip", batch_size=4)
    store = open_store(rdcache.extract(config).location)
    loaded = load_dataset(name)
    assert store.labels.shape == shape
    assert store.labels.tolist() == loaded.labels.tolist()
    assert store.manifest["dataset"]["task"] == task
    assert store.manifest["dataset"]["counts"] == loaded.counts()
    shown = CliRunner().invoke(cli, ["info", str(store.location)], catch_exceptions=False)
    assert ["task", task] in [line.split() for line in shown.output.splitlines()]
    sizes = [f"{split} {int((loaded.splits == split).sum())}" for split in ("train", "val", "test")]
    assert f"12 ({', '.join(sizes)})" in shown.output
