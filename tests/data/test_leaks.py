"""The leak check finds pictures that occur twice, however they were saved, and nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rdcache.data import DatasetSpec, ImageDataset, describe_problems, load_dataset
from rdcache.errors import DatasetError

Save = Callable[[str, Image.Image], None]
Load = Callable[[DatasetSpec], ImageDataset]


def picture(seed: int, side: int = 96) -> Image.Image:
    """A smooth random picture, unlike that of any other seed."""
    coarse = np.random.default_rng(seed).integers(0, 200, (8, 8), np.uint8)
    grey = Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC)
    return grey.convert("RGB")


def speckle(seed: int) -> Image.Image:
    """Ultrasound-like speckle on the same background: alike to a careless eye."""
    random = np.random.default_rng(seed)
    background = np.linspace(160, 40, 96)[:, None]
    grey = background * random.gamma(2.0, 0.5, (96, 96))
    return Image.fromarray(grey.clip(0, 255).astype(np.uint8)).convert("RGB")


@pytest.fixture
def save(tmp_path: Path) -> Save:
    """Saves a picture as split/class/name, beside three unrelated ones in every folder."""
    root = tmp_path / "set"
    for number, place in enumerate(["train/a", "train/b", "test/a", "test/b"]):
        (root / place).mkdir(parents=True)
        for own in range(3):
            picture(1000 + 10 * number + own).save(root / place / f"own{own}.png")

    def save_as(name: str, image: Image.Image) -> None:
        image.save(root / name)

    return save_as


def load(tmp_path: Path, **options: object) -> ImageDataset:
    # No val is drawn, so that splits are exactly what the folders say.
    spec = DatasetSpec(f"folder:{tmp_path / 'set'}", val_fraction=0.0, **options)  # type: ignore[arg-type]
    return load_dataset(spec)


def names(dataset: ImageDataset) -> dict[str, str]:
    """uid → split/class/name."""
    return {s.uid: "/".join(s.path.parts[-3:]) for s in dataset.samples}


def test_unrelated_pictures_are_no_duplicates(save: Save, tmp_path: Path) -> None:
    for number in range(40):
        save(f"train/a/speckle{number}.png", speckle(number))
        save(f"test/b/speckle{number}.png", speckle(100 + number))
    leaks = load(tmp_path).leaks
    assert not leaks.pairs
    assert not leaks.leaked
    assert leaks.summary() == ["no duplicates, no leaks"]


def test_the_same_pixels_in_another_format_are_exact(save: Save, tmp_path: Path) -> None:
    save("train/a/x.png", picture(1))
    save("test/a/y.bmp", picture(1))
    save("test/a/z.png", picture(1).convert("L"))
    dataset = load(tmp_path)
    leaked = {names(dataset)[uid] for uid in dataset.leaks.exactly_leaked}
    assert leaked == {"test/a/y.bmp", "test/a/z.png"}
    assert dataset.leaks.leaked == dataset.leaks.exactly_leaked
    assert dataset.leaks.count("exact", across="splits") == 2
    assert dataset.leaks.count("exact", across="classes") == 0
    assert dataset.leaks.count("near") == 0


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda image: image.resize((60, 60), Image.Resampling.LANCZOS), id="smaller"),
        pytest.param(lambda image: image.resize((200, 180)), id="larger, other aspect"),
        pytest.param(lambda image: image.point(lambda value: value + 30), id="brighter"),
    ],
)
def test_a_changed_copy_is_near(
    change: Callable[[Image.Image], Image.Image], save: Save, tmp_path: Path
) -> None:
    save("train/a/x.png", picture(1))
    save("test/b/y.png", change(picture(1)))
    dataset = load(tmp_path)
    (pair,) = dataset.leaks.pairs
    assert pair.kind == "near"
    assert pair.crosses_splits
    assert pair.crosses_classes
    assert {names(dataset)[uid] for uid in pair.uids} == {"train/a/x.png", "test/b/y.png"}
    assert [names(dataset)[uid] for uid in dataset.leaks.leaked] == ["test/b/y.png"]
    assert not dataset.leaks.exactly_leaked


def test_a_jpeg_of_a_png_is_near(save: Save, tmp_path: Path) -> None:
    save("train/a/x.png", speckle(1))
    speckle(1).save(tmp_path / "set" / "test" / "a" / "y.jpg", quality=40)
    assert load(tmp_path).leaks.count("near", across="splits") == 1


def test_neighbouring_slices_are_no_duplicates_but_no_drawn_split_separates_them(
    tmp_path: Path,
) -> None:
    # Thirty stacks of two slices: the same body, whose inside changes a little.
    for stack in range(30):
        body = np.asarray(picture(stack).convert("L"), np.float64)
        inside = np.asarray(picture(100 + stack).convert("L"), np.float64)
        for part, kind in enumerate((0.0, 0.15)):
            mixed = Image.fromarray((body + kind * inside).clip(0, 255).astype(np.uint8))
            folder = tmp_path / "set" / "ab"[stack % 2]
            folder.mkdir(parents=True, exist_ok=True)
            mixed.save(folder / f"stack{stack:02}_{part}.png")
    dataset = load_dataset(DatasetSpec(f"folder:{tmp_path / 'set'}"))
    assert not dataset.leaks.pairs
    where: dict[str, set[str]] = {}
    for sample in dataset.samples:
        where.setdefault(sample.path.stem[:7], set()).add(sample.split)
    assert len(where) == 30
    assert all(len(splits) == 1 for splits in where.values())
    assert set.union(*where.values()) == {"train", "val", "test"}


def test_blank_pictures_are_duplicates_only_of_equal_ones(save: Save, tmp_path: Path) -> None:
    for side in (40, 41, 42):
        save(f"train/a/{side}.png", Image.new("RGB", (side, side), (90, 90, 90)))
    save("test/b/40.png", Image.new("RGB", (40, 40), (90, 90, 90)))
    leaks = load(tmp_path).leaks
    assert leaks.count("exact") == 1
    assert leaks.count("near") == 0


def test_mirrored_copies_are_other_pictures(save: Save, tmp_path: Path) -> None:
    save("train/a/x.png", picture(1))
    save("test/a/y.png", picture(1).transpose(Image.Transpose.FLIP_LEFT_RIGHT))
    assert not load(tmp_path).leaks.pairs


def test_duplicates_within_train_leak_nothing_but_are_counted(save: Save, tmp_path: Path) -> None:
    for copy in range(3):
        save(f"train/a/copy{copy}.png", picture(1))
    leaks = load(tmp_path).leaks
    assert leaks.count("exact") == 2
    assert leaks.count("exact", across="splits") == 0
    assert not leaks.leaked


def test_drop_leaks_leaves_the_leaked_test_images_out_and_says_so(
    save: Save, tmp_path: Path
) -> None:
    save("train/a/x.png", picture(1))
    save("test/a/exact.bmp", picture(1))
    save("test/b/near.png", picture(1).resize((60, 60), Image.Resampling.LANCZOS))
    before, after = load(tmp_path), load(tmp_path, drop_leaks=True)
    gone = set(before.uids) - set(after.uids)
    assert gone == set(before.leaks.leaked) == set(after.leaks.leaked)
    assert {names(before)[uid] for uid in gone} == {"test/a/exact.bmp", "test/b/near.png"}
    assert after.leaks.dropped == 2
    assert after.counts()["test"] == {"a": 3, "b": 3}
    assert after.counts()["train"] == before.counts()["train"]
    assert after.digest != before.digest
    assert after.leaks.summary()[0] == (
        "2 of 8 test images also occur in train or val (1 pixel for pixel, 1 nearly), "
        "left out as asked"
    )


def test_drop_leaks_that_would_leave_nothing_to_test_on_is_refused(tmp_path: Path) -> None:
    lines = ["path,label,split"]
    for number in range(8):
        picture(number).save(tmp_path / f"{number}.png")
        lines.append(f"{number}.png,{number % 2},train")
    for number in range(2):
        picture(number).save(tmp_path / f"again{number}.bmp")
        lines.append(f"again{number}.bmp,{number % 2},test")
    (tmp_path / "table.csv").write_text("\n".join(lines))
    name = f"table:{tmp_path / 'table.csv'}"
    assert load_dataset(name).counts()["test"] == {"0": 1, "1": 1}
    with pytest.raises(DatasetError, match=r"all 2 test images .* nothing is left"):
        load_dataset(DatasetSpec(name, drop_leaks=True))


def test_the_report_is_json_sorted_by_uid_and_tells_no_path(save: Save, tmp_path: Path) -> None:
    for number in range(4):
        save(f"train/a/x{number}.png", picture(number))
        save(f"test/b/y{number}.bmp", picture(number))
    dataset = load(tmp_path)
    report = dataset.leaks.to_dict()
    text = json.dumps(report)
    assert json.loads(text) == report
    assert str(tmp_path) not in text
    assert report["across_splits"] == report["across_classes"] == report["exact_pairs"] == 4
    listed = [pair["uids"] for pair in report["pairs"]]
    assert listed == sorted(listed)
    assert all(pair == sorted(pair) for pair in listed)
    assert any("4 of 10 test images" in problem for problem in describe_problems(dataset))


def test_groups_that_straddle_official_splits_are_counted(tmp_path: Path) -> None:
    lines = ["path,label,split,group"]
    for number in range(12):
        picture(number).save(tmp_path / f"{number}.png")
        split = "test" if number >= 8 else "train"
        lines.append(f"{number}.png,{number % 2},{split},patient{number % 7}")
    (tmp_path / "table.csv").write_text("\n".join(lines))
    spec = DatasetSpec(f"table:{tmp_path / 'table.csv'}", val_fraction=0.0)
    leaks = load_dataset(spec).leaks
    assert leaks.straddling_groups == 4  # patients 1 to 4 are in both
    assert leaks.summary() == ["4 groups have images in more than one split"]


@pytest.mark.real_data
def test_btc_leaks_exactly_the_test_images_that_are_known_to(
    real_data: Path, load_real: Load
) -> None:
    dataset = load_real(DatasetSpec("btc"))
    lines = (real_data / "btc" / "TEST_IN_TRAIN.tsv").read_text(encoding="utf-8").splitlines()[1:]
    known = {line.split("\t")[0] for line in lines}
    assert len(known) == 251
    assert {names(dataset)[uid] for uid in dataset.leaks.exactly_leaked} == known
    assert set(dataset.leaks.exactly_leaked) <= set(dataset.leaks.leaked)
    clean = load_real(DatasetSpec("btc", drop_leaks=True))
    assert len(clean) == len(dataset) - len(dataset.leaks.leaked)
    assert not set(clean.uids) & set(dataset.leaks.leaked)
    assert clean.counts()["test"]["no_tumor"] == 0  # every one of its test images is in train


@pytest.mark.real_data
def test_covid_cts_pair_across_classes_and_splits_is_found(load_real: Load) -> None:
    dataset = load_real(DatasetSpec("covid"))
    where = {s.uid: s.path.name for s in dataset.samples}
    (pair,) = [pair for pair in dataset.leaks.pairs if pair.crosses_classes]
    assert {where[uid] for uid in pair.uids} == {"kjr-21-e24-p5-29.png", "71%0.jpg"}
    assert pair.kind == "near"
    assert pair.crosses_splits
    assert dataset.leaks.count("near") == 1  # and no two slices of one scan


@pytest.mark.real_data
def test_busis_picture_with_two_diagnoses_is_found(load_real: Load) -> None:
    dataset = load_real(DatasetSpec("busi"))
    where = {s.uid: s.path.stem for s in dataset.samples}
    across = [{where[u] for u in pair.uids} for pair in dataset.leaks.pairs if pair.crosses_classes]
    assert {"benign (433)", "malignant (145)"} in across
    assert not dataset.leaks.leaked  # duplicates were drawn into one split together
    sizes = {split: sum(classes.values()) for split, classes in dataset.counts().items()}
    assert sizes["test"] == 156
    assert sizes["train"] + sizes["val"] == 624
