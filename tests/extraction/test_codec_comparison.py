"""What each codec would save and cost: measured as the extraction would do it, and one is named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from small_inputs import LargeOnBright, Pooling
from torch import nn

from rdcache.extraction import ExtractConfig, comparison, plan_extraction, run_extraction
from rdcache.extraction.comparison import Candidate, compare_codecs, recommend

Script = Callable[[nn.Module], str]


def candidate(name: str, nbytes: int, cosine: float = 1.0, cka: float | None = 1.0) -> Candidate:
    return Candidate(name, "", nbytes, 1.0, 1.0, 1.0, cosine, cka)


def config(teacher: str, folder: Path, **options: object) -> ExtractConfig:
    return ExtractConfig(teacher=teacher, dataset=f"folder:{folder}", views="flip", **options)  # type: ignore[arg-type]


def test_every_way_is_measured_and_the_plain_one_comes_first(script: Script, folder: Path) -> None:
    plan = plan_extraction(config(script(Pooling(1.0)), folder, taps=("out0", "out1")))
    a_map, a_vector = compare_codecs(plan)
    names = [it.name for it in a_map.candidates]
    assert names == ["none", "zstd", "blosc", "int8", "int8+zstd", "pool"]
    assert [it.name for it in a_vector.candidates] == names[:-1]
    plain = a_map.candidates[0]
    assert plain.ratio == pytest.approx(96 / 100)  # a crc32c for each sample
    assert plain.nbytes == 100 * plan.forwards
    assert plain.cosine > 0.99999
    assert all(it.encode_mb_s > 0 and it.decode_mb_s > 0 for it in a_map.candidates)
    assert not plan.location.exists()


def test_what_is_measured_is_what_an_extraction_gives(script: Script, folder: Path) -> None:
    teacher = script(Pooling(1.0))
    (compared,) = compare_codecs(plan_extraction(config(teacher, folder)))
    for name, options in (
        ("int8+zstd", {"dtype": "int8", "codec": "zstd"}),
        ("pool", {"pool": "out0=2"}),
    ):
        (measured,) = [it for it in compared.candidates if it.name == name]
        store = run_extraction(plan_extraction(config(teacher, folder, **options))).store
        entry = store.manifest["fidelity"]["out0"]
        assert entry["samples"] == compared.samples
        assert entry["cosine"] == pytest.approx(measured.cosine, abs=1e-5)
        assert entry["cka"] == pytest.approx(measured.cka, abs=1e-5)


def test_a_tap_that_does_not_fit_float16_is_compared_in_float32(
    script: Script, folder: Path
) -> None:
    (compared,) = compare_codecs(plan_extraction(config(script(Pooling(1e5)), folder)))
    assert compared.candidates[0].options == "--dtype out0=float32"
    assert compared.candidates[0].cosine == pytest.approx(1)


def test_the_smallest_faithful_candidate_is_recommended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparison, "SMALL", 10)
    plain = candidate("none", 100)
    assert recommend((plain, candidate("int8", 50), candidate("zstd", 60)))[0] == "int8"
    unfaithful = (candidate("pool", 25, cosine=0.9), candidate("project", 20, cka=0.9))
    name, why = recommend((plain, *unfaithful, candidate("zstd", 80)))
    assert name == "zstd"
    assert why.startswith("1.2 times smaller")
    assert recommend((plain, candidate("zstd", 90)))[0] == "none"
    assert recommend((plain, candidate("int8", 50, cka=None)))[0] == "int8"


def test_nothing_is_compiled_for_a_probe(
    script: Script, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_extraction(config(script(Pooling(1.0)), folder, taps=("out0", "out1")))

    def refuse(*given: object) -> None:
        raise AssertionError("compiled anew for each tap")

    monkeypatch.setattr(plan.teacher, "_forward", refuse)
    monkeypatch.setattr(plan.teacher, "compiled", True)
    assert len(compare_codecs(plan)) == 2
    assert plan.teacher.compiled, "the teacher itself stays as it is"


def test_a_small_tap_stays_as_it_is() -> None:
    name, why = recommend((candidate("none", 999_999_999), candidate("int8", 1)))
    assert name == "none"
    assert "less than 1 GB" in why


def test_a_tap_with_large_numbers_here_and_there_is_compared_without_a_word(
    script: Script, folder: Path
) -> None:
    assert compare_codecs(plan_extraction(config(script(LargeOnBright()), folder)))
