"""An extraction under another umask or user, for a process of its own."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from typing import Any

from rdcache.cli import run_command_line
from rdcache.extraction import ExtractConfig, plan_extraction, run_extraction
from rdcache.store import StoreWriter


def extract_as(order: dict[str, Any]) -> None:
    """Extract `dataset` with `teacher` into `root`, never calling chmod, and print what was done.

    With a `user`, as that one; with `stop_after`, dead after so many shards; `then` are commands
    with STORE for the location of the store.
    """
    os.chmod = os.fchmod = os.lchmod = _refuse  # type: ignore[assignment]
    config = ExtractConfig(
        teacher=order["teacher"],
        dataset=order["dataset"],
        views="flip",
        root=order["root"],
        batch_size=4,
    )
    if order["user"]:
        # Everything is imported by then, also where Python itself is not for other users to read.
        run_extraction(plan_extraction(config.model_copy(update={"root": order["warm"]})))
        os.setgroups([order["group"]])
        os.setgid(order["user"])
        os.setuid(order["user"])
    os.umask(order["umask"])
    plan = plan_extraction(config)
    plan = replace(plan, layout=replace(plan.layout, shard_samples=4))
    write, written = StoreWriter.write, 0

    def write_some(self: StoreWriter, *arguments: Any) -> None:
        nonlocal written
        write(self, *arguments)
        written += 1
        if written == order["stop_after"]:
            os._exit(9)

    StoreWriter.write = write_some  # type: ignore[method-assign,assignment]
    done = run_extraction(plan)
    for arguments in order["then"]:
        filled = [argument.replace("STORE", str(done.store.location)) for argument in arguments]
        if run_command_line(filled):
            raise SystemExit(f"failed: {arguments}")
    print(json.dumps({"status": done.status, "written": written}))


def _refuse(*arguments: object, **options: object) -> None:
    raise AssertionError("chmod")
