"""Teacher branches that runs keep: made ready again they classify as they were measured."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from rdcache.distillation import Run, distill
from rdcache.distillation.metrics import classification_metrics
from rdcache.distillation.teacher_branch import load_teacher_branch
from rdcache.errors import RunNotFoundError, StaleStoreError
from rdcache.store import Store

from .conftest import Tiny, write_store

Options = Callable[..., dict[str, Any]]
EVERYTHING = {"folds": 2, "teacher_epochs": 1, "teacher_ema": 0.9, "ema": 0.5, "width": 8}


def metrics_of(run: Run, store: Store, tiny: Tiny) -> dict[str, Any]:
    """The test metrics of a run's teacher branch on what the store holds."""
    method = load_teacher_branch(run, store, tiny.dataset)
    test = np.flatnonzero(store.splits == "test")
    _, logits = method.teacher_branch(store.read(test.tolist(), 0, method.taps))
    probabilities = logits.double().softmax(dim=1).numpy()
    return classification_metrics(store.labels[test], probabilities, tiny.dataset.classes)


@pytest.mark.parametrize(("method", "changes"), [("rd", EVERYTHING), ("direct", {"tap": "tokens"})])
def test_a_kept_teacher_branch_gives_its_test_metrics_again(
    tiny: Tiny, options: Options, method: str, changes: dict[str, Any]
) -> None:
    run = distill(tiny.store, method=method, **options(epochs=2, **changes))
    state = torch.random.get_rng_state()
    again = metrics_of(run, tiny.store, tiny)
    assert torch.equal(state, torch.random.get_rng_state())
    recorded = run.result["test_teacher_branch"]
    assert again["confusion"] == recorded["confusion"]
    assert again["nll"] == pytest.approx(recorded["nll"])


def test_a_branch_is_refused_without_its_file_or_with_another_store(
    tiny: Tiny, options: Options, tmp_path: Any
) -> None:
    run = distill(tiny.store, **options(epochs=1, width=8))
    other = write_store(tmp_path / "other", tiny.dataset, not_finite=((0, 1),))
    with pytest.raises(StaleStoreError, match="not the one"):
        load_teacher_branch(run, other, tiny.dataset)
    file = run.path / "teacher_branch.safetensors"
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(RunNotFoundError, match="damaged"):
        load_teacher_branch(run, tiny.store, tiny.dataset)
    file.unlink()
    with pytest.raises(RunNotFoundError, match="kept no teacher branch"):
        load_teacher_branch(run, tiny.store, tiny.dataset)
