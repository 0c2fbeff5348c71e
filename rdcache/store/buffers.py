"""Memory that batches are read into: allocated, checked before it is written to, and filled."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, wait
from functools import partial
from typing import Any

import numpy as np
import torch

from rdcache.errors import UsageError
from rdcache.store.spec import TapSpec
from rdcache.store.threads import THREADS, computing_threads

Buffers = Mapping[str, torch.Tensor]
HUGE_PAGE = 2**21
COPYING_THREADS = max(THREADS // 2, 1)  # the other cores have a student to train
WORTH_A_THREAD = 2**21  # bytes
WORTH_HUGE_PAGES = 2**22  # from so many bytes on NumPy asks for them


def empty_tensor(shape: Sequence[int], dtype: torch.dtype, *, pin: bool = False) -> torch.Tensor:
    """An uninitialised tensor on the CPU.

    NumPy asks for huge pages where it allocates much, PyTorch does not; and only memory that begins
    with a huge page is made of nothing else. A batch of 6 MB is filled a third faster.
    """
    nbytes = math.prod(shape) * dtype.itemsize
    pinned = pin and torch.cuda.is_available()
    if pinned or nbytes < WORTH_HUGE_PAGES:
        return torch.empty(tuple(shape), dtype=dtype, pin_memory=pinned)
    memory = np.empty(nbytes + HUGE_PAGE, np.uint8)
    start = -memory.ctypes.data % HUGE_PAGE
    return torch.from_numpy(memory[start : start + nbytes]).view(dtype).reshape(tuple(shape))


def copying_threads(nbytes: int) -> int:
    """How many threads `fill_rows` copies so many bytes with; 0 and 1 are the caller's own."""
    return min(COPYING_THREADS, nbytes // WORTH_A_THREAD)


def fill_rows(rows: np.ndarray, payloads: Sequence[np.ndarray]) -> None:
    """Copy payloads into a batch; where it is large with half of the cores, as one of many does not
    use up the memory's bandwidth.

    Args:
        rows: uint8 (n, bytes), contiguous.
        payloads: n times uint8 (bytes,).
    """
    threads = copying_threads(rows.nbytes)
    if threads < 2:
        if payloads:  # NumPy puts nothing at all together only under protest
            np.concatenate(payloads, 0, rows.reshape(-1))
        return
    step = -(-len(rows) // threads)
    # One call a part, made ready here: the others have little to do while they hold Python's lock.
    parts = [
        partial(
            np.concatenate,
            payloads[start : start + step],
            0,
            rows[start : start + step].reshape(-1),
        )
        for start in range(0, len(rows), step)
    ]
    others: list[Future[Any]] = []
    try:
        for part in parts[1:]:
            others.append(computing_threads().submit(part))
        parts[0]()
    finally:
        wait(others)  # also after an error: nobody may write to a batch that was given up
    for copied in others:
        copied.result()


def stored_dtype(tap: TapSpec) -> torch.dtype:
    """What a tap's numbers are in a store."""
    dtype: torch.dtype = getattr(torch, tap.dtype)
    return dtype


def read_dtype(tap: TapSpec) -> torch.dtype:
    """What a tap's numbers are when they are read: int8 is multiplied with its scales."""
    return torch.float32 if tap.scales is not None else stored_dtype(tap)


def require_buffer(out: Buffers, tap: TapSpec, dtype: torch.dtype, count: int) -> None:
    """Refuse a buffer that a batch of a tap does not fit exactly.

    Raises:
        UsageError: it is missing, not on the CPU, of another shape or dtype, not contiguous,
            or one that gradients are computed for.
    """
    buffer = out.get(tap.name)
    if buffer is None:
        raise UsageError("there is no buffer for a tap that is read.", tap=tap.name, has=list(out))
    shape = (count, *tap.shape)
    fits = buffer.shape == shape and buffer.dtype == dtype and not buffer.requires_grad
    if not (fits and buffer.is_cpu and buffer.is_contiguous()):
        order = "contiguous" if buffer.is_contiguous() else "not contiguous"
        raise UsageError(
            "this buffer cannot take the batch.",
            tap=tap.name,
            needed=f"{dtype} {shape}, contiguous, on cpu",
            got=f"{buffer.dtype} {tuple(buffer.shape)}, {order}, on {buffer.device}",
            next="store.empty_batch(…) or store.empty_stored_batch(…) makes buffers that fit",
        )
