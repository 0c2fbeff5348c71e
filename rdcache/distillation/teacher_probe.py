"""A linear probe of a store's tap, for methods that want logits of its teacher."""

from __future__ import annotations

import numpy as np
import torch

from rdcache.distillation.subset import EVERYTHING, Subset
from rdcache.store import Store
from rdcache.transferability import LinearProbe, fit_linear_probe, pooled_features, usable_rows


def linear_probe_of(store: Store, tap: str, subset: Subset = EVERYTHING) -> LinearProbe:
    """Fit a probe on the clean views of the training samples, or of a part of them; the validation
    samples settle how strongly it is regularised.
    """
    train, val = usable_rows(store, "train"), usable_rows(store, "val")
    train = train[np.isin(train, subset.of_training(store))]
    return fit_linear_probe(
        pooled_features(store, tap, train),
        _labels(store, train),
        len(store.manifest["dataset"]["classes"]),
        validation=(pooled_features(store, tap, val), _labels(store, val)),
    )


def _labels(store: Store, rows: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.asarray(store.labels)[rows])
