"""Extractions that die: for a process of its own, because only such a one can be killed for real.

For each plan {root, join, processes, kills, shards_apart, seed} it forks so many processes that all
extract one store, kills some of them (SIGKILL) as shards appear, waits for the rest, and prints the
statuses they report. A plan whose root is a bucket comes last: a process that has asked a bucket
must not fork.
"""

from __future__ import annotations

import json
import os
import random
import signal
import time
from dataclasses import replace
from typing import Any

import torch

import rdcache.extraction.plan
from rdcache.extraction import ExtractConfig, plan_extraction, run_extraction
from rdcache.extraction.forward import TeacherForward
from rdcache.store import Location, StoreLayout, as_location
from rdcache.store.objects import objects_at

SECONDS_A_BATCH = 0.01  # a teacher that takes its time, so that there is something to fight for


def make_slow_and_small() -> None:
    """Shards of a single sample, and a teacher that takes its time."""
    planned, forward = StoreLayout.plan, TeacherForward._forward

    def small(taps: Any, extents: Any, **others: Any) -> StoreLayout:
        return replace(planned(taps, extents, **others), shard_samples=1)

    def slow(self: TeacherForward, images: Any) -> dict[str, torch.Tensor]:
        time.sleep(SECONDS_A_BATCH)
        return forward(self, images)

    rdcache.extraction.plan.StoreLayout.plan = small  # type: ignore[method-assign,assignment]
    TeacherForward._forward = slow  # type: ignore[method-assign]


def start(config: ExtractConfig) -> tuple[int, int]:
    """Fork a process that extracts; its number, and the end of a pipe that it reports to."""
    reading, writing = os.pipe()
    number = os.fork()
    if number:
        os.close(writing)
        return number, reading
    status = "failed"
    try:
        status = run_extraction(plan_extraction(config)).status
    except BaseException as error:
        status = f"{type(error).__name__}: {error}"
    finally:
        os.write(writing, status.encode())
        os._exit(0)


def receipts(root: Location) -> int:
    return sum("/receipt/c/" in name for name in objects_at(root).sizes(""))


def run(config: ExtractConfig, plan: dict[str, Any]) -> list[str]:
    root = as_location(plan["root"])
    config = config.model_copy(update={"root": root, "join": plan["join"]})
    workers = [start(config)]
    # The first one is killed while it is at work, if any is: the others must take over.
    for _ in range(plan["processes"] - 1):
        workers.append(start(config))
    victims = random.Random(plan["seed"]).sample(workers, plan["kills"])
    for number, _ in victims:
        done = receipts(root)
        deadline = time.monotonic() + 60
        while receipts(root) < done + plan["shards_apart"] and time.monotonic() < deadline:
            time.sleep(0.001)
        os.kill(number, signal.SIGKILL)
    statuses = []
    for number, reading in workers:
        os.waitpid(number, 0)
        with os.fdopen(reading) as pipe:
            statuses.append(pipe.read() or "killed")
    return statuses


def extract_all(teacher: str, folder: str, options: dict[str, Any], plans: list[Any]) -> None:
    """Print the statuses of each plan's processes, as JSON."""
    make_slow_and_small()
    given: dict[str, Any] = {"views": "flip", "batch_size": 4, **options}
    config = ExtractConfig(teacher=teacher, dataset=f"folder:{folder}", **given)
    print(json.dumps([run(config, plan) for plan in plans]))
