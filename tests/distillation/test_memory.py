"""How much memory a job may take, read from files as Linux writes them."""

from __future__ import annotations

from pathlib import Path

import pytest

from rdcache.memory import available_memory, memory_limit

MIB = 2**20
MACHINE = "MemTotal: 65536 kB\nMemFree: 1024 kB\nMemAvailable: 32768 kB\n"


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    """A machine of 64 MiB, 32 MiB of which are available."""
    (tmp_path / "proc" / "self").mkdir(parents=True)
    (tmp_path / "proc" / "meminfo").write_text(MACHINE)
    return tmp_path / "proc"


def write_files(folder: Path, files: dict[str, object]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_text(f"{content}\n")


def second_version(limit: object, used: int, stat: str) -> dict[str, object]:
    return {"memory.max": limit, "memory.current": used, "memory.stat": stat}


def first_version(limit: int, used: int, stat: str) -> dict[str, object]:
    return {"memory.limit_in_bytes": limit, "memory.usage_in_bytes": used, "memory.stat": stat}


def test_without_a_limit_it_is_the_machines(proc: Path, tmp_path: Path) -> None:
    (proc / "self" / "cgroup").write_text("0::/\n")
    assert available_memory(proc, tmp_path / "groups") == 32 * MIB
    assert memory_limit(proc, tmp_path / "groups") == 64 * MIB


def test_all_page_cache_of_a_job_counts_as_available(proc: Path, tmp_path: Path) -> None:
    groups = tmp_path / "groups"
    (proc / "self" / "cgroup").write_text("0::/slurm/job_7/step_0\n")
    stat = f"anon {2 * MIB}\nactive_file {3 * MIB}\ninactive_file {MIB}\nfile {5 * MIB}"
    write_files(groups / "slurm" / "job_7", second_version(10 * MIB, 8 * MIB, stat))
    step = groups / "slurm" / "job_7" / "step_0"
    write_files(step, second_version("max", 8 * MIB, stat))
    assert available_memory(proc, groups) == (10 - 8 + 3 + 1) * MIB
    assert memory_limit(proc, groups) == 10 * MIB


def test_the_first_version_of_cgroups_is_read_too(proc: Path, tmp_path: Path) -> None:
    groups = tmp_path / "groups"
    lines = "5:cpu,cpuacct:/slurm/job_7\n4:memory:/slurm/job_7\n1:name=systemd:/x\n0::/\n"
    (proc / "self" / "cgroup").write_text(lines)
    stat = f"cache {9 * MIB}\ntotal_active_file {2 * MIB}\ntotal_inactive_file {MIB}"
    write_files(groups / "memory", first_version(2**63 - 4096, 60 * MIB, stat))
    write_files(groups / "memory" / "slurm" / "job_7", first_version(20 * MIB, 15 * MIB, stat))
    assert available_memory(proc, groups) == (20 - 15 + 2 + 1) * MIB
    assert memory_limit(proc, groups) == 20 * MIB


def test_a_container_that_does_not_see_its_own_group_takes_the_one_around_it(
    proc: Path, tmp_path: Path
) -> None:
    groups = tmp_path / "groups"
    (proc / "self" / "cgroup").write_text("4:memory:/docker/0123abcd\n")
    write_files(groups / "memory", first_version(16 * MIB, 12 * MIB, "total_active_file 0"))
    assert available_memory(proc, groups) == 4 * MIB
    assert memory_limit(proc, groups) == 16 * MIB


def test_files_that_say_nothing_are_passed_over(proc: Path, tmp_path: Path) -> None:
    groups = tmp_path / "groups"
    (proc / "self" / "cgroup").write_text("0::/job\n")
    write_files(groups / "job", {"memory.max": 8 * MIB})
    assert available_memory(proc, groups) == 32 * MIB
    assert memory_limit(proc, groups) == 8 * MIB
    (groups / "job" / "memory.max").write_text("plenty")
    assert memory_limit(proc, groups) == 64 * MIB
