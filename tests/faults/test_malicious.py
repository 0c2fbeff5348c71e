"""Hostile stores and files: each is refused in one sentence, before it costs much memory and
without a look at anything outside.

Those with a lie in their manifest have all digests made to fit it, as whoever means harm would.
`store/test_trust.py` and `store/test_interchange.py` have the plain contradictions.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from store.conftest import COLUMNS, LAYOUT, begin, fill

from rdcache.cli import run_command_line
from rdcache.distillation.source import choose_store
from rdcache.errors import RdcacheError, UnsafeFileError
from rdcache.extraction.importing import ImportConfig, import_store
from rdcache.store import Store, StoreLayout, TapSpec, list_stores, open_store, verify_store
from rdcache.store.arrays import all_documents
from rdcache.store.columns import metadata_digest
from rdcache.store.hdf5_export import export_hdf5
from rdcache.store.housekeeping import disk_usage, find_garbage
from rdcache.store.manifest import root_of
from rdcache.store.objects import LocalObjects

Harm = Callable[[Path, Path], None]
MOST_BYTES = 32 * 2**20
MANY = 10**15
SHARD = "taps/pooled/c/0/1/0"
VIEWS = {"kind": "random", "count": 3, "fit": "squash", "symmetry": "hflip"}
FACTS = {
    "dataset": {
        "name": "folder:images",
        "spec": {"name": "folder:images", "seed": 0},
        "digest": "0" * 64,
        "classes": ["a", "b", "c"],
        "task": "multiclass",
        "counts": {"train": {"a": 6}, "val": {"b": 2}, "test": {"c": 2}},
        "leaks": {},
    },
    "teacher": {
        "name": "nobody",
        "architecture": "none",
        "weights": {"source": "file", "sha256": "0" * 64},
        "default_tap": "layer4",
    },
    "views": VIEWS,
}


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("good")
    boxes = np.tile([0, 0, 1, 1, 0, 0], (LAYOUT.views, LAYOUT.samples, 1))
    writer = begin(root / "images/nobody/0123", facts=FACTS, view_parameters=boxes)
    fill(writer)
    return writer.commit({}).location


@pytest.fixture
def copy(good: Path, tmp_path: Path) -> Path:
    """A store under a root of its own, beside a folder that is none of its business."""
    (tmp_path / "outside").mkdir()
    shutil.copytree(good, tmp_path / "root/images/nobody/0123")
    return tmp_path / "root/images/nobody/0123"


def forge(location: Path, change: Callable[[dict[str, Any]], object], **whole: Any) -> None:
    """Change the manifest, and make its digests and its root fit whatever lies there."""
    path = location / "zarr.json"
    document = json.loads(path.read_text())
    manifest = document["attributes"]["rdcache"]
    change(manifest)
    manifest.update(whole)
    if manifest.get("complete") is True:
        manifest["root"] = root_of(manifest)
    path.write_text(json.dumps(document, indent=2))


def laid_out(location: Path, layout: StoreLayout, **whole: Any) -> None:
    """Another layout, in the manifest and in every array's metadata."""
    for name, document in all_documents(layout, COLUMNS).items():
        (location / name).parent.mkdir(parents=True, exist_ok=True)
        (location / name).write_bytes(document)

    def change(manifest: dict[str, Any]) -> None:
        manifest["layout"] = layout.to_dict()
        manifest["taps"] = [tap.to_dict() for tap in layout.taps]
        manifest["digests"]["metadata"] = metadata_digest(LocalObjects(location), layout)

    forge(location, change, **whole)


def link_out(location: Path, outside: Path, name: str) -> None:
    """Move a part of the store outside, and leave a link to it: the very same bytes."""
    moved = outside / "moved"
    shutil.move(location / name, moved)
    (location / name).symlink_to(moved)


def codec(location: Path, name: str, codecs: Callable[[dict[str, Any]], object]) -> None:
    path = location / name / "zarr.json"
    document = json.loads(path.read_text())
    codecs(document)
    path.write_text(json.dumps(document, indent=2))


PICKLE = {"name": "numcodecs.pickle", "configuration": {"protocol": 5}}
OBJECTS = [{"name": "vlen-utf8"}]
ABSENT_DEEP = "[" * 200_000


def nested(levels: int) -> Any:
    value: Any = 0
    for _ in range(levels):
        value = [value]
    return value


def column(location: Path, name: str, values: np.ndarray) -> None:
    """Other values of a column, and the digest that fits them."""
    (chunk,) = (path for path in (location / name / "c").rglob("*") if path.is_file())
    chunk.write_bytes(values.tobytes())
    digest = hashlib.sha256(values.tobytes()).hexdigest()
    forge(location, lambda manifest: manifest["digests"].update({name: digest}))


def boxes(value: float) -> np.ndarray:
    parameters = np.tile([0.0, 0, 1, 1, 0, 0], (3, 10, 1))
    parameters[1, 2, 0] = value
    return parameters


def pipe(location: Path, name: str) -> None:
    (location / name).unlink()
    os.mkfifo(location / name)


REFUSED: dict[str, Harm] = {
    # links, and what is no file
    "the manifest is a link": lambda at, out: link_out(at, out, "zarr.json"),
    "a shard is a link": lambda at, out: link_out(at, out, SHARD),
    "a tap is a link": lambda at, out: link_out(at, out, "taps/pooled"),
    "all taps are a link": lambda at, out: link_out(at, out, "taps"),
    "a column is a link": lambda at, out: link_out(at, out, "label/c/0"),
    "the outcomes are a link": lambda at, out: link_out(at, out, "outcome/c"),
    "metadata is a link": lambda at, out: link_out(at, out, "split/zarr.json"),
    "a shard is a link to a device": lambda at, out: (
        (at / SHARD).unlink(),
        (at / SHARD).symlink_to("/dev/zero"),
    ),
    "a shard is a link to itself": lambda at, out: (
        (at / SHARD).unlink(),
        (at / SHARD).symlink_to(Path(SHARD).name),
    ),
    "a shard is a pipe": lambda at, out: pipe(at, SHARD),
    "the manifest is a pipe": lambda at, out: pipe(at, "zarr.json"),
    "the uids are a pipe": lambda at, out: pipe(at, "uid/c/0/0"),
    # codecs
    "a pickle within shards": lambda at, out: codec(
        at,
        "taps/pooled",
        lambda it: it["codecs"][0]["configuration"].update(codecs=[PICKLE]),
    ),
    "a pickle before shards": lambda at, out: codec(
        at, "taps/pooled", lambda it: it["codecs"].insert(0, PICKLE)
    ),
    "uids as objects": lambda at, out: codec(
        at, "uid", lambda it: it.update(codecs=OBJECTS, data_type="string")
    ),
    "a storage transformer": lambda at, out: codec(
        at, "label", lambda it: it.update(storage_transformers=[PICKLE])
    ),
    # shapes
    "a store of very many shards": lambda at, out: laid_out(
        at, replace(LAYOUT, samples=MANY, extents=(MANY, 6, 6), shard_samples=1)
    ),
    "an unfinished store of very many shards": lambda at, out: laid_out(
        at, replace(LAYOUT, samples=MANY, extents=(MANY,), shard_samples=1), complete=False
    ),
    "a shard of very many samples": lambda at, out: laid_out(
        at, replace(LAYOUT, shard_samples=MANY)
    ),
    "more views than numbers": lambda at, out: laid_out(
        at, replace(LAYOUT, extents=(10,) + (6,) * 100_000)
    ),
    "a tap of numbers without end": lambda at, out: forge(
        at, lambda it: it["taps"][3].update(shape=[10**400])
    ),
    "a tap larger than any disk": lambda at, out: forge(
        at, lambda it: it["taps"][0].update(shape=[2**40, 2**40, 2**40])
    ),
    # counts
    "fewer samples than there are": lambda at, out: laid_out(
        at, replace(LAYOUT, samples=9, extents=(9, 6, 6))
    ),
    "a view that covers more": lambda at, out: laid_out(at, replace(LAYOUT, extents=(10, 10, 6))),
    "a tap that is not there": lambda at, out: laid_out(
        at, replace(LAYOUT, taps=(*LAYOUT.taps, TapSpec("more", "vector", (7,))))
    ),
    # documents
    "a schema of another kind": lambda at, out: forge(at, lambda it: it.update(schema="1")),
    "a schema of the future": lambda at, out: forge(at, lambda it: it.update(schema=[1, 2])),
    "JSON without end": lambda at, out: (at / "zarr.json").write_text(ABSENT_DEEP) and None,
    "a fact that nests too deeply": lambda at, out: forge(
        at, lambda it: it.update(provenance=nested(200))
    ),
    "metadata without end": lambda at, out: (at / "uid/zarr.json").write_text(ABSENT_DEEP) and None,
    "digests that are none": lambda at, out: forge(at, lambda it: it["digests"].update(uid=7)),
    "a split that is none": lambda at, out: column(at, "split", np.full(10, 9, np.int8)),
}


def use_all(location: Path) -> None:
    """Open a store and read all of it, unfinished or not."""
    store = open_store(location, allow_incomplete=True)
    for view, extent in enumerate(store.extents):
        store.read(range(extent), view)


def read_and_export(location: Path) -> None:
    export_hdf5(open_store(location), location.parent / "out.h5")


def test_the_store_that_harm_is_done_to_is_good(copy: Path) -> None:
    use_all(copy)
    read_and_export(copy)
    assert verify_store(copy) == []
    assert choose_store(copy).samples == 10
    assert run_command_line(["info", str(copy)]) == 0


@pytest.mark.timeout(60)
@pytest.mark.parametrize("harm", REFUSED.values(), ids=REFUSED.keys())
def test_a_hostile_store_is_refused(
    copy: Path, tmp_path: Path, harm: Harm, capsys: pytest.CaptureFixture[str]
) -> None:
    harm(copy, tmp_path / "outside")
    tracemalloc.start()
    try:
        for use in (use_all, read_and_export):
            with pytest.raises(RdcacheError):
                use(copy)
        assert problems(copy)
        list_stores(tmp_path / "root")
        find_garbage(tmp_path / "root", incomplete=True)
        disk_usage(copy)
        for command in ("verify", "info", "export"):
            more = [str(tmp_path / "out.h5")] if command == "export" else []
            status = run_command_line([command, str(copy), *more])
            assert status == 1 or command == "info"
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < MOST_BYTES
    assert "Traceback" not in capsys.readouterr().err
    assert not (tmp_path / "out.h5").exists()


def problems(location: Path) -> bool:
    """Whether verify finds something, or refuses the store altogether."""
    try:
        return bool(verify_store(location))
    except RdcacheError:
        return True


def test_a_linked_store_is_read_like_any_other_but_not_cleaned(copy: Path, tmp_path: Path) -> None:
    root = tmp_path / "other"
    (root / "images/nobody").mkdir(parents=True)
    (root / "images/nobody/0123").symlink_to(copy)
    (root / "more").symlink_to(copy.parents[1])
    linked = root / "images/nobody/0123"
    use_all(linked)
    assert verify_store(linked) == []
    assert len(list_stores(root)) == 2
    stray = copy / ".zarr.json.0.0.partial"
    stray.write_bytes(b"")
    os.utime(stray, (0, 0))
    assert find_garbage(root, unused_days=0) == []
    assert len(find_garbage(tmp_path / "root", unused_days=0)) == 2


def test_a_link_within_a_store_is_followed(copy: Path) -> None:
    shutil.move(copy / SHARD, copy / "kept")
    (copy / SHARD).symlink_to(copy / "kept")
    use_all(copy)


def test_nothing_is_written_or_deleted_through_a_link(copy: Path, tmp_path: Path) -> None:
    link_out(copy, tmp_path / "outside", "taps/pooled/c")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "outside").rglob("*")}
    objects = LocalObjects(copy)
    for use in (
        lambda: objects.put(SHARD, b"x"),
        lambda: objects.create(SHARD, b"x"),
        lambda: objects.delete([SHARD]),
        lambda: objects.size(SHARD),
        lambda: objects.exists(SHARD),
    ):
        with pytest.raises(UnsafeFileError, match="leads out"):
            use()
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "outside").rglob("*")} == before


def dataset_entry(**changes: Any) -> Callable[[dict[str, Any]], object]:
    return lambda manifest: manifest["dataset"].update(changes)


UNUSABLE: dict[str, Harm] = {
    "a label of no class": lambda at, out: column(at, "label", np.full(10, 99)),
    "a view without an end": lambda at, out: column(at, "view", boxes(float("nan"))),
    "a view outside of the image": lambda at, out: column(at, "view", boxes(-1e9)),
    "no dataset": lambda at, out: forge(at, lambda it: it.pop("dataset")),
    "a teacher that is a number": lambda at, out: forge(at, lambda it: it.update(teacher=7)),
    "a folder of this machine": lambda at, out: forge(
        at, dataset_entry(spec={"name": f"folder:{out}"})
    ),
    "a specification of something else": lambda at, out: forge(at, dataset_entry(spec={"x": 1})),
    "classes that are numbers": lambda at, out: forge(at, dataset_entry(classes=[1, 2, 3])),
    "leaks that are a word": lambda at, out: forge(at, dataset_entry(leaks="none")),
    "a task of later versions": lambda at, out: forge(at, dataset_entry(task="detection")),
    "dimensions that are a word": lambda at, out: forge(at, dataset_entry(dimensions="all")),
}


@pytest.mark.parametrize("harm", UNUSABLE.values(), ids=UNUSABLE.keys())
def test_a_store_that_lies_about_its_images_trains_nobody(
    copy: Path, tmp_path: Path, harm: Harm
) -> None:
    harm(copy, tmp_path / "outside")
    open_store(copy)
    for store in (copy, open_store(copy)):
        with pytest.raises(RdcacheError):
            choose_store(store)
    assert run_command_line(["info", str(copy)]) in (0, 1)
    arguments = ["verify", str(copy), "--against-teacher", "1"]
    assert run_command_line(arguments) in (1, 2)


@pytest.mark.parametrize("name", ["torchscript:evil.pt", "onnx:../evil.onnx"])
def test_no_program_is_run_because_a_manifest_names_it(
    copy: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    forge(copy, lambda manifest: manifest["teacher"].update(name=name))
    assert run_command_line(["verify", str(copy), "--against-teacher", "1"]) == 2
    assert "--teacher torchscript:FILE" in capsys.readouterr().err


def test_names_do_not_command_the_terminal(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evil = "[/red]\x1b]0;owned\x07\x1b[31m"
    forge(copy, dataset_entry(name=evil, classes=[evil, "b", "c"]))
    forge(copy, lambda manifest: manifest["teacher"].update(name=evil), provenance={"who": evil})
    root = str(copy.parents[2])
    for arguments in (["list", "stores", "--root", root], ["info", str(copy)], ["verify", root]):
        run_command_line(arguments)
    printed = capsys.readouterr()
    assert "[/red]" in printed.out
    assert "\x1b" not in printed.out + printed.err


def exported(store: Store, path: Path) -> Path:
    export_hdf5(store, path)
    return path


def in_file(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the manifest in an exported file, root included."""
    with h5py.File(path, "r+") as file:
        manifest = json.loads(file.attrs["rdcache"])
        change(manifest)
        manifest["root"] = root_of(manifest)
        file.attrs["rdcache"] = json.dumps(manifest)


def replaced(path: Path, name: str, values: Any, **options: Any) -> None:
    with h5py.File(path, "r+") as file:
        del file[name]
        file.create_dataset(name, data=values, **options)


HOSTILE_FILES: dict[str, Callable[[Path], object]] = {
    "references to objects": lambda at: replaced(
        at, "label", np.full(10, None), dtype=h5py.ref_dtype
    ),
    "texts of any length": lambda at: replaced(
        at, "uid", ["x" * 32] * 10, dtype=h5py.string_dtype()
    ),
    "very many shards": lambda at: in_file(
        at, lambda it: it["layout"].update(samples=MANY, extents=[MANY, 6, 6], shard_samples=1)
    ),
    "numbers without end": lambda at: in_file(
        at, lambda it: it["taps"][0].update(shape=[10**400, 2, 2])
    ),
    "facts that nest too deeply": lambda at: in_file(at, lambda it: it.update(more=nested(200))),
    "a schema of the future": lambda at: in_file(at, lambda it: it.update(schema=2)),
    "a tap that leads elsewhere": lambda at: in_file(
        at, lambda it: it["taps"][0].update(name="../../outside")
    ),
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("harm", HOSTILE_FILES.values(), ids=HOSTILE_FILES.keys())
def test_a_hostile_file_is_refused_and_leaves_no_store(
    good: Path, tmp_path: Path, harm: Callable[[Path], object]
) -> None:
    file = exported(open_store(good), tmp_path / "out.h5")
    harm(file)
    tracemalloc.start()
    try:
        with pytest.raises(RdcacheError):
            import_store(file, ImportConfig(root=tmp_path / "root"))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < MOST_BYTES
    assert not (tmp_path / "root").exists()


@pytest.mark.parametrize("name", ["../../../outside", "/etc", "..", "\0", "a/b"])
def test_a_file_whose_names_lead_elsewhere_is_imported_below_the_root(
    good: Path, tmp_path: Path, name: str
) -> None:
    file = exported(open_store(good), tmp_path / "out.h5")
    in_file(file, dataset_entry(name=name))
    in_file(file, lambda manifest: manifest["teacher"].update(name=name))
    store = import_store(file, ImportConfig(root=tmp_path / "root")).store
    assert store.location.resolve().parents[2] == tmp_path / "root"
