"""What a finished adaptation comes to: the delta, its test metrics, the result file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rdcache.adaptation.training import AdaptTrainer
from rdcache.distillation.evaluation import as_csv
from rdcache.distillation.metrics import classification_metrics
from rdcache.distillation.run import CHECKPOINT, PREDICTIONS, RESULT, SCHEMA
from rdcache.files import write_text
from rdcache.models.adapters import (
    FILE,
    Adaptation,
    AdaptedNetwork,
    adapted_digest,
    learned_tensors,
    merged,
    save_delta,
)


def finish(
    trainer: AdaptTrainer,
    folder: Path,
    adaptation: Adaptation,
    original: Mapping[str, torch.Tensor],
    facts: dict[str, Any],
) -> None:
    """Write what the selected epoch has learned, evaluate it once on the test images, and write
    the run's files.

    Args:
        original: see `learned_tensors`.
        facts: what else the result file should say.
    """
    dataset = trainer.images.dataset
    selected = _select(trainer)
    learned = learned_tensors(trainer.network, original)
    parameters = counted(trainer.network, learned)
    # What is evaluated is what phase 1 will run.
    network = merged(trainer.network)
    predictions = {
        split: trainer.predict(samples, network)
        for split in ("val", "test")
        if len(samples := trainer.samples(split))
    }
    result: dict[str, Any] = {
        "schema": SCHEMA,
        "status": "finished",
        "seed": trainer.seed,
        "selected_epoch": selected,
        "adapted": {
            "sha256": adapted_digest(adaptation, learned),
            "parameters": parameters,
        },
        **facts,
    }
    for split, its in predictions.items():
        result[split] = classification_metrics(its.labels, its.probabilities, dataset.classes)
    test, leaked = predictions["test"], list(dataset.leaks.leaked)
    clean = ~np.isin(dataset.uids[test.samples], leaked)
    if clean.any() and not clean.all():
        rest = test.only(clean)
        without = classification_metrics(rest.labels, rest.probabilities, dataset.classes)
        result["test_without_leaks"] = without
        result["test"]["accuracy_without_leaks"] = without["accuracy"]
    save_delta(folder / FILE, adaptation, learned)
    uids = [str(uid) for uid in dataset.uids]
    write_text(folder / PREDICTIONS, as_csv(test, uids, dataset.classes))
    write_text(folder / RESULT, json.dumps(result, indent=1))
    (folder / CHECKPOINT).unlink(missing_ok=True)


def counted(network: AdaptedNetwork, learned: Mapping[str, torch.Tensor]) -> dict[str, int]:
    """How many parameters were learned, of the adapter, the classifier, and the teacher itself.
    Statistics that are kept beside them do not count.
    """
    sizes = {name: it.numel() for name, it in network.named_parameters() if name in learned}
    return {
        part: sum(size for name, size in sizes.items() if name.startswith(f"{part}."))
        for part in ("adapter", "head", "base")
    }


def _select(trainer: AdaptTrainer) -> int:
    """Load the best epoch's tensors into the network, and say which epoch that is."""
    last = sum(stage.epochs for stage in trainer.stages) - 1
    best = trainer.best
    if trainer.config.select == "last" or best is None:
        return last
    trainer.network.load_state_dict(best.weights, strict=False)
    return best.epoch
