"""How much memory there is to take: of the machine, within the limits of a job, and of a GPU."""

from __future__ import annotations

import os
from pathlib import Path

import torch

CGROUPS = Path("/sys/fs/cgroup")


def available_memory() -> int:
    """Bytes of main memory that this process can still take without anybody swapping.

    Page cache counts as available. On Linux a job's own limit (cgroup v2, as Slurm and Kubernetes
    set it) counts too.
    """
    found = [_of_machine(), *_of_job()]
    return max(min(found), 0)


def available_device_memory(device: torch.device) -> int:
    """Bytes of a GPU's memory that are free, those included that PyTorch holds but does not use."""
    free, _ = torch.cuda.mem_get_info(device)
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(free + unused)


def _of_machine() -> int:
    try:
        fields = _fields(Path("/proc/meminfo").read_text())
        return fields["MemAvailable:"] * 1024
    except (OSError, KeyError, ValueError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def _of_job() -> list[int]:
    """What is left of the memory limit of this process's cgroup and of those around it."""
    left = []
    try:
        name = Path("/proc/self/cgroup").read_text().strip().rpartition("::/")[2]
        group = CGROUPS / name
        for folder in (group, *group.parents):
            if not folder.is_relative_to(CGROUPS):
                break
            limit = folder / "memory.max"
            if limit.is_file() and (text := limit.read_text().strip()) != "max":
                used = int((folder / "memory.current").read_text())
                files = _fields((folder / "memory.stat").read_text()).get("inactive_file", 0)
                left.append(int(text) - used + files)
    except (OSError, ValueError):
        pass
    return left


def _fields(text: str) -> dict[str, int]:
    """Lines of a name and a number."""
    return {words[0]: int(words[1]) for words in map(str.split, text.splitlines()) if words[1:]}
