"""Adapting a teacher: small trained parts in a frozen network, and what they come to as a file.

How they are trained is the part of `rdcache.adaptation`.
"""

from rdcache.models.adapters.adapted_teachers import adapted_teacher, name_of_run
from rdcache.models.adapters.catalogue import (
    ADAPTERS,
    AdapterCard,
    build_adapted,
    find_adapter,
    merged,
)
from rdcache.models.adapters.deltas import (
    FILE,
    adapted_digest,
    learned_tensors,
    load_delta,
    save_delta,
)
from rdcache.models.adapters.networks import AdaptedNetwork, Classified
from rdcache.models.teacher import Adaptation

__all__ = [
    "ADAPTERS",
    "FILE",
    "Adaptation",
    "AdaptedNetwork",
    "AdapterCard",
    "Classified",
    "adapted_digest",
    "adapted_teacher",
    "build_adapted",
    "find_adapter",
    "learned_tensors",
    "load_delta",
    "merged",
    "name_of_run",
    "save_delta",
]
