"""Losses as pure functions on tensors; usable outside rdcache.

They know no model, no store and no schedule: which features they compare, how they are weighted and
which side receives gradients is decided by the methods.
"""

from rdcache.losses.attention import attention_map, attention_transfer
from rdcache.losses.calibration import semantic_calibration, similarity_rows
from rdcache.losses.contrast import noise_contrast
from rdcache.losses.divergence import kl
from rdcache.losses.likelihood import gaussian_nll
from rdcache.losses.matching import many_to_one
from rdcache.losses.similarity import MIN_SAMPLES, cka, hsic

__all__ = [
    "MIN_SAMPLES",
    "attention_map",
    "attention_transfer",
    "cka",
    "gaussian_nll",
    "hsic",
    "kl",
    "many_to_one",
    "noise_contrast",
    "semantic_calibration",
    "similarity_rows",
]
