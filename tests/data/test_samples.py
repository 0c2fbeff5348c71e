"""Uids tell contents apart and nothing else, the digest notices changes, scans are kept safely."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from rdcache.data import DatasetSpec, ImageDataset, listing, load_dataset
from rdcache.data.listing import Entry, Listing
from rdcache.data.loading import make_uids
from rdcache.data.samples import portable_name
from rdcache.data.scan import cache_folder, scan
from rdcache.errors import DatasetError


@pytest.fixture(autouse=True)
def _own_scans(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scans that are looked at here are those of one set alone."""
    monkeypatch.setenv("RDCACHE_CACHE", str(tmp_path / "own"))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two classes of six different images."""
    random = np.random.default_rng(0)
    for name in ("a", "b"):
        (tmp_path / "set" / name).mkdir(parents=True)
        for number in range(6):
            pixels = random.integers(0, 256, (16, 12, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "set" / name / f"{number}.png")
    return tmp_path / "set"


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of the files that are decoded from here on."""
    calls: list[int] = []
    decode = listing.decode_image

    def counting(data: bytes) -> np.ndarray:
        calls.append(len(data))
        return decode(data)

    monkeypatch.setattr(listing, "decode_image", counting)
    return calls


def load(root: Path) -> ImageDataset:
    return load_dataset(f"folder:{root}")


def uids_by_content(dataset: ImageDataset) -> dict[bytes, str]:
    return {s.path.read_bytes(): s.uid for s in dataset.samples}


def test_uids_depend_neither_on_the_place_nor_on_file_names(root: Path, tmp_path: Path) -> None:
    first = load(root)
    moved = tmp_path / "elsewhere" / "set"
    for number, sample in enumerate(sorted(first.samples, key=lambda s: s.uid)):
        (moved / sample.path.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copy(sample.path, moved / sample.path.parent.name / f"renamed{number}.png")
    second = load(moved)
    assert uids_by_content(second) == uids_by_content(first)
    assert second.digest == first.digest
    assert list(second.uids) == list(first.uids)


@settings(max_examples=100, deadline=None)
@given(
    contents=st.lists(st.binary(min_size=16, max_size=16), max_size=20),
    copies=st.integers(1, 3),
    order=st.randoms(use_true_random=False),
)
def test_uids_are_unique_and_identical_files_are_told_apart_by_name(
    contents: list[bytes], copies: int, order: object
) -> None:
    rows = [(content, f"{n}/{c}") for n, content in enumerate(contents) for c in range(copies)]
    shuffled = list(rows)
    order.shuffle(shuffled)  # type: ignore[attr-defined]

    def named(rows: list[tuple[bytes, str]]) -> dict[str, str]:
        names = [name for _, name in rows]
        return dict(zip(names, make_uids([content for content, _ in rows], names), strict=True))

    uids = named(rows)
    assert len(set(uids.values())) == len(rows)
    assert all(len(uid) == 32 and int(uid, 16) >= 0 for uid in uids.values())
    assert named(shuffled) == uids


def test_identical_files_stay_two_samples(root: Path) -> None:
    shutil.copy(root / "a" / "0.png", root / "b" / "copy.png")
    dataset = load(root)
    assert len(dataset) == len(set(dataset.uids)) == 13
    assert dataset.leaks.count("exact", across="classes") == 1


def test_the_digest_changes_with_an_image_a_label_or_a_sample(root: Path) -> None:
    digests = [load(root).digest]
    pixels = np.asarray(Image.open(root / "a" / "3.png")).copy()
    pixels[0, 0, 0] ^= 1
    Image.fromarray(pixels).save(root / "a" / "3.png")
    digests.append(load(root).digest)
    (root / "a" / "3.png").rename(root / "b" / "moved.png")
    digests.append(load(root).digest)
    (root / "b" / "moved.png").unlink()
    digests.append(load(root).digest)
    (root / "b").rename(root / "c")
    digests.append(load(root).digest)
    assert len(set(digests)) == 5


def test_the_digest_changes_with_the_split_and_the_group(root: Path) -> None:
    digests = set()
    for split, group in (("train", "x"), ("test", "x"), ("train", "y")):
        lines = ["path,label,split,group", *[f"a/{n}.png,{n % 2},train,x" for n in range(5)]]
        lines += [f"b/{n}.png,{n % 2},test," for n in range(5)]
        lines.append(f"b/5.png,1,{split},{group}")
        (root / "table.csv").write_text("\n".join(lines))
        digests.add(load_dataset(f"table:{root / 'table.csv'}").digest)
    assert len(digests) == 3


def test_columns_stand_in_sample_order(root: Path) -> None:
    dataset = load(root)
    assert dataset.labels.dtype == dataset.group_codes.dtype == np.int64
    for number, sample in enumerate(dataset.samples):
        assert dataset.uids[number] == sample.uid
        assert dataset.labels[number] == sample.label
        assert dataset.splits[number] == sample.split
        assert dataset.group_codes[number] == -1
        assert sample.size == (12, 16)
        expected = np.asarray(Image.open(sample.path))
        np.testing.assert_array_equal(dataset.decode(number), expected)


def test_a_file_that_vanishes_or_breaks_after_the_scan_is_named(root: Path) -> None:
    dataset = load(root)
    dataset.samples[0].path.unlink()
    dataset.samples[1].path.write_bytes(b"not an image")
    for number in (0, 1):
        with pytest.raises(DatasetError, match="no longer be read") as caught:
            dataset.decode(number)
        assert caught.value.facts["file"] == str(dataset.samples[number].path)
        assert "run again" in caught.value.facts["next"]


def test_a_file_that_is_replaced_after_the_scan_is_not_taken_for_the_old_one(root: Path) -> None:
    dataset = load(root)
    Image.new("RGB", (30, 20), "red").save(dataset.samples[0].path)
    with pytest.raises(DatasetError, match="changed since it was looked at"):
        dataset.decode(0)


def test_a_spec_makes_the_round_trip_through_json_and_tells_no_folder() -> None:
    spec = DatasetSpec("folder:/home/jane.doe/patients/knees", 3, 0.1, 0.3, True)
    text = json.dumps(spec.to_dict())
    assert "jane" not in text
    read = DatasetSpec.from_dict(json.loads(text))
    assert read == DatasetSpec("folder:knees", 3, 0.1, 0.3, True)
    assert DatasetSpec.from_dict(read.to_dict()) == read


def test_a_folder_given_by_dots_still_has_a_name(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(root / "a")
    assert portable_name("folder:.") == "folder:a"
    assert portable_name("folder:..") == "folder:set"
    assert portable_name("busi") == "busi"


def test_a_second_load_decodes_nothing(root: Path, decoded: list[int]) -> None:
    first = load(root)
    assert len(decoded) == 12
    second = load(root)
    assert len(decoded) == 12
    assert second.samples == first.samples
    assert second.leaks == first.leaks


def test_a_changed_and_a_new_file_are_looked_at_again(root: Path, decoded: list[int]) -> None:
    before = load(root)
    decoded.clear()
    Image.new("RGB", (30, 20), "red").save(root / "a" / "0.png")
    Image.new("RGB", (20, 30), "blue").save(root / "b" / "new.png")
    after = load(root)
    assert len(decoded) == 2
    sizes = {f"{s.path.parent.name}/{s.path.name}": s.size for s in after.samples}
    assert (sizes["a/0.png"], sizes["b/new.png"]) == ((30, 20), (20, 30))
    assert len(set(after.uids) - set(before.uids)) == 2


def test_an_unreadable_file_is_remembered_until_it_is_mended(
    root: Path, decoded: list[int]
) -> None:
    broken = root / "a" / "broken.png"
    broken.write_bytes(b"not an image")
    reasons = [load(root).skipped[0].reason for _ in range(2)]
    assert reasons[0] == reasons[1]
    assert len(decoded) == 13
    Image.new("RGB", (30, 20), "red").save(broken)
    assert not load(root).skipped


def test_a_file_that_could_not_be_opened_is_tried_again(tmp_path: Path) -> None:
    """Leave to read it may be given without the file changing."""
    closed = [True]

    def open_entry(entry: Entry) -> tuple[bytes, np.ndarray]:
        if closed[0]:
            raise PermissionError(13, "Permission denied")
        return b"bytes", np.zeros((4, 4, 3), np.uint8)

    found = Listing(
        (Entry(tmp_path / "x", "x", 0),), ("a",), open=open_entry, stamp=lambda path: (1, 1)
    )
    assert scan(found, tmp_path)[0].problem == "the file cannot be opened (Permission denied)"
    closed[0] = False
    assert not scan(found, tmp_path)[0].problem


def test_a_path_that_no_file_can_have_is_skipped(root: Path) -> None:
    rows = [
        "path,label",
        "a/\0.png,a",
        *(f"{name}/{n}.png,{name}" for name in "ab" for n in "0123"),
    ]
    (root / "table.csv").write_text("\n".join(rows))
    (skipped,) = load_dataset(f"table:{root / 'table.csv'}").skipped
    assert skipped.path == "a/\0.png"
    assert skipped.reason.startswith("the file cannot be opened (embedded null")


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda data: b"", id="empty"),
        pytest.param(lambda data: b"\x93NUMPY rubbish", id="other"),
        pytest.param(lambda data: data[: len(data) // 2], id="cut short"),
        pytest.param(lambda data: data[:200] + b"\xff" * 40 + data[240:], id="overwritten"),
    ],
)
def test_a_damaged_cache_is_scanned_anew(
    damage: Callable[[bytes], bytes], root: Path, decoded: list[int]
) -> None:
    first = load(root)
    (file,) = cache_folder().iterdir()
    whole = file.read_bytes()
    file.write_bytes(damage(whole))
    decoded.clear()
    assert load(root).samples == first.samples
    assert len(decoded) == 12
    assert load(root).samples == first.samples
    assert len(decoded) == 12


def test_flipped_bytes_in_a_cache_never_do_harm(root: Path) -> None:
    first = load(root)
    (file,) = cache_folder().iterdir()
    whole = np.frombuffer(file.read_bytes(), np.uint8)
    random = np.random.default_rng(0)
    for _ in range(40):
        damaged = whole.copy()
        damaged[random.integers(len(whole), size=random.integers(1, 20))] ^= 0x55
        file.write_bytes(damaged.tobytes())
        assert load(root).samples == first.samples


@pytest.mark.parametrize("obstacle", ["file in the way", "read-only"])
def test_a_cache_that_cannot_be_written_is_no_error(
    obstacle: str, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "cannot"
    if obstacle == "read-only" and os.geteuid() != 0:
        place.mkdir(mode=0o500)
    elif obstacle == "read-only":  # root may write anywhere but here
        place = Path("/proc/cannot")
    else:
        place.touch()
    monkeypatch.setenv("RDCACHE_CACHE", str(place))
    assert len(load(root)) == len(load(root)) == 12


def test_a_cache_leaves_no_temporary_file(root: Path) -> None:
    load(root)
    (file,) = cache_folder().iterdir()
    assert file.suffix == ".npz"


def test_counts_have_every_split_and_class(root: Path) -> None:
    dataset = load(root)
    counts = dataset.counts()
    assert list(counts) == ["train", "val", "test"]
    assert all(list(own) == ["a", "b"] for own in counts.values())
    pairs = Counter(zip(dataset.splits, dataset.labels, strict=True))
    assert counts["train"]["b"] == pairs["train", 1]
