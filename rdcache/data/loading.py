"""A dataset by name: listed by its adapter, scanned, checked for leaks, split and put in order."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import numpy as np

from rdcache.data import folders, msd, tables, volume_folders
from rdcache.data.kept_pairs import known_duplicates
from rdcache.data.leaks import Duplicate, report_leaks
from rdcache.data.listing import Entry, Listing
from rdcache.data.registry import CATALOGUE, DatasetCard, default_data_dir, expanded
from rdcache.data.salting import UidSalt, uid_salt
from rdcache.data.samples import DatasetSpec, ImageDataset, Sample, Skipped
from rdcache.data.scan import Scan, scan
from rdcache.data.splits import complete_splits, strata_of
from rdcache.data.usable import require_official_splits, require_usable
from rdcache.data.volume_dataset import alike, as_spacing, of_dimensions
from rdcache.errors import DatasetError, DatasetNotFoundError, RdcacheError, UnknownNameError
from rdcache.progress import Progress, ignore
from rdcache.store import SPLITS

FAMILIES = ("folder", "table", "msd")


def load_dataset(
    spec: DatasetSpec | str,
    data_dir: Path | None = None,
    *,
    strict: bool = False,
    salt: str | None = None,
    on_progress: Progress = ignore,
) -> ImageDataset:
    """Load a dataset and check it.

    Args:
        spec: which one and how it is split, or just its name.
        data_dir: see `default_data_dir`.
        strict: an unreadable image is an error, not one that is left out.
        salt: of the uids, see `uid_salt`.

    Raises:
        UnknownNameError: no such dataset.
        DatasetNotFoundError: its folder is missing or is not laid out as expected.
        DatasetError: it cannot be used: one class only, or unreadable files in strict mode.
        UsageError: a salt that is too short.
    """
    made = uid_salt(salt)
    if isinstance(spec, str):
        spec = DatasetSpec(spec)
    with _looking_into_folders():
        place, listing, card = _find(spec.name, default_data_dir(data_dir))
    require_official_splits(card, place, listing, listing.entries)  # before a long look at them
    scans = scan(listing, place, on_progress, card.name)
    skipped = [Skipped(name, reason) for name, reason in listing.missing]
    readable: list[tuple[Entry, Scan]] = []
    for entry, result in zip(listing.entries, scans, strict=True):
        if result.problem:
            skipped.append(Skipped(entry.name, result.problem))
        else:
            readable.append((entry, result))
    readable, of_another_kind = alike(readable)
    skipped += of_another_kind
    require_usable(spec.name, place, listing, readable, skipped, strict)
    require_official_splits(card, place, listing, [entry for entry, _ in readable])
    return _assemble(spec, card, listing, readable, tuple(skipped), made)


def list_datasets(data_dir: Path | None = None) -> list[DatasetCard]:
    """Describe every dataset of the catalogue and the two families, without scanning any.

    Of sets in several sizes only the smallest is listed; see `dataset_names`.
    """
    folder = default_data_dir(data_dir)
    with _looking_into_folders():
        cards = [
            replace(card, present=not card.folders or _existing(card, folder) is not None)
            for card in CATALOGUE.values()
            if not card.variant_of
        ]
    return [*cards, *FAMILY_CARDS]


def dataset_names() -> list[str]:
    """Every name of the catalogue, other sizes of a set included."""
    return list(CATALOGUE)


@contextmanager
def _looking_into_folders() -> Iterator[None]:
    """Give a folder without leave to read it one sentence, wherever an adapter meets it."""
    try:
        yield
    except RdcacheError:
        raise
    except OSError as error:
        raise DatasetNotFoundError(
            "a folder or file of the dataset cannot be read.",
            looked_in=error.filename,
            why=error.strerror,
            next="give yourself leave to read it, or pass --data-dir FOLDER",
        ) from error


def _find(name: str, data_dir: Path) -> tuple[Path, Listing, DatasetCard]:
    """Folder, listing and card of a dataset."""
    family, separator, path = name.partition(":")
    if separator and path and family in FAMILIES:
        is_kind = Path.is_file if family == "table" else Path.is_dir
        card = FAMILY_CARDS[FAMILIES.index(family)]
        places = [expanded(path), *(data_dir / under / path for under in card.folders)]
        place = next(filter(is_kind, places), places[-1])
        if not is_kind(place):
            raise DatasetNotFoundError(
                f"the {'table' if family == 'table' else 'folder'} of this dataset is not there.",
                looked_for=", and ".join(map(str, places)),
                expected=card.layout,
                next=f"pass --dataset {family}:PATH with the path it has on this machine",
            )
    elif name in CATALOGUE:
        card = CATALOGUE[name]
        found = Path(f"<{name}>") if not card.folders else _existing(card, data_dir)
        if found is None:
            raise _not_found(card, data_dir, "is not there")
        place = found
    else:
        known = [*CATALOGUE, *(card.name for card in FAMILY_CARDS)]
        raise UnknownNameError.of("dataset", name, known)
    # Unpacking often adds a folder: busi/archive/Dataset_BUSI_with_GT/…
    nested = sorted(path for path in place.glob("*/") if name in CATALOGUE or family == "msd")
    for folder in (place, *nested):
        if (listing := card.list_files(folder)).entries:
            return folder, listing, card
    raise _not_found(card, data_dir, "holds no images where they are expected", place)


def _existing(card: DatasetCard, data_dir: Path) -> Path | None:
    places = _places(card, data_dir)
    return next((it for it in places if it.is_dir() or (it.suffix and it.is_file())), None)


def _places(card: DatasetCard, data_dir: Path) -> Iterator[Path]:
    """Where a dataset of the catalogue is looked for, in this order."""
    for name in card.folders:
        with suppress(RuntimeError):  # `~`, where nobody has a home
            yield data_dir / Path(name).expanduser()


def _not_found(
    card: DatasetCard, data_dir: Path, what: str, place: Path | None = None
) -> DatasetNotFoundError:
    looked = str(place) if place else " or ".join(map(str, _places(card, data_dir)))
    return DatasetNotFoundError(
        f"the dataset {card.name} {what}.",
        looked_in=looked,
        expected=card.layout,
        get_it_from=f"{card.source} (licence: {card.licence})",
        or_pass="--data-dir FOLDER",
    )


def _assemble(
    spec: DatasetSpec,
    card: DatasetCard,
    listing: Listing,
    readable: Sequence[tuple[Entry, Scan]],
    skipped: tuple[Skipped, ...],
    salt: UidSalt,
) -> ImageDataset:
    entries = [entry for entry, _ in readable]
    official = {entry.split for entry in entries}
    scans = [result for _, result in readable]
    names = [entry.name for entry in entries]
    uids = make_uids([result.content for result in scans], names, salt.key)
    labels = [entry.label for entry in entries]
    groups = [entry.group for entry in entries]
    pixels = [result.pixels for result in scans]
    duplicates = known_duplicates(
        pixels,
        np.array([result.perceptual for result in scans], np.uint64),
        np.stack([result.thumbnail for result in scans]),
    )
    splits = complete_splits(
        [entry.split for entry in entries],
        strata_of(np.array(labels)).tolist(),
        _kept_together(uids, groups, duplicates),
        spec.seed,
        spec.val_fraction,
        spec.test_fraction,
        few=card.few,
    )
    if "train" not in splits:
        raise DatasetError(
            f"{spec.name} has no training images.",
            splits=", ".join(f"{split} {splits.count(split)}" for split in SPLITS),
        )
    leaks = report_leaks(duplicates, uids, labels, splits, groups, pixels)
    order = sorted(range(len(uids)), key=lambda i: (SPLITS.index(splits[i]), uids[i]))
    if spec.drop_leaks:
        dropped = set(leaks.leaked)
        order = [i for i in order if uids[i] not in dropped]
        leaks = replace(leaks, dropped=len(dropped))
        if dropped and all(splits[i] != "test" for i in order):
            raise DatasetError(
                f"all {len(dropped)} test images of {spec.name} also occur in train or val; "
                "without them nothing is left to test on.",
                next="leave --drop-leaks out, or bring other test images",
            )
    notes = []
    if official != {None} and "test" not in official:
        notes.append(
            f"its own splits have no test images: {splits.count('test')} of its training images "
            "were drawn for the test"
        )
    samples = tuple(
        Sample(
            uid=uids[i],
            path=entries[i].path,
            name=names[i],
            label=labels[i],
            split=splits[i],
            group=entries[i].group,
            size=scans[i].size,
            stamp=scans[i].stamp,
            masks=entries[i].masks,
            mask_digest=scans[i].mask.hex() if listing.task == "segmentation" else "",
            mask_stamp=scans[i].mask_stamp,
            mask_counts=scans[i].mask_counts,
            spacing=as_spacing(scans[i].spacing),
        )
        for i in order
    )
    dataset = ImageDataset(
        spec=spec,
        title=card.title,
        classes=listing.classes,
        symmetry=card.symmetry,
        samples=samples,
        skipped=skipped,
        leaks=leaks,
        read=listing.read,
        stamp=listing.stamp,
        notes=tuple(notes),
        task=listing.task,
        dimensions=listing.dimensions,
        read_mask=listing.read_mask,
        salt_check=salt.check,
        channels=scans[0].channels,
    )
    return of_dimensions(dataset, listing)


def make_uids(contents: Sequence[bytes], names: Sequence[str], key: bytes = b"") -> list[str]:
    """Content digests as uids; identical files are told apart by their order of name.

    Args:
        key: made from a salt, if any.
    """
    uids = [""] * len(contents)
    seen: dict[bytes, int] = {}
    for number in sorted(range(len(names)), key=lambda i: names[i]):
        rank = seen.get(contents[number], 0)
        seen[contents[number]] = rank + 1
        twin = rank.to_bytes(8, "big") if rank else b""
        digest = hashlib.blake2b(contents[number] + twin, digest_size=16, key=key)
        uids[number] = digest.hexdigest()
    return uids


def _kept_together(
    uids: Sequence[str], groups: Sequence[str | None], duplicates: Sequence[Duplicate]
) -> list[str]:
    """For each sample the name of a set that no split drawn here may cut.

    Samples of one group belong together, and so do exact and near duplicates; the sets are the
    connected components of that relation, each named by its smallest uid.
    """
    parent = list(range(len(uids)))

    def root(number: int) -> int:
        while parent[number] != number:
            parent[number] = parent[parent[number]]
            number = parent[number]
        return number

    first_of_group: dict[str, int] = {}
    for number, group in enumerate(groups):
        if group is not None:
            parent[root(number)] = root(first_of_group.setdefault(group, number))
    for duplicate in duplicates:
        parent[root(duplicate.second)] = root(duplicate.first)
    smallest: dict[int, str] = {}
    for number, uid in enumerate(uids):
        top = root(number)
        smallest[top] = min(uid, smallest.get(top, uid))
    return [smallest[root(number)] for number in range(len(uids))]


# Whatever splits users have made are kept, however small.
FAMILY_CARDS = (
    DatasetCard(
        "folder:PATH",
        "any tree with one folder a class",
        (),
        "its own train/val/test folders, else 4:1",
        "hflip",
        "yours",
        "your disk",
        ("",),
        folders.LAYOUT,
        volume_folders.list_images_or_volumes,
        task="yours",
        few=0,
        present=True,
    ),
    DatasetCard(
        "table:FILE",
        "any CSV or Parquet table of paths and labels",
        (),
        "its column, else 4:1",
        "hflip",
        "yours",
        "your disk",
        ("",),
        tables.LAYOUT,
        volume_folders.list_table_of_either,
        task="yours",
        few=0,
        present=True,
    ),
    DatasetCard(
        "msd:TASK",
        "a task of the Medical Segmentation Decathlon, as in msd:Task09_Spleen",
        (),
        "none official: 4:1",
        "hflip",
        "CC BY-SA 4.0",
        "medicaldecathlon.com",
        ("msd", "MSD", ""),
        msd.LAYOUT,
        msd.list_task,
        task="segmentation",
        dimensions=3,
        few=0,
        present=True,
    ),
)
