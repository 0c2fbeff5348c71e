"""The order in which each sample's views come, for all samples at once.

They are what `counted_generator("views", seed, uid).permutation(count)` gives, number for number. A
generator for each of 100,000 samples takes seconds; here NumPy computes Philox4x64-10, its 32-bit
draws and its exchanges for all of them together.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rdcache.distillation.randomness import counted_generator, counted_keys

ROUNDS = 10
MULTIPLIERS = (np.uint64(0xD2E7470EE14C6C93), np.uint64(0xCA5A826395121157))
WEYL = (np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBB67AE8584CAA73B))
LOW, HALF = np.uint64(0xFFFFFFFF), np.uint64(32)
DRAWS_OF_A_BLOCK = 8  # 32-bit numbers
DRAWS_FOR_A_VIEW = 3  # so many are hardly ever needed: at least every second is taken


def view_orders(seed: int, uids: Sequence[str], count: int) -> np.ndarray:
    """A permutation of the views for each sample: int64 (len(uids), count).

    Args:
        uids: 32 hexadecimal digits each.
    """
    keys = np.frombuffer(counted_keys("views", seed, last=uids), np.uint64)
    numbers = _draws(keys.reshape(-1, 2), DRAWS_FOR_A_VIEW * count)
    orders = np.tile(np.arange(count), (len(numbers), 1))
    everyone = np.arange(len(orders))
    drawn = np.zeros(len(orders), np.int64)  # numbers that each has used
    for last in range(count - 1, 0, -1):
        # Fisher and Yates, from the end: exchange with one of those up to here.
        chosen = np.zeros(len(orders), np.int64)
        open_still = everyone
        while open_still.size:
            found = numbers[open_still, np.minimum(drawn[open_still], numbers.shape[1] - 1)]
            found &= (1 << last.bit_length()) - 1
            drawn[open_still] += 1
            chosen[open_still] = np.minimum(found, last)
            more = (found > last) & (drawn[open_still] < numbers.shape[1])
            open_still = open_still[more]
        taken = orders[everyone, chosen]
        orders[everyone, chosen] = orders[:, last]
        orders[:, last] = taken
    # Whoever has come to the end of its numbers, about one in a thousand, draws on by itself.
    for number in np.flatnonzero(drawn >= numbers.shape[1]).tolist():
        generator = counted_generator("views", seed, uids[number])
        orders[number] = generator.permutation(count)
    return orders


def _draws(keys: np.ndarray, count: int) -> np.ndarray:
    """The first 32-bit draws of generators with these keys, at least `count`: int64 (n, draws).

    Args:
        keys: uint64 (n, 2).
    """
    blocks = [_philox(keys, number + 1) for number in range(-(-count // DRAWS_OF_A_BLOCK))]
    wide = np.concatenate(blocks, axis=1)
    halves = np.stack([wide & LOW, wide >> HALF], axis=2)  # the lower half comes first
    return halves.reshape(len(keys), 2 * wide.shape[1]).astype(np.int64)


def _philox(keys: np.ndarray, counter: int) -> np.ndarray:
    """One block of Philox4x64-10 (Salmon et al., 2011): uint64 (n, 4)."""
    first, second = keys[:, 0].copy(), keys[:, 1].copy()
    a = np.full(len(keys), counter, np.uint64)
    b, c, d = (np.zeros(len(keys), np.uint64) for _ in range(3))
    for number in range(ROUNDS):
        if number:
            first += WEYL[0]
            second += WEYL[1]
        a_high, a_low = _product(a, MULTIPLIERS[0])
        c_high, c_low = _product(c, MULTIPLIERS[1])
        a, b, c, d = c_high ^ b ^ first, c_low, a_high ^ d ^ second, a_low
    return np.stack([a, b, c, d], axis=1)


def _product(numbers: np.ndarray, factor: np.uint64) -> tuple[np.ndarray, np.ndarray]:
    """Upper and lower 64 bits of products of 64-bit numbers."""
    low, high = numbers & LOW, numbers >> HALF
    factor_low, factor_high = factor & LOW, factor >> HALF
    middle = high * factor_low + (low * factor_low >> HALF)
    other = low * factor_high + (middle & LOW)
    return high * factor_high + (middle >> HALF) + (other >> HALF), numbers * factor
