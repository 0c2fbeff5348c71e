"""How many multiplications a forward pass takes, by PyTorch's own counter.

One multiply–accumulate (MAC) is two floating-point operations (FLOPs). Counted are convolutions and
matrix products, those of attention among them; norms, activations and pooling are not, as in most
published numbers. A network that computes by operations which the counter has no formula for gets
no number instead of one that is too small.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

FLOPS_PER_MAC = 2
ORDINARY = ("aten", "prim", "prims", "profiler")  # namespaces whose products the counter knows
# … but for these, in which PyTorch fuses whole layers.
FUSED = ("aten::_native_multi_head_attention", "aten::_transformer_encoder_layer_fwd")


@dataclass(frozen=True)
class Operations:
    """What a forward pass computes.

    Attributes:
        macs: multiply–accumulates; None where some cannot be counted.
        uncounted: operations that the counter has no formula for.
    """

    macs: int | None
    uncounted: tuple[str, ...] = ()


def count_operations(forward: Callable[[], object]) -> Operations:
    """Count the operations of one call."""
    counter, seen = FlopCounterMode(display=False), _Seen()
    # Attention is computed by plain products for once, and by no fused layer: old versions of the
    # counter do not know every kernel of it.
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.inference_mode(), sdpa_kernel(SDPBackend.MATH), counter, seen:
            forward()
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
    if seen.unknown:
        return Operations(None, tuple(sorted(seen.unknown)))
    return Operations(counter.get_total_flops() // FLOPS_PER_MAC)


class _Seen(TorchDispatchMode):
    """Takes note of operations that the counter does not know."""

    def __init__(self) -> None:
        super().__init__()
        self.unknown: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name
        if name.partition("::")[0] not in ORDINARY or name in FUSED:
            self.unknown.add(name)
        return func(*args, **(kwargs or {}))
