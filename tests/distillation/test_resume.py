"""Killed at any moment, a run goes on to the very weights it would have had."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

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
KILLED_AT_STEP = """
import os, signal, sys
from pathlib import Path
import torch
from rdcache.distillation import distill

torch.set_num_threads(1)
options, store, step = eval(sys.argv[1]), sys.argv[2], int(sys.argv[3])

def on_progress(done, total, note=""):
    if done == step:
        os.kill(os.getpid(), signal.SIGKILL)

distill(store, on_progress=on_progress, **options)
"""


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
    arguments = [
        repr({k: str(v) if isinstance(v, Path) else v for k, v in chosen.items()}),
        str(tiny.store.location),
        str(steps - 2),  # in the last epoch, after two checkpoints of the student
    ]
    killed = subprocess.run(
        [sys.executable, "-c", KILLED_AT_STEP, *arguments], capture_output=True, check=False
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
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
