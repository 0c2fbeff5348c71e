"""Losses as pure functions on tensors; usable outside rdcache.

They know no model, no store and no schedule: which features they compare, how they are weighted and
which side receives gradients is decided by the methods.
"""

from rdcache.losses.alignment import batch_alignment, class_alignment
from rdcache.losses.correlation import inter_class_relation, intra_class_relation
from rdcache.losses.decoupled import decoupled_kl
from rdcache.losses.divergence import kl, kl_each
from rdcache.losses.scales import scale_decoupled_kl
from rdcache.losses.similarity import MIN_SAMPLES, cka, hsic
from rdcache.losses.standardising import standardised_logits

__all__ = [
    "MIN_SAMPLES",
    "batch_alignment",
    "cka",
    "class_alignment",
    "decoupled_kl",
    "hsic",
    "inter_class_relation",
    "intra_class_relation",
    "kl",
    "kl_each",
    "scale_decoupled_kl",
    "standardised_logits",
]
