"""Who works on what, where several processes or machines fill one store.

A worker lives as long as its sign of life, a small object that it rewrites every few seconds,
keeps changing. It claims a piece of work by creating an object whose name ends in a number; the
claim with the highest number holds. Nobody deletes or overwrites another's claim: who finds that
its holder is gone creates the next number, and only one can. So no claim can be taken from a live
worker by a race between "it looked dead" and "remove its lock".

Clocks of different machines are never compared: a worker is given up when its sign of life has
not changed for `patience` seconds by the observer's own clock, or at once where the observer can
see that the process is gone. A worker that only seemed dead looks again, right before it writes,
whether its shard is still missing.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from rdcache.errors import BucketError, StoreWriteError
from rdcache.store.locations import Location
from rdcache.store.objects import Objects, objects_at

PATIENCE = 60.0  # seconds without a sign of life after which a worker is given up
BEATS_IN_PATIENCE = 6
EXTRACTION = "extraction"  # the work of filling a store as a whole, whatever with


def claims_beside(location: Location) -> Objects:
    """The folder of claims for the store at a location: beside it, so that a store holds arrays
    and nothing else.
    """
    return objects_at(location.with_name(f"{location.name}.claims"))


@dataclass(frozen=True)
class Sign:
    """A worker's sign of life.

    Attributes:
        beat: changes with every rewriting.
        process: where and as what it runs, or None where that cannot be told.
        name: who works, if they want to be known.
    """

    beat: int
    process: str | None
    name: str | None


class Worker:
    """One process at work on a store, as a context: alive from entering to leaving.

    Args:
        objects: the folder of claims, beside the store and not in it.
        name: shown to those who wait.
        patience: seconds; the same for all workers of a store.
        token: of the worker on whose behalf this one acts, without a life of its own.

    Attributes:
        token: what its claims bear.
    """

    def __init__(
        self,
        objects: Objects,
        name: str | None = None,
        patience: float = PATIENCE,
        token: str | None = None,
    ) -> None:
        self.objects = objects
        self.name = name
        self.patience = patience
        self.token = token or secrets.token_hex(8)
        self._beat = 0
        self._leaving = threading.Event()
        self._thread = threading.Thread(target=self._live, name="sign-of-life", daemon=True)
        self._seen: dict[str, tuple[int, float]] = {}

    def __enter__(self) -> Worker:
        self._show_life()
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._leaving.set()
        self._thread.join()
        with contextlib.suppress(StoreWriteError, BucketError):
            self.objects.delete([_sign_object(self.token)])

    def remove_traces(self) -> None:
        """Remove the claims of a finished store, unless others are still looking at them."""
        with contextlib.suppress(StoreWriteError, BucketError):
            if not self.others():
                self.objects.remove_all()

    def claim(self, work: str) -> bool:
        """Take a piece of work, unless another live worker has it."""
        number, holder = self._holder(work)
        if holder is not None and self.alive(holder):
            return holder == self.token
        return self.objects.create(f"claims/{work}/{number + 1}", self.token.encode())

    def holds(self, work: str) -> bool:
        """Whether a piece of work is this worker's, and nobody has given it up for dead."""
        return self._holder(work)[1] == self.token

    def release(self, work: str) -> None:
        """Let others have a piece of work that is this worker's."""
        if self.holds(work):
            number, _ = self._holder(work)
            self.objects.create(f"claims/{work}/{number + 1}", b"")

    def holder_name(self, work: str) -> str | None:
        """Who has claimed it, if they want to be known."""
        _, holder = self._holder(work)
        sign = None if holder is None else self._sign(holder)
        return None if sign is None else sign.name

    def alive(self, token: str) -> bool:
        """Whether a worker shows signs of life."""
        sign = self._sign(token)
        if sign is None:
            return False
        if token == self.token:
            return True
        if sign.process is not None and process_is_gone(sign.process):
            return False
        now = time.monotonic()
        beat, since = self._seen.get(token, (None, now))
        if sign.beat != beat:
            since = now
        self._seen[token] = (sign.beat, since)
        return now - since < self.patience

    def others(self) -> list[str]:
        """Tokens of the other live workers."""
        names = self.objects.sizes("workers")
        tokens = sorted(name.removeprefix("workers/") for name in names)
        return [token for token in tokens if token != self.token and self.alive(token)]

    def _holder(self, work: str) -> tuple[int, str | None]:
        """Number and token of the claim that holds; 0 and None where there never was one."""
        prefix = f"claims/{work}"
        numbers = [name.rpartition("/")[2] for name in self.objects.sizes(prefix)]
        number = max((int(text) for text in numbers if text.isdecimal()), default=0)
        if not number:
            return 0, None
        content = self.objects.read(f"{prefix}/{number}")
        return number, content.decode(errors="replace") if content else None

    def _sign(self, token: str) -> Sign | None:
        content = self.objects.read(_sign_object(token))
        try:
            values: Any = json.loads(content or b"null")
            return Sign(values["beat"], values["process"], values["name"])
        except (ValueError, TypeError, KeyError):
            return None

    def _show_life(self) -> None:
        self._beat += 1
        sign = {"beat": self._beat, "process": this_process(), "name": self.name}
        self.objects.put(_sign_object(self.token), json.dumps(sign).encode())

    def _live(self) -> None:
        while not self._leaving.wait(self.patience / BEATS_IN_PATIENCE):
            # A full or unreachable disk is for the shards to report, in the worker's own thread.
            with contextlib.suppress(StoreWriteError):
                self._show_life()


def _sign_object(token: str) -> str:
    return f"workers/{token}"


def this_process() -> str | None:
    """Name this process so that others in the same process table can see whether it is gone.

    The kernel's boot and the table (containers have their own) are part of the name, and the time
    the process began, since numbers are used again. None where the system does not tell.
    """
    table = _process_table()
    began = _beginning(os.getpid())
    return None if table is None or began is None else f"{table}/{os.getpid()}/{began}"


def process_is_gone(process: str) -> bool:
    """Whether a process named by `this_process` is known to have ended.

    False also where that cannot be told: it runs on another machine, or in another container.
    """
    table, number, began = process.rsplit("/", 2) if process.count("/") >= 2 else ("", "", "")
    if table != _process_table() or not number.isdecimal():
        return False
    return _beginning(int(number)) != began


def _process_table() -> str | None:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{Path('/proc/self/ns/pid').stat().st_ino}"
    except OSError:
        return None


def _beginning(number: int) -> str | None:
    """When a process began, in the kernel's ticks; None if there is none of this number."""
    try:
        # The second field, the command in parentheses, may itself hold blanks and parentheses.
        fields = Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    state, began = fields[0], fields[19]
    return None if state in "ZX" else began  # a zombie has ended
