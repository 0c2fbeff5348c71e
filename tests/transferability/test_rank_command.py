"""`rdcache rank` as a user types it."""

from __future__ import annotations

import json

import numpy as np
import pytest
from click.testing import CliRunner

from rdcache.cli import cli, run_command_line

from .conftest import Images, vectors


@pytest.fixture
def two(images: Images) -> Images:
    images.store("good", {"s4": vectors(images.labels, 6.0), "s1": vectors(images.labels, 1.0, 1)})
    images.store("[red]fair", {"s4": vectors(images.labels, 2.0, 2)}, lacking=(4,))
    return images


def test_the_table_has_the_best_tap_first_and_teachers_are_compared(two: Images) -> None:
    result = CliRunner().invoke(cli, ("rank", "--dataset", "scans"), catch_exceptions=False)
    assert result.exit_code == 0
    lines = [line for line in result.stdout.splitlines() if line.startswith("│")]
    assert [line.split("│")[1].strip() for line in lines[:3]] == ["good", "[red]fair", "good"]
    assert "scans, 45 images (the validation split), learnt from 89" in result.stdout
    assert "CKA between teachers, 89 images" in result.stdout
    assert [line.split("│")[2].strip() for line in lines[3:]] == ["good", "[red]fair"]
    assert result.stderr.startswith("Left out of the train split")


def test_machines_are_told_the_same(two: Images) -> None:
    arguments = ("rank", "--dataset", "scans", "--root", str(two.root), "--taps", "s4", "--json")
    result = CliRunner().invoke(cli, arguments, catch_exceptions=False)
    ranking = json.loads(result.stdout)
    assert [score["teacher"] for score in ranking["scores"]] == ["good", "[red]fair"]
    assert ranking["scores"][0]["probe_accuracy"] > 0.9
    assert np.array(ranking["similarity"]["cka"]).shape == (2, 2)
    assert ranking["similarity"]["taps"] == {"good": "s4", "[red]fair": "s4"}
    assert ranking["notes"] == [
        "left out of the train split, 1 of 2 teachers having no features of some: 1"
    ]


def test_a_single_teacher_is_ranked_by_its_taps_alone(two: Images) -> None:
    arguments = ("rank", "--dataset", "scans", "--teacher", "good")
    result = CliRunner().invoke(cli, arguments, catch_exceptions=False)
    assert "s1" in result.stdout
    assert "CKA" not in result.stdout


def test_a_dataset_that_nobody_has_extracted_is_an_error_and_no_traceback(
    images: Images, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command_line(["rank", "--dataset", "nothing", "--root", str(images.root)]) == 1
    message = capsys.readouterr().err
    assert message.startswith("Error: there is no complete store of this dataset to rank.")
    assert "rdcache extract --teacher NAME --dataset nothing" in message
