"""A store as an HDF5 file and back: nothing changes, and what was changed is not let in."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rdcache.errors import (
    CorruptShardError,
    FeatureFileError,
    FileWriteError,
    StaleStoreError,
    StoreFormatError,
    StoreIncompleteError,
    StoreWriteError,
    UnknownNameError,
    UnsafeFileError,
)
from rdcache.store import Store, StoreLayout, Worker, claims_beside, open_store, verify_store
from rdcache.store.hdf5_export import export_hdf5
from rdcache.store.hdf5_import import exported_manifest, import_hdf5
from rdcache.store.manifest import root_of

from .conftest import FINGERPRINT, LAYOUT, TAPS, begin, contents, fill
from .test_round_trip import bits, layouts

DOCUMENT = Path(__file__).parents[2] / "docs" / "store-format.md"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A complete store with every kind of tap and every dtype, the same for all tests here."""
    writer = begin(tmp_path_factory.mktemp("stores") / "store")
    fill(writer)
    return writer.commit({})


@pytest.fixture(scope="module")
def exported(store: Store) -> bytes:
    path = store.location.with_name("out.h5")
    export_hdf5(store, path)
    return path.read_bytes()


@pytest.fixture
def file(exported: bytes, tmp_path: Path) -> Path:
    """The store as a file that may be spoiled."""
    (tmp_path / "out.h5").write_bytes(exported)
    return tmp_path / "out.h5"


@settings(max_examples=10, deadline=None)
@given(layout=layouts(), data=st.data())
def test_any_store_comes_back_byte_for_byte(layout: StoreLayout, data: st.DataObject) -> None:
    pairs = [(view, i) for view, extent in enumerate(layout.extents) for i in range(extent)]
    lost = data.draw(st.lists(st.sampled_from(pairs), max_size=3))
    with tempfile.TemporaryDirectory() as folder:
        here, there, path = (Path(folder) / name for name in ("here", "there", "out.h5"))
        writer = begin(here, layout)
        fill(writer, dict.fromkeys(lost, 2))
        store = writer.commit({"provenance": {"device": "cpu"}})
        export_hdf5(store, path)
        again, written = import_hdf5(path, there)
        assert written
        assert again.manifest == store.manifest
        assert contents(there) == contents(here)
        assert (there / "zarr.json").read_bytes() == (here / "zarr.json").read_bytes()
        assert verify_store(there) == []


def test_the_file_is_read_without_rdcache(store: Store, file: Path) -> None:
    with h5py.File(file) as content:
        assert json.loads(content.attrs["rdcache"]) == store.manifest
        for tap in TAPS:
            dataset = content["taps"][tap.name]
            assert dataset.chunks == (1, 1, *tap.shape)
            assert tuple(axis.label for axis in dataset.dims) == ("view", "sample", *tap.axes)
            assert dataset.attrs["rdcache_dtype"] == tap.dtype
            for view, extent in enumerate(store.extents):
                expected = store.read(range(extent), view, [tap.name])[tap.name]
                assert bits(dataset[view, :extent]) == bits(expected)
                assert not dataset[view, extent:].any()
        assert content["uid"].asstr()[:].tolist() == store.uids.tolist()
        splits = content["split"].attrs["names"][content["split"][:]]
        assert splits.tolist() == store.splits.tolist()
        assert content["label"][:].tolist() == store.labels.tolist()
        assert content["group"][:].tolist() == store.groups.tolist()
        assert tuple(content["view"].attrs["columns"]) == store.view_columns
        assert (content["view"][:] == store.view_parameters).all()
        assert content["outcome"][:].sum(axis=1).tolist() == [10, 6, 6]


def test_the_documented_snippet_reads_an_export(store: Store, file: Path) -> None:
    (snippet,) = re.findall(r"```py\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)
    text = snippet.replace('"out.h5"', repr(str(file)))
    names: dict[str, Any] = {}
    exec(compile(text, str(DOCUMENT), "exec"), names)
    assert torch.equal(names["features"], store.read([2, 3, 4], 0, ["tokens"])["tokens"])
    assert names["stored"].tolist() == store.available(range(10), 0).tolist()


def test_the_same_store_gives_the_same_file(store: Store, file: Path, tmp_path: Path) -> None:
    export_hdf5(store, tmp_path / "second.h5")
    assert (tmp_path / "second.h5").read_bytes() == file.read_bytes()


def test_what_is_absent_takes_no_space(build: Callable[..., Store], tmp_path: Path) -> None:
    store = build(outcomes={(0, 2): 2})
    export_hdf5(store, tmp_path / "out.h5")
    with h5py.File(tmp_path / "out.h5") as content:
        for tap in TAPS:
            assert content["taps"][tap.name].id.get_storage_size() == 21 * tap.nbytes


def test_a_file_that_is_there_is_kept_unless_told_otherwise(store: Store, file: Path) -> None:
    file.write_bytes(b"precious")
    with pytest.raises(FileWriteError, match="--overwrite"):
        export_hdf5(store, file)
    assert file.read_bytes() == b"precious"
    export_hdf5(store, file, overwrite=True)
    assert exported_manifest(file) == store.manifest


def test_a_folder_is_never_overwritten(store: Store, tmp_path: Path) -> None:
    with pytest.raises(FileWriteError, match="something of this name"):
        export_hdf5(store, tmp_path, overwrite=True)


def test_an_unfinished_store_is_not_exported(tmp_path: Path) -> None:
    begin(tmp_path / "begun")
    with pytest.raises(StoreIncompleteError, match="only a complete store"):
        export_hdf5(open_store(tmp_path / "begun", allow_incomplete=True), tmp_path / "out.h5")


def test_a_damaged_store_is_not_exported_and_leaves_no_file(
    build: Callable[..., Store], tmp_path: Path
) -> None:
    store = build()
    shard = store.location / "taps/pooled/c/0/1/0"
    data = bytearray(shard.read_bytes())
    data[3] ^= 1
    shard.write_bytes(data)
    (tmp_path / "out").mkdir()
    with pytest.raises(CorruptShardError, match="checksum"):
        export_hdf5(store, tmp_path / "out" / "out.h5")
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("limit", [1000, 16384])
def test_a_full_disk_is_one_sentence_and_leaves_no_file(
    store: Store, tmp_path: Path, limit: int
) -> None:
    program = f"""
import resource
from rdcache.cli import run_command_line
resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, resource.RLIM_INFINITY))
new = {str(tmp_path / "new/out.h5")!r}
raise SystemExit(run_command_line(["export", {str(store.location)!r}, new]))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    first, *facts = done.stderr.splitlines()
    assert first == "Error: this file cannot be written."
    assert [line.split()[0] for line in facts] == ["file", "why", "next"]
    assert "File too large" in facts[1]
    assert list((tmp_path / "new").iterdir()) == []


def test_importing_again_changes_nothing(file: Path, tmp_path: Path) -> None:
    import_hdf5(file, tmp_path / "new")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    again, written = import_hdf5(file, tmp_path / "new")
    assert not written
    assert again.complete
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_an_interrupted_import_goes_on(store: Store, file: Path, tmp_path: Path) -> None:
    class KilledError(Exception):
        pass

    def stop(done: int, total: int, note: str = "") -> None:
        if done > total / 2:
            raise KilledError

    with pytest.raises(KilledError):
        import_hdf5(file, tmp_path / "new", stop)
    assert not open_store(tmp_path / "new", allow_incomplete=True).complete
    again, written = import_hdf5(file, tmp_path / "new")
    assert written
    assert again.manifest["digests"] == store.manifest["digests"]
    assert not (tmp_path / "new.claims").exists()


def test_a_lost_shard_is_mended_from_the_file(file: Path, tmp_path: Path) -> None:
    store, _ = import_hdf5(file, tmp_path / "new")
    shard = store.location / "taps/pooled/c/0/1/0"
    before = shard.read_bytes()
    shard.unlink()
    assert import_hdf5(file, store.location)[1]
    assert shard.read_bytes() == before


def test_two_do_not_import_at_once(file: Path, tmp_path: Path) -> None:
    with Worker(claims_beside(tmp_path / "new"), "Ada") as other:
        assert other.claim("extraction")
        with pytest.raises(StoreWriteError, match=r"another process(.|\n)*Ada"):
            import_hdf5(file, tmp_path / "new")


def test_an_unfinished_store_laid_out_otherwise_is_left_alone(file: Path, tmp_path: Path) -> None:
    other = StoreLayout(LAYOUT.samples, LAYOUT.extents, LAYOUT.taps, shard_samples=2)
    begin(tmp_path / "new", other, fingerprint=FINGERPRINT)
    with pytest.raises(StaleStoreError, match="laid out otherwise"):
        import_hdf5(file, tmp_path / "new")


@pytest.mark.parametrize("name", ["label", "uid", "split", "group", "view", "outcome", "receipt"])
def test_a_changed_column_is_noticed_before_anything_is_written(
    file: Path, tmp_path: Path, name: str
) -> None:
    with h5py.File(file, "r+") as content:
        values = content[name][...]
        flat = values.reshape(-1).view(np.uint8)
        flat[0] = ord("0") if flat[0] != ord("0") else ord("1")
        content[name][...] = values
    with pytest.raises(FeatureFileError, match="not hold the numbers that were exported"):
        import_hdf5(file, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_other_names_of_view_parameters_are_noticed(file: Path, tmp_path: Path) -> None:
    with h5py.File(file, "r+") as content:
        names = content["view"].attrs["columns"].tolist()
        content["view"].attrs["columns"] = [*names[1:], names[0]]
    with pytest.raises(FeatureFileError, match=r"differs in +metadata"):
        import_hdf5(file, tmp_path / "new")


@pytest.mark.parametrize("tap", TAPS, ids=lambda tap: tap.name)
def test_a_changed_number_is_noticed_with_its_place(file: Path, tmp_path: Path, tap: Any) -> None:
    with h5py.File(file, "r+") as content:
        content[f"taps/{tap.name}"][1, 5] += 1
    with pytest.raises(FeatureFileError, match=f"taps/{tap.name}, view 1, samples 4 to 5"):
        import_hdf5(file, tmp_path / "new")
    assert not open_store(tmp_path / "new", allow_incomplete=True).complete


def test_a_flipped_bit_is_refused_or_makes_no_difference(
    store: Store, file: Path, tmp_path: Path
) -> None:
    """Where HDF5 keeps paddings and unused space a bit may change without changing a number."""
    whole = file.read_bytes()
    random = np.random.default_rng(3)
    for place in random.integers(0, len(whole), 60).tolist():
        damaged = bytearray(whole)
        damaged[place] ^= 1 << int(random.integers(8))
        file.write_bytes(damaged)
        with contextlib.suppress(FeatureFileError, StoreFormatError, UnknownNameError):
            again, _ = import_hdf5(file, tmp_path / "new")
            assert again.manifest == store.manifest


def test_a_file_cut_short_is_refused(file: Path, tmp_path: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(FeatureFileError, match="cannot be read"):
        import_hdf5(file, tmp_path / "new")


def test_what_is_no_hdf5_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("features")
    with pytest.raises(FeatureFileError, match="no HDF5 file"):
        exported_manifest(tmp_path / "notes.txt")
    with pytest.raises(FeatureFileError, match="No such file"):
        exported_manifest(tmp_path / "nowhere.h5")
    with pytest.raises(FeatureFileError, match="cannot be read"):
        exported_manifest(tmp_path)


def change_manifest(file: Path, change: Callable[[dict[str, Any]], None]) -> None:
    with h5py.File(file, "r+") as content:
        manifest = json.loads(content.attrs["rdcache"])
        change(manifest)
        with contextlib.suppress(ValueError):
            manifest["root"] = root_of(manifest)
        content.attrs["rdcache"] = json.dumps(manifest)


@pytest.mark.parametrize(
    "change",
    [
        lambda it: it["layout"].update(samples=10**15, extents=[10**15]),
        lambda it: it["layout"].update(shard_samples=10**12),
        lambda it: it["layout"].update(extents=[10] * 50),
        lambda it: it["taps"][0].update(shape=[10**9, 10**9, 10**9]),
        lambda it: it["taps"][0].update(dtype="float32"),
        lambda it: it["taps"][0].update(name="../../outside"),
        lambda it: it["fingerprint"]["parts"].update(teacher="another"),
        lambda it: it.update(digests=None),
        lambda it: it.update(note=float("nan")),
        lambda it: it.pop("layout"),
        lambda it: it.update(complete=False),
    ],
)
def test_a_manifest_that_lies_is_refused(file: Path, tmp_path: Path, change: Any) -> None:
    change_manifest(file, change)
    with pytest.raises((FeatureFileError, StoreFormatError)):
        import_hdf5(file, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_changed_word_in_the_manifest_is_noticed(file: Path, tmp_path: Path) -> None:
    with h5py.File(file, "r+") as content:
        content.attrs["rdcache"] = content.attrs["rdcache"].replace("nobody", "anybody")
    with pytest.raises(StoreFormatError, match="does not match its own digest"):
        import_hdf5(file, tmp_path / "new")


def test_a_tap_larger_than_the_file_is_refused_before_memory_is_asked_for(
    file: Path, tmp_path: Path
) -> None:
    shape = [2**20, 2**10, 2**10]
    change_manifest(file, lambda it: it["taps"][0].update(shape=shape))
    with h5py.File(file, "r+") as content:
        del content["taps/layer4"]
        content.create_dataset("taps/layer4", (3, 10, *shape), "<f2", chunks=(1, 1, 1, 1, 8))
    with pytest.raises(StoreFormatError, match="absurdly large"):
        import_hdf5(file, tmp_path / "new")


def test_links_out_of_the_file_are_not_followed(file: Path, tmp_path: Path) -> None:
    file.rename(tmp_path / "real.h5")
    for link in (h5py.ExternalLink("real.h5", "/label"), h5py.SoftLink("/group")):
        other = tmp_path / "linked.h5"
        other.write_bytes((tmp_path / "real.h5").read_bytes())
        with h5py.File(other, "r+") as content:
            del content["label"]
            content["label"] = link
        with pytest.raises(UnsafeFileError, match="links are not followed"):
            import_hdf5(other, tmp_path / "new")


def test_data_in_other_files_are_not_read(file: Path, tmp_path: Path) -> None:
    (tmp_path / "raw").write_bytes(bytes(80))
    with h5py.File(file, "r+") as content:
        del content["label"]
        raw = [(str(tmp_path / "raw"), 0, 80)]
        content.create_dataset("label", (10,), "<i8", external=raw)
        del content["group"]
        source = h5py.VirtualSource(str(tmp_path / "other.h5"), "group", (10,), "<i8")
        layout = h5py.VirtualLayout((10,), "<i8")
        layout[:] = source
        content.create_virtual_dataset("group", layout)
    with pytest.raises(UnsafeFileError, match="lie in other files"):
        import_hdf5(file, tmp_path / "new")
    with h5py.File(file, "r+") as content:
        del content["label"]
        content["label"] = np.array([i % 3 for i in range(10)])
    with pytest.raises(UnsafeFileError, match="lie in other files"):
        import_hdf5(file, tmp_path / "new")


def test_a_file_packed_again_by_other_tools_is_taken(file: Path, tmp_path: Path) -> None:
    with h5py.File(file, "r+") as content:
        values = content["taps/volume"][...]
        attributes = dict(content["taps/volume"].attrs)
        del content["taps/volume"]
        packed = content.create_dataset("taps/volume", data=values, compression="gzip")
        packed.attrs.update(attributes)
    assert import_hdf5(file, tmp_path / "new")[0].complete
