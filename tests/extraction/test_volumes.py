"""Phase 1 on volumes: what is stored is what the teacher gives for the same box, live."""

from __future__ import annotations

import json
import signal
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import nibabel
import numpy as np
import pytest
import torch
from forked import Forked
from pydantic import ValidationError
from small_inputs import Pooling
from small_volumes import PoolingOfVolumes, drawn_dataset, scripted, use_drawn_volumes
from test_extract import receipts, shard_objects

from rdcache.data import VOLUME_VIEW_COLUMNS, cut_volume
from rdcache.errors import UsageError
from rdcache.extraction import ExtractConfig, ExtractionPlan, plan_extraction, run_extraction
from rdcache.extraction.checking import compare_with_teacher, plan_again
from rdcache.extraction.live_taps import load_live_taps
from rdcache.extraction.volumes import window_advice
from rdcache.models import load_teacher
from rdcache.models.volume_preprocessing import VolumePreprocessing
from rdcache.store import Store, open_store


@pytest.fixture
def volumes(monkeypatch: pytest.MonkeyPatch) -> None:
    use_drawn_volumes(monkeypatch)


def planned(teacher: str, **options: object) -> ExtractionPlan:
    return plan_extraction(
        ExtractConfig(teacher=teacher, dataset="balls", dtype="float32", device="cpu", **options)  # type: ignore[arg-type]
    )


def box_of(store: Store, plan: ExtractionPlan, sample: int, view: int) -> torch.Tensor:
    """A view of a volume as a teacher without a window of its own sees it: (1, C, d, h, w)."""
    volume = drawn_dataset().decode(sample)
    parameters = store.view_parameters[view, sample]
    cut = cut_volume(volume.values, parameters, plan.teacher.of_volumes.patch, volume.low)
    fractions = np.clip((cut - volume.low) / (volume.high - volume.low), 0, 1)
    return torch.from_numpy(fractions.astype(np.float32))[None]


@pytest.mark.usefixtures("volumes")
@pytest.mark.parametrize("options", [{"patch": 8, "stride": 2}, {}])
def test_a_cached_box_is_what_a_teacher_of_volumes_gives_for_it_live(
    options: dict[str, object], tmp_path: Path
) -> None:
    name = scripted(PoolingOfVolumes(), tmp_path)
    plan = planned(name, views="3", **options)
    store = run_extraction(plan).store
    teacher = load_teacher(name)
    for sample, view in ((0, 0), (5, 2), (11, 0)):
        expected = teacher.forward_taps(box_of(store, plan, sample, view), ["out0"])["out0"][0]
        assert expected.shape == store.taps["out0"].shape == (1, 2, 2, 2)
        torch.testing.assert_close(store.read([sample], view, ["out0"])["out0"][0], expected)
    assert store.taps["out0"].kind == "map3d"
    assert tuple(store.view_columns) == VOLUME_VIEW_COLUMNS


@pytest.mark.usefixtures("volumes")
def test_a_cached_box_is_what_a_teacher_of_images_gives_for_its_slices_live(
    script: object, tmp_path: Path
) -> None:
    name = script(Pooling(1.0))  # type: ignore[operator]
    plan = planned(name, views="2", patch=(6, 10, 8), slices=2, taps=("out0", "out1"))
    store = run_extraction(plan).store
    teacher = load_teacher(name)
    box = box_of(store, plan, 3, 1)
    slices = box[0, :, [1, 3, 5]].transpose(0, 1).expand(-1, 3, -1, -1)
    squares = torch.nn.functional.interpolate(slices, (224, 224), mode="bilinear", antialias=True)
    outputs = teacher.forward_taps(teacher.of_images.standardise(squares), ["out0", "out1"])
    read = store.read([3], 1, ["out0", "out1"])
    assert store.taps["out0"].shape == (3, 3, 4, 4)
    torch.testing.assert_close(read["out0"][0], outputs["out0"].transpose(0, 1))
    torch.testing.assert_close(read["out1"][0], outputs["out1"].mean(0))


@pytest.mark.parametrize(
    ("own", "datasets", "told"),
    [
        ((-1000.0, 1000.0), None, True),
        ((-1000.0, 1000.0), (0.0, 255.0), True),
        ((-1000.0, 1000.0), (-175.0, 250.0), False),
        (None, None, False),
    ],
)
def test_a_window_of_hounsfield_units_is_spoken_of_where_volumes_may_be_no_ct(
    own: tuple[float, float] | None, datasets: tuple[float, float] | None, told: bool
) -> None:
    preprocessing = VolumePreprocessing((8, 8, 8), window=own)
    teacher = SimpleNamespace(name="merlin", dimensions=3, of_volumes=preprocessing)
    dataset = SimpleNamespace(window=datasets)
    assert ("Hounsfield" in window_advice(dataset, teacher)) is told  # type: ignore[arg-type]


@pytest.mark.usefixtures("volumes")
def test_a_map_of_a_volume_is_pooled_along_all_three_axes(tmp_path: Path) -> None:
    name = scripted(PoolingOfVolumes((8, 8, 16)), tmp_path)
    whole = run_extraction(planned(name, views="clean", patch=(8, 8, 16))).store
    pooled = run_extraction(
        planned(name, views="clean", patch=(8, 8, 16), pool={"out0": "1x2x2"})
    ).store
    assert pooled.taps["out0"].shape == (1, 1, 2, 2)
    small = torch.nn.functional.adaptive_avg_pool3d(whole.read([4], 0, ["out0"])["out0"], (1, 2, 2))
    torch.testing.assert_close(pooled.read([4], 0, ["out0"])["out0"], small)


@pytest.mark.usefixtures("volumes")
def test_what_decides_the_numbers_of_volumes_decides_the_fingerprint(tmp_path: Path) -> None:
    name = scripted(PoolingOfVolumes(), tmp_path)
    plans = [
        planned(name, views="2"),
        planned(name, views="2", patch=8),
        planned(name, views="2", patch=12),
        planned(name, views="2", patch=8, stride=4),
        planned(name, views="2", patch=8, spacing=2),
    ]
    assert len({plan.fingerprint.digest for plan in plans}) == len(plans)
    assert plans[2].teacher.taps["out0"].shape == (1, 3, 3, 3)


@pytest.mark.usefixtures("volumes")
def test_beyond_a_volume_a_teacher_with_a_window_of_its_own_sees_its_lower_end(
    tmp_path: Path,
) -> None:
    plan = planned(scripted(PoolingOfVolumes(), tmp_path), views="clean", patch=32)
    own = plan.teacher.of_volumes
    plan.teacher.preprocessing = replace(own, window=(0.0, 100.0))  # the volumes' low is 50
    corner = run_extraction(plan).store.read([0], 0, ["out0"])["out0"][0, :, 0, 0, 0]
    assert corner.item() == 0


def test_what_lies_beyond_a_volume_does_not_count_in_its_deviation() -> None:
    volume = drawn_dataset().decode(0)
    preprocessing = VolumePreprocessing((32, 32, 32), scaling="zscore")
    box = np.array([-8, -8, -8, 24, 24, 24, 0, 0, 0, 0], np.float64)
    outside = preprocessing.outside(volume.low)
    padded = preprocessing.scaled(cut_volume(volume.values, box, (32, 32, 32), outside), 0, 0)
    alone = preprocessing.scaled(volume.values, 0, 0)
    depth, height, width = volume.shape
    inside = padded[:, 8 : 8 + depth, 8 : 8 + height, 8 : 8 + width]
    np.testing.assert_allclose(inside, alone, atol=1e-5)


def test_boxes_of_another_window_are_not_taken_from_another_store(tmp_path: Path) -> None:
    """The same CT is one thing among lungs and another one in the abdomen."""
    random = np.random.default_rng(0)
    for task in ("Abdomen", "Lung"):
        for folder in ("imagesTr", "labelsTr"):
            (tmp_path / task / folder).mkdir(parents=True)
        about = {"modality": {"0": "CT"}, "labels": {"0": "background", "1": "organ"}}
        (tmp_path / task / "dataset.json").write_text(json.dumps(about))
    for number in range(10):
        values = random.normal(-100, 300, (10, 10, 10)).astype(np.float32)
        for task in ("Abdomen", "Lung"):
            for folder, array in (("imagesTr", values), ("labelsTr", values > 0)):
                image = nibabel.Nifti1Image(array.astype(np.int16), np.eye(4))
                nibabel.save(image, tmp_path / task / folder / f"{number}.nii")
    name = scripted(PoolingOfVolumes(), tmp_path)
    stores = []
    for task in ("Abdomen", "Lung"):
        config = ExtractConfig(
            teacher=name, dataset=f"msd:{tmp_path / task}", patch=8, device="cpu", views="clean"
        )
        stores.append(run_extraction(plan_extraction(config)).store)
    abdomen, lung = (store.read([0], 0, ["out0"])["out0"] for store in stores)
    assert stores[0].uids.tolist() == stores[1].uids.tolist()
    assert not torch.allclose(abdomen, lung, atol=0.01)


@pytest.mark.usefixtures("volumes")
def test_a_store_of_volumes_is_verified_against_its_teacher_run_again(
    script: object, tmp_path: Path
) -> None:
    for name, options in (
        (scripted(PoolingOfVolumes(), tmp_path), {"patch": 8, "stride": 2}),
        (script(Pooling(1.0)), {"patch": (4, 8, 8), "slices": 2, "spacing": 1.5}),  # type: ignore[operator]
    ):
        store = run_extraction(planned(name, views="2", **options)).store
        again = plan_again(store.location, teacher=name, dataset="balls", device="cpu")
        assert all(it.ok for it in compare_with_teacher(store, again, 3))
        (live,) = load_live_taps(open_store(store.location), [name])
        assert set(live.of(box_of(store, again, 1, 0), store.taps)) == set(store.taps)


@pytest.mark.usefixtures("volumes")
def test_a_stride_without_patches_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--stride is for patches"):
        planned(scripted(PoolingOfVolumes(), tmp_path), stride=4)


def test_options_of_volumes_are_refused_for_images(script: object, few: Path) -> None:
    name = script(Pooling(1.0))  # type: ignore[operator]
    with pytest.raises(UsageError, match="--patch is for volumes"):
        plan_extraction(ExtractConfig(teacher=name, dataset=f"folder:{few}", patch=8))


def test_a_teacher_of_volumes_is_refused_for_images(few: Path, tmp_path: Path) -> None:
    name = scripted(PoolingOfVolumes(), tmp_path)
    with pytest.raises(UsageError, match="looks at volumes"):
        plan_extraction(ExtractConfig(teacher=name, dataset=f"folder:{few}"))


def test_a_segmentation_is_cut_to_the_teachers_patch_or_asks_for_one(
    script: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_drawn_volumes(monkeypatch, "segmentation")
    plan = planned(scripted(PoolingOfVolumes(), tmp_path), views="2")
    assert plan.view_spec.patch == (8, 8, 8)
    with pytest.raises(UsageError, match="cut to boxes of one size"):
        planned(script(Pooling(1.0)), views="2")  # type: ignore[operator]


def test_volumes_of_several_channels_go_to_teachers_that_take_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_drawn_volumes(monkeypatch, channels=2)
    with pytest.raises(UsageError, match="1 channel; these have 2"):
        planned(scripted(PoolingOfVolumes(), tmp_path))
    two = planned(scripted(PoolingOfVolumes(channels=2), tmp_path), views="clean")
    assert run_extraction(two).store.taps["out0"].shape == (2, 2, 2, 2)


@pytest.mark.parametrize("given", [0, (8, 8), (8, -1, 8), "many"])
def test_a_patch_is_three_sides_above_zero(given: object) -> None:
    with pytest.raises(ValidationError):
        ExtractConfig(teacher="lvm-med", dataset="balls", patch=given)


def test_one_number_is_a_cube() -> None:
    config = ExtractConfig(teacher="lvm-med", dataset="balls", patch=96, spacing=1.5)
    assert (config.patch, config.spacing) == ((96, 96, 96), (1.5, 1.5, 1.5))


def extract_slowly(teacher: str, root: Path) -> None:
    """Ten views in shards of two, by a process that may be killed."""
    with pytest.MonkeyPatch.context() as patch:
        use_drawn_volumes(patch)
        plan = planned(teacher, views="10", patch=8, root=root)
        run_extraction(replace(plan, layout=replace(plan.layout, shard_samples=2)))


def test_a_killed_extraction_of_volumes_resumes_to_the_same_bytes(tmp_path: Path) -> None:
    teacher = scripted(PoolingOfVolumes(), tmp_path)

    def run(root: str, kill: bool) -> None:
        process = Forked(extract_slowly, teacher, tmp_path / root)
        while kill and receipts(tmp_path / root) < 3 and process.wait(0.001) is None:
            pass
        if kill:
            process.kill()
        assert process.wait() == (-signal.SIGKILL if kill else 0), process.stderr

    run("killed", kill=True)
    (location,) = (path.parent for path in (tmp_path / "killed").glob("*/*/*/zarr.json"))
    assert not open_store(location, allow_incomplete=True).complete
    run("killed", kill=False)
    run("undisturbed", kill=False)
    (other,) = (tmp_path / "undisturbed").glob("*/*/*")
    assert {path.relative_to(location): path.read_bytes() for path in shard_objects(location)} == {
        path.relative_to(other): path.read_bytes() for path in shard_objects(other)
    }
