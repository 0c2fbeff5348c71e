"""`rdcache export` and `rdcache import` as a user types them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from click.testing import CliRunner

from rdcache.cli import cli, run_command_line
from rdcache.data import load_dataset


@pytest.fixture
def features(folder: Path, tmp_path: Path) -> Path:
    """A vector for each image of the folder, keyed by path."""
    places = [sample.path for sample in load_dataset(f"folder:{folder}").samples]
    path = tmp_path / "features.h5"
    with h5py.File(path, "w") as content:
        content["features"] = np.random.default_rng(0).random((len(places), 4), np.float32)
        content["path"] = ["/".join(place.parts[-2:]) for place in places]
    return path


@pytest.fixture
def options(folder: Path) -> tuple[str, ...]:
    naming = ("--dataset", f"folder:{folder}", "--teacher-name", "theirs")
    return (*naming, "--tap", "pooled=features", "--keys", "path")


def succeed(*arguments: str) -> str:
    result = CliRunner().invoke(cli, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def as_json(*arguments: str) -> Any:
    return json.loads(succeed(*arguments, "--json"))


def test_features_go_in_out_and_in_again(
    features: Path, options: tuple[str, ...], tmp_path: Path
) -> None:
    first = as_json("import", str(features), *options)
    assert (first["status"], first["samples"], first["views"]) == ("imported", 40, 1)
    assert first["taps"] == {"pooled": {"shape": [4], "dtype": "float32"}}
    assert first["missing"] == first["not_finite"] == first["unmatched"] == []
    assert as_json("import", str(features), *options)["status"] == "unchanged"
    assert "theirs" in succeed("info", first["store"])

    out = str(tmp_path / "out.h5")
    exported = as_json("export", first["store"], out)
    assert (exported["file"], exported["store"]) == (out, first["store"])
    assert exported["bytes"] == Path(out).stat().st_size
    again = as_json("import", out, "--root", str(tmp_path / "other"))
    assert again["status"] == "imported"
    assert as_json("info", again["store"]) == as_json("info", first["store"])


def test_people_are_told_what_was_left_out(
    features: Path, options: tuple[str, ...], folder: Path, tmp_path: Path
) -> None:
    with h5py.File(features, "r+") as content:
        content["features"][0, 0] = np.nan
    (folder / "benign" / "05.png").unlink()
    text = succeed("import", str(features), *options, "--allow-missing")
    assert "Imported." in text
    assert "1 images with NaN or Inf" in text
    assert "1 rows without an image" in text
    store = next(line.split()[-1] for line in text.splitlines() if "store" in line)
    assert "Exported." in succeed("export", store, str(tmp_path / "out.h5"))


@pytest.mark.parametrize("name", ["export", "import"])
def test_help_has_an_example(name: str) -> None:
    assert f"rdcache {name} " in succeed(name, "--help").partition("Example")[2]


def test_mistakes_get_one_sentence_and_the_right_status(
    capsys: pytest.CaptureFixture[str],
    features: Path,
    options: tuple[str, ...],
    folder: Path,
    tmp_path: Path,
) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("no features")
    begun = tmp_path / "begun"
    begun.mkdir()
    mistakes = [
        (("export", str(tmp_path / "nowhere"), str(tmp_path / "a.h5")), 1, "no rdcache store"),
        (("import", str(text)), 1, "no HDF5 file"),
        (("import", str(tmp_path / "nowhere.h5")), 1, "cannot be read"),
        (("import", str(features)), 2, "say which images"),
        (("import", str(features), *options[:4]), 2, "say which HDF5 datasets"),
        (("import", str(features), *options[:6], "--keys", "paths"), 2, "no dataset in"),
        (("import", str(features), *options, "--tokens", "3"), 2, "leave out   --tokens"),
        (("import", str(begun), *options[:4]), 1, "no HDF5 file in this folder"),
    ]
    for arguments, status, sentence in mistakes:
        assert run_command_line(arguments) == status, arguments
        printed = capsys.readouterr().err
        assert printed.startswith("Error: ")
        assert sentence in printed, printed
