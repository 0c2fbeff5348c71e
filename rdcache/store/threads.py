"""Threads that stay for the life of a process, so that no batch waits for new ones.

A forked child has none of its parent's threads and gets its own.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from threading import Lock


def usable_cores() -> int:
    """How many cores this process may use: in a container or under `taskset` not all there are."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


THREADS = min(8, usable_cores())
_pool: ThreadPoolExecutor | None = None
_lock = Lock()


def computing_threads() -> ThreadPoolExecutor:
    """As many threads as there are cores, eight at most. What runs there must not wait for more
    that is to run there.
    """
    global _pool
    with _lock:
        if _pool is None:
            _pool = ThreadPoolExecutor(THREADS, thread_name_prefix="rdcache-compute")
        return _pool


def _begin_anew() -> None:
    global _pool, _lock
    _pool, _lock = None, Lock()


os.register_at_fork(after_in_child=_begin_anew)
