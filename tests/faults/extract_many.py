"""Extractions that die: a program, because only a process of its own can be killed for real.

`python -m faults.extract_many JSON` reads {teacher, folder, plans: [{root, join, processes, kills,
shards_apart, seed}]}; for each plan it forks so many processes that all extract one store, kills
some of them (SIGKILL) as shards appear, waits for the rest, and prints the statuses they report.
A plan whose root is a bucket comes last: a process that has asked a bucket must not fork.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
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

    def small(taps: Any, extents: Any) -> StoreLayout:
        return replace(planned(taps, extents), shard_samples=1)

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


def main() -> None:
    torch.set_num_threads(1)
    make_slow_and_small()
    order = json.loads(sys.argv[1])
    config = ExtractConfig(
        teacher=order["teacher"],
        dataset=f"folder:{order['folder']}",
        views="flip",
        batch_size=4,
    )
    print(json.dumps([run(config, plan) for plan in order["plans"]]))


if __name__ == "__main__":
    main()
