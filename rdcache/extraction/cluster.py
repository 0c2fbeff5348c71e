"""Extraction on several machines: shards are tasks of a Dask cluster.

The driver, which is the process that was told `--scheduler`, plans, claims the store and hands out
the numbers of missing shards. Each worker plans and loads the teacher once, makes sure that it has
before it what the driver has, and writes its shards straight to the store. A lost worker's tasks go
to the others. The driver believes nobody: a shard is there when it sees the shard itself.
"""

from __future__ import annotations

import logging
import re
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from rdcache.errors import ClusterError, StoreWriteError, UsageError
from rdcache.extraction.config import LOCAL_WORKERS
from rdcache.extraction.plan import ExtractionPlan
from rdcache.extraction.run import Means, claim_on
from rdcache.extraction.tasks import Job, Written, write_shard
from rdcache.extraction.widening import POLL_SECONDS
from rdcache.progress import Progress
from rdcache.store import ShardRef, StoreWriter, Worker

try:
    from distributed import CancelledError, Client, Future, LocalCluster, Security, wait
    from distributed.comm import CommClosedError
    from distributed.scheduler import KilledWorker
except ModuleNotFoundError as missing:
    raise UsageError(
        f"extraction on several machines needs the package {missing.name}.",
        next="pip install 'rdcache[cluster]'",
    ) from missing

CONNECT_SECONDS = 10.0
SIGHT_SECONDS = 60.0  # network file systems show what others wrote within that time
TASKS_A_THREAD = 2  # one under way and one that waits, so that no worker waits for the driver
# A terminal sends Ctrl-C to the workers as well, but it is the driver that ends them.
IGNORE_CTRL_C = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)"
NOT_UNDERSTOOD = "Error during deserialization"  # how Dask's own sentence begins
WORKERS_LOST = (KilledWorker, CommClosedError, CancelledError)


@contextmanager
def connected(plan: ExtractionPlan, worker: Worker, on_progress: Progress) -> Iterator[Cluster]:
    """Connect to the plan's scheduler, or start workers here and stop them in the end.

    Raises:
        ClusterError: nobody answers, or no worker starts.
    """
    scheduler = plan.config.scheduler or ""
    here = re.fullmatch(LOCAL_WORKERS, scheduler)
    with (
        _quiet(),
        _started(int(here[1])) if here else _reached(scheduler) as client,
        client.as_current(),
    ):
        yield Cluster(client, plan, worker, on_progress)


@contextmanager
def _started(count: int) -> Iterator[Client]:
    """So many worker processes on this machine. What they say to each other is encrypted, because
    whoever can speak to a worker can have it run what they like, and machines are shared.
    """
    security = Security.temporary()
    try:
        cluster = LocalCluster(
            n_workers=count,
            threads_per_worker=1,
            processes=True,
            memory_limit=None,  # the teacher takes what it takes
            dashboard_address="127.0.0.1:0",  # any free port
            protocol="tls://",
            security=security,
            silence_logs=logging.CRITICAL,
            preload=[IGNORE_CTRL_C],
        )
    except (OSError, RuntimeError, TimeoutError) as error:
        raise ClusterError(
            "the workers on this machine do not start.",
            why=error,
            next="in a script of your own, call rdcache under `if __name__ == '__main__':`",
        ) from None
    with cluster, Client(cluster, security=security, set_as_default=False) as client:
        yield client


@contextmanager
def _reached(address: str) -> Iterator[Client]:
    try:
        client = Client(address, timeout=CONNECT_SECONDS, set_as_default=False)
    except (OSError, TimeoutError, ValueError) as error:
        raise ClusterError(
            "no Dask scheduler answers.",
            scheduler=address,
            why=error,
            next="start one with `dask scheduler`, and workers with `dask worker ADDRESS`",
        ) from None
    with client:
        yield client


class Cluster:
    """A crew of workers elsewhere.

    Attributes:
        copied: samples of views that were copied from other stores.
        means: what the others were computed with.
    """

    def __init__(
        self, client: Client, plan: ExtractionPlan, worker: Worker, on_progress: Progress
    ) -> None:
        self.copied = 0
        self.means: set[Means] = set()
        self._client = client
        self._worker = worker
        self._on_progress = on_progress
        self._job = Job.of(plan, worker.token)

    def write_missing(self, writer: StoreWriter) -> None:
        """Hand out the missing shards that nobody else is at, and see them written.

        Raises:
            Float16OverflowError: a tap must be kept in float32.
            ClusterError: the scheduler is gone, workers die again and again, or lack rdcache.
            StoreWriteError: the workers write, but not where the driver looks.
        """
        missing = writer.missing()
        try:
            written = self._hand_out(writer, missing)
        except WORKERS_LOST as error:
            raise _lost(error, writer) from None
        except (ModuleNotFoundError, RuntimeError) as error:
            if isinstance(error, ModuleNotFoundError) or NOT_UNDERSTOOD in str(error):
                raise ClusterError(
                    "the scheduler or a worker does not know rdcache, or not this version of it.",
                    why=str(error).partition(".")[0],
                    next="install the same versions on every machine, the scheduler's too",
                ) from None
            raise
        if written:
            self._see(writer, written)
        else:
            time.sleep(POLL_SECONDS)  # others are at all of them

    def _hand_out(self, writer: StoreWriter, missing: list[ShardRef]) -> list[ShardRef]:
        """Keep every worker busy until there is nothing left to hand out."""
        total = sum(writer.layout.extents)
        done = total - sum(shard.stop - shard.start for shard in missing)
        self._on_progress(done, total, "images")
        ahead, tasks, written = deque(missing), dict[Future, ShardRef](), list[ShardRef]()
        try:
            while ahead or tasks:
                room = TASKS_A_THREAD * self._threads(done, total)
                while ahead and len(tasks) < room:
                    shard = ahead.popleft()
                    if self._worker.claim(claim_on(shard)) and writer.lacks(shard):
                        tasks[self._submit(shard)] = shard
                for task in _finished(tasks):
                    shard = tasks.pop(task)
                    self._note(task.result())
                    written.append(shard)
                    done += shard.stop - shard.start
                    self._on_progress(done, total, "images")
        finally:
            self._client.cancel(list(tasks), force=True)
        return written

    def _threads(self, done: int, total: int) -> int:
        """How many tasks the workers can do at once; without workers, say what we wait for."""
        threads = sum(self._client.nthreads().values())
        if not threads:
            self._on_progress(done, total, "waiting for a `dask worker` to join the scheduler")
            time.sleep(POLL_SECONDS)
        return threads

    def _submit(self, shard: ShardRef) -> Future:
        return self._client.submit(write_shard, self._job, shard.view, shard.index, pure=False)

    def _note(self, written: Written) -> None:
        self.copied += written.copied
        self.means.add(written.means)

    def _see(self, writer: StoreWriter, written: list[ShardRef]) -> None:
        """Wait until what others have written is seen from here. Then remove what lost
        workers have left.
        """
        patience = time.monotonic() + SIGHT_SECONDS
        while any(writer.lacks(shard) for shard in written) and writer.renewed() is writer:
            if time.monotonic() > patience:
                raise StoreWriteError(
                    "what the workers write is not seen on this machine.",
                    store=writer.location,
                    next="keep the root on a file system that all machines share, or in a bucket",
                )
            time.sleep(POLL_SECONDS)
        own = self._worker.token
        writer.objects.clean(lambda token: token != own and self._worker.alive(token))


def _finished(tasks: dict[Future, ShardRef]) -> list[Future]:
    """Tasks that have ended, after some time of waiting for the first one."""
    if not tasks:
        return []
    try:
        return list(wait(list(tasks), timeout=POLL_SECONDS, return_when="FIRST_COMPLETED").done)
    except TimeoutError:
        return []


def _lost(error: BaseException, writer: StoreWriter) -> ClusterError:
    missing, total = len(writer.missing()), len(writer.layout.shards())
    facts = {
        "done": f"{total - missing} of {total} shards",
        "next": "run the same command again: it goes on from there",
    }
    if isinstance(error, KilledWorker):
        return ClusterError(
            "the workers die again and again.",
            why="several of them died over the same shard, perhaps for lack of memory",
            **facts,
        )
    return ClusterError("the connection to the Dask scheduler is lost.", **facts)


@contextmanager
def _quiet() -> Iterator[None]:
    """Dask logs every lost connection with its traceback; we say in a sentence what it means."""
    handlers = logging.getLogger("distributed").handlers
    before = [handler.level for handler in handlers]
    for handler in handlers:
        handler.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for handler, level in zip(handlers, before, strict=True):
            handler.setLevel(level)
