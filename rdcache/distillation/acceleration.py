"""How a student's steps become faster on this machine: arithmetic in bfloat16, and compilation.

bfloat16 decides numbers, so what is chosen is part of what identifies a run. A compiled student
computes the same but for the last bits, as another processor would.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch

from rdcache.distillation.config import DistillConfig
from rdcache.distillation.hardware import threads
from rdcache.errors import UsageError
from rdcache.models import Student, StudentOutput, create_student
from rdcache.probing import fastest

# Shorter trainings take about as long as finding out, or compiling.
WORTH_A_PROBE = 1000
WORTH_COMPILING = 2000


def choose_amp(
    config: DistillConfig, steps: int, device: torch.device
) -> tuple[Literal["bf16", "off"], str]:
    """Settle the precision of forward passes, and say why.

    `auto` is bfloat16 on a GPU that has it. On a CPU the student's step is timed both ways, once
    for a machine, and bfloat16 has to be faster by a fifth.

    Args:
        steps: of the whole training.
    """
    if config.amp != "auto":
        return config.amp, "as asked for"
    if device.type == "cuda":
        supported = torch.cuda.is_bf16_supported()
        return ("bf16", "on a GPU") if supported else ("off", "this GPU has no bfloat16")
    if device.type != "cpu" or steps < WORTH_A_PROBE:
        return "off", f"{steps} steps are too few to try bfloat16"
    key = {
        "what": "training step",
        "student": config.student,
        "batch": config.batch_size,
        "size": config.image_size,
    }
    with torch.random.fork_rng([]), threads(config.num_threads):
        choice = fastest(key, {amp: _step(config, amp == "bf16") for amp in ("off", "bf16")})
    return ("bf16" if choice.name == "bf16" else "off"), str(choice)


def _step(config: DistillConfig, enabled: bool) -> Callable[[], None]:
    """A step of an untrained student of this kind on noise."""
    student = create_student(config.student, 2).to(memory_format=torch.channels_last)
    side = config.image_size
    images = torch.randn(config.batch_size, 3, side, side)
    images = images.contiguous(memory_format=torch.channels_last)

    def run() -> None:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            loss = student(images).logits.float().square().mean()
        loss.backward()

    return run


def compiled(
    student: Student, config: DistillConfig, steps: int, device: torch.device
) -> Callable[..., StudentOutput]:
    """The student's forward pass, compiled where that is asked for or, by `auto`, pays: on a GPU
    small networks wait for kernels to be launched, and one CUDA graph launches all of them.

    Raises:
        UsageError: it is asked for, and there is no compiler.
    """
    auto = device.type == "cuda" and steps >= WORTH_COMPILING
    if config.compile == "off" or (config.compile == "auto" and not auto):
        return student
    if (lacks := _why_nothing_compiles(device)) is not None:
        if config.compile == "auto":
            return student
        raise UsageError(
            "the student cannot be compiled on this machine.",
            why=lacks,
            next="install a C++ compiler, or --compile off",
        )
    mode = "reduce-overhead" if device.type == "cuda" else "default"
    return torch.compile(student, mode=mode, dynamic=False)


def _why_nothing_compiles(device: torch.device) -> str | None:
    """What PyTorch lacks to compile even a sum; None if it lacks nothing."""
    try:
        torch.compile(torch.square, fullgraph=True)(torch.ones(2, device=device))
    except Exception as error:  # there is no common class for what a compiler may lack
        return str(error).strip().splitlines()[0]
    return None
