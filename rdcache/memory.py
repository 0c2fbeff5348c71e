"""How much memory there is to take: of the machine, within the limits of a job, and of a GPU; and
how arrays come to a GPU without anybody waiting.

A job's limits are those of its cgroup and of the ones around it, as Slurm and Kubernetes set them;
both versions of cgroups are read, each where it is usually mounted.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

PROC, CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class GroupFiles:
    """Where a version of cgroups keeps a group's numbers.

    Attributes:
        limit, used: files of one number of bytes each.
        cached: the fields of `memory.stat` that are page cache, which is given back when needed.
    """

    limit: str
    used: str
    cached: tuple[str, str]


VERSION_1 = GroupFiles(
    "memory.limit_in_bytes", "memory.usage_in_bytes", ("total_active_file", "total_inactive_file")
)
VERSION_2 = GroupFiles("memory.max", "memory.current", ("active_file", "inactive_file"))


def available_memory(proc: Path = PROC, cgroups: Path = CGROUPS) -> int:
    """Bytes of main memory that this process can still take without anybody swapping.

    Page cache counts as available.
    """
    left = [_of_machine(proc, "MemAvailable:")]
    for folder, files, limit in _limits(proc, cgroups):
        try:
            used = int((folder / files.used).read_text())
            fields = _fields((folder / "memory.stat").read_text())
        except (OSError, ValueError):
            continue
        left.append(limit - used + sum(fields.get(name, 0) for name in files.cached))
    return max(min(left), 0)


def memory_limit(proc: Path = PROC, cgroups: Path = CGROUPS) -> int:
    """Bytes of main memory that the machine has, or that this job may have; not a matter of what
    else is running.
    """
    limits = [limit for _, _, limit in _limits(proc, cgroups)]
    return min([_of_machine(proc, "MemTotal:"), *limits])


def available_device_memory(device: torch.device) -> int:
    """Bytes of a GPU's memory that are free, those included that PyTorch holds but does not use."""
    free, _ = torch.cuda.mem_get_info(device)
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(free + unused)


def sent(array: np.ndarray, device: torch.device) -> torch.Tensor:
    """An array on its way to a device; on the CPU the array's own memory.

    From memory that is not pinned a copy to a GPU waits until the GPU has done all that it was
    given before: in a training, the steps that are under way.
    """
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def _of_machine(proc: Path, field: str) -> int:
    try:
        return _fields((proc / "meminfo").read_text())[field] * 1024
    except (OSError, KeyError, ValueError):
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return total if field == "MemTotal:" else total // 2


def _limits(proc: Path, cgroups: Path) -> Iterator[tuple[Path, GroupFiles, int]]:
    """The groups around this process that are limited: folder, how it is read, bytes."""
    try:
        lines = (proc / "self" / "cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:  # number:controllers:path, and no controllers in version 2
        _, _, rest = line.partition(":")
        controllers, _, name = rest.partition(":")
        if controllers and "memory" not in controllers.split(","):
            continue
        root, files = (cgroups / "memory", VERSION_1) if controllers else (cgroups, VERSION_2)
        group = root / name.lstrip("/")
        # In a container the innermost folders may be those of the host, and not be there.
        for folder in (group, *group.parents):
            if not folder.is_relative_to(root):
                break
            try:
                text = (folder / files.limit).read_text().strip()
                if text != "max":
                    yield folder, files, int(text)
            except (OSError, ValueError):
                continue


def _fields(text: str) -> dict[str, int]:
    """Lines of a name and a number."""
    return {words[0]: int(words[1]) for words in map(str.split, text.splitlines()) if words[1:]}
