"""A user's own images: any tree of class folders, any table of paths and labels."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from rdcache.data import (
    DatasetSpec,
    ImageDataset,
    describe_problems,
    list_datasets,
    load_dataset,
)
from rdcache.errors import DatasetError, DatasetNotFoundError, UsageError

Write = Callable[..., None]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "mine").mkdir()
    return tmp_path / "mine"


@pytest.fixture
def write(root: Path) -> Write:
    """Writes different tiny images under these paths."""
    random = np.random.default_rng(0)

    def write_images(*paths: str) -> None:
        for path in paths:
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(random.integers(0, 256, (12, 10), np.uint8)).save(root / path)

    return write_images


def found(dataset: ImageDataset, root: Path) -> dict[str, tuple[str, str]]:
    """Path → (class, split)."""
    return {
        s.path.relative_to(root).as_posix(): (dataset.classes[s.label], s.split)
        for s in dataset.samples
    }


def test_class_folders_alone(root: Path, write: Write) -> None:
    write(*[f"{name}/{number}.PNG" for name in ("sick", "healthy") for number in range(10)])
    write(".cache/x.png", "__MACOSX/x.png")
    (root / "notes").mkdir()
    (root / "notes" / "read me.txt").write_text("not a class")
    dataset = load_dataset(f"folder:{root}")
    assert dataset.classes == ("healthy", "sick")
    assert dataset.counts()["test"] == {"healthy": 2, "sick": 2}
    assert dataset.name == "folder:mine"


@pytest.mark.parametrize("names", [("train", "val", "test"), ("Training", "Validation", "Testing")])
def test_split_folders_above_class_folders_are_official(
    names: tuple[str, str, str], root: Path, write: Write
) -> None:
    for split in names:
        write(*[f"{split}/{label}/{split}{n}.tif" for label in ("a", "b") for n in range(120)])
    dataset = load_dataset(f"folder:{root}")
    assert dataset.classes == ("a", "b")
    expected = dict(zip(names, ("train", "val", "test"), strict=True))
    assert all(
        split == expected[path.split("/")[0]] for path, (_, split) in found(dataset, root).items()
    )


def test_a_class_may_be_called_test(root: Path, write: Write) -> None:
    write(*[f"{name}/{number}.png" for name in ("test", "control") for number in range(10)])
    assert load_dataset(f"folder:{root}").classes == ("control", "test")


@pytest.mark.parametrize("top", ["", "train/"])
def test_images_that_belong_to_no_class_are_reported(top: str, root: Path, write: Write) -> None:
    write(*[f"{top}{name}/{number}.png" for name in "ab" for number in range(5)])
    write(f"{top}a/patient1/1.png", f"{top}loose.png", "deep/er/1.png", f"{top}a/.cache/1.png")
    dataset = load_dataset(f"folder:{root}")
    assert len(dataset) == 10
    assert {each.path: each.reason for each in dataset.skipped} == {
        f"{top}a/patient1/1.png": "in a subfolder that is no class",
        f"{top}loose.png": "beside the class folders, in none of them",
        "deep/er/1.png": "in a subfolder that is no class",
    }


def test_class_folders_beside_a_training_folder_are_reported(root: Path, write: Write) -> None:
    write(*[f"{top}/{number}.png" for top in ("train/a", "train/b", "c") for number in range(5)])
    dataset = load_dataset(f"folder:{root}")
    assert dataset.classes == ("a", "b")
    assert len(dataset.skipped) == 5


def test_two_folders_for_one_split_are_refused(root: Path, write: Write) -> None:
    write(*[f"{top}/{name}/1.png" for top in ("train", "Training", "test") for name in "ab"])
    with pytest.raises(DatasetError, match="two folders for the train split") as caught:
        load_dataset(f"folder:{root}")
    assert caught.value.facts["found"] == "train, Training"


def test_a_relative_folder_is_also_looked_for_below_the_data_folder(
    root: Path, write: Write
) -> None:
    write(*[f"{name}/{number}.png" for name in "ab" for number in range(5)])
    assert len(load_dataset("folder:mine", root.parent)) == 10


def test_unreadable_files_are_skipped_with_a_reason_or_refused_when_strict(
    root: Path, write: Write
) -> None:
    write(*[f"{name}/{number}.png" for name in "ab" for number in range(5)])
    (root / "a" / "empty.png").touch()
    (root / "b" / "page.jpg").write_text("<html>not found</html>")
    whole = (root / "a" / "0.png").read_bytes()
    (root / "a" / "short.png").write_bytes(whole[: len(whole) // 2])
    (root / "b" / "folder.png").mkdir()
    dataset = load_dataset(f"folder:{root}")
    assert len(dataset) == 10
    reasons = {each.path: each.reason for each in dataset.skipped}
    assert reasons["a/empty.png"] == "the file is empty"
    assert reasons["a/short.png"].startswith("damaged or cut short")
    assert reasons["b/page.jpg"].startswith("not an image of a known format (PNG, JPEG, ")
    assert reasons["b/folder.png"] == "the file cannot be opened (Is a directory)"
    with pytest.raises(DatasetError, match=r"4 files .* --strict") as caught:
        load_dataset(f"folder:{root}", strict=True)
    assert caught.value.facts["first"] == "a/empty.png: the file is empty"


def test_one_class_is_nothing_to_tell_apart(root: Path, write: Write) -> None:
    write(*[f"a/{number}.png" for number in range(5)])
    (root / "b").mkdir()
    (root / "b" / "1.png").touch()
    with pytest.raises(DatasetError, match="one class only") as caught:
        load_dataset(f"folder:{root}")
    assert caught.value.facts["found"] == "a"
    assert caught.value.facts["classes"] == "a, b"


@pytest.mark.parametrize("family", ["folder", "table"])
def test_a_missing_place_says_what_is_expected(family: str, root: Path) -> None:
    (card,) = [c for c in list_datasets() if c.name.startswith(family)]
    assert card.present
    with pytest.raises(DatasetNotFoundError, match="is not there") as caught:
        load_dataset(f"{family}:{root / 'nowhere'}")
    assert caught.value.facts["expected"] == card.layout


@pytest.mark.parametrize("family", ["folder", "table"])
@pytest.mark.parametrize("forbidden", ["mine", "mine/a"])
def test_a_folder_that_may_not_be_read_is_one_sentence(
    family: str, forbidden: str, root: Path, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    write("a/1.png", "b/1.png")
    locked = root.parent / forbidden
    lock(locked, monkeypatch)
    with pytest.raises(DatasetNotFoundError, match="cannot be read") as caught:
        load_dataset(f"folder:{root}" if family == "folder" else f"table:{locked / 'mine.csv'}")
    assert caught.value.facts["why"] == "Permission denied"
    assert str(locked) in caught.value.facts["looked in"]


def lock(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forbid to list a folder and to look at what is in it; chmod would not stop root."""
    stat, scandir, listdir = os.stat, os.scandir, os.listdir

    def refuse(path: object) -> None:
        if str(path).startswith(str(folder)):
            raise PermissionError(13, "Permission denied", str(path))

    def locked_stat(path: Path, **options: object) -> object:
        if Path(str(path)) != folder:
            refuse(path)
        return stat(path, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "stat", locked_stat)
    monkeypatch.setattr(os, "scandir", lambda path=".": refuse(path) or scandir(path))
    monkeypatch.setattr(os, "listdir", lambda path=".": refuse(path) or listdir(path))


@pytest.mark.parametrize("name", ["folder:~nobody-here/x", "table:~nobody-here/x.csv"])
def test_an_unknown_home_folder_is_one_sentence(name: str) -> None:
    with pytest.raises(UsageError, match="home folder is not known") as caught:
        load_dataset(name)
    assert caught.value.facts["given"].startswith("~nobody-here/x")
    with pytest.raises(UsageError, match="home folder is not known"):
        list_datasets(Path("~nobody-here"))


def test_a_data_folder_may_be_given_from_home(
    root: Path, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(*[f"{name}/{number}.png" for name in "ab" for number in range(5)])
    monkeypatch.setenv("HOME", str(root.parent))
    assert len(load_dataset("folder:mine", Path("~"))) == 10
    monkeypatch.setenv("RDCACHE_DATA", "~")
    assert len(load_dataset("folder:mine")) == 10


def test_a_file_is_no_folder_and_a_folder_no_table(root: Path, write: Write) -> None:
    write("a/1.png")
    with pytest.raises(DatasetNotFoundError, match="folder of this dataset is not there"):
        load_dataset(f"folder:{root / 'a' / '1.png'}")
    with pytest.raises(DatasetNotFoundError, match="table of this dataset is not there"):
        load_dataset(f"table:{root}")


def test_a_tree_without_images_is_not_found(root: Path) -> None:
    with pytest.raises(DatasetNotFoundError, match="holds no images"):
        load_dataset(f"folder:{root}")


@pytest.fixture
def table(write: Write) -> pd.DataFrame:
    """Forty rows with official splits, half of them with a group."""
    paths = [f"images/{number}.png" for number in range(40)]
    write(*paths)
    return pd.DataFrame(
        {
            "path": paths,
            "label": ["ten" if number % 2 else "nine" for number in range(40)],
            "split": ["Training"] * 30 + ["test"] * 10,
            "group": [f"p{number // 2}" if number < 20 else "" for number in range(40)],
        }
    )


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".parquet"])
def test_a_table_is_read_whatever_its_format(suffix: str, table: pd.DataFrame, root: Path) -> None:
    file = root / f"mine{suffix}"
    if suffix == ".parquet":
        table.to_parquet(file)
    else:
        table.to_csv(file, index=False, sep="\t" if suffix == ".tsv" else ",")
    dataset = load_dataset(f"table:{file}")
    assert dataset.classes == ("nine", "ten")
    assert dataset.name == f"table:mine{suffix}"
    rows = found(dataset, root)
    assert rows["images/35.png"] == ("ten", "test")
    assert sum(split == "test" for _, split in rows.values()) == 10
    groups = {s.path.stem: s.group for s in dataset.samples}
    assert groups["3"] == "p1"
    assert groups["30"] is None
    assert dataset.leaks.straddling_groups == 0


def test_a_table_of_numbers_without_splits_sorts_classes_as_numbers(
    table: pd.DataFrame, root: Path
) -> None:
    table["label"] = [10 if number % 2 else 9 for number in range(40)]
    table.drop(columns=["split", "group"]).to_parquet(root / "mine.parquet")
    dataset = load_dataset(f"table:{root / 'mine.parquet'}")
    assert dataset.classes == ("9", "10")
    assert dataset.counts()["test"] == {"9": 4, "10": 4}


def test_a_row_whose_file_is_missing_is_skipped(table: pd.DataFrame, root: Path) -> None:
    (root / "images" / "7.png").unlink()
    table.to_csv(root / "mine.csv", index=False)
    (skipped,) = load_dataset(f"table:{root / 'mine.csv'}").skipped
    assert skipped.path == "images/7.png"
    assert skipped.reason == "the file cannot be opened (No such file or directory)"


@pytest.mark.parametrize(
    ("text", "message", "facts"),
    [
        ("file,label\nx.png,a\n", "no column 'path'", {"has": "file, label"}),
        ("path,class\nx.png,a\n", "no column 'label'", {"has": "path, class"}),
        ("path,label,split\nx.png,a,\n\ny.png,b,dev\n", "'dev' is no split", {"line": "4"}),
        ("path,label\nx.png,a\ny.png,\n", "lacks its path or label", {"line": "3"}),
        ("path,label\n,a\n", "lacks its path or label", {"line": "2"}),
        ("", "cannot be read", {}),
        ('path,label\n"x.png,a\n', "cannot be read", {}),
        ("path,label\nx.png,a,1\ny.png,b\n", "more cells than there are columns", {"line": "2"}),
        (
            "path,label\nx.png,a\n\ny.png,b,1\n",
            "more cells",
            {"line": "4", "columns": "path, label"},
        ),
    ],
)
def test_a_table_that_makes_no_sense_says_where(
    text: str, message: str, facts: dict[str, str], root: Path
) -> None:
    (root / "mine.csv").write_text(text)
    with pytest.raises(DatasetError, match=message) as caught:
        load_dataset(f"table:{root / 'mine.csv'}")
    assert facts.items() <= caught.value.facts.items()
    assert caught.value.facts["file"] == str(root / "mine.csv")


def test_blank_lines_and_a_byte_order_mark_do_no_harm(table: pd.DataFrame, root: Path) -> None:
    lines = table.to_csv(index=False).splitlines()
    text = "\n".join([*lines[:5], "", *lines[5:], "", ",,,", ""])
    (root / "mine.csv").write_text(text, encoding="utf-8-sig")
    assert len(load_dataset(f"table:{root / 'mine.csv'}")) == 40


def test_trailing_commas_do_no_harm(table: pd.DataFrame, root: Path) -> None:
    header, *lines = table.to_csv(index=False).splitlines()
    (root / "mine.csv").write_text("\n".join([header, *(f"{line}," for line in lines)]))
    dataset = load_dataset(f"table:{root / 'mine.csv'}")
    assert (len(dataset), dataset.classes) == (40, ("nine", "ten"))


def test_a_table_with_a_header_alone_is_not_found(root: Path) -> None:
    (root / "mine.csv").write_text("path,label\n")
    with pytest.raises(DatasetNotFoundError, match="holds no images"):
        load_dataset(f"table:{root / 'mine.csv'}")


@pytest.mark.parametrize("family", ["folder", "table"])
@pytest.mark.parametrize("training", ["none", "unreadable"])
def test_a_class_that_no_training_image_shows_is_an_error(
    family: str, training: str, root: Path, write: Write
) -> None:
    paths = ["train/a/1.png", "train/b/1.png", "test/a/2.png", "test/c/1.png"]
    write(*paths)
    if training == "unreadable":
        paths.append("train/c/3.png")
        (root / "train" / "c").mkdir()
        (root / "train" / "c" / "3.png").touch()
    rows = [f"{path},{path.split('/')[1]},{path.split('/')[0]}" for path in paths]
    (root / "table.csv").write_text("\n".join(["path,label,split", *rows]))
    place = root / "table.csv" if family == "table" else root
    with pytest.raises(DatasetError, match="'c' has no training image") as caught:
        load_dataset(f"{family}:{place}")
    assert caught.value.facts["occurs in"] == "test, test/c/1.png"
    assert caught.value.facts["trained"] == "a, b"


def test_a_folder_of_validation_and_test_images_alone_cannot_be_learnt(
    root: Path, write: Write
) -> None:
    (root / "train").mkdir()
    for split in ("val", "test"):
        for name in ("a", "b"):
            write(f"{split}/{name}/1.png")
    with pytest.raises(DatasetError, match="no training images"):
        load_dataset(f"folder:{root}")


def test_test_images_drawn_beside_a_users_own_splits_are_reported(root: Path, write: Write) -> None:
    write(
        *[f"{split}/{name}/{n}.png" for split in ("train", "val") for name in "ab" for n in "01234"]
    )
    dataset = load_dataset(f"folder:{root}")
    assert dataset.counts()["test"] == {"a": 1, "b": 1}
    (problem,) = describe_problems(dataset)
    assert "2 of its training images were drawn for the test" in problem


def test_of_many_skipped_files_only_the_first_are_named(root: Path, write: Write) -> None:
    for name in ("a", "b"):
        for number in range(6):
            write(f"{name}/{number}.png")
    for number in range(50):
        (root / "a" / f"broken{number}.png").write_bytes(b"no image")
    problems = describe_problems(load_dataset(f"folder:{root}"))
    assert sum(problem.startswith("skipped") for problem in problems) == 21
    assert "skipped 30 more files" in problems


@pytest.mark.parametrize("wrong", [{"val_fraction": 1.0}, {"test_fraction": -0.1}, {"seed": -1}])
def test_a_spec_outside_its_range_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(UsageError, match="must"):
        DatasetSpec("phantom", **wrong)  # type: ignore[arg-type]
