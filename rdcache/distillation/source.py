"""The images behind a store, found again and checked to be the ones it was extracted from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from rdcache.data import (
    VIEW_COLUMNS,
    VOLUME_VIEW_COLUMNS,
    DatasetSpec,
    ImageDataset,
    load_dataset,
    portable_name,
    salt_as_recorded,
)
from rdcache.errors import (
    DatasetError,
    StaleStoreError,
    StoreFormatError,
    UnsafeFileError,
    UsageError,
)
from rdcache.models.adapters import name_of_run
from rdcache.store import SPLITS, JointStore, Location, Store, newest_store, open_store
from rdcache.tasks import HEADLINES, task_of

SHOWN_UIDS = 3
MOST_VOXELS = 2**20  # from the corner of a volume
Place = Store | Location | str
Places = Place | Sequence[Place] | None  # None: the newest that fits


def choose_store(
    location: Places = None,
    *,
    root: Location | None = None,
    dataset: str | None = None,
    teacher: str | None = None,
    require_signature: Path | None = None,
    verify_shards: bool = False,
) -> Store:
    """Open the store that is given, or the newest complete one under the root that fits. Where
    there are several, or `teacher` lists several, they are read in step as one.

    Args:
        teacher: a name, or several with commas between them, in the order that they are to have.
        verify_shards: see `open_store`; a `Store` that is given stays as it was opened.

    Raises:
        StoreNotFoundError: there is none.
        UsageError: the store that is given is of another dataset or teacher, or several do not go
            together.
        SignatureError: it is not signed by the key that is required.
    """
    places = _single_places(location)
    teachers = _listed(teacher)
    if len(places) < 2 and len(teachers) < 2:
        return _choose_one(
            places[0] if places else None,
            root,
            dataset,
            teachers[0] if teachers else None,
            require_signature,
            verify_shards,
        )
    if not places:
        wanted: list[tuple[Place | None, str | None]] = [(None, name) for name in teachers]
    else:
        wanted = [(place, None) for place in places]
    members: list[Store] = []
    for place, name in wanted:
        # Without a dataset's name the first store decides which one it is.
        of = members[0].manifest["dataset"]["name"] if members and not dataset else dataset
        members.append(_choose_one(place, root, of, name, require_signature, verify_shards))
    found = [member.manifest["teacher"]["name"] for member in members]
    if teachers and sorted(found) != sorted(teachers):
        raise UsageError(
            "these stores are of other teachers than those asked for.",
            stores=", ".join(found),
            asked_for=", ".join(teachers),
        )
    if teachers:
        members.sort(key=lambda member: teachers.index(member.manifest["teacher"]["name"]))
    return JointStore(members)


def _single_places(location: Places) -> list[Place]:
    """The stores that are given, a joint one as those that it is made of."""
    if location is None:
        return []
    given = (
        list(location)
        if isinstance(location, Sequence) and not isinstance(location, str)
        else [location]
    )
    places: list[Place] = []
    for place in given:
        places += place.members if isinstance(place, Store) else [place]
    return places


def _listed(teacher: str | None) -> list[str]:
    given = [name.strip() for name in (teacher or "").split(",") if name.strip()]
    names = [name_of_run(name) for name in given]  # stores know an adapted teacher by its name
    if len(set(names)) < len(names):
        raise UsageError("each teacher is to be named once.", got=teacher)
    return names


def _choose_one(
    location: Place | None,
    root: Location | None,
    dataset: str | None,
    teacher: str | None,
    require_signature: Path | None,
    verify_shards: bool,
) -> Store:
    if location is not None:
        store = location
        if not isinstance(store, Store) or require_signature is not None:
            place = store.location if isinstance(store, Store) else store
            store = open_store(
                place, require_signature=require_signature, verify_shards=verify_shards
            )
        _require_described(store)
        _require_named(store, "teacher", teacher)
        if dataset is not None and ":" not in dataset:
            _require_named(store, "dataset", dataset)
        return store
    newest = newest_store(root, dataset and portable_name(dataset), teacher)
    store = open_store(newest, require_signature=require_signature, verify_shards=verify_shards)
    _require_described(store)
    return store


def _require_described(store: Store) -> None:
    """Refuse a store that does not say what it is of; anyone may have written its manifest."""
    try:
        dataset, teacher = store.manifest["dataset"], store.manifest["teacher"]
        spec = DatasetSpec.from_dict(dataset["spec"])
        texts = [spec.name, *(dataset[name] for name in ("name", "digest", "task"))]
        texts += [*dataset["classes"], teacher["name"], teacher["default_tap"]]
        dictionaries = [teacher["weights"], store.manifest["views"], dataset.get("leaks", {})]
        task, dimensions = task_of(dataset)
        fitting = (
            all(isinstance(text, str) for text in texts)
            and all(isinstance(each, dict) for each in dictionaries)
            and task in HEADLINES
            and dimensions in (2, 3)
        )
    except (KeyError, TypeError, AttributeError, ValueError):
        fitting = False
    if not fitting:
        raise StoreFormatError(
            "the manifest of this store does not say what it was made of.", store=store.location
        )
    if spec.name != portable_name(spec.name):
        raise UnsafeFileError(
            "the manifest of this store names a folder of this machine.",
            store=store.location,
            names=spec.name,
        )
    if not _cuts(store.view_parameters, store.view_columns, dimensions):
        raise StoreFormatError("a view of this store lies outside its image.", store=store.location)
    if not _of_classes(store.labels, task, len(dataset["classes"])):
        raise StoreFormatError(
            "a label of this store is of no class.",
            store=store.location,
            classes=len(dataset["classes"]),
        )


def _of_classes(labels: np.ndarray, task: str, classes: int) -> bool:
    """Whether labels are what a task has; in segmentation they only say what splits are balanced
    by, and the classes are those of the masks.
    """
    labels = np.asarray(labels)
    if task == "multilabel":
        fitting = labels.ndim == 2 and labels.shape[1] == classes
        return fitting and bool(np.isin(labels, (0, 1)).all())
    if task == "segmentation":
        return labels.ndim == 1 and bool((labels >= 0).all())
    return labels.ndim == 1 and bool(np.isin(labels, range(classes)).all())


def _cuts(parameters: np.ndarray, columns: tuple[str, ...], dimensions: int) -> bool:
    """Whether view parameters are boxes of an image, each perhaps mirrored and turned: (views,
    samples, 6) in fractions of it, or (views, samples, 10) in voxels of a volume, which they may
    leave.
    """
    if dimensions == 3:
        return columns == VOLUME_VIEW_COLUMNS and _cuts_volumes(parameters)
    if columns != VIEW_COLUMNS:
        return False
    (left, top, right, bottom, mirror, turns), most = np.moveaxis(parameters, -1, 0), 1 + 1e-9
    boxes = (left >= 0) & (left < right) & (right <= most) & (top >= 0) & (top < bottom)
    return bool(
        (boxes & (bottom <= most)).all()
        and np.isin(mirror, (0, 1)).all()
        and np.isin(turns, range(4)).all()
    )


def _cuts_volumes(parameters: np.ndarray) -> bool:
    low, high, mirrors = parameters[..., :3], parameters[..., 3:6], parameters[..., 6:9]
    return bool(
        np.isfinite(parameters).all()
        and (low < high).all()
        and (np.abs(parameters[..., :6]) <= MOST_VOXELS).all()
        and np.isin(mirrors, (0, 1)).all()
        and np.isin(parameters[..., 9], range(4)).all()
    )


def _require_named(store: Store, what: str, name: str | None) -> None:
    has = store.manifest[what]["name"]
    if name not in (None, has):
        raise UsageError(f"this store is of the {what} {has}, not of {name}.", store=store.location)


def open_dataset(
    store: Store, place: str | None, data_dir: Path | None, salt: str | None = None
) -> ImageDataset:
    """Load the dataset that a store was extracted from.

    Args:
        place: name of the dataset, where it is another now, as in `folder:PATH`.
        data_dir: where datasets are looked for.
        salt: of the store's uids, where they are salted.

    Raises:
        DatasetNotFoundError: the images are not there.
        StaleStoreError: they are not the ones that the store was extracted from, or the salt is
            another one.
        UsageError: the uids are salted, and no salt is given.
        DatasetError: all training samples are of one class.
    """
    spec = DatasetSpec.from_dict(store.manifest["dataset"]["spec"])
    if place is not None:
        spec = replace(spec, name=place)
    salt = salt_as_recorded(store.manifest["dataset"], salt, store.location)
    dataset = load_dataset(spec, data_dir, salt=salt)
    require_unchanged(store, dataset)
    if splits := store.manifest["dataset"].get("splits"):  # a part that `rdcache pull` has made
        dataset = dataset.of_splits(splits)
    _require_something_to_learn(dataset)
    return dataset


def _require_something_to_learn(dataset: ImageDataset) -> None:
    """Refuse training images that are all alike.

    Raises:
        DatasetError: saying how.
    """
    occurring = dataset.occurrence[np.asarray(dataset.splits) == "train"]
    alike = not len(occurring) or bool((occurring == occurring[0]).all())
    if dataset.task == "segmentation":
        alike = not occurring[:, 1:].any()
    if alike:
        how = {
            "multiclass": "all training images are of one class",
            "multilabel": "all training images have the same labels",
            "segmentation": "the masks of all training images are empty",
        }
        raise DatasetError(f"there is nothing to learn: {how[dataset.task]}.", dataset=dataset.name)


def require_unchanged(store: Store, dataset: ImageDataset) -> None:
    """Compare the dataset's digest with the store's.

    Raises:
        StaleStoreError: naming what was added, removed, or labelled anew since.
    """
    recorded = store.manifest["dataset"]
    kept = np.isin(dataset.splits, recorded.get("splits", SPLITS))
    columns = (
        (store.uids, dataset.uids),
        (store.labels, dataset.labels),
        (store.splits, dataset.splits),
        (store.groups, dataset.group_codes),
    )
    same = all(np.array_equal(stored, now[kept]) for stored, now in columns)
    if recorded["digest"] == dataset.digest and same:
        return
    raise StaleStoreError(
        "this store was extracted from another version of the dataset.",
        store=f"{store.where}  dataset digest {recorded['digest'][:8]}…, {store.samples} samples",
        now=f"{dataset.name}  dataset digest {dataset.digest[:8]}…, {len(dataset)} samples",
        changed=_changes(store, dataset),
        next=f"rdcache extract --teacher {store.members[0].manifest['teacher']['name']} "
        f"--dataset {dataset.name}"
        + (", and the same for the others" if len(store.members) > 1 else ""),
    )


def _changes(store: Store, dataset: ImageDataset) -> str:
    before = {
        str(uid): (label, str(split))
        for uid, label, split in zip(
            store.uids, np.asarray(store.labels).tolist(), store.splits, strict=True
        )
    }
    now = {
        str(uid): (label, str(split))
        for uid, label, split in zip(
            dataset.uids, dataset.labels.tolist(), dataset.splits, strict=True
        )
    }
    common = before.keys() & now.keys()
    found = {
        "added": now.keys() - before.keys(),
        "removed": before.keys() - now.keys(),
        "relabelled": {uid for uid in common if before[uid][0] != now[uid][0]},
        "moved to another split": {uid for uid in common if before[uid][1] != now[uid][1]},
    }
    described = [f"{len(uids)} {what} ({_shown(uids)})" for what, uids in found.items() if uids]
    classes = tuple(store.manifest["dataset"]["classes"])
    if classes != tuple(dataset.classes):
        described.append(f"classes were {', '.join(classes)}")
    masks = "masks, order or groups" if dataset.task == "segmentation" else "order or groups"
    return "; ".join(described) or f"{masks} of the samples"


def _shown(uids: set[str]) -> str:
    first = [uid[:8] for uid in sorted(uids)[:SHOWN_UIDS]]
    return ", ".join(first + ["…"] * (len(uids) > SHOWN_UIDS))
