"""Checkpoints come back bit by bit, or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from rdcache.distillation.checkpoint import load_checkpoint, save_checkpoint
from rdcache.errors import RunNotFoundError

CPU = torch.device("cpu")


def test_a_state_comes_back_with_its_types_keys_and_memory_order(tmp_path: Path) -> None:
    maps = torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last)
    state = {
        "optimiser": {"state": {0: {"step": torch.tensor(3.0)}, 7: {}}, "groups": [{"lr": 1e-3}]},
        "history": [{"epoch": 0, "loss": 0.1 + 0.2, "val": None, "name": "τ"}],
        "maps": maps,
        "half": torch.randn(3).bfloat16(),
        "count": torch.tensor(5),
        "empty": torch.empty(0),
    }
    path = tmp_path / "checkpoint.safetensors"
    save_checkpoint(path, state)
    back = load_checkpoint(path, CPU)
    assert back["optimiser"]["state"].keys() == {0, 7}
    assert back["history"] == state["history"]
    assert torch.equal(back["maps"], maps)
    assert back["maps"].is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(back["half"], state["half"])
    assert back["count"].dtype == torch.int64
    assert back["empty"].shape == (0,)
    assert [each.name for each in tmp_path.iterdir()] == [path.name]


def test_a_layer_that_two_modules_share_is_kept_once(tmp_path: Path) -> None:
    layer = nn.Linear(100, 100)
    state = {"student": layer.state_dict(), "method": layer.state_dict()}
    path = tmp_path / "checkpoint.safetensors"
    save_checkpoint(path, state)
    assert path.stat().st_size < 1.5 * 4 * 100 * 101
    back = load_checkpoint(path, CPU)
    assert torch.equal(back["method"]["weight"], layer.weight)


def test_a_damaged_checkpoint_is_refused_in_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.safetensors"
    save_checkpoint(path, {"weights": torch.randn(1000)})
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(RunNotFoundError, match=r"cannot be read[\s\S]*--overwrite"):
        load_checkpoint(path, CPU)
    path.write_bytes(b"")
    with pytest.raises(RunNotFoundError, match="cannot be read"):
        load_checkpoint(path, CPU)
