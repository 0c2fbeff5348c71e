"""Extraction by the workers of a Dask cluster: the same store, and errors that say where."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import dask
import numpy as np
import pytest
import torch
from distributed import LocalCluster
from forked import warm_up
from small_inputs import LargeOnBright, Pooling, Projection, save_image
from torch import nn

from rdcache.cli import run_command_line
from rdcache.errors import (
    ClusterError,
    DatasetNotFoundError,
    StaleStoreError,
    StoreNotFoundError,
    StoreWriteError,
    UsageError,
)
from rdcache.extraction import ExtractConfig, ExtractionPlan, plan_extraction, run_extraction
from rdcache.extraction import cluster as on_cluster
from rdcache.extraction.tasks import Job, write_shard
from rdcache.store import RemotePath, Store, StoreWriter

Script = Callable[[nn.Module], str]


@pytest.fixture(scope="module")
def scheduler(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a scheduler with two workers, in another working folder than the tests."""
    warm_up()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("elsewhere"))
        with (
            dask.config.set(
                {
                    "distributed.scheduler.allowed-failures": 0,
                    "distributed.worker.multiprocessing-method": "forkserver",
                    "distributed.nanny.environ.RDCACHE_CACHE": str(
                        tmp_path_factory.mktemp("cache")
                    ),
                }
            ),
            LocalCluster(2, threads_per_worker=1, dashboard_address="127.0.0.1:0") as cluster,
        ):
            yield cluster.scheduler_address


def planned(teacher: str, folder: Path | str, **options: object) -> ExtractionPlan:
    """Shards of four samples, so that there are some."""
    config = ExtractConfig(teacher=teacher, dataset=f"folder:{folder}", batch_size=4, **options)  # type: ignore[arg-type]
    plan = plan_extraction(config)
    return replace(plan, layout=replace(plan.layout, shard_samples=4))


def chunks(store: Store) -> dict[str, bytes]:
    return {
        path.relative_to(store.location).as_posix(): path.read_bytes()
        for path in Path(store.location).rglob("*")
        if path.is_file() and path.parent != store.location
    }


def test_the_store_is_the_one_that_a_single_process_makes(
    script: Script, folder: Path, tmp_path: Path, scheduler: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = script(Pooling(1.0))
    alone = run_extraction(planned(teacher, folder, views="3", root=tmp_path / "alone"))
    seen: list[tuple[int, int, str]] = []

    def on_progress(done: int, total: int, note: str = "") -> None:
        seen.append((done, total, note))

    monkeypatch.chdir(tmp_path)
    plan = planned(
        f"torchscript:{Path(teacher.partition(':')[2]).name}",
        folder.relative_to(tmp_path),
        views="3",
        root=Path("together"),
        scheduler=scheduler,
    )
    together = run_extraction(plan, on_progress)
    assert together.status == "extracted"
    assert chunks(together.store) == chunks(alone.store)
    assert together.store.manifest["digests"] == alone.store.manifest["digests"]
    assert seen == sorted(seen)
    assert seen[-1] == (plan.forwards, plan.forwards, "images")


def test_workers_project_onto_the_basis_that_the_store_holds(
    script: Script, folder: Path, tmp_path: Path, scheduler: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = script(Pooling(1.0))
    options = {"dtype": "int8", "codec": "zstd", "pool": "out0=2", "project": "out0=2"}
    monkeypatch.setattr("rdcache.extraction.basis.PROBE", 10)  # of this process, not of the workers
    alone = planned(teacher, folder, root=tmp_path / "alone", **options)
    together = planned(teacher, folder, root=tmp_path / "b", scheduler=scheduler, **options)
    assert chunks(run_extraction(together).store) == chunks(run_extraction(alone).store)


def test_workers_compute_with_as_many_threads_as_the_driver(
    script: Script, folder: Path, tmp_path: Path, scheduler: str
) -> None:
    """Last bits depend on them, and Dask gives its workers one."""
    teacher, options = script(Projection()), {"views": "clean", "dtype": "float32"}
    alone = planned(teacher, folder, root=tmp_path / "alone", **options)
    together = planned(teacher, folder, root=tmp_path / "b", scheduler=scheduler, **options)
    torch.set_num_threads(2)
    try:
        assert chunks(run_extraction(together).store) == chunks(run_extraction(alone).store)
    finally:
        torch.set_num_threads(1)


def test_a_half_done_store_is_resumed(
    script: Script, folder: Path, scheduler: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher, write, written = script(Pooling(1.0)), StoreWriter.write, []

    def write_five(self: StoreWriter, *arguments: object) -> None:
        if len(written) == 5:
            raise KeyboardInterrupt
        written.append(arguments)
        write(self, *arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patched:
        patched.setattr(StoreWriter, "write", write_five)
        with pytest.raises(KeyboardInterrupt):
            run_extraction(planned(teacher, folder))
    plan = planned(teacher, folder, scheduler=scheduler)
    before = {path: path.stat().st_mtime_ns for path in plan.location.glob("receipt/c/**/0")}
    resumed = run_extraction(plan)
    assert resumed.status == "resumed"
    assert resumed.store.complete
    files = [path for path in before if path.is_file()]
    assert len(files) == 5
    assert all(path.stat().st_mtime_ns == before[path] for path in files)


def test_a_tap_that_overflows_on_a_worker_is_extracted_again_in_float32(
    script: Script, folder: Path, scheduler: str
) -> None:
    save_image(folder / "malignant" / "white.png", np.full((40, 40, 3), 255, np.uint8))
    plan = planned(
        script(LargeOnBright()), folder, taps=("out0", "out1"), views="flip", scheduler=scheduler
    )
    extraction = run_extraction(plan)
    assert extraction.promoted == ("out0",)
    assert extraction.store.taps["out1"].dtype == "float16"
    assert torch.isfinite(extraction.store.read(range(41), 0, ["out0"])["out0"]).all()


def test_what_another_store_has_is_copied(script: Script, folder: Path, scheduler: str) -> None:
    teacher = script(Pooling(1.0))
    run_extraction(planned(teacher, folder, views="clean"))
    assert run_extraction(planned(teacher, folder, views="2", scheduler=scheduler)).copied == 40


def test_another_process_may_join(script: Script, folder: Path, scheduler: str) -> None:
    teacher = script(Pooling(1.0))
    first = planned(teacher, folder, views="6", scheduler=scheduler)
    second = planned(teacher, folder, views="6", scheduler=scheduler, join=True)
    statuses: list[str] = []
    driver = threading.Thread(target=lambda: statuses.append(run_extraction(first).status))
    driver.start()
    statuses.append(run_extraction(second).status)
    driver.join()
    assert set(statuses) <= {"extracted", "joined", "unchanged"}
    assert len(statuses) == 2
    assert not list(first.location.rglob("*.partial"))


def test_workers_write_straight_into_a_bucket(
    script: Script, folder: Path, bucket: RemotePath
) -> None:
    teacher, everyone = script(Pooling(1.0)), range(40)
    alone = run_extraction(planned(teacher, folder, views="clean")).store
    plan = planned(teacher, folder, views="clean", root=bucket / "root", scheduler="local:1")
    with dask.config.set({"distributed.worker.multiprocessing-method": "spawn"}):  # as for users
        together = run_extraction(plan).store
    assert together.manifest["digests"] == alone.manifest["digests"]
    assert torch.equal(together.read(everyone, 0)["out0"], alone.read(everyone, 0)["out0"])


def test_other_weights_on_a_worker_are_named(script: Script, folder: Path, scheduler: str) -> None:
    plan = planned(script(Pooling(1.0)), folder, scheduler=scheduler)
    script(Pooling(2.0))  # into the same file, after the driver has read it
    with pytest.raises(StaleStoreError, match="other files before it") as caught:
        run_extraction(plan)
    assert caught.value.facts["differs in"] == "weights"
    assert caught.value.facts["worker"]


def test_images_that_a_worker_does_not_see_are_its_own_error(
    script: Script, folder: Path, scheduler: str
) -> None:
    plan = planned(script(Pooling(1.0)), folder, scheduler=scheduler)
    moved = planned(plan.config.teacher, folder.rename(folder.with_name("moved")))
    with pytest.raises(DatasetNotFoundError) as caught:
        run_extraction(replace(plan, dataset=moved.dataset))  # the driver goes on seeing them
    assert caught.value.facts["worker"]


def test_other_software_on_a_worker_is_named(script: Script, folder: Path) -> None:
    plan = planned(script(Pooling(1.0)), folder)
    run_extraction(plan)
    job = Job.of(plan, "token")
    job = replace(job, software=(("rdcache", "0.0.1"), *job.software[1:]))
    with pytest.raises(StaleStoreError, match=r"rdcache .* there, 0\.0\.1 where"):
        write_shard(job, 0, 0)


def test_a_store_that_a_worker_does_not_see_is_said_at_once(script: Script, folder: Path) -> None:
    job = Job.of(planned(script(Pooling(1.0)), folder), "token")
    with pytest.raises(StoreNotFoundError, match=r"does not see the store(.|\n)*or in a bucket"):
        write_shard(job, 0, 0)


def test_a_shard_that_the_driver_does_not_see_is_not_taken_for_written(
    script: Script, folder: Path, scheduler: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(StoreWriter, "lacks", lambda self, shard: True)
    monkeypatch.setattr(on_cluster, "SIGHT_SECONDS", 0.0)
    with pytest.raises(StoreWriteError, match="not seen on this machine"):
        run_extraction(planned(script(Pooling(1.0)), folder, scheduler=scheduler))


@pytest.mark.parametrize("value", ["local:0", "local:two", "host:8786", "tcp://host", "cluster"])
def test_no_scheduler_is_wrong_usage(value: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--teacher", "pmc-clip", "--dataset", "phantom", "--scheduler", value]
    assert run_command_line(["extract", *arguments]) == 2
    assert "--scheduler: should be an address like" in capsys.readouterr().err


def test_a_scheduler_that_does_not_answer_is_one_sentence_and_leaves_nothing(
    script: Script, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(on_cluster, "CONNECT_SECONDS", 0.5)
    plan = planned(script(Pooling(1.0)), folder, scheduler="tcp://127.0.0.1:9")
    with pytest.raises(ClusterError, match="no Dask scheduler answers"):
        run_extraction(plan)
    assert not plan.location.exists()


def test_without_dask_the_package_is_named(
    script: Script, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = planned(script(Pooling(1.0)), folder, scheduler="local:2")
    monkeypatch.delitem(sys.modules, "rdcache.extraction.cluster")
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(UsageError, match=r"pip install 'rdcache\[cluster\]'"):
        run_extraction(plan)


@pytest.mark.parametrize(
    "failure",
    [
        "ModuleNotFoundError('No module named rdcache')",
        "RuntimeError('Error during deserialization of the task graph. This often …')",
    ],
)
def test_machines_without_rdcache_are_one_sentence(
    script: Script, folder: Path, scheduler: str, failure: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: on_cluster.Cluster, shard: object) -> object:
        return self._client.submit(exec, f"raise {failure}", {}, pure=False)

    monkeypatch.setattr(on_cluster.Cluster, "_submit", fail)
    with pytest.raises(ClusterError, match="does not know rdcache"):
        run_extraction(planned(script(Pooling(1.0)), folder, scheduler=scheduler))


def test_workers_that_die_again_and_again_are_one_sentence(
    script: Script, folder: Path, scheduler: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(self: on_cluster.Cluster, shard: object) -> object:
        return self._client.submit(os._exit, 1, pure=False)

    monkeypatch.setattr(on_cluster.Cluster, "_submit", die)
    with pytest.raises(ClusterError, match=r"die again and again(.|\n)*0 of \d+ shards"):
        run_extraction(planned(script(Pooling(1.0)), folder, scheduler=scheduler))
