"""How a student's steps become faster on this machine: arithmetic in bfloat16, and compilation.

bfloat16 decides numbers, so what is chosen is part of what identifies a run. A compiled student
computes the same but for the last bits, as another processor would.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch

from rdcache.distillation.config import DistillConfig
from rdcache.distillation.hardware import threads
from rdcache.errors import UsageError, reason_of
from rdcache.models import Student, StudentOutput, create_student
from rdcache.models.devices import has_bfloat16
from rdcache.probing import fastest

# Shorter trainings take about as long as finding out, or compiling.
WORTH_A_PROBE = 1000
WORTH_COMPILING = 2000
MOST_PROGRAMS = 64  # that PyTorch compiles of one function before it gives up


def choose_amp(
    config: DistillConfig, steps: int, device: torch.device, dimensions: int = 2
) -> tuple[Literal["bf16", "off"], str]:
    """Settle the precision of forward passes, and say why.

    `auto` is bfloat16 on a GPU that has it. On a CPU the student's step is timed both ways, once
    for a machine, and bfloat16 has to be faster by a fifth.

    Args:
        steps: of the whole training.
        dimensions: of what the student sees.
    """
    if config.amp != "auto":
        return config.amp, "as asked for"
    if device.type == "cuda":
        if has_bfloat16(device):
            return "bf16", "this GPU has it"
        return "off", "this GPU has no bfloat16"
    if device.type != "cpu":
        return "off", f"bfloat16 is not tried on {device.type}"
    if dimensions == 3:
        return "off", "bfloat16 is not tried for volumes"
    if steps < WORTH_A_PROBE:
        return "off", f"{steps} steps are too few to try bfloat16"
    key = {
        "what": "training step",
        "student": config.student,
        "batch": config.batch_size,
        "size": config.image_size,
    }
    with torch.random.fork_rng([]), threads(config.num_threads):
        choice = fastest(key, {amp: _step(config, amp == "bf16") for amp in ("off", "bf16")})
    took = {name: f"{1e3 * seconds:.1f} ms" for name, seconds in choice.seconds.items()}
    when = "measured earlier" if choice.cached else "measured now"
    why = f"a step takes {took['off']} in float32, {took['bf16']} in bfloat16, {when}"
    return ("bf16" if choice.name == "bf16" else "off"), why


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
    student: Student,
    config: DistillConfig,
    steps: int,
    device: torch.device,
    on_failure: Callable[[str], None],
) -> tuple[Callable[..., StudentOutput], str]:
    """The student's forward pass, compiled where that is asked for or, by `auto`, pays: on a GPU
    small networks wait for kernels to be launched, and one CUDA graph launches all of them.

    Args:
        on_failure: told if `auto` was too hopeful, as in `CompiledStudent`.

    Returns:
        It, and whether it is compiled, and why.

    Raises:
        UsageError: it is asked for, and there is no compiler.
    """
    why = "as asked for" if config.compile != "auto" else f"{steps} steps on {device.type}"
    pays = device.type == "cuda" and steps >= WORTH_COMPILING
    if config.compile == "off" or (config.compile == "auto" and not pays):
        return student, f"off ({why})"
    if (lacks := why_nothing_compiles(device)) is not None:
        if config.compile == "auto":
            return student, f"off ({lacks})"
        raise UsageError(
            "the student cannot be compiled on this machine.",
            why=lacks,
            next="install a C++ compiler, or --compile off",
        )
    # Programs are counted for all students of a process together. (The older of its two names.)
    settings = torch._dynamo.config
    settings.cache_size_limit = max(settings.cache_size_limit, MOST_PROGRAMS)
    mode = "reduce-overhead" if device.type == "cuda" else "default"
    forward = torch.compile(student, mode=mode, dynamic=False)
    optional = config.compile == "auto"
    return CompiledStudent(student, forward, on_failure if optional else None), f"on ({why})"


class CompiledStudent:
    """A student's forward pass, which PyTorch compiles when it is first called. (The backward pass
    is compiled later; what fails there is not caught.)

    Args:
        forward: the compiled one.
        on_failure: told why, if PyTorch cannot compile this student: it is run as it is from then
            on. Without it that is an error.
    """

    def __init__(
        self,
        student: Student,
        forward: Callable[..., StudentOutput],
        on_failure: Callable[[str], None] | None,
    ) -> None:
        self._student, self._forward, self._on_failure = student, forward, on_failure

    def __call__(self, *arguments: Any, **options: Any) -> StudentOutput:
        """See `Student.forward`.

        Raises:
            UsageError: PyTorch cannot compile it.
        """
        try:
            return self._forward(*arguments, **options)
        except torch._dynamo.exc.TorchDynamoException as error:
            why = reason_of(error)
            if self._on_failure is None:
                raise UsageError(
                    "the student cannot be compiled on this machine.", why=why, next="--compile off"
                ) from error
        self._on_failure(f"off ({why})")
        self._forward = self._student
        return self._student(*arguments, **options)


def why_nothing_compiles(device: torch.device) -> str | None:
    """What PyTorch lacks to compile even a sum; None if it lacks nothing."""
    try:
        torch.compile(torch.square, fullgraph=True)(torch.ones(2, device=device))
    except Exception as error:  # there is no common class for what a compiler may lack
        return reason_of(error)
    return None
