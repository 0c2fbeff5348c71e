"""Copying stores between roots, whole or in part: what `rdcache push` and `rdcache pull` do.

Shards are copied as they are, each compared with its receipt on the way; what the destination has
already is not copied again, so that an interrupted copy goes on where it stopped. A part is a
store of its own: with fewer taps or random views it is the very store that an extraction of those
makes, under the same fingerprint.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from rdcache.errors import CorruptShardError, SignatureError, UnknownNameError, UsageError
from rdcache.progress import Progress, ignore
from rdcache.store import arrays
from rdcache.store.catalogue import store_location
from rdcache.store.columns import read_receipts
from rdcache.store.compression import largest_shard
from rdcache.store.creating import StoreContent
from rdcache.store.filling import Finished, fill_store
from rdcache.store.gather import as_stored
from rdcache.store.locations import Location
from rdcache.store.manifest import BESIDE, ROOT, SIGNATURES, STRUCTURE, digests_of, group_document
from rdcache.store.objects import ReadableObjects, objects_at
from rdcache.store.opening import open_directly
from rdcache.store.quantisation import with_scales
from rdcache.store.reader import Store
from rdcache.store.signatures import require_signed, signatures_of
from rdcache.store.spec import (
    NOT_FINITE,
    SPLITS,
    STORED,
    Fingerprint,
    SampleTable,
    ShardRef,
    StoreLayout,
)
from rdcache.store.writer import StoreWriter

THREADS = 4
Status = Literal["copied", "unchanged"]


@dataclass(frozen=True)
class Part:
    """What to copy of a store; None stands for all.

    Attributes:
        taps: names.
        views: how many, from the clean one on.
        splits: of `train`, `val`, `test`.
    """

    taps: tuple[str, ...] | None = None
    views: int | None = None
    splits: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Copy:
    """What was copied, and where to."""

    store: Store
    status: Status


def copy_store(
    source: Location,
    root: Location | None,
    part: Part | None = None,
    on_progress: Progress = ignore,
    *,
    require_signature: Path | None = None,
) -> Copy:
    """Copy a complete store under another root.

    Args:
        require_signature: PEM file of the public key that the store has to be signed by.

    Raises:
        SignatureError: the store is not signed as asked for.
        StoreNotFoundError, StoreIncompleteError, StoreFormatError: see `open_store`.
        UnknownNameError: a tap or split that the store does not have.
        UsageError: more views than it has, or the root is the one it lies under.
        CorruptShardError: a shard is not what its receipt says; nothing of it was copied.
        StoreWriteError, StaleStoreError: see `fill_store`.
    """
    store = open_directly(source, require_signature=require_signature)
    kept = _Kept.of(store, part or Part())
    content = _content(store, kept)
    dataset, teacher = _names(store)
    location = store_location(root, dataset, teacher, content.fingerprint.digest)
    if _same_place(location, store.location):
        raise UsageError("this store lies under that root already.", store=store.location)

    # The bucket itself and not what is kept of it: a copy is no use of the store.
    objects = objects_at(store.location)
    digests = digests_of(store.manifest, store.location)
    receipts = read_receipts(store.objects, store.layout, digests.get("receipt"))

    def copy(writer: StoreWriter, shard: ShardRef) -> None:
        if kept.splits is None:
            stated = receipts[shard.view, shard.index]
            _copy_objects(store, objects, writer, shard, stated)
        else:
            writer.write(shard, *_rows(store, kept, writer.layout, shard))

    finished = Finished(store.manifest, receipts) if kept.whole else None
    copied, filled = fill_store(location, content, copy, on_progress, finished, threads=THREADS)
    if not filled:
        copied = _vouched_for(copied, store, kept, require_signature)
    return Copy(copied, "copied" if filled else "unchanged")


def _vouched_for(there: Store, source: Store, kept: _Kept, key: Path | None) -> Store:
    """The store that lay at the destination already, with the signatures of what it is a copy of.

    Raises:
        SignatureError: a signature is asked for, and it has none; as a part, which no signature
            of the whole stands for.
    """
    if kept.whole and there.manifest[ROOT] == source.manifest[ROOT]:
        theirs, ours = (signatures_of(it.manifest) for it in (source, there))
        if not theirs.items() <= ours.items():
            manifest = {**there.manifest, SIGNATURES: {**ours, **theirs}}
            objects_at(there.location).put("zarr.json", group_document(manifest))
            there = open_directly(there.location)
    if key is not None and not kept.whole and not signatures_of(there.manifest):
        raise SignatureError(
            "this part is there already, without a signature that tells where it is from.",
            store=there.location,
            next=f"rdcache rm {there.location}, then the same command again",
        )
    if key is not None:
        require_signed(there.manifest, there.location, key)
    return there


@dataclass(frozen=True)
class _Kept:
    """A part as it applies to one store.

    Attributes:
        splits: None where all are kept.
        samples: int64, their numbers in the store, in its order.
        whole: whether nothing is left out.
    """

    taps: tuple[str, ...]
    views: int
    splits: tuple[str, ...] | None
    samples: np.ndarray
    whole: bool

    @classmethod
    def of(cls, store: Store, part: Part) -> _Kept:
        chosen = tuple(store.taps) if part.taps is None else part.taps
        for name in chosen:
            if name not in store.taps:
                raise UnknownNameError.of("tap in this store", name, store.taps)
        taps = tuple(name for name in store.taps if name in chosen)
        views = store.views if part.views is None else part.views
        if not 1 <= views <= store.views:
            raise UsageError(f"this store has {store.views} views.", asked_for=views)
        for name in part.splits or ():
            if name not in SPLITS:
                raise UnknownNameError.of("split", name, SPLITS)
        there = tuple(split for split in SPLITS if split in set(store.splits))
        splits = there if part.splits is None else tuple(s for s in there if s in part.splits)
        if not splits:
            raise UsageError("this store has no sample of these splits.", store=store.location)
        return cls(
            taps,
            views,
            None if splits == there else splits,
            np.flatnonzero(np.isin(store.splits, splits)),
            whole=(taps, views, splits) == (tuple(store.taps), store.views, there),
        )


def _content(store: Store, kept: _Kept) -> StoreContent:
    """The part as a store that has not been written yet."""
    rows = kept.samples
    extents = tuple(int(np.count_nonzero(rows < extent)) for extent in store.extents[: kept.views])
    table = store.sample_table()
    layout = StoreLayout(
        samples=len(rows),
        extents=extents,
        taps=with_scales(store.taps[name] for name in kept.taps),
        shard_samples=min(store.layout.shard_samples, 1 << (len(rows) - 1).bit_length()),
        findings=store.layout.findings,
    )
    facts = {k: v for k, v in store.manifest.items() if k not in (*STRUCTURE, *BESIDE)}
    return StoreContent(
        layout=layout,
        fingerprint=Fingerprint(_parts(store, kept)),
        samples=SampleTable(
            tuple(table.uids[row] for row in rows),
            table.labels[rows],
            tuple(table.splits[row] for row in rows),
            table.groups[rows],
        ),
        view_parameters=store.view_parameters[: kept.views, rows],
        view_columns=store.view_columns,
        facts=_facts_of_part(facts, store, kept),
        projections={k: v for k, v in store.projections.items() if k in kept.taps},
    )


def _parts(store: Store, kept: _Kept) -> dict[str, Any]:
    """The fingerprint of a part: what an extraction of these taps and views would have."""
    parts = dict(store.fingerprint.parts)
    for name, changed in (
        ("taps", kept.taps != tuple(store.taps)),
        ("views", kept.views != store.views),
    ):
        if changed and name not in parts:
            raise UsageError(
                f"the fingerprint of this store does not say which {name} it has, so that no part "
                "of it can be named.",
                store=store.location,
                next=f"copy it with all its {name}",
            )
    if kept.taps != tuple(store.taps):
        parts["taps"] = [tap for tap in parts["taps"] if tap[0] in kept.taps]
        parts |= _own_parts(parts, kept.taps)
        parts = {name: part for name, part in parts.items() if part != {}}
    if kept.views != store.views:
        parts["views"] = _first_views(parts["views"], kept.views)
    if kept.splits is not None:
        parts["splits"] = list(kept.splits)
    return parts


def _own_parts(parts: Mapping[str, Any], taps: tuple[str, ...]) -> dict[str, Any]:
    """The parts that have something of each tap, of fewer taps."""
    own: dict[str, Any] = {}
    for name in ("dtype", "pool", "project"):
        if isinstance(parts.get(name), Mapping):
            own[name] = {tap: it for tap, it in parts[name].items() if tap in taps}
    # An extraction names a dtype once if all taps have it; an import never does.
    dtypes = set(own.get("dtype", {}).values())
    if len(dtypes) == 1 and "imported" not in parts:
        own["dtype"] = dtypes.pop()
    return own


def _first_views(views: Mapping[str, Any], count: int) -> dict[str, Any]:
    """The first views of a kind; the first alone is the clean one, whatever the kind."""
    return {**views, **({"kind": "clean"} if count == 1 else {}), "count": count}


def _facts_of_part(facts: Mapping[str, Any], store: Store, kept: _Kept) -> dict[str, Any]:
    """The manifest's facts, as they are true of the part."""
    changed = dict(facts)
    teacher = facts.get("teacher")
    if isinstance(teacher, dict) and teacher.get("default_tap") not in kept.taps:
        changed["teacher"] = {**teacher, "default_tap": kept.taps[0]}
    if isinstance(fidelity := facts.get("fidelity"), dict):
        changed["fidelity"] = {tap: it for tap, it in fidelity.items() if tap in kept.taps}
    if kept.views != store.views and isinstance(facts.get("views"), dict):
        changed["views"] = _first_views(facts["views"], kept.views)
    dataset = facts.get("dataset")
    if kept.splits is not None and isinstance(dataset, dict):
        counts = {s: n for s, n in dataset.get("counts", {}).items() if s in kept.splits}
        changed["dataset"] = {**dataset, "counts": counts, "splits": list(kept.splits)}
        if isinstance(paths := dataset.get("paths"), list):
            changed["dataset"]["paths"] = [paths[row] for row in kept.samples]
    return changed


def _copy_objects(
    store: Store,
    objects: ReadableObjects,
    writer: StoreWriter,
    shard: ShardRef,
    receipt: np.ndarray,
) -> None:
    """Copy the objects of one shard as they are.

    Args:
        receipt: uint8 (taps, 32), the sha256 of each tap's object.
    """
    stated = {tap.name: row.tobytes() for tap, row in zip(store.layout.taps, receipt, strict=True)}
    present = int(np.count_nonzero(store.outcome(shard) == STORED))
    for tap in writer.layout.taps:
        name = arrays.tap_object(tap, shard.view, shard.index)
        data = objects.mapped(name, largest_shard(tap, present, writer.layout.shard_samples))
        if data is None or hashlib.sha256(data.data).digest() != stated[tap.name]:
            raise CorruptShardError(
                "a shard is missing, or does not match its receipt.",
                store=store.location,
                tap=tap.name,
                file=name,
                next=f"rdcache verify {store.location} --repair",
            )
        writer.objects.put(name, data.data)
    writer.finish(shard, store.outcome(shard), [stated[tap.name] for tap in writer.layout.taps])


def _rows(
    store: Store, kept: _Kept, layout: StoreLayout, shard: ShardRef
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Tensors and outcomes of a shard whose samples lie in other shards of the source."""
    samples = kept.samples[shard.start : shard.stop]
    stored = store.available(samples.tolist(), shard.view)
    tensors = {}
    for tap in layout.taps:
        rows = np.zeros((len(samples), *tap.shape), tap.stored_dtype)
        if stored.any():
            chosen = samples[stored].tolist()
            read = store.read_stored(chosen, shard.view, [tap.name], verify=True)
            rows[stored] = as_stored(read[tap.name])
        tensors[tap.name] = rows
    return tensors, np.where(stored, STORED, NOT_FINITE).astype(np.uint8)


def _same_place(one: Location, other: Location) -> bool:
    """Whether two locations are one, also by a link."""
    if isinstance(one, Path) and isinstance(other, Path):
        return one.resolve() == other.resolve()
    return one == other


def _names(store: Store) -> tuple[str, str]:
    """Dataset and teacher, which name the folders of a store."""
    names = []
    for what in ("dataset", "teacher"):
        entry = store.manifest.get(what)
        name = entry.get("name") if isinstance(entry, Mapping) else entry
        if not isinstance(name, str):
            raise UsageError(f"this store does not name its {what}.", store=store.location)
        names.append(name)
    return names[0], names[1]
