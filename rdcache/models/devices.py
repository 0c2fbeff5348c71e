"""Where a network computes: a device by its name, or the best there is."""

from __future__ import annotations

import torch

from rdcache.errors import UsageError


def choose_device(device: torch.device | str) -> torch.device:
    """Resolve a device; `"auto"` is a GPU where there is one.

    Raises:
        UsageError: this machine, or this build of PyTorch, has no such device.
    """
    if str(device) == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.zeros(1, device=chosen).cpu()  # fails for `meta` too, which holds no numbers
    # An AssertionError comes from a PyTorch that is built without this kind of device.
    except (RuntimeError, AssertionError) as error:
        raise UsageError(
            f"there is no device {str(device)!r} here.", known=", ".join(_names())
        ) from error
    return chosen


def has_bfloat16(device: torch.device) -> bool:
    """Whether a GPU computes in bfloat16 itself; PyTorch's own answer counts emulation too, which
    is slower than float32, and is about the current GPU.
    """
    with torch.cuda.device(device):
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))


def _names() -> list[str]:
    gpus = [f"cuda:{number}" for number in range(torch.cuda.device_count())]
    return ["auto", "cpu", *gpus, *(["mps"] if torch.backends.mps.is_available() else [])]
