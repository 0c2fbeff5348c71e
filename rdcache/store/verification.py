"""Is a store what it was when it was written? Every byte of it, against digests and checksums.

From the top down: the manifest against its own root; metadata, columns and receipts against the
digests in the manifest; every shard object against its receipt, and every sample in it against its
crc32c and its outcome. What belongs to nothing is named too.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rdcache.errors import CorruptShardError, SignatureError, StoreFormatError
from rdcache.progress import Progress, ignore
from rdcache.store import arrays, shard
from rdcache.store.columns import metadata_digest, read_view_columns, require_believable
from rdcache.store.compression import decompress, largest_shard
from rdcache.store.locations import Location
from rdcache.store.manifest import (
    digests_of,
    fingerprint_of,
    group_document,
    layout_of,
    read_manifest,
    require_root,
)
from rdcache.store.objects import Objects, objects_at
from rdcache.store.opening import open_directly
from rdcache.store.signatures import require_signed
from rdcache.store.spec import STORED, ShardRef, StoreLayout, TapSpec

THREADS = 4


@dataclass(frozen=True)
class Problem:
    """Something in a store that is not as it was written.

    Attributes:
        name: the object, relative to the store.
        what: what is wrong with it, as the end of a sentence that begins with its name.
        shard: the shard that it belongs to, if extracting that again mends it.
        tap: the tap that it belongs to, if any.
    """

    name: str
    what: str
    shard: ShardRef | None = None
    tap: str | None = None


@dataclass(frozen=True)
class _Stated:
    """What a store says of one shard; None where it is missing.

    Attributes:
        outcome: what became of each sample.
        receipt: the sha256 of its objects, tap by tap.
    """

    shard: ShardRef
    outcome: bytes | None
    receipt: bytes | None


def verify_store(
    location: Location, on_progress: Progress = ignore, require_signature: Path | None = None
) -> list[Problem]:
    """Compare every byte of a store with what the store itself says of it.

    Of a store that is not complete, the shards that are there are verified.

    Args:
        require_signature: a public key, whose signature is checked too.

    Raises:
        StoreNotFoundError: there is no store.
        StoreFormatError: its manifest is too damaged to say what should be there.
    """
    manifest = read_manifest(location)
    layout = layout_of(manifest, location)
    fingerprint_of(manifest, location)
    objects = objects_at(location)
    require_believable(objects, layout)
    complete = manifest.get("complete") is True
    digests = digests_of(manifest, location)
    problems = []
    if objects.read("zarr.json") != group_document(manifest):
        problems.append(Problem("zarr.json", "is not as it was written"))
    if complete:
        try:
            require_root(manifest, location)
        except StoreFormatError:
            problems.append(Problem("zarr.json", "does not match its own digest"))
    if require_signature is not None:
        try:
            require_signed(manifest, location, require_signature)
        except (SignatureError, StoreFormatError) as error:
            problems.append(Problem("zarr.json", f"is not signed as asked for: {error.summary}"))
    problems += _metadata(objects, layout, digests.get("metadata") if complete else None)
    problems += _columns(objects, layout, digests)
    stated = [it for it in _stated(objects, layout) if complete or it.receipt is not None]
    if complete:
        problems += _whole_arrays(stated, digests)
    problems += _shards(objects, layout, stated, on_progress)
    problems += _strangers(objects, layout)
    if not problems:
        try:
            open_directly(location, allow_incomplete=True)
        except StoreFormatError as error:  # whole, but it was never right
            problems.append(Problem("zarr.json", f"cannot be followed: {error.summary}"))
    return problems


def _metadata(objects: Objects, layout: StoreLayout, digest: str | None) -> Iterator[Problem]:
    try:
        expected = arrays.all_documents(layout, read_view_columns(objects))
    except StoreFormatError:
        expected = {}
        yield Problem("view/zarr.json", "is missing or damaged")
    wrong = [name for name, document in expected.items() if objects.read(name) != document]
    for name in wrong:
        yield Problem(name, "is not as it was written")
    if expected and not wrong and digest is not None and metadata_digest(objects, layout) != digest:
        yield Problem("view/zarr.json", "names other view parameters than it was written with")


def _columns(objects: Objects, layout: StoreLayout, digests: dict[str, str]) -> Iterator[Problem]:
    for name, document in arrays.column_documents(layout, ("",)).items():
        chunk = arrays.column_object(document, name)
        if hashlib.sha256(objects.read(chunk) or b"").hexdigest() != digests.get(name):
            yield Problem(chunk, "does not match its digest in the manifest")


def _stated(objects: Objects, layout: StoreLayout) -> list[_Stated]:
    """What the store says of every shard, read once."""
    shards = layout.shards()
    outcomes = objects.read_all([arrays.outcome_object(ref) for ref in shards])
    receipts = objects.read_all([arrays.receipt_object(ref) for ref in shards])
    return list(map(_Stated, shards, outcomes, receipts))


def _whole_arrays(stated: list[_Stated], digests: dict[str, str]) -> Iterator[Problem]:
    """Compare `outcome` and `receipt`; which of their chunks is wrong cannot be told."""
    outcomes = [(arrays.outcome_object(it.shard), it.outcome, it.shard) for it in stated]
    receipts = [(arrays.receipt_object(it.shard), it.receipt, it.shard) for it in stated]
    for array, chunks in (("outcome", outcomes), ("receipt", receipts)):
        whole = hashlib.sha256()
        for name, data, ref in chunks:
            if data is None:
                yield Problem(name, "is missing", ref)
            whole.update(data or b"")
        if whole.hexdigest() != digests.get(array):
            yield Problem(array, "does not match its digest in the manifest")


def _shards(
    objects: Objects, layout: StoreLayout, stated: list[_Stated], on_progress: Progress
) -> list[Problem]:
    jobs = [(it, number, tap) for it in stated for number, tap in enumerate(layout.taps)]
    problems: list[Problem] = []
    with ThreadPoolExecutor(THREADS, thread_name_prefix="verify") as pool:
        found = pool.map(lambda job: _shard_problem(objects, layout, *job), jobs)
        for done, problem in enumerate(found, 1):
            problems += [] if problem is None else [problem]
            on_progress(done, len(jobs), "shards")
    return problems


def _shard_problem(
    objects: Objects, layout: StoreLayout, stated: _Stated, number: int, tap: TapSpec
) -> Problem | None:
    """What is wrong with one shard object of one tap, if anything."""
    ref = stated.shard
    name = arrays.tap_object(tap, ref.view, ref.index)
    receipts = stated.receipt or b""
    receipt = receipts[number * arrays.DIGEST_BYTES : (number + 1) * arrays.DIGEST_BYTES]
    outcome = np.frombuffer(stated.outcome or b"", np.uint8)
    present = int(np.count_nonzero(outcome == STORED))
    data = objects.mapped(name, largest_shard(tap, present, layout.shard_samples))
    if data is None:
        return Problem(name, "is missing, empty or too long", ref, tap.name)
    if hashlib.sha256(data.data).digest() != receipt:
        return Problem(name, "does not match its receipt", ref, tap.name)
    sentence = _content_problem(data, layout, ref, tap, outcome)
    return None if sentence is None else Problem(name, sentence, ref, tap.name)


def _content_problem(
    data: np.ndarray, layout: StoreLayout, ref: ShardRef, tap: TapSpec, outcome: np.ndarray
) -> str | None:
    """Compare the samples of a shard with its outcomes and with their checksums."""
    tail = shard.index_bytes(layout.shard_samples)
    try:
        table = shard.decode_index(data[-tail:].tobytes(), layout.shard_samples)
    except CorruptShardError:
        return "has an index that does not match its checksum"
    present = table[:, 0] != shard.ABSENT
    if len(outcome) != len(present) or not np.array_equal(present, outcome == STORED):
        return "does not hold the samples that its outcomes name"
    row = np.empty(tap.nbytes, np.uint8)
    for position in np.flatnonzero(present):
        start, length = map(int, table[position])
        end = start + length - shard.CHECKSUM_BYTES
        sample = ref.start + int(position)
        if not shard.matches(data[start:end], data[end : end + shard.CHECKSUM_BYTES]):
            return f"holds sample {sample} with a wrong checksum"
        try:
            if tap.codec != "none":
                decompress(tap, data[start:end], row)
            elif end - start != tap.nbytes:
                raise ValueError("not the length of a sample")
        except ValueError:
            return f"holds sample {sample} with another length than its tap's"
    return None


def _strangers(objects: Objects, layout: StoreLayout) -> Iterator[Problem]:
    """Name what lies in the folder and belongs to nothing."""
    known = {"zarr.json", *arrays.all_documents(layout, ())}
    known |= {
        arrays.column_object(document, name)
        for name, document in arrays.column_documents(layout, ("",)).items()
    }
    for ref in layout.shards():
        known |= {arrays.outcome_object(ref), arrays.receipt_object(ref)}
        known |= {arrays.tap_object(tap, ref.view, ref.index) for tap in layout.taps}
    for name in sorted(objects.sizes("").keys() - known):
        yield Problem(name, "does not belong to this store")
