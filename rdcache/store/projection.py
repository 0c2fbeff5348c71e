"""Fewer channels: a tap's channel vectors as coordinates in a basis that the store holds.

With the mean m (C,) and the basis W (k, C), whose rows are orthonormal, x is stored as
y = W(x − m), and Wᵀy + m is what can be got back.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from rdcache.store.spec import TapSpec


@dataclass(frozen=True)
class Projection:
    """A basis and the mean that is taken off before.

    Attributes:
        mean: float32 (C,).
        basis: float32 (k, C), orthonormal rows.
    """

    mean: torch.Tensor
    basis: torch.Tensor

    def project(self, values: torch.Tensor, tap: TapSpec) -> torch.Tensor:
        """(B, *tap of the teacher) → (B, *tap) with k channels."""
        axis = _axis(tap)
        return (
            ((values.movedim(axis, -1) - self.mean) @ self.basis.T).movedim(-1, axis).contiguous()
        )

    def restore(self, values: torch.Tensor, tap: TapSpec) -> torch.Tensor:
        """(B, *tap) with k channels → as near as it gets to the teacher's C channels."""
        axis = _axis(tap)
        return (values.movedim(axis, -1) @ self.basis + self.mean).movedim(-1, axis).contiguous()


def _axis(tap: TapSpec) -> int:
    """The channel axis of a batch."""
    return -1 if tap.channel_axis == -1 else 1
