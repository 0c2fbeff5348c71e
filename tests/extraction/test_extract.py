"""Phase 1 on real files: what is stored, what is left out, and what a second call does."""

from __future__ import annotations

import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from forked import Forked
from small_inputs import LargeOnBright, NanOnDark, Pooling, save_image
from torch import nn

import rdcache
from rdcache.data import cut_view
from rdcache.errors import StoreWriteError, TeacherOutputError, UnknownNameError, UsageError
from rdcache.extraction import ExtractConfig, ExtractionPlan, plan_extraction, run_extraction
from rdcache.store import StoreWriter, list_stores, open_store

Script = Callable[[nn.Module], str]


def config(teacher: str, folder: Path, **options: object) -> ExtractConfig:
    return ExtractConfig(teacher=teacher, dataset=f"folder:{folder}", batch_size=4, **options)  # type: ignore[arg-type]


def test_stored_tensors_are_the_teachers_output_on_the_stored_views(
    script: Script, folder: Path
) -> None:
    plan = plan_extraction(config(script(Pooling(1.0)), folder, views="3", dtype="float32"))
    store = run_extraction(plan).store
    assert store.complete
    assert store.samples == 40
    assert store.views == 3
    assert set(store.taps) == {"out0"}
    sample, view = 5, 2
    image = cut_view(
        plan.dataset.decode(sample), store.view_parameters[view, sample], 224, "bilinear"
    )
    pixels = plan.teacher.preprocessing.normalise(torch.from_numpy(image)[None])
    expected = plan.teacher.forward_taps(pixels, ["out0"])["out0"][0]
    torch.testing.assert_close(store.read([sample], view, ["out0"])["out0"][0], expected)


def test_only_training_samples_have_more_than_the_clean_view(script: Script, folder: Path) -> None:
    store = rdcache.extract(config(script(Pooling(1.0)), folder, views="flip"))
    training = store.splits == "train"
    everyone = range(store.samples)
    assert store.available(everyone, 0).all()
    np.testing.assert_array_equal(store.available(everyone, 1), training)


def test_the_same_extraction_again_changes_nothing(script: Script, folder: Path) -> None:
    options = config(script(Pooling(1.0)), folder, views="clean")
    first = run_extraction(plan_extraction(options))
    before = {path: path.stat().st_mtime_ns for path in first.store.location.rglob("*")}
    second = run_extraction(plan_extraction(options))
    assert (first.status, second.status) == ("extracted", "unchanged")
    assert {path: path.stat().st_mtime_ns for path in second.store.location.rglob("*")} == before


def test_who_extracted_is_told_only_if_they_want(script: Script, folder: Path) -> None:
    teacher = script(Pooling(1.0))
    shy = run_extraction(plan_extraction(config(teacher, folder, views="clean"))).store
    named = config(teacher, folder, views="flip", who="Ada")
    run_extraction(plan_extraction(named))
    root = shy.location.parents[2]
    assert [summary.who for summary in list_stores(root)] == [None, "Ada"]


def test_anything_that_decides_the_numbers_makes_another_store(
    script: Script, folder: Path
) -> None:
    teacher = script(Pooling(1.0))
    base = plan_extraction(config(teacher, folder, views="clean"))
    others = [
        config(script(Pooling(2.0)), folder, views="clean"),
        config(teacher, folder, views="flip"),
        config(teacher, folder, views="clean", dtype="float32"),
        config(teacher, folder, views="clean", taps=("out0", "out1")),
        config(teacher, folder, views="clean", precision="bfloat16"),
        config(teacher, folder, views="clean", seed=1),
        config(teacher, folder, views="clean", fit="center"),
    ]
    digests = {plan_extraction(other).fingerprint.digest for other in others}
    assert len(digests | {base.fingerprint.digest}) == len(others) + 1


def test_where_the_folder_lies_makes_no_difference(
    script: Script, folder: Path, tmp_path: Path
) -> None:
    teacher = script(Pooling(1.0))
    before = plan_extraction(config(teacher, folder))
    moved = tmp_path / "elsewhere" / "images"
    moved.parent.mkdir()
    folder.rename(moved)
    after = plan_extraction(config(teacher, moved))
    assert before.fingerprint == after.fingerprint
    assert before.location == after.location


def test_a_sample_with_nan_is_reported_and_cannot_be_read(script: Script, folder: Path) -> None:
    save_image(folder / "benign" / "black.png", np.zeros((40, 40, 3), np.uint8))
    plan = plan_extraction(config(script(NanOnDark()), folder, views="flip"))
    extraction = run_extraction(plan)
    black = [sample for sample, view in extraction.not_finite if view == 0]
    assert len(black) == 1
    assert not plan.dataset.decode(black[0]).any()
    with pytest.raises(rdcache.RdcacheError):
        extraction.store.read(black, 0)
    again = run_extraction(plan_extraction(config(script(NanOnDark()), folder, views="flip")))
    assert again.not_finite == extraction.not_finite


def test_a_teacher_that_gives_only_nan_is_an_error_and_leaves_nothing(
    script: Script, folder: Path
) -> None:
    plan = plan_extraction(config(script(Pooling(float("nan"))), folder))
    with pytest.raises(TeacherOutputError, match="NaN or Inf for every one"):
        run_extraction(plan)
    assert not plan.location.exists()


def test_a_tap_that_is_large_from_the_start_is_kept_in_float32(
    script: Script, folder: Path
) -> None:
    extraction = run_extraction(plan_extraction(config(script(Pooling(1e5)), folder)))
    assert extraction.promoted == ("out0",)
    assert extraction.store.taps["out0"].dtype == "float32"
    assert torch.isfinite(extraction.store.read(range(40), 0)["out0"]).all()


def test_a_tap_that_overflows_in_the_middle_is_extracted_again_in_float32(
    script: Script, folder: Path
) -> None:
    save_image(folder / "malignant" / "white.png", np.full((40, 40, 3), 255, np.uint8))
    plan = plan_extraction(
        config(script(LargeOnBright()), folder, taps=("out0", "out1"), views="flip")
    )
    white = next(i for i in range(41) if (plan.dataset.decode(i) == 255).all())
    assert white >= 4, "the probe must not see it, else this tests nothing"
    extraction = run_extraction(plan)
    assert extraction.promoted == ("out0",)
    assert extraction.store.taps["out1"].dtype == "float16"
    assert extraction.store.read([white], 0, ["out0"])["out0"].max() > 1e5
    assert torch.isfinite(extraction.store.read(range(41), 0, ["out0"])["out0"]).all()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_every_dtype_comes_back_as_itself(script: Script, folder: Path, dtype: str) -> None:
    exact = run_extraction(
        plan_extraction(config(script(Pooling(1.0)), folder, dtype="float32", views="clean"))
    ).store.read([0, 7], 0)["out0"]
    store = rdcache.extract(config(script(Pooling(1.0)), folder, dtype=dtype, views="clean"))
    stored = store.read([0, 7], 0)["out0"]
    assert stored.dtype == getattr(torch, dtype)
    torch.testing.assert_close(stored, exact.to(stored.dtype), rtol=0, atol=0)


def test_an_unknown_tap_is_named_with_its_neighbours(script: Script, folder: Path) -> None:
    with pytest.raises(UnknownNameError, match=r"no tap of .*'out7'(.|\n)*out0"):
        plan_extraction(config(script(Pooling(1.0)), folder, taps=("out7",)))


def test_too_little_space_is_said_before_anything_is_written(
    script: Script, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_extraction(config(script(Pooling(1.0)), folder))
    monkeypatch.setattr(type(plan), "free_bytes", lambda self: 10)
    with pytest.raises(StoreWriteError, match="not enough free space"):
        run_extraction(plan)
    assert not plan.location.exists()


def extract_slowly(teacher: str, folder: Path, root: Path) -> None:
    """Six views in shards of eight, by a process that may be killed."""
    plan = plan_extraction(config(teacher, folder, views="6", root=root))
    run_extraction(replace(plan, layout=replace(plan.layout, shard_samples=8)))


def test_a_killed_extraction_resumes_to_the_same_bytes(
    script: Script, folder: Path, tmp_path: Path
) -> None:
    teacher = script(Pooling(1.0))

    def run(root: str, kill: bool) -> None:
        process = Forked(extract_slowly, teacher, folder, tmp_path / root)
        while kill and receipts(tmp_path / root) < 3 and process.wait(0.001) is None:
            pass
        if kill:
            process.kill()
        assert process.wait() == (-signal.SIGKILL if kill else 0), process.stderr

    run("killed", kill=True)
    (location,) = (path.parent for path in (tmp_path / "killed").glob("*/*/*/zarr.json"))
    done_before = {path: path.stat().st_mtime_ns for path in shard_objects(location)}
    assert not open_store(location, allow_incomplete=True).complete
    run("killed", kill=False)
    run("undisturbed", kill=False)
    (other,) = (tmp_path / "undisturbed").glob("*/*/*")
    assert {path.relative_to(location): path.read_bytes() for path in shard_objects(location)} == {
        path.relative_to(other): path.read_bytes() for path in shard_objects(other)
    }
    kept = [path for path, time in done_before.items() if path.stat().st_mtime_ns == time]
    assert len(kept) >= 3, "finished shards must not be written again"
    assert open_store(location).complete


def receipts(root: Path) -> int:
    return sum(1 for path in root.rglob("*") if "receipt/c/" in path.as_posix() and path.is_file())


def shard_objects(location: Path) -> list[Path]:
    return [
        path
        for path in location.rglob("*")
        if "/c/" in path.as_posix() and path.is_file() and not path.name.endswith(".partial")
    ]


def test_a_shard_that_is_gone_or_cut_short_is_extracted_again(script: Script, folder: Path) -> None:
    options = config(script(Pooling(1.0)), folder, views="flip")
    store = run_extraction(plan_extraction(options)).store
    before = {path: path.read_bytes() for path in store.location.rglob("*") if path.is_file()}
    shards = sorted(path for path in before if "/taps/out0/c/" in path.as_posix())
    shards[0].unlink()
    shards[-1].write_bytes(before[shards[-1]][:-1])
    again = run_extraction(plan_extraction(options))
    assert again.status == "resumed"
    for path in shards:
        assert path.read_bytes() == before[path]


def test_a_crash_between_two_dtypes_of_a_tap_does_no_lasting_harm(
    script: Script, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_image(folder / "benign" / "white.png", np.full((40, 40, 3), 255, np.uint8))
    options = config(script(LargeOnBright()), folder, views="clean")

    def crash(self: StoreWriter) -> None:
        raise KeyboardInterrupt

    plan = plan_extraction(options)
    with monkeypatch.context() as patched:
        patched.setattr(StoreWriter, "write_tap_documents", crash)
        with pytest.raises(KeyboardInterrupt):
            run_extraction(plan)
    done = run_extraction(plan_extraction(options))
    assert done.promoted == ("out0",)
    assert done.store.read(range(done.store.samples), 0)["out0"].isfinite().all()


def test_an_empty_folder_in_its_place_does_not_skip_the_checks(
    script: Script, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_extraction(config(script(Pooling(1.0)), folder))
    plan.location.mkdir(parents=True)
    monkeypatch.setattr(ExtractionPlan, "free_bytes", lambda self: 10)
    with pytest.raises(StoreWriteError, match="not enough free space"):
        run_extraction(plan)
    assert not list(plan.location.iterdir())


def test_wrong_options_of_the_python_call_are_one_sentence(folder: Path) -> None:
    with pytest.raises(UsageError, match="not both"):
        rdcache.extract(config("efficientnet-lite0", folder), views="4")
    with pytest.raises(UsageError, match="taps: input should be a valid tuple"):
        rdcache.extract(teacher="efficientnet-lite0", dataset="phantom", taps="s4")
