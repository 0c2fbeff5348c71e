"""Losses as pure functions on tensors; usable outside rdcache.

They know no model, no store and no schedule: which features they compare, how they are weighted and
which side receives gradients is decided by the methods.
"""

from rdcache.losses.alignment import batch_alignment, class_alignment
from rdcache.losses.attention import attention_map, attention_transfer
from rdcache.losses.calibration import semantic_calibration, similarity_rows
from rdcache.losses.contrast import noise_contrast
from rdcache.losses.correlation import inter_class_relation, intra_class_relation
from rdcache.losses.decoupled import decoupled_kl
from rdcache.losses.divergence import binary_kl, kl, kl_each, position_kl
from rdcache.losses.likelihood import gaussian_nll
from rdcache.losses.map_similarity import (
    cka_patches,
    cka_pooled,
    cka_positions,
    draw_positions,
)
from rdcache.losses.matching import many_to_one
from rdcache.losses.overlap import dice
from rdcache.losses.relations import cc, pkt, rkd_angle, rkd_distance, sp
from rdcache.losses.scales import scale_decoupled_kl
from rdcache.losses.similarity import MIN_SAMPLES, cka, cka_each, hsic
from rdcache.losses.spatial import direction_error, hcl, without_dc
from rdcache.losses.standardising import standardised_logits

__all__ = [
    "MIN_SAMPLES",
    "attention_map",
    "attention_transfer",
    "batch_alignment",
    "binary_kl",
    "cc",
    "cka",
    "cka_each",
    "cka_patches",
    "cka_pooled",
    "cka_positions",
    "class_alignment",
    "decoupled_kl",
    "dice",
    "direction_error",
    "draw_positions",
    "gaussian_nll",
    "hcl",
    "hsic",
    "inter_class_relation",
    "intra_class_relation",
    "kl",
    "kl_each",
    "many_to_one",
    "noise_contrast",
    "pkt",
    "position_kl",
    "rkd_angle",
    "rkd_distance",
    "scale_decoupled_kl",
    "semantic_calibration",
    "similarity_rows",
    "sp",
    "standardised_logits",
    "without_dc",
]
