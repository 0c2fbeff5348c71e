"""Losses as pure functions on tensors; usable outside rdcache.

They know no model, no store and no schedule: which features they compare, how they are weighted and
which side receives gradients is decided by the methods.
"""

from rdcache.losses.divergence import kl
from rdcache.losses.relations import cc, pkt, rkd_angle, rkd_distance, sp
from rdcache.losses.similarity import MIN_SAMPLES, cka, cka_each, hsic
from rdcache.losses.spatial import direction_error, hcl, without_dc

__all__ = [
    "MIN_SAMPLES",
    "cc",
    "cka",
    "cka_each",
    "direction_error",
    "hcl",
    "hsic",
    "kl",
    "pkt",
    "rkd_angle",
    "rkd_distance",
    "sp",
    "without_dc",
]
