"""A worker of a cluster is killed while it writes: its shards go to the others."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import dask
import psutil
import pytest
from forked import warm_up
from small_inputs import Pooling
from torch import nn

from faults.test_many_writers import chunks
from rdcache.extraction import ExtractConfig, ExtractionPlan, plan_extraction, run_extraction

Script = Callable[[nn.Module], str]


def planned(teacher: str, folder: Path, root: Path, scheduler: str | None) -> ExtractionPlan:
    """Shards of a single sample, so that there are many."""
    config = ExtractConfig(
        teacher=teacher, dataset=f"folder:{folder}", views="3", root=root, scheduler=scheduler
    )
    plan = plan_extraction(config)
    return replace(plan, layout=replace(plan.layout, shard_samples=1))


def receipts(root: Path) -> list[Path]:
    return list(root.glob("*/*/*/receipt/c/*/*/0/0"))


def children() -> list[psutil.Process]:
    return psutil.Process().children(recursive=True)


@pytest.fixture
def _quick_workers(cache: Path) -> Iterator[None]:
    """Workers that are forked from one process that has imported everything."""
    warm_up()
    settings = {
        "distributed.worker.multiprocessing-method": "forkserver",
        "distributed.nanny.environ.RDCACHE_CACHE": str(cache),
    }
    with dask.config.set(settings):
        yield


class Murder(threading.Thread):
    """Kills a worker as soon as a number of shards are there, and remembers which these were."""

    def __init__(self, root: Path, shards: int) -> None:
        super().__init__()
        self.root = root
        self.shards = shards
        self.written_before: dict[Path, int] = {}
        self.survivors: list[psutil.Process] = []
        self.others = set(children())

    def run(self) -> None:
        deadline = time.monotonic() + 200
        while len(receipts(self.root)) < self.shards and time.monotonic() < deadline:
            time.sleep(0.001)
        victim, *self.survivors = set(children()) - self.others
        self.written_before = {path: path.stat().st_mtime_ns for path in receipts(self.root)}
        victim.kill()


@pytest.mark.usefixtures("_quick_workers")
def test_a_killed_workers_shards_are_written_by_the_others(
    script: Script, few: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    teacher, alone, root = script(Pooling(1.0)), tmp_path / "alone", tmp_path / "together"
    run_extraction(planned(teacher, few, alone, None))
    plan = planned(teacher, few, root, "local:2")
    murder = Murder(root, shards=5)
    murder.start()
    extraction = run_extraction(plan)
    murder.join()

    assert extraction.status == "extracted"
    assert 5 <= len(murder.written_before) < len(plan.layout.shards())
    assert chunks(root) == chunks(alone)
    assert {path: path.stat().st_mtime_ns for path in murder.written_before} == (
        murder.written_before
    ), "what was there is not written again"
    assert not list(root.rglob("*.partial"))
    assert not list(root.rglob("*.claims"))
    assert not any(worker.is_running() for worker in murder.survivors)
    assert capfd.readouterr().err == "", "nobody is shown what went wrong meanwhile"
