"""How much memory a cache of images may take on this machine."""

from __future__ import annotations

import os
from pathlib import Path

SHARE = 0.25
MOST = 64 * 2**30
CGROUP = Path("/sys/fs/cgroup")


def memory_share() -> int:
    """Bytes that one cache may take: a quarter of the memory that is free, but at most 64 GiB."""
    return min(int(free_memory() * SHARE), MOST)


def free_memory() -> int:
    """What the system, and the container around this process, can still give, in bytes."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = 1024 * int(_entry(lines, "MemAvailable:"))
    except (OSError, LookupError, ValueError):  # no Linux: half of all is taken for free
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    try:
        limit = int((CGROUP / "memory.max").read_text())
        used = int((CGROUP / "memory.current").read_text())
        # File pages that nobody used lately count as used, but are given back when asked for.
        used -= int(_entry((CGROUP / "memory.stat").read_text().splitlines(), "inactive_file"))
    except (OSError, LookupError, ValueError):  # no container, or one without a limit ("max")
        return free
    return max(0, min(free, limit - used))


def _entry(lines: list[str], name: str) -> str:
    return {words[0]: words[1] for line in lines if len(words := line.split()) > 1}[name]
