"""How well predicted regions overlap those of the labels."""

from __future__ import annotations

import torch

from rdcache.errors import UsageError

SMOOTH = 1e-5


def dice(
    logits: torch.Tensor,
    target: torch.Tensor,
    over: str = "sample",
    include_background: bool = False,
    smooth: float = SMOOTH,
) -> torch.Tensor:
    """1 − soft Dice, mean over samples and classes.

    With p = softmax(z) and g the target, one-hot, both summed over positions:
    1 − (2·Σpg + s) / (Σp + Σg + s). Where a class is in neither, the loss is 0 as p goes to 0.
    Milletari et al., "V-Net", 3DV 2016, without their squares, as most code has it. Computed in
    float32 at least, also under autocast.

    Args:
        logits: (B, C, *positions).
        target: int64 (B, *positions), class numbers; 0 is background.
        over: `sample`: the overlap of each sample; `batch`: of all of them together, which is
            steadier where structures are small or missing from many.
        include_background: whether class 0 counts as a region.
        smooth: s.

    Returns:
        Scalar in [0, 1].

    Raises:
        UsageError: the shapes do not go together, there is no class but background, or another
            word for `over`.
    """
    if logits.ndim < 3 or target.shape != logits.shape[:1] + logits.shape[2:]:
        raise UsageError(
            "the overlap is of logits (batch, class, *positions) and a class for each position.",
            logits=tuple(logits.shape),
            target=tuple(target.shape),
        )
    if over not in ("sample", "batch"):
        raise UsageError("dice is over each sample or the batch.", over=over)
    first = 0 if include_background else 1
    if logits.shape[1] <= first:
        raise UsageError("there is no class but background.", classes=logits.shape[1])
    with torch.autocast(logits.device.type, enabled=False):
        dtype = torch.promote_types(logits.dtype, torch.float32)
        every = logits.to(dtype).softmax(dim=1).flatten(2)
        # In the logits' dtype at once: one_hot would be int64, twice the size of all else.
        wanted = torch.zeros_like(every).scatter_(1, target.flatten(1).unsqueeze(1), 1.0)
        found, wanted = every[:, first:], wanted[:, first:]
        axes = (0, 2) if over == "batch" else (2,)
        common = (found * wanted).sum(axes)
        sizes = found.sum(axes) + wanted.sum(axes)
        return (1 - (2 * common + smooth) / (sizes + smooth)).mean()
