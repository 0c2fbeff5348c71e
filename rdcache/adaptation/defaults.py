"""How each way to adapt is trained if nothing else is said: what its authors do, where they say."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

PER = 256  # images that a learning rate of `lr_per_256` is for


@dataclass(frozen=True)
class Training:
    """Defaults of a way's training.

    Attributes:
        own_losses: whether the method says what is minimised, so that cross-entropy's options have
            no place in it.
        lr: largest learning rate.
        lr_per_256: or so much for each 256 images of a batch, as the authors of some scale it.
        layer_decay: factor of the learning rate from each block to the one before it.
    """

    optimiser: Literal["adamw", "sgd"]
    own_losses: bool = False
    lr: float = 0.0
    lr_per_256: float = 0.0
    weight_decay: float = 0.0
    layer_decay: float = 1.0

    def rate(self, batch_size: int) -> float:
        """The largest learning rate for batches of a size."""
        return self.lr or self.lr_per_256 * batch_size / PER


TRAINING = {
    "linear-probe": Training("adamw", lr=1e-3),
    "full": Training("adamw", lr=1e-4, weight_decay=0.05, layer_decay=0.75),
    "lora": Training("adamw", lr=1e-3),
    "adaptformer": Training("sgd", lr_per_256=0.1),
    # VPT and VQT search a grid of rates on validation; these are from its middle.
    "vpt": Training("sgd", lr_per_256=1.0, weight_decay=1e-4),
    "vpt-shallow": Training("sgd", lr_per_256=1.0, weight_decay=1e-4),
    # Parts of length 1 give small logits, which want a larger rate.
    "vqt": Training("adamw", lr=1e-2),
    "lpt": Training("sgd", own_losses=True, lr_per_256=0.02, weight_decay=0.01),
}
