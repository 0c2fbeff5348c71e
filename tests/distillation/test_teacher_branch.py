"""Teacher branches that runs keep: made ready again they classify as they were measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rdcache.distillation import Run, distill
from rdcache.distillation.metrics import classification_metrics
from rdcache.distillation.teacher_branch import load_teacher_branch
from rdcache.errors import RunNotFoundError, StaleStoreError
from rdcache.store import Store

from .conftest import QUICK, Tiny, write_store

EVERYTHING = {
    "folds": 2,
    "teacher_epochs": 1,
    "teacher_ema": 0.9,
    "cka_target": "reprogrammed",
    "ema": 0.5,
    "width": 8,
}
FILE = "teacher_branch.safetensors"


@pytest.fixture(
    scope="module",
    params=[("rd", EVERYTHING), ("direct", {"tap": "tokens"}), ("kd", {})],
    ids=["rd", "direct", "kd"],
)
def run(request: Any, tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Run:
    method, changes = request.param
    places = {"data_dir": tiny.data_dir, "out": tmp_path_factory.mktemp("runs")}
    return distill(tiny.store, method=method, **{**QUICK, "epochs": 1, **places, **changes})


def metrics_of(run: Run, store: Store, tiny: Tiny) -> dict[str, Any]:
    """The test metrics of a run's teacher branch on what the store holds."""
    method = load_teacher_branch(run, store, tiny.dataset)
    test = np.flatnonzero(store.splits == "test")
    _, logits = method.teacher_branch(store.read(test.tolist(), 0, method.taps))
    probabilities = logits.double().softmax(dim=1).numpy()
    return classification_metrics(store.labels[test], probabilities, tiny.dataset.classes)


def test_a_kept_teacher_branch_gives_its_test_metrics_again(tiny: Tiny, run: Run) -> None:
    state = torch.random.get_rng_state()
    again = metrics_of(run, tiny.store, tiny)
    assert torch.equal(state, torch.random.get_rng_state())
    recorded = run.result["test_teacher_branch"]
    assert again["confusion"] == recorded["confusion"]
    assert again["nll"] == pytest.approx(recorded["nll"])


def test_a_branch_is_refused_if_its_file_is_damaged_or_of_another_run(
    tiny: Tiny, run: Run, tmp_path: Path
) -> None:
    content = (run.path / FILE).read_bytes()
    try:
        (run.path / FILE).write_bytes(content[:-9])
        with pytest.raises(RunNotFoundError, match="damaged"):
            load_teacher_branch(run, tiny.store, tiny.dataset)
        (run.path / FILE).unlink()
        with pytest.raises(RunNotFoundError, match="kept no teacher branch"):
            load_teacher_branch(run, tiny.store, tiny.dataset)
    finally:
        (run.path / FILE).write_bytes(content)
    other = write_store(tmp_path / "other", tiny.dataset, not_finite=((0, 1),))
    with pytest.raises(StaleStoreError, match="not the one"):
        load_teacher_branch(run, other, tiny.dataset)
