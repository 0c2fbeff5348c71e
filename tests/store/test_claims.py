"""Claims: one holder at a time, nobody's while they live, somebody's once they are dead."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from rdcache.store import Worker
from rdcache.store.claims import process_is_gone, this_process
from rdcache.store.objects import LocalObjects

HOLD = """
import sys, time
from pathlib import Path
from rdcache.store import Worker
from rdcache.store.objects import LocalObjects
with Worker(LocalObjects(Path(sys.argv[1]))) as worker:
    print(worker.claim("shard"), flush=True)
    time.sleep(60)
"""


@pytest.fixture
def workers(tmp_path: Path) -> Iterator[list[Worker]]:
    """Three workers in one process, alive."""
    with ExitStack() as stack:
        yield [stack.enter_context(Worker(LocalObjects(tmp_path / "claims"))) for _ in range(3)]


def test_one_worker_at_a_time_holds_a_piece_of_work(workers: list[Worker]) -> None:
    first, second, _ = workers
    assert first.claim("shard-0-0")
    assert first.claim("shard-0-0"), "it is its own still"
    assert not second.claim("shard-0-0")
    assert second.claim("shard-0-1")


def test_what_is_released_can_be_claimed_and_what_is_not_ones_own_cannot_be_released(
    workers: list[Worker],
) -> None:
    first, second, third = workers
    assert first.claim("commit")
    second.release("commit")
    assert not third.claim("commit")
    first.release("commit")
    assert third.claim("commit")
    assert not first.claim("commit")


def test_what_a_worker_that_left_had_claimed_is_free(tmp_path: Path) -> None:
    objects = LocalObjects(tmp_path)
    with Worker(objects) as gone:
        assert gone.claim("shard")
    with Worker(objects) as next_one:
        assert next_one.others() == []
        assert next_one.claim("shard")


def attempt(worker: Worker, work: str, barrier: threading.Barrier, won: list[str]) -> None:
    barrier.wait()
    if worker.claim(work):
        won.append(worker.token)


def test_of_many_that_try_at_once_one_succeeds(tmp_path: Path) -> None:
    objects = LocalObjects(tmp_path)
    with ExitStack() as stack:
        workers = [stack.enter_context(Worker(objects)) for _ in range(8)]
        for work in map(str, range(20)):
            barrier = threading.Barrier(len(workers))
            won: list[str] = []
            threads = [
                threading.Thread(target=attempt, args=(worker, work, barrier, won))
                for worker in workers
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert len(won) == 1


def test_a_killed_process_is_known_to_be_gone_at_once(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "True\n"
        with Worker(LocalObjects(tmp_path)) as worker:
            assert not worker.claim("shard")
            assert len(worker.others()) == 1
            process.send_signal(signal.SIGSTOP)
            assert not worker.claim("shard"), "it only sleeps"
            process.kill()
            process.wait()
            assert worker.claim("shard")
            assert worker.others() == []


def test_a_silent_worker_elsewhere_is_given_up_only_after_the_patience(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rdcache.store.claims.process_is_gone", lambda process: False)
    objects = LocalObjects(tmp_path)
    elsewhere = Worker(objects, patience=60.0)
    elsewhere._show_life()  # one sign of life, and never another
    assert elsewhere.claim("shard")
    with Worker(objects, patience=0.4) as worker:
        began = time.monotonic()
        assert not worker.claim("shard")
        elsewhere._show_life()
        while not worker.claim("shard"):
            time.sleep(0.02)
        assert time.monotonic() - began >= 0.4
    assert not elsewhere.holds("shard")


def test_a_worker_that_shows_life_keeps_its_claim_beyond_the_patience(tmp_path: Path) -> None:
    objects = LocalObjects(tmp_path)
    with Worker(objects, patience=0.3) as lively, Worker(objects, patience=0.3) as other:
        assert lively.claim("shard")
        end = time.monotonic() + 1.0
        while time.monotonic() < end:
            assert not other.claim("shard")
            time.sleep(0.02)


def test_a_process_is_named_so_that_its_number_may_be_used_again() -> None:
    own = this_process()
    assert own is not None
    assert not process_is_gone(own)
    table, number, began = own.rsplit("/", 2)
    assert number == str(os.getpid())
    assert process_is_gone(f"{table}/{number}/{int(began) + 1}")
    assert not process_is_gone(f"another-machine/4026531836/{number}/{began}")
    assert not process_is_gone("nonsense")


def test_the_name_of_the_holder_is_told_if_it_gave_one(tmp_path: Path) -> None:
    objects = LocalObjects(tmp_path)
    with Worker(objects, name="Ada") as ada, Worker(objects) as other:
        assert ada.claim("shard")
        assert other.holder_name("shard") == "Ada"
        assert other.holder_name("nothing") is None
        ada.remove_traces()
        assert not other.claim("shard"), "others are still looking"
    with Worker(objects) as last:
        last.remove_traces()
        assert not list(tmp_path.glob("claims/*"))
