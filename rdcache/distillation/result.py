"""What a finished training comes to: the selected weights, their test metrics, the result file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from rdcache.distillation.evaluation import similarity
from rdcache.distillation.evaluators import Evaluator, Predicted
from rdcache.distillation.run import (
    CHECKPOINT,
    PREDICTIONS,
    RESULT,
    SCHEMA,
    STUDENT,
    TEACHER_BRANCH,
)
from rdcache.distillation.teacher_branch import save_teacher_branch
from rdcache.distillation.training import Trainer
from rdcache.files import write_text
from rdcache.models import save_student
from rdcache.store import Store


def finish(trainer: Trainer, folder: Path, facts: dict[str, Any]) -> None:
    """Evaluate a trained student once on the test images and write the run's files.

    The last epoch's weights are evaluated too, then the selected ones, which are saved.

    Args:
        facts: what else the result file should say.
    """
    store, evaluator = trainer.source.store, trainer.evaluator
    last = {name: _predicted(trainer, name) for name in ("val", "test")}
    selected = _select(trainer)
    final = last if selected is None else {name: _predicted(trainer, name) for name in last}
    teacher = {name: trainer.predict_by_teacher(name) for name in ("val", "test")}
    result: dict[str, Any] = {
        "schema": SCHEMA,
        "status": "finished",
        "seed": trainer.seed,
        "selected_epoch": trainer.config.epochs - 1 if selected is None else selected,
        "metric": evaluator.headline,
        **facts,
    }
    for split, predictions in final.items():
        result[split] = _metrics(predictions, evaluator)
        result[f"{split}_last"] = _metrics(last[split], evaluator)
        result[f"{split}_teacher_branch"] = _metrics(teacher[split], evaluator)
    result["val_cka"] = (
        similarity(final["val"], teacher["val"]) if final["val"] and teacher["val"] else None
    )
    _add_leak_free(result, final["test"], store, evaluator)
    result["test"] |= _also(result, evaluator.headline)
    save_student(trainer.evaluated, folder / STUDENT)
    if trainer.method.has_teacher_branch:
        save_teacher_branch(trainer.method, folder / TEACHER_BRANCH)
    if final["test"] is not None:
        uids = [str(uid) for uid in store.uids]
        write_text(folder / PREDICTIONS, evaluator.as_csv(final["test"], uids))
    write_text(folder / RESULT, json.dumps(result, indent=1))
    (folder / CHECKPOINT).unlink(missing_ok=True)


def leaked_test_uids(store: Store) -> list[str]:
    """Test images that also occur in train or val, by the store's own leak report."""
    return list(store.manifest["dataset"].get("leaks", {}).get("leaked_test_uids", []))


def _predicted(trainer: Trainer, split: str) -> Predicted | None:
    there = bool((trainer.source.store.splits == split).any())
    return trainer.predict(split) if there else None


def _select(trainer: Trainer) -> int | None:
    """Go back to the best epoch's student and teacher branch; None if it is the last one."""
    best = trainer.best
    if trainer.config.select == "last" or best is None:
        return None
    if best.epoch == trainer.config.epochs - 1:
        return None
    trainer.select(best)
    return best.epoch


def _metrics(predictions: Predicted | None, evaluator: Evaluator) -> dict[str, Any]:
    if predictions is None:
        return {}
    return evaluator.metrics(predictions)


def _add_leak_free(
    result: dict[str, Any],
    test: Predicted | None,
    store: Store,
    evaluator: Evaluator,
) -> None:
    """Give the test metrics again without the images that the student may have trained on."""
    leaked = leaked_test_uids(store)
    if test is None or not leaked:
        return
    clean = ~np.isin(store.uids[test.samples], leaked)
    if clean.any() and not clean.all():
        result["leaked_test_uids"] = leaked
        result["test_without_leaks"] = _metrics(test.only(clean), evaluator)


def _also(result: dict[str, Any], headline: str) -> dict[str, float]:
    """The headline of the other evaluations, beside the test metrics for tables."""
    names = {
        f"{headline}_last": "test_last",
        f"{headline}_without_leaks": "test_without_leaks",
        f"teacher_{headline}": "test_teacher_branch",
    }
    return {
        name: result[part][headline]
        for name, part in names.items()
        if result.get(part, {}).get(headline) is not None
    }
