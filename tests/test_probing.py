"""A choice among ways to do the same is measured once, and then stays."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import rdcache.probing
from rdcache.probing import Choice, fastest

KEY = {"model": "resnet18", "size": 64}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that only moves when a candidate moves it."""
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    return now


@pytest.fixture
def takes(clock: list[float]) -> Callable[[float], Callable[[], None]]:
    def candidate(seconds: float) -> Callable[[], None]:
        def call() -> None:
            clock[0] += seconds

        return call

    return candidate


Takes = Callable[[float], Callable[[], None]]


def probes(cache: Path) -> list[Path]:
    return list((cache / "probes").iterdir())


def refuse() -> None:
    raise AssertionError("this was measured already")


def test_a_candidate_is_taken_that_is_faster_by_the_margin(takes: Takes) -> None:
    choice = fastest(KEY, {"float32": takes(1.25), "bfloat16": takes(1.0)})
    assert choice == Choice("bfloat16", {"float32": 1.25, "bfloat16": 1.0}, cached=False)


def test_the_first_candidate_stays_where_others_are_not_faster_by_the_margin(takes: Takes) -> None:
    assert fastest(KEY, {"float32": takes(1.125), "bfloat16": takes(1.0)}).name == "float32"
    assert fastest({}, {"plain": takes(1.125), "other": takes(1.0)}, margin=1.05).name == "other"


def test_the_same_question_is_measured_once(takes: Takes) -> None:
    first = fastest(KEY, {"float32": takes(3.0), "bfloat16": takes(1.0)})
    again = fastest(KEY, {"float32": refuse, "bfloat16": refuse})
    assert again == Choice(first.name, first.seconds, cached=True)


@pytest.mark.parametrize("other", ["model", "machine", "candidates"])
def test_another_question_is_measured_anew(
    takes: Takes, monkeypatch: pytest.MonkeyPatch, other: str
) -> None:
    fastest(KEY, {"float32": takes(3.0), "bfloat16": takes(1.0)})
    key, names = KEY, ("float32", "bfloat16")
    if other == "model":
        key = {**KEY, "model": "resnet50"}
    elif other == "machine":
        monkeypatch.setattr(rdcache.probing, "cpu_name", lambda: "another processor")
    else:
        names = ("eager", "compiled")
    choice = fastest(key, {names[0]: takes(1.0), names[1]: takes(3.0)})
    assert (choice.name, choice.cached) == (names[0], False)


@pytest.mark.parametrize(
    "damage",
    [
        "",
        "{",
        "[]",
        '{"seconds": {"float32": 1, "bfloat16": 9}}',
        '{"seconds": {"float32": "x"}}',
        "null",
    ],
)
def test_a_damaged_answer_is_measured_again(takes: Takes, cache: Path, damage: str) -> None:
    fastest(KEY, {"float32": takes(1.0), "bfloat16": takes(2.0)})
    (path,) = probes(cache)
    path.write_text(damage)
    choice = fastest(KEY, {"float32": takes(3.0), "bfloat16": takes(1.0)})
    assert (choice.name, choice.cached) == ("bfloat16", False)
    assert json.loads(path.read_text())["seconds"] == choice.seconds


def test_times_that_cannot_be_are_measured_again(takes: Takes, cache: Path) -> None:
    fastest(KEY, {"float32": takes(1.0), "bfloat16": takes(2.0)})
    (path,) = probes(cache)
    path.write_text(path.read_text().replace("2.0", "NaN"))
    assert not fastest(KEY, {"float32": takes(3.0), "bfloat16": takes(1.0)}).cached


def test_a_cache_that_cannot_be_written_costs_only_the_time(
    takes: Takes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("RDCACHE_CACHE", str(tmp_path / "file"))
    for _ in range(2):
        choice = fastest(KEY, {"float32": takes(3.0), "bfloat16": takes(1.0)})
        assert (choice.name, choice.cached) == ("bfloat16", False)


def test_what_another_process_has_found_meanwhile_counts(takes: Takes) -> None:
    """So that two runs that begin together do not go different ways."""
    inner: list[Choice] = []

    def slow() -> None:
        if not inner:
            inner.append(fastest(KEY, {"float32": takes(1.0), "bfloat16": takes(3.0)}))
        takes(9.0)()

    outer = fastest(KEY, {"float32": slow, "bfloat16": takes(1.0)})
    assert (inner[0].name, inner[0].cached) == ("float32", False)
    assert (outer.name, outer.cached) == ("float32", True)


def test_an_answer_is_written_whole(takes: Takes, cache: Path) -> None:
    fastest(KEY, {"float32": takes(1.0), "bfloat16": takes(2.0)})
    (path,) = probes(cache)
    assert json.loads(path.read_text())["question"]["model"] == "resnet18"
