"""Masks: what files say, which are refused and why, and that a changed mask is another dataset."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from rdcache.cli import cli
from rdcache.data import (
    DatasetSpec,
    ImageDataset,
    describe_masks,
    describe_problems,
    load_dataset,
)
from rdcache.data.decoding import UnreadableImageError, decode_numbers
from rdcache.data.listing import Entry
from rdcache.data.masks import masks_above, masks_of
from rdcache.errors import DatasetError

HEIGHT, WIDTH = 12, 18


def save(path: Path, pixels: np.ndarray, **options: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)


def block(value: int = 1, rows: int = 4) -> np.ndarray:
    """A mask whose first rows hold a number."""
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[:rows] = value
    return mask


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Twelve noise images, each with a mask of its own height."""
    random = np.random.default_rng(0)
    for number in range(12):
        pixels = random.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
        save(tmp_path / "set" / "images" / f"{number}.png", pixels)
        save(tmp_path / "set" / "masks" / f"{number}.png", block(255, number))
    return tmp_path / "set"


def load(root: Path, **options: object) -> ImageDataset:
    return load_dataset(DatasetSpec(f"folder:{root}"), **options)


def index_of(dataset: ImageDataset, name: str) -> int:
    return next(i for i, s in enumerate(dataset.samples) if s.path.name == name)


def encoded(image: Image.Image, suffix: str = "PNG", **options: object) -> bytes:
    stream = BytesIO()
    image.save(stream, suffix, **options)
    return stream.getvalue()


# Files


@pytest.mark.parametrize(
    "image",
    [
        pytest.param(lambda mask: Image.fromarray(mask), id="grey"),
        pytest.param(lambda mask: Image.fromarray(mask).convert("RGB"), id="colour, all alike"),
        pytest.param(lambda mask: Image.fromarray(mask).convert("RGBA"), id="with alpha"),
        pytest.param(lambda mask: Image.fromarray(mask.astype(np.uint16)), id="16 bits"),
        pytest.param(lambda mask: Image.fromarray(mask.astype(np.int32)), id="32 bits"),
        pytest.param(lambda mask: Image.fromarray(mask.astype(np.float32)), id="whole floats"),
    ],
)
def test_numbers_come_out_as_they_were_written(image: Callable[[np.ndarray], Image.Image]) -> None:
    mask = block(3)
    picture = image(mask)
    suffix = "TIFF" if picture.mode in ("I", "F") else "PNG"
    np.testing.assert_array_equal(decode_numbers(encoded(picture, suffix)), mask)


def test_a_palette_is_read_by_its_indices_not_by_its_colours() -> None:
    picture = Image.fromarray(block(2)).convert("P")
    picture.putdata(block(2).ravel().tolist())
    picture.putpalette([0, 0, 0, 255, 0, 0, 0, 128, 0])
    np.testing.assert_array_equal(decode_numbers(encoded(picture)), block(2))


def test_one_bit_is_0_and_1() -> None:
    np.testing.assert_array_equal(
        decode_numbers(encoded(Image.fromarray(block(255)).convert("1"))), block(1)
    )


def test_what_is_transparent_is_background() -> None:
    pixels = np.full((HEIGHT, WIDTH, 4), 255, np.uint8)
    pixels[4:, :, 3] = 0
    np.testing.assert_array_equal(decode_numbers(encoded(Image.fromarray(pixels))), block(255))


@pytest.mark.parametrize(
    ("picture", "reason"),
    [
        (Image.fromarray(np.eye(6, dtype=np.float32) / 2), "not whole"),
        (Image.new("RGB", (6, 6), (255, 0, 0)), "in colour"),
    ],
)
def test_a_picture_that_is_no_mask_is_refused(picture: Image.Image, reason: str) -> None:
    with pytest.raises(UnreadableImageError, match=reason):
        decode_numbers(encoded(picture, "TIFF"))


def test_the_blurred_edges_of_a_jpeg_are_decided_at_half(tmp_path: Path) -> None:
    mask = np.kron(np.array([[0, 1], [1, 0]], np.uint8), np.ones((29, 29), np.uint8))
    save(tmp_path / "mask.jpg", mask * 255, quality=60)
    entry = Entry(tmp_path / "image.png", "image", 0, masks=(tmp_path / "mask.jpg",))
    read = masks_of(2)(entry)
    assert len(np.unique(decode_numbers((tmp_path / "mask.jpg").read_bytes()))) > 2
    assert read.dtype == np.uint8
    assert (read != mask).mean() < 0.01
    np.testing.assert_array_equal(read, masks_above(127)(entry))


def test_a_mask_is_the_union_of_its_files(tmp_path: Path) -> None:
    left, right = np.zeros((6, 6), np.uint8), np.zeros((6, 6), np.uint8)
    left[:, :2], right[:, 4:] = 255, 255
    save(tmp_path / "0.png", left)
    save(tmp_path / "1.png", right)
    entry = Entry(tmp_path / "i.png", "i", 0, masks=(tmp_path / "0.png", tmp_path / "1.png"))
    np.testing.assert_array_equal(masks_above(0)(entry), (left | right) // 255)


def test_without_a_file_everything_is_background(tmp_path: Path) -> None:
    save(tmp_path / "i.png", np.zeros((7, 9, 3), np.uint8))
    mask = masks_above(0)(Entry(tmp_path / "i.png", "i", 0))
    assert (mask.shape, mask.dtype, mask.any()) == ((7, 9), np.uint8, False)


# Datasets


def test_images_beside_masks_are_a_segmentation(root: Path) -> None:
    dataset = load(root)
    assert (dataset.task, dataset.dimensions) == ("segmentation", 2)
    assert dataset.classes == ("background", "foreground")
    assert len(dataset) == 12
    assert dataset.labels.shape == (12,)
    for number in range(12):
        index = index_of(dataset, f"{number}.png")
        mask = dataset.decode_mask(index)
        np.testing.assert_array_equal(mask, block(1, number))
        assert mask.shape == dataset.decode(index).shape[:2]
        assert dataset.samples[index].mask_counts == (
            (HEIGHT - number) * WIDTH,
            number * WIDTH,
        )
    assert dataset.facts()["task"] == "segmentation"


def test_masks_of_several_classes_are_named_in_a_file(root: Path) -> None:
    (root / "classes.txt").write_text("background\nliver\n\nspleen\n")
    for number in range(12):
        save(root / "masks" / f"{number}.png", block(1 + number % 2))
    dataset = load(root)
    assert dataset.classes == ("background", "liver", "spleen")
    counts = dataset.counts()
    assert sum(own["background"] for own in counts.values()) == 12
    assert sum(own["liver"] for own in counts.values()) == 6


@pytest.mark.parametrize("names", ["", "one\n", "a\nb\na\n"])
def test_names_that_are_no_classes_are_refused(names: str, root: Path) -> None:
    (root / "classes.txt").write_text(names)
    with pytest.raises(DatasetError, match="no names of classes"):
        load(root)


def test_official_folders_are_its_splits(root: Path) -> None:
    for split, numbers in (("train", range(8)), ("test", range(8, 12))):
        for kind in ("images", "masks"):
            (root / split / kind).mkdir(parents=True)
            for number in numbers:
                name = f"{number}.png"
                (root / kind / name).rename(root / split / kind / name)
    dataset = load(root)
    assert sorted(int(s.path.stem) for s in dataset.samples if s.split == "test") == [8, 9, 10, 11]
    for number in range(8, 12):
        (root / "test" / "masks" / f"{number}.png").unlink()
    (root / "test" / "masks").rmdir()
    without = load(root)
    assert [each.reason for each in without.skipped] == ["it has no mask"] * 4
    assert {each.path for each in without.skipped} == {f"test/images/{n}.png" for n in range(8, 12)}


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        pytest.param(
            lambda file: save(file, np.zeros((HEIGHT, WIDTH + 1), np.uint8)),
            "its mask has another size (19×12, the image 18×12)",
            id="another size",
        ),
        pytest.param(
            lambda file: save(file, block(3)),
            "its mask: it holds the numbers 0, 3; masks of two classes",
            id="several classes without names",
        ),
        pytest.param(
            lambda file: file.write_bytes(file.read_bytes()[:50]),
            "its mask: damaged or cut short",
            id="damaged",
        ),
        pytest.param(lambda file: file.write_bytes(b""), "its mask: the file is empty", id="empty"),
        pytest.param(lambda file: file.unlink(), "it has no mask", id="missing"),
    ],
)
def test_an_unusable_mask_is_left_out_with_a_reason(
    spoil: Callable[[Path], None], reason: str, root: Path
) -> None:
    spoil(root / "masks" / "5.png")
    dataset = load(root)
    assert len(dataset) == 11
    (skipped,) = dataset.skipped
    assert skipped.path == "images/5.png"
    assert skipped.reason.startswith(reason)
    assert any(reason in line for line in describe_problems(dataset))
    with pytest.raises(DatasetError, match="--strict"):
        load(root, strict=True)


def test_a_class_number_beyond_the_names_is_left_out(root: Path) -> None:
    (root / "classes.txt").write_text("background\na\nb\n")
    for number in range(12):
        save(root / "masks" / f"{number}.png", block(number % 3))
    save(root / "masks" / "5.png", block(3))
    (skipped,) = load(root).skipped
    assert skipped.reason == "its mask: it holds the number 3, and classes go from 0 to 2"


def test_a_mask_without_an_image_is_named(root: Path) -> None:
    save(root / "masks" / "stray.png", block())
    (skipped,) = load(root).skipped
    assert (skipped.path, skipped.reason) == ("masks/stray.png", "a mask without an image")


def test_masks_may_end_in_the_usual_words(root: Path) -> None:
    for number in range(12):
        end = ("_mask", "_segmentation", "")[number % 3]
        (root / "masks" / f"{number}.png").rename(root / "masks" / f"{number}{end}.png")
    assert len(load(root)) == 12


def test_masks_without_any_foreground_are_nothing_to_learn(root: Path) -> None:
    for file in (root / "masks").iterdir():
        save(file, block(0))
    with pytest.raises(DatasetError, match="nothing to segment"):
        load(root)


def test_a_class_that_only_the_test_shows_is_an_error(root: Path) -> None:
    (root / "classes.txt").write_text("background\na\nb\n")
    rows = ["path,mask,split"]
    for number in range(12):
        save(root / "masks" / f"{number}.png", block(2 if number == 0 else 1))
        split = "test" if number < 3 else "train"
        rows.append(f"images/{number}.png,masks/{number}.png,{split}")
    (root / "table.csv").write_text("\n".join(rows))
    with pytest.raises(DatasetError, match="'b' has no training image"):
        load_dataset(f"table:{root / 'table.csv'}")


def test_the_digest_is_of_what_masks_hold_not_of_how_they_are_written(root: Path) -> None:
    before = load(root)
    save(root / "masks" / "5.png", block(1, 5))  # 0 and 1 instead of 0 and 255
    assert load(root).digest == before.digest
    changed = block(255, 5)
    changed[0, 0] = 0
    save(root / "masks" / "5.png", changed)
    after = load(root)
    assert after.digest != before.digest
    assert list(after.uids) == list(before.uids)


def test_masks_are_read_once_and_again_when_they_change(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rdcache.data import masks

    read: list[int] = []
    monkeypatch.setattr(
        masks, "decode_numbers", lambda data: read.append(1) or decode_numbers(data)
    )
    first = load(root)
    assert len(read) == 12
    assert load(root).samples == first.samples
    assert len(read) == 12
    save(root / "masks" / "5.png", block(255, 2))
    changed = load(root)
    assert len(read) == 13
    assert changed.samples[index_of(changed, "5.png")].mask_counts[1] == 2 * WIDTH


def test_other_names_of_classes_are_another_look(root: Path) -> None:
    for number in range(12):
        save(root / "masks" / f"{number}.png", block(2 if number else 1))
    assert len(load(root).skipped) == 11
    (root / "classes.txt").write_text("background\na\nb\n")
    assert not load(root).skipped


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda file: file.unlink(), "can no longer be read"),
        (lambda file: file.write_bytes(b"rubbish"), "can no longer be read"),
        (lambda file: save(file, block(255, 9)), "has changed"),
        (lambda file: os.utime(file, (1, 1)), "has changed"),
    ],
)
def test_a_mask_that_is_gone_or_another_one_is_an_error(
    spoil: Callable[[Path], None], message: str, root: Path
) -> None:
    dataset = load(root)
    spoil(root / "masks" / "5.png")
    with pytest.raises(DatasetError, match=message) as caught:
        dataset.decode_mask(index_of(dataset, "5.png"))
    assert caught.value.facts["file"] == str(root / "masks" / "5.png")


def test_a_classification_has_no_masks() -> None:
    with pytest.raises(DatasetError, match="has no masks"):
        load_dataset("phantom").decode_mask(0)


def test_duplicates_are_kept_in_one_split_whatever_their_masks(root: Path) -> None:
    shutil.copy(root / "images" / "3.png", root / "images" / "copy.png")
    save(root / "masks" / "copy.png", block(255, 1))
    dataset = load(root)
    splits = {s.path.name: s.split for s in dataset.samples}
    assert splits["3.png"] == splits["copy.png"]
    assert dataset.leaks.count("exact") == 1


# Tables


def test_a_table_names_masks_and_strata(root: Path) -> None:
    rows = ["path,mask,label,group,split"]
    for number in range(12):
        split = "test" if number < 3 else "train"
        rows.append(f"images/{number}.png,masks/{number}.png,{'ab'[number % 2]},g{number},{split}")
    (root / "table.csv").write_text("\n".join(rows))
    dataset = load_dataset(f"table:{root / 'table.csv'}")
    assert dataset.task == "segmentation"
    assert sorted(dataset.labels.tolist()) == [0] * 6 + [1] * 6
    assert int((dataset.splits == "test").sum()) == 3
    np.testing.assert_array_equal(dataset.decode_mask(index_of(dataset, "7.png")), block(1, 7))


def test_a_table_may_name_several_masks_of_an_image(root: Path) -> None:
    save(root / "more.png", np.flipud(block(255, 2)).copy())
    rows = ["path,mask", "images/3.png, masks/3.png; more.png"]
    rows += [f"images/{number}.png,masks/{number}.png" for number in range(4, 12)]
    (root / "table.csv").write_text("\n".join(rows))
    dataset = load_dataset(f"table:{root / 'table.csv'}")
    mask = dataset.decode_mask(index_of(dataset, "3.png"))
    assert mask.any(axis=1).tolist() == [True] * 3 + [False] * 7 + [True] * 2


def test_a_row_without_a_mask_names_its_line(root: Path) -> None:
    (root / "table.csv").write_text("path,mask\nimages/1.png,masks/1.png\nimages/2.png,\n")
    with pytest.raises(DatasetError, match="lacks its mask") as caught:
        load_dataset(f"table:{root / 'table.csv'}")
    assert caught.value.facts["line"] == "3"


def test_a_mask_that_a_table_names_and_nobody_has_is_skipped(root: Path) -> None:
    rows = ["path,mask", "images/0.png,masks/none.png"]
    rows += [f"images/{number}.png,masks/{number}.png" for number in range(1, 12)]
    (root / "table.csv").write_text("\n".join(rows))
    (skipped,) = load_dataset(f"table:{root / 'table.csv'}").skipped
    assert skipped.reason == "its mask: the file cannot be opened (No such file or directory)"


# The command


def test_check_tells_of_empty_masks_and_the_share_of_foreground(root: Path) -> None:
    dataset = load(root)
    foreground, empty = describe_masks(dataset)
    share = sum(range(12)) / (12 * HEIGHT)
    assert foreground == f"foreground: in 11 of 12 masks, {share:.2%} of all pixels"
    assert empty == "1 of 12 masks are empty"
    shown = CliRunner().invoke(cli, ["check", f"folder:{root}"])
    assert shown.exit_code == 0
    assert foreground in shown.output
    assert "1 of 12 masks are empty" in shown.output
