"""Killed at any moment, a run goes on to the very weights it would have had."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from forked import finished

from rdcache.distillation import Run, distill
from rdcache.errors import UsageError

from .conftest import QUICK, Tiny

Options = Callable[..., dict[str, Any]]
EVERYTHING: dict[str, Any] = {
    "epochs": 3,
    "teacher_epochs": 2,
    "teacher_ema": 0.9,
    "ema": 0.9,
    "dropout": 0.2,
    "jitter": 0.3,
    "width": 16,
}


def distill_until_killed(store: Path, options: dict[str, Any], step: int) -> None:
    """Train in this process, which dies at a step."""

    def on_progress(done: int, total: int, note: str = "") -> None:
        if done == step:
            os.kill(os.getpid(), signal.SIGKILL)

    distill(store, on_progress=on_progress, **options)


def assert_same(one: Run, other: Run) -> None:
    theirs = other.student.state_dict()
    for name, value in one.student.state_dict().items():
        assert torch.equal(value, theirs[name]), name

    def numbers(run: Run) -> list[dict[str, Any]]:
        return [{k: v for k, v in line.items() if k != "seconds"} for line in run.history]

    assert numbers(one) == numbers(other)


@pytest.fixture(scope="module")
def uninterrupted(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Run:
    places = {"data_dir": tiny.data_dir, "out": tmp_path_factory.mktemp("whole")}
    return distill(tiny.store, **{**QUICK, **EVERYTHING, **places})


def test_a_run_killed_with_sigkill_resumes_to_the_same_weights(
    tiny: Tiny, options: Options, uninterrupted: Run
) -> None:
    chosen = options(**EVERYTHING)
    steps = uninterrupted.result["training"]["steps"]
    last_epoch = steps - 2  # after two checkpoints of the student
    killed = finished(distill_until_killed, tiny.store.location, chosen, last_epoch)
    assert killed.code == -signal.SIGKILL, killed.stderr
    with pytest.raises(UsageError, match=r"interrupted[\s\S]*--resume"):
        distill(tiny.store, **chosen)
    steps_seen: list[int] = []
    resumed = distill(
        tiny.store,
        resume=True,
        on_progress=lambda done, total, note="": steps_seen.append(done),
        **chosen,
    )
    assert resumed.status == "resumed"
    assert steps_seen[0] == steps * 4 // 5, "it began at the checkpoint, not at the start"
    assert_same(resumed, uninterrupted)


@pytest.mark.parametrize("share", [0.3, 0.4, 0.99])
def test_a_run_interrupted_in_any_stage_resumes_to_the_same_weights(
    tiny: Tiny, options: Options, uninterrupted: Run, share: float
) -> None:
    stop = int(share * uninterrupted.result["training"]["steps"])

    def interrupt(done: int, total: int, note: str = "") -> None:
        if done == stop:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        distill(tiny.store, on_progress=interrupt, **options(**EVERYTHING))
    assert_same(distill(tiny.store, resume=True, **options(**EVERYTHING)), uninterrupted)


def test_overwrite_forgets_an_interrupted_run(
    tiny: Tiny, options: Options, uninterrupted: Run
) -> None:
    def interrupt(done: int, total: int, note: str = "") -> None:
        if done == total - 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        distill(tiny.store, on_progress=interrupt, **options(**EVERYTHING))
    anew = distill(tiny.store, overwrite=True, **options(**EVERYTHING))
    assert anew.status == "trained"
    assert_same(anew, uninterrupted)
