"""Shards as they are filled by the teacher and handed to the store by a thread beside it.

Nothing here grows with the dataset: the images of a few batches are decoded ahead, so that with the
shard that is being filled there are those that these batches begin, the one that waits and the one
that is being written. Their arrays are used again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from functools import cached_property
from types import TracebackType

import numpy as np
import torch

from rdcache.errors import TeacherOutputError
from rdcache.extraction.forward import TeacherForward
from rdcache.extraction.reduction import as_laid_out
from rdcache.extraction.reuse import Donors
from rdcache.extraction.widening import Float16OverflowError
from rdcache.store import NOT_FINITE, STORED, ShardRef, StoreLayout, StoreWriter, TapSpec

Tensors = dict[str, np.ndarray]


class ShardArrays:
    """Arrays of whole shards. Who takes some owns them until they are given back."""

    def __init__(self, layout: StoreLayout) -> None:
        self._layout = layout
        self._free: deque[Tensors] = deque()

    def take(self) -> Tensors:
        """Tap name → (shard_samples, *tap) in the stored dtype, with whatever numbers in it."""
        try:
            return self._free.pop()
        except IndexError:
            count = self._layout.shard_samples
            return {
                tap.name: np.empty((count, *tap.shape), tap.stored_dtype)
                for tap in self._layout.taps
            }

    def give_back(self, arrays: Tensors) -> None:
        """Let others have them."""
        self._free.append(arrays)


class ShardInMemory:
    """A shard that is being filled: from other stores where they have its samples, else from the
    teacher, batch after batch.

    Attributes:
        outcome: uint8 (samples,), as `StoreWriter.write` has it.
        lacking: int64 (n,), places within the shard that the teacher is to fill, in order.
    """

    def __init__(self, shard: ShardRef, writer: StoreWriter, arrays: ShardArrays) -> None:
        self.shard = shard
        self.count = shard.stop - shard.start
        self.outcome = np.full(self.count, STORED, np.uint8)
        self.lacking = np.arange(self.count)
        self._writer = writer
        self._arrays = arrays
        self._done = 0

    @cached_property
    def _whole(self) -> Tensors:
        return self._arrays.take()  # not before there is something to put into them

    @property
    def tensors(self) -> Tensors:
        """Tap name → (samples, *tap) in the stored dtype."""
        return {name: rows[: self.count] for name, rows in self._whole.items()}

    @property
    def full(self) -> bool:
        """Whether every sample is there."""
        return self._done == len(self.lacking)

    def copy_from(self, donors: Donors, uids: np.ndarray, parameters: np.ndarray) -> None:
        """Take from other stores what they have; see `Donors.of`."""
        fresh = np.ones(self.count, bool)
        for donated in donors.of(uids, parameters):
            for name, values in donated.tensors.items():
                self.tensors[name][donated.positions] = values
            fresh[donated.positions] = False
        self.lacking = np.flatnonzero(fresh)

    def add(self, batch: dict[str, torch.Tensor]) -> int:
        """Put the teacher's next batch in its place, and say how many samples it has.

        Raises:
            Float16OverflowError: a tap must be kept in float32.
            TeacherOutputError: a tap has another shape than it declares.
        """
        outputs = as_laid_out(batch, self._writer.layout.taps, self._writer.projections)
        count = len(next(iter(outputs.values())))
        rows = self.lacking[self._done : self._done + count]
        for tap in self._writer.layout.taps:
            self.tensors[tap.name][rows], finite = _as_stored(outputs[tap.name], tap)
            self.outcome[rows[~finite]] = NOT_FINITE
        self._done += count
        return count

    def write(self) -> bool:
        """See `StoreWriter.write_if_lacking`. The arrays are given back whatever comes of it.

        Raises:
            TeacherOutputError: the teacher has not given all of its samples.
        """
        try:
            if not self.full:
                raise TeacherOutputError(
                    "a shard lacks samples that the teacher was to give.",
                    shard=f"view {self.shard.view}, number {self.shard.index}",
                    has=f"{self._done} of {len(self.lacking)}",
                )
            return self._writer.write_if_lacking(self.shard, self.tensors, self.outcome)
        finally:
            taken = self.__dict__.pop("_whole", None)
            if taken is not None:  # there may have been no memory for them
                self._arrays.give_back(taken)


def filled_shards(
    shards: Iterable[ShardRef],
    writer: StoreWriter,
    forward: TeacherForward,
    donors: Donors,
    on_rows: Callable[[int], None] = lambda rows: None,
) -> Generator[ShardInMemory, None, None]:
    """Fill shards one after the other, without a pause between them.

    Args:
        shards: pulled as the images of each are to be decoded, a few batches ahead of the teacher.
        on_rows: told how many samples have been added.
    """
    arrays = ShardArrays(writer.layout)

    def requests() -> Iterator[tuple[ShardInMemory, int, list[int]]]:
        for shard in shards:
            filled = ShardInMemory(shard, writer, arrays)
            samples = slice(shard.start, shard.stop)
            parameters = forward.view_parameters[shard.view, samples]
            filled.copy_from(donors, forward.dataset.uids[samples], parameters)
            on_rows(filled.count - len(filled.lacking))
            yield filled, shard.view, (shard.start + filled.lacking).tolist()

    with closing(forward.stream(requests())) as batches:
        for filled, batch in batches:
            if batch:
                on_rows(filled.add(batch))
            if filled.full:
                yield filled


class WritingBeside:
    """Writes shards in a thread of its own while the next one is filled; a context.

    One shard is written at a time; who hands over the next waits for it. On leaving, whatever the
    reason, a shard that is being written is written to its end.
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="write-shard")
        self._pending: Future[bool] | None = None

    def __enter__(self) -> WritingBeside:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._pool.shutdown()

    def write(self, filled: ShardInMemory) -> bool:
        """Hand over a shard; for what is returned and raised see `finish`."""
        if not self.finish():
            return False
        self._pending = self._pool.submit(filled.write)
        return True

    def finish(self) -> bool:
        """Wait until what was handed over is written.

        Returns:
            False if the store's layout is another now: the shard does not count, nor would others.

        Raises:
            StoreWriteError: it could not be written.
        """
        pending, self._pending = self._pending, None
        return pending is None or pending.result()

    def raise_early(self) -> None:
        """Raise what has gone wrong already, if anything has; do not wait."""
        if self._pending is not None and self._pending.done():
            self._pending.result()


def _as_stored(values: torch.Tensor, tap: TapSpec) -> tuple[np.ndarray, np.ndarray]:
    """Convert one batch of a tap to its stored dtype, and say which samples are finite."""
    if tuple(values.shape[1:]) != tap.shape:
        raise TeacherOutputError(
            "the teacher's output has another shape than its tap declares.",
            tap=tap.name,
            declared=tap.shape,
            got=tuple(values.shape[1:]),
        )
    finite = torch.isfinite(values.flatten(1)).all(1)
    stored = values.to(getattr(torch, tap.dtype))
    if tap.dtype == "float16" and torch.isinf(stored[finite]).any():
        raise Float16OverflowError(tap.name)
    if tap.dtype == "bfloat16":
        stored = stored.view(torch.uint16)
    return stored.numpy(), finite.numpy()
