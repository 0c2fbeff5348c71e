"""Processes to be killed or changed, forked from one that has imported torch and rdcache already.

Each is a process of its own, with its own environment, working folder and output; it starts in
milliseconds, where a new Python spends seconds on importing.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import tempfile
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    ["rdcache.cli", "rdcache.extraction", "rdcache.distillation", "distributed"]
)


class Forked:
    """A function of a module in a process of its own, under way from the start.

    Args:
        run: the function, and then its arguments; all of it can be pickled.
        environment: instead of this process's.
        folder: to work in.
    """

    def __init__(
        self,
        run: Callable[..., object],
        *arguments: object,
        environment: Mapping[str, str] | None = None,
        folder: Path | None = None,
    ) -> None:
        self._output = Path(tempfile.mkdtemp(prefix="rdcache-forked-"))
        weakref.finalize(self, shutil.rmtree, self._output, ignore_errors=True)
        for name in ("stdout", "stderr"):
            (self._output / name).touch()
        variables = dict(os.environ if environment is None else environment)
        given = (run, arguments, variables, str(folder or Path.cwd()), str(self._output))
        self._process = CONTEXT.Process(target=_begin, args=given, daemon=True)
        self._process.start()

    @property
    def code(self) -> int | None:
        """The exit status, negative for a signal; None while it runs."""
        return self._process.exitcode

    @property
    def stdout(self) -> str:
        """What it has printed so far."""
        return (self._output / "stdout").read_text()

    @property
    def stderr(self) -> str:
        """What it has said of errors so far."""
        return (self._output / "stderr").read_text()

    def wait(self, seconds: float | None = None) -> int | None:
        """The exit status, when it has ended or the time is over."""
        self._process.join(seconds)
        return self.code

    def kill(self) -> None:
        """SIGKILL, and wait for its end."""
        self._process.kill()
        self._process.join()


def finished(run: Callable[..., object], *arguments: object, **options: Any) -> Forked:
    """Run a function in a process of its own to its end."""
    process = Forked(run, *arguments, **options)
    process.wait()
    return process


def warm_up() -> None:
    """Have the process that others are forked from, for libraries that fork from it too."""
    assert finished(print).code == 0


def _begin(
    run: Callable[..., object],
    arguments: tuple[object, ...],
    environment: dict[str, str],
    folder: str,
    output: str,
) -> None:
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    tempfile.tempdir = None
    for number, name in ((1, "stdout"), (2, "stderr")):
        descriptor = os.open(Path(output, name), os.O_WRONLY | os.O_APPEND)
        os.dup2(descriptor, number)
        os.close(descriptor)
    torch.set_num_threads(1)
    run(*arguments)
