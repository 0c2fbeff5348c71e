"""Pooled, projected, rounded and compressed taps, from the options to the student."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from forked import Forked
from small_inputs import LargeOnBright, NanOnDark, Pooling, save_image
from torch import nn

import rdcache
from rdcache.errors import UnknownNameError, UsageError
from rdcache.extraction import ExtractConfig, plan_extraction, run_extraction
from rdcache.extraction.basis import Moments
from rdcache.extraction.checking import compare_with_teacher, mend_shards, plan_again
from rdcache.extraction.fidelity import similarity
from rdcache.store import RemotePath, Store, TapSpec, open_store, verify_store
from rdcache.store.hdf5_export import export_hdf5
from rdcache.store.hdf5_import import import_hdf5
from rdcache.store.transfer import Part, copy_store

Script = Callable[[nn.Module], str]
EVERYTHING = {"dtype": "int8", "codec": "zstd", "pool": "out0=2", "project": "out0=2"}
TAPS = ("out0", "out1")


def config(teacher: str, folder: Path, **options: object) -> ExtractConfig:
    given: Any = {"views": "flip", "batch_size": 8, "taps": TAPS, **options}
    return ExtractConfig(teacher=teacher, dataset=f"folder:{folder}", **given)


def extracted(teacher: str, folder: Path, **options: object) -> Store:
    return run_extraction(plan_extraction(config(teacher, folder, **options))).store


def numbers(store: Store) -> dict[str, torch.Tensor]:
    return store.read(range(store.samples), 0)


def files(location: Path) -> dict[str, bytes]:
    return {
        path.relative_to(location).as_posix(): path.read_bytes()
        for path in location.rglob("*")
        if path.is_file() and path != location / "zarr.json"
    }


@pytest.fixture
def teacher(script: Script) -> str:
    return script(Pooling(1.0))


@pytest.fixture
def plain(teacher: str, folder: Path, tmp_path: Path) -> Store:
    """The same taps in float32, whole."""
    return extracted(teacher, folder, dtype="float32", root=tmp_path / "plain")


def test_options_that_are_not_used_leave_the_fingerprint_as_it_was(
    teacher: str, folder: Path
) -> None:
    parts = plan_extraction(config(teacher, folder)).fingerprint.parts
    assert parts["dtype"] == "float16"
    assert not {"codec", "pool", "project"} & parts.keys()


def test_what_changes_numbers_makes_another_store_and_a_codec_does_not(
    teacher: str, folder: Path
) -> None:
    def digest(**options: object) -> str:
        return plan_extraction(config(teacher, folder, **options)).fingerprint.digest

    plain = digest()
    changed = [
        {"dtype": "int8"},
        {"dtype": "out0=int8"},
        {"pool": "out0=2"},
        {"pool": "out0=2x3"},
        {"project": "out0=2"},
        {"project": "out0=1"},
    ]
    assert len({plain, *(digest(**options) for options in changed)}) == len(changed) + 1
    assert digest(codec="zstd") == digest(codec="out0=blosc") == plain
    assert digest(dtype="out0=float16,out1=float16") == digest(dtype={"out0": "float16"}) == plain
    assert digest(dtype={"out0": "int8"}) == digest(dtype="out0=int8,out1=float16")


@pytest.mark.parametrize("codec", ["zstd", "blosc"])
def test_a_codec_changes_no_number(teacher: str, folder: Path, tmp_path: Path, codec: str) -> None:
    plain = extracted(teacher, folder)
    packed = extracted(teacher, folder, codec=codec, root=tmp_path / "packed")
    assert {tap.codec for tap in packed.taps.values()} == {codec}
    assert packed.fingerprint == plain.fingerprint
    for tap, values in numbers(packed).items():
        assert torch.equal(values, numbers(plain)[tap])
    assert packed.manifest["fidelity"]["out0"]["cosine"] > 0.999
    assert "fidelity" not in plain.manifest


def test_a_store_that_is_there_keeps_its_codec(teacher: str, folder: Path) -> None:
    first = extracted(teacher, folder, codec="zstd")
    again = run_extraction(plan_extraction(config(teacher, folder)))
    assert again.status == "unchanged"
    assert again.store.location == first.location
    assert again.store.taps["out0"].codec == "zstd"


def test_int8_is_within_half_a_step_of_the_teacher(
    teacher: str, folder: Path, plain: Store
) -> None:
    store = extracted(teacher, folder, dtype="out0=int8")
    whole, back = numbers(plain)["out0"], numbers(store)["out0"]
    steps = whole.abs().amax((2, 3), keepdim=True) / 127
    assert ((whole - back).abs() <= steps * 0.50001).all()
    assert store.taps["out1"].dtype == "float16"
    assert store.manifest["fidelity"].keys() == {"out0"}


def test_a_pooled_map_is_the_average_of_the_teachers(
    teacher: str, folder: Path, plain: Store
) -> None:
    store = extracted(teacher, folder, pool="out0=2x1", dtype="float32")
    expected = numbers(plain)["out0"].reshape(-1, 3, 2, 2, 4).mean((3, 4)).unsqueeze(-1)
    torch.testing.assert_close(numbers(store)["out0"], expected)
    assert store.manifest["fidelity"]["out0"]["ratio"] < 4  # float32, and the shard's index


def test_a_projection_is_the_principal_component_analysis_of_the_probe(
    teacher: str, folder: Path, plain: Store
) -> None:
    store = extracted(teacher, folder, project="out0=2", dtype="float32")
    training = np.flatnonzero(store.splits == "train")
    values = numbers(plain)["out0"].double().numpy()
    vectors = values[training].transpose(0, 2, 3, 1).reshape(-1, 3)
    mean = vectors.mean(0)
    _, _, directions = np.linalg.svd(vectors - mean, full_matrices=False)
    basis = directions[:2]
    basis = basis * np.sign(basis[np.arange(2), np.abs(basis).argmax(1)])[:, None]
    np.testing.assert_allclose(store.projections["out0"].basis, basis, atol=1e-4)
    np.testing.assert_allclose(store.projections["out0"].mean, mean, atol=1e-5)
    expected = np.einsum("kc,nchw->nkhw", basis, values - mean[:, None, None])
    np.testing.assert_allclose(numbers(store)["out0"], expected, atol=1e-3)


def test_a_basis_with_all_directions_that_vary_loses_nothing() -> None:
    tap = TapSpec("t", "tokens", (5, 2), "float32", projected_from=6)
    flat = torch.randn(40, 5, 2) @ torch.randn(2, 6) + 3
    moments = Moments(tap)
    moments.add(flat)
    projection = moments.projection()
    torch.testing.assert_close(
        projection.restore(projection.project(flat, tap), tap), flat, atol=1e-4, rtol=1e-4
    )


def test_two_extractions_are_the_same_bytes(teacher: str, folder: Path, tmp_path: Path) -> None:
    stores = [
        extracted(teacher, folder, root=tmp_path / name, **EVERYTHING) for name in ("one", "two")
    ]
    assert files(stores[0].location) == files(stores[1].location)
    assert stores[0].manifest["fidelity"] == stores[1].manifest["fidelity"]
    assert verify_store(stores[0].location) == []


def test_samples_with_nan_are_left_out_of_int8_and_projections_too(
    script: Script, folder: Path
) -> None:
    save_image(folder / "benign" / "black.png", np.zeros((40, 40, 3), np.uint8))
    options = {"taps": (), "dtype": "int8", "project": "out0=2"}
    extraction = run_extraction(plan_extraction(config(script(NanOnDark()), folder, **options)))
    assert len([sample for sample, view in extraction.not_finite if view == 0]) == 1
    stored = np.flatnonzero(extraction.store.available(range(41), 0)).tolist()
    assert extraction.store.read(stored, 0)["out0"].isfinite().all()


def test_a_tap_that_overflows_is_widened_with_its_codec(script: Script, folder: Path) -> None:
    save_image(folder / "malignant" / "white.png", np.full((40, 40, 3), 255, np.uint8))
    plan = plan_extraction(config(script(LargeOnBright()), folder, codec="zstd"))
    extraction = run_extraction(plan)
    assert extraction.promoted == ("out0",)
    assert (extraction.store.taps["out0"].dtype, extraction.store.taps["out0"].codec) == (
        "float32",
        "zstd",
    )


def test_more_views_are_copied_where_the_basis_is_the_same(teacher: str, folder: Path) -> None:
    few = extracted(teacher, folder, views="clean", **EVERYTHING)
    more = run_extraction(plan_extraction(config(teacher, folder, views="flip", **EVERYTHING)))
    assert more.copied == few.samples
    rows = range(few.samples)
    stored = few.read_stored(rows, 0)
    assert all(torch.equal(stored[tap], it) for tap, it in more.store.read_stored(rows, 0).items())


def test_another_basis_gives_nothing_away(
    teacher: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr("rdcache.extraction.basis.PROBE", 10)
        extracted(teacher, folder, views="clean", **EVERYTHING)
    more = run_extraction(plan_extraction(config(teacher, folder, views="flip", **EVERYTHING)))
    assert more.copied == 0


def test_a_store_agrees_with_its_teacher_and_is_mended_with_its_own_basis(
    teacher: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = extracted(teacher, folder, **EVERYTHING)
    plan = plan_again(store.location, teacher=teacher, dataset=f"folder:{folder}")
    assert all(agreement.ok for agreement in compare_with_teacher(store, plan, 20))
    before = files(store.location)
    shard = next(path for path in (store.location / "taps/out0/c/1").rglob("*") if path.is_file())
    shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    monkeypatch.setattr("rdcache.extraction.basis.PROBE", 10)  # would give another basis
    mend_shards(plan, verify_store(store.location))
    assert files(store.location) == before


def test_such_a_store_goes_through_hdf5_byte_for_byte(
    teacher: str, folder: Path, tmp_path: Path
) -> None:
    store = extracted(teacher, folder, **EVERYTHING)
    export_hdf5(store, tmp_path / "out.h5")
    imported, _ = import_hdf5(tmp_path / "out.h5", tmp_path / "imported")
    assert files(imported.location) == files(store.location)
    assert imported.manifest == store.manifest


def test_a_part_of_such_a_store_is_what_an_extraction_of_it_makes(
    teacher: str, folder: Path, tmp_path: Path
) -> None:
    options = {**EVERYTHING, "dtype": "out0=int8"}
    store = extracted(teacher, folder, **options)
    copy = copy_store(store.location, tmp_path / "copy", Part(taps=("out0",))).store
    alone = extracted(teacher, folder, root=tmp_path / "alone", taps=("out0",), **options)
    assert copy.fingerprint == alone.fingerprint
    assert files(copy.location) == files(alone.location)
    assert copy.manifest["fidelity"] == alone.manifest["fidelity"]
    vectors = copy_store(store.location, tmp_path / "copy", Part(taps=("out1",))).store
    plain = plan_extraction(config(teacher, folder, taps=("out1",)))
    assert vectors.fingerprint == plain.fingerprint
    training = copy_store(store.location, tmp_path / "copy", Part(splits=("train",))).store
    rows = range(training.samples)
    assert torch.equal(training.read(rows, 1)["out0"], store.read(rows, 1)["out0"])
    assert verify_store(training.location) == []


def test_such_a_store_is_extracted_into_a_bucket(
    teacher: str, folder: Path, bucket: RemotePath
) -> None:
    store = extracted(teacher, folder, root=bucket, **EVERYTHING)
    local = extracted(teacher, folder, **EVERYTHING)
    assert store.fingerprint == local.fingerprint
    assert all(torch.equal(it, numbers(local)[tap]) for tap, it in numbers(store).items())
    again = run_extraction(plan_extraction(config(teacher, folder, root=bucket, **EVERYTHING)))
    assert again.status == "unchanged"
    assert verify_store(store.location) == []


def test_a_student_learns_from_such_a_store(teacher: str, folder: Path, tmp_path: Path) -> None:
    store = extracted(teacher, folder, **EVERYTHING)
    run = rdcache.distill(
        store,
        student="shufflenet-x0.5",
        dataset=f"folder:{folder}",
        epochs=1,
        image_size=32,
        batch_size=8,
        out=tmp_path / "runs",
    )
    assert 0 <= run.metrics["accuracy"] <= 1


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"dtype": "float64"}, "--dtype is one of float16"),
        ({"codec": "out0=lzma"}, "--codec is one of none, zstd, blosc"),
        ({"dtype": "int8,float16"}, "one value for all taps"),
        ({"pool": "4"}, "--pool is given as TAP=VALUE"),
        ({"pool": "out0=2,out0=3"}, "each tap once"),
        ({"pool": "out1=2"}, "out1 cannot be pooled"),
        ({"pool": "out0=5"}, "as in --pool out0=2x2"),
        ({"pool": "out0=4"}, "fewer positions than it has"),
        ({"pool": "out0=2x2x2"}, "fewer positions"),
        ({"pool": "out0=two"}, "fewer positions"),
        ({"project": "out0=3"}, "fewer channels than it has"),
        ({"project": "out0=0"}, "fewer channels than it has"),
        ({"project": "out0=few"}, "fewer channels than it has"),
    ],
    ids=str,
)
def test_options_that_make_no_sense_are_one_sentence(
    teacher: str, folder: Path, options: dict[str, str], sentence: str
) -> None:
    with pytest.raises(UsageError, match=sentence):
        plan_extraction(config(teacher, folder, **options))


def test_an_option_for_a_tap_that_is_not_kept_names_those_that_are(
    teacher: str, folder: Path
) -> None:
    with pytest.raises(UnknownNameError, match="out7"):
        plan_extraction(config(teacher, folder, codec="out7=zstd"))


def test_similarity_is_that_of_the_formulas() -> None:
    random = np.random.default_rng(0)
    x, y = random.standard_normal((9, 5)), random.standard_normal((9, 3))
    near = x + 0.1 * random.standard_normal((9, 5))

    def hsic(k: np.ndarray, m: np.ndarray) -> float:
        n, one = len(k), np.ones(len(k))
        k, m = k - np.diag(np.diag(k)), m - np.diag(np.diag(m))
        middle = one @ k @ one * (one @ m @ one) / ((n - 1) * (n - 2))
        return (np.trace(k @ m) + middle - 2 / (n - 2) * (one @ k @ m @ one)) / (n * (n - 3))

    k, m = x @ x.T, y @ y.T
    expected = hsic(k, m) / np.sqrt(hsic(k, k) * hsic(m, m))
    norms = np.linalg.norm(x, axis=1) * np.linalg.norm(near, axis=1)
    cosine, cka = similarity(torch.tensor(x), torch.tensor(y), torch.tensor(near))
    assert cosine == pytest.approx(((x * near).sum(1) / norms).mean())
    assert cka == pytest.approx(expected)
    assert similarity(torch.ones(2, 3), torch.ones(2, 3), torch.ones(2, 3)) == (
        pytest.approx(1),
        None,
    )


def extract_in_small_shards(teacher: str, folder: Path, root: Path) -> None:
    """An extraction of six views, in many shards."""
    plan = plan_extraction(
        config(teacher, folder, views="6", root=root, batch_size=2, **EVERYTHING)
    )
    run_extraction(replace(plan, layout=replace(plan.layout, shard_samples=8)))


def test_a_killed_extraction_of_compressed_shards_resumes_to_the_same_bytes(
    teacher: str, folder: Path, tmp_path: Path
) -> None:
    def location(root: str) -> Path:
        (found,) = (path.parent for path in (tmp_path / root).glob("*/*/*/zarr.json"))
        return found

    process = Forked(extract_in_small_shards, teacher, folder, tmp_path / "killed")
    deadline = time.monotonic() + 60
    while len(list((tmp_path / "killed").glob("*/*/*/receipt/c/*/*/*/*"))) < 3:
        time.sleep(0.001)
        assert time.monotonic() < deadline, process.stderr
    process.kill()
    assert not open_store(location("killed"), allow_incomplete=True).complete
    for root in ("killed", "undisturbed"):
        extract_in_small_shards(teacher, folder, tmp_path / root)
    assert open_store(location("killed")).complete
    assert files(location("killed")) == files(location("undisturbed"))
