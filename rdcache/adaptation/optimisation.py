"""AdamW or SGD over what an adaptation trains, with a rate for each depth of a transformer."""

from __future__ import annotations

import re

import torch
from torch import nn

from rdcache.adaptation.config import AdaptConfig

MOMENTUM = 0.9


def create_optimiser(
    trained: dict[str, nn.Parameter], config: AdaptConfig, layer_decay: float
) -> torch.optim.Optimizer:
    """AdamW or SGD; vectors (biases, norms) without weight decay, and each depth of a transformer
    with a rate of its own. A group's `largest` is the rate at the peak of the schedule.

    Args:
        trained: by their names in the adapted network.
        layer_decay: factor of the rate from each block to the one before it; 1 in other networks.
    """
    assert config.lr is not None
    depths = {name: _depth(name) for name in trained}
    deepest = max(depths.values()) + 1
    lr = config.lr
    groups: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for name, parameter in trained.items():
        depth = deepest if depths[name] < 0 else depths[name]
        groups.setdefault((depth, parameter.ndim > 1), []).append(parameter)
    described = [
        {
            "params": parameters,
            "largest": lr * layer_decay ** (deepest - depth),
            "weight_decay": config.weight_decay if matrix else 0.0,
        }
        for (depth, matrix), parameters in groups.items()
    ]
    if config.optimiser == "sgd":
        return torch.optim.SGD(described, lr=lr, momentum=MOMENTUM)
    fused = all(parameter.device.type in ("cpu", "cuda") for parameter in trained.values())
    return torch.optim.AdamW(described, lr=lr, fused=fused)


def _depth(name: str) -> int:
    """Where a parameter lies in a transformer: 0 before the blocks, then 1, 2, …; −1 behind them,
    or anywhere in another network.
    """
    if block := re.search(r"^base\..*\bblocks\.(\d+)\.", name):
        return int(block[1]) + 1
    before = re.search(r"^base\.(.*\.)?(patch_embed|cls_token|reg_token|pos_embed|norm_pre)", name)
    return 0 if before else -1
