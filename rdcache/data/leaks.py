"""The leak check: pictures that occur twice, within or across splits and classes.

Exact duplicates have the same size and the same grey pixels. Near duplicates have perceptual hashes
at most `CLOSE_BITS` apart and, because neighbouring CT slices have that too, thumbnails with a
correlation of at least `NEAR`. Similar pictures (neighbouring slices and frames, mostly) reach only
`SIMILAR`: they are not reported, but no split that is drawn here separates them.
`docs/datasets.md` tells how these numbers were chosen.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

Label = int | tuple[int, ...]  # a class number; of several findings, 0 or 1 for each class

CLOSE_BITS = 8
NEAR = 0.993
SIMILAR = 0.98
FLAT = 1.0  # grey levels of standard deviation below which a thumbnail tells nothing
LISTED_PAIRS = 1000
BLOCK, BLOCK_PAIRS = 512, 2**24  # pictures, and pairs of them, that are compared at once


class Duplicate(NamedTuple):
    """Positions of two pictures that are the same, the first one's first."""

    first: int
    second: int
    kind: Literal["exact", "near", "similar"]


@dataclass(frozen=True)
class Pair:
    """Two samples that show the same picture, the first before the second in uid order."""

    uids: tuple[str, str]
    splits: tuple[str, str]
    labels: tuple[Label, Label]
    kind: Literal["exact", "near"]

    @property
    def crosses_splits(self) -> bool:
        """Whether the two lie in different splits."""
        return self.splits[0] != self.splits[1]

    @property
    def crosses_classes(self) -> bool:
        """Whether the two have different labels."""
        return self.labels[0] != self.labels[1]


@dataclass(frozen=True)
class LeakReport:
    """What the leak check found.

    Attributes:
        pairs: every pair, sorted by kind and uids; of n identical samples, each is paired with one.
        leaked: uids of test samples that also occur in train or val, sorted.
        exactly_leaked: those of them that occur there pixel for pixel.
        straddling_groups: how many groups have samples in more than one split.
        test_samples: size of the test split that `leaked` refers to.
        dropped: how many leaked test samples were left out on request.
    """

    pairs: tuple[Pair, ...] = ()
    leaked: tuple[str, ...] = ()
    exactly_leaked: tuple[str, ...] = ()
    straddling_groups: int = 0
    test_samples: int = 0
    dropped: int = 0

    def count(self, kind: str, *, across: Literal["splits", "classes"] | None = None) -> int:
        """Number of pairs of a kind; `across` counts only those that cross splits or classes."""
        return sum(
            pair.kind == kind
            and (across != "splits" or pair.crosses_splits)
            and (across != "classes" or pair.crosses_classes)
            for pair in self.pairs
        )

    def summary(self) -> list[str]:
        """One line for each thing found; one line that nothing was, otherwise."""
        lines = []
        if self.leaked:
            near = len(self.leaked) - len(self.exactly_leaked)
            dropped = ", left out as asked" if self.dropped else ""
            lines.append(
                f"{len(self.leaked)} of {self.test_samples} test images also occur in train or val "
                f"({len(self.exactly_leaked)} pixel for pixel, {near} nearly){dropped}"
            )
        for kind in ("exact", "near"):
            if total := self.count(kind):
                lines.append(
                    f"{total} {kind} duplicate pairs "
                    f"({self.count(kind, across='splits')} across splits, "
                    f"{self.count(kind, across='classes')} across classes)"
                )
        if self.straddling_groups:
            lines.append(f"{self.straddling_groups} groups have images in more than one split")
        return lines or ["no duplicates, no leaks"]

    def to_dict(self) -> dict[str, Any]:
        """For the manifest: counts, leaked uids, and the first pairs, by uid."""
        return {
            "summary": self.summary(),
            "exact_pairs": self.count("exact"),
            "near_pairs": self.count("near"),
            "across_splits": sum(pair.crosses_splits for pair in self.pairs),
            "across_classes": sum(pair.crosses_classes for pair in self.pairs),
            "straddling_groups": self.straddling_groups,
            "leaked_test_uids": list(self.leaked),
            "exactly_leaked_test_uids": list(self.exactly_leaked),
            "dropped": self.dropped,
            "pairs": [
                {"uids": list(p.uids), "splits": list(p.splits), "kind": p.kind}
                for p in self.pairs[:LISTED_PAIRS]
            ],
        }


def find_duplicates(
    pixels: Sequence[bytes], perceptual: np.ndarray, thumbnails: np.ndarray
) -> list[Duplicate]:
    """Compare every picture with every other.

    Args:
        pixels: digest of each grey picture.
        perceptual: uint64 (N,), 64-bit hashes.
        thumbnails: uint8 (N, 32, 32).
    """
    exact = [Duplicate(*pair, "exact") for pair in _exact_pairs(pixels)]
    return exact + list(_alike(pixels, perceptual, thumbnails))


def report_leaks(
    duplicates: Sequence[Duplicate],
    uids: Sequence[str],
    labels: Sequence[Label],
    splits: Sequence[str],
    groups: Sequence[str | None],
    pixels: Sequence[bytes],
) -> LeakReport:
    """Say which of the duplicates, and which groups, cross splits and classes."""
    pairs = []
    for *both, kind in duplicates:
        if kind == "similar":
            continue
        i, j = sorted(both, key=lambda number: uids[number])
        pair = Pair((uids[i], uids[j]), (splits[i], splits[j]), (labels[i], labels[j]), kind)
        pairs.append(pair)
    pairs.sort(key=lambda pair: (pair.kind, pair.uids))
    exactly_leaked = _exactly_leaked(uids, splits, pixels)
    nearly_leaked = {
        uid
        for pair in pairs
        if pair.crosses_splits
        for uid, split in zip(pair.uids, pair.splits, strict=True)
        if split == "test"
    }
    return LeakReport(
        pairs=tuple(pairs),
        leaked=tuple(sorted(exactly_leaked | nearly_leaked)),
        exactly_leaked=tuple(sorted(exactly_leaked)),
        straddling_groups=_straddling(splits, groups),
        test_samples=list(splits).count("test"),
    )


def _exact_pairs(pixels: Sequence[bytes]) -> Iterator[tuple[int, int]]:
    first: dict[bytes, int] = {}
    for number, digest in enumerate(pixels):
        if digest in first:
            yield first[digest], number
        else:
            first[digest] = number


def _exactly_leaked(
    uids: Sequence[str], splits: Sequence[str], pixels: Sequence[bytes]
) -> set[str]:
    seen = {digest for digest, split in zip(pixels, splits, strict=True) if split != "test"}
    rows = zip(uids, splits, pixels, strict=True)
    return {uid for uid, split, digest in rows if split == "test" and digest in seen}


def _alike(
    pixels: Sequence[bytes], perceptual: np.ndarray, thumbnails: np.ndarray
) -> Iterator[Duplicate]:
    """Near and similar pairs of different pictures, block by block."""
    standard = thumbnails.reshape(len(thumbnails), -1).astype(np.float32)
    standard -= standard.mean(axis=1, keepdims=True)
    spread = standard.std(axis=1, keepdims=True)
    standard /= np.maximum(spread, FLAT)
    standard[spread[:, 0] < FLAT] = 0  # correlates with nothing
    step = max(1, min(BLOCK, BLOCK_PAIRS // max(1, len(perceptual))))
    for begin in range(0, len(perceptual), step):
        block = perceptual[begin : begin + step, None]
        distance = np.bitwise_count(block ^ perceptual[None, begin:])
        for row in range(len(block)):
            # Only later pictures: each pair is seen once.
            others = begin + row + 1 + np.flatnonzero(distance[row, row + 1 :] <= CLOSE_BITS)
            correlation = standard[others] @ standard[begin + row] / standard.shape[1]
            for place in np.flatnonzero(correlation >= SIMILAR):
                other = int(others[place])
                if pixels[begin + row] != pixels[other]:
                    near = correlation[place] >= NEAR
                    yield Duplicate(begin + row, other, "near" if near else "similar")


def _straddling(splits: Sequence[str], groups: Sequence[str | None]) -> int:
    where: dict[str, set[str]] = {}
    for split, group in zip(splits, groups, strict=True):
        if group is not None:
            where.setdefault(group, set()).add(split)
    return sum(len(found) > 1 for found in where.values())
