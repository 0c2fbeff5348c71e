"""Features from elsewhere: which image each row is of, what is kept, what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from small_inputs import save_image

import rdcache
from rdcache.data import ImageDataset, load_dataset
from rdcache.errors import (
    DatasetError,
    FeatureFileError,
    UnknownNameError,
    UnsafeFileError,
    UsageError,
)
from rdcache.extraction.importing import ImportConfig, Imported, import_store
from rdcache.store import newest_store
from rdcache.store.hdf5_export import export_hdf5

Import = Callable[..., Imported]
SHAPES = {"pooled": (6,), "patches": (4, 5), "map": (3, 2, 2)}


@pytest.fixture
def dataset(folder: Path) -> ImageDataset:
    return load_dataset(f"folder:{folder}")


@pytest.fixture
def features(dataset: ImageDataset) -> dict[str, np.ndarray]:
    """Numbers for each sample, in the dataset's order."""
    random = np.random.default_rng(2)
    return {
        name: random.standard_normal((len(dataset), *shape)).astype(np.float16)
        for name, shape in SHAPES.items()
    }


@pytest.fixture
def order(dataset: ImageDataset) -> np.ndarray:
    """Rows come in another order than samples."""
    return np.random.default_rng(1).permutation(len(dataset))


@pytest.fixture
def file(
    dataset: ImageDataset, features: dict[str, np.ndarray], order: np.ndarray, tmp_path: Path
) -> Path:
    """What somebody else computed, keyed by uids, paths and bare names."""
    path = tmp_path / "features.h5"
    with h5py.File(path, "w") as content:
        for name, values in features.items():
            content[f"layers/{name}"] = values[order]
        content["uid"] = dataset.uids[order].astype("S32")
        places = [dataset.samples[i].path for i in order]
        content["path"] = ["/".join(place.parts[-2:]) for place in places]
        content["windows"] = ["images\\" + "\\".join(place.parts[-2:]) for place in places]
        content["stem"] = [f"{place.parent.name}/{place.stem}" for place in places]
        content["name"] = [place.name for place in places]
    return path


@pytest.fixture
def imports(folder: Path, file: Path) -> Import:
    """Import the file's pooled features, unless told otherwise."""

    def run(path: Path = file, **changes: Any) -> Imported:
        options = {
            "dataset": f"folder:{folder}",
            "teacher_name": "nobody's",
            "tap": ("pooled=layers/pooled",),
            "keys": "uid",
            **changes,
        }
        given = {name: value for name, value in options.items() if value is not None}
        return import_store(path, ImportConfig(**given))

    return run


@pytest.mark.parametrize("keys", ["uid", "path", "windows", "stem"])
def test_each_row_comes_to_its_image(
    imports: Import, features: dict[str, np.ndarray], keys: str
) -> None:
    taps = tuple(f"{name}=layers/{name}" for name in SHAPES)
    imported = imports(keys=keys, tap=taps)
    store = imported.store
    assert (imported.status, imported.missing, imported.unmatched) == ("imported", (), ())
    assert [tap.kind for tap in store.taps.values()] == ["vector", "tokens", "map2d"]
    assert (store.views, store.complete) == (1, True)
    for name, values in features.items():
        assert torch.equal(store.read(range(40), 0)[name], torch.from_numpy(values))


def test_the_store_lies_where_an_extraction_would_put_it(imports: Import, tmp_path: Path) -> None:
    store = imports().store
    digest = store.fingerprint.digest[:12]
    assert store.location == tmp_path / "root" / "folder-images" / "nobody-s" / digest
    assert newest_store() == store.location
    assert imports().status == "unchanged"


def test_anything_that_decides_the_numbers_makes_another_store(
    imports: Import, file: Path, features: dict[str, np.ndarray]
) -> None:
    digests = [
        imports(**changes).store.fingerprint.digest
        for changes in (
            {},
            {"keys": "path"},
            {"tap": ("pooled=layers/pooled", "map=layers/map")},
            {"teacher_name": "another"},
            {"seed": 1},
            {"fit": "center"},
        )
    ]
    with h5py.File(file, "r+") as content:
        content["layers/pooled"][0, 0] += 1
    digests.append(imports().store.fingerprint.digest)
    assert len(set(digests)) == 7


def test_nothing_of_this_machine_is_in_the_manifest(imports: Import, tmp_path: Path) -> None:
    store = imports(keys="path").store
    assert str(tmp_path) not in (store.location / "zarr.json").read_text()


@pytest.mark.parametrize("stored", ["float32", "float64", "bfloat16"])
def test_numbers_keep_their_format(
    imports: Import, file: Path, features: dict[str, np.ndarray], order: np.ndarray, stored: str
) -> None:
    values = torch.from_numpy(features["pooled"]).to(getattr(torch, stored))
    with h5py.File(file, "r+") as content:
        bits = values.view(torch.uint16) if stored == "bfloat16" else values
        content["again"] = bits.numpy()[order]
        content["again"].attrs["rdcache_dtype"] = stored
    store = imports(tap=("pooled=again",)).store
    expected = values.float() if stored == "float64" else values
    assert torch.equal(store.read(range(40), 0)["pooled"], expected)


@pytest.mark.parametrize("stored", ["float16", "float64", "bfloat16"])
def test_rows_with_nan_are_left_out_and_said(
    imports: Import, dataset: ImageDataset, file: Path, order: np.ndarray, stored: str
) -> None:
    values = torch.ones((40, 3), dtype=getattr(torch, stored))
    values[7, 1] = 1e300 if stored == "float64" else float("nan")
    with h5py.File(file, "r+") as content:
        content["again"] = (values.view(torch.uint16) if stored == "bfloat16" else values).numpy()
        content["again"].attrs["rdcache_dtype"] = stored
    imported = imports(tap=("pooled=again",))
    assert imported.not_finite == (dataset.uids[order[7]],)
    assert not imported.store.available([order[7]], 0)[0]


def test_rows_of_nothing_but_nan_are_refused_before_anything_is_written(
    imports: Import, file: Path, tmp_path: Path
) -> None:
    with h5py.File(file, "r+") as content:
        content["again"] = np.full((40, 3), np.nan, np.float32)
    with pytest.raises(FeatureFileError, match="NaN or Inf in every row"):
        imports(tap=("pooled=again",))
    assert not (tmp_path / "root").exists()


def test_an_image_without_a_row_is_named_or_left_out(
    imports: Import, folder: Path, dataset: ImageDataset
) -> None:
    save_image(folder / "benign" / "new.png", np.full((40, 40, 3), 7, np.uint8))
    with pytest.raises(DatasetError, match=r"images without row +1 \(.*new.png\)"):
        imports()
    imported = imports(allow_missing=True)
    assert len(imported.missing) == 1
    store = imported.store
    assert store.available(range(41), 0).sum() == 40
    assert store.uids[~store.available(range(41), 0)].tolist() == list(imported.missing)
    assert imports(allow_missing=True).missing == imported.missing


def test_a_row_without_an_image_is_named_or_left_out(imports: Import, folder: Path) -> None:
    (folder / "benign" / "03.png").unlink()
    with pytest.raises(DatasetError, match=r"rows without image +1 \(benign/03.png\)"):
        imports(keys="path")
    imported = imports(keys="path", allow_missing=True)
    assert imported.unmatched == ("benign/03.png",)
    assert imported.store.available(range(39), 0).all()


def test_keys_of_other_images_are_refused_even_if_some_may_be_missing(
    imports: Import, file: Path
) -> None:
    with h5py.File(file, "r+") as content:
        content["strange"] = [f"nowhere/{number}.png" for number in range(40)]
    with pytest.raises(DatasetError, match="none of these keys fits"):
        imports(keys="strange", allow_missing=True)


def test_keys_that_fit_two_images_or_one_twice_are_refused(imports: Import, file: Path) -> None:
    with pytest.raises(DatasetError, match=r"fits several images(.|\n)*\.png"):
        imports(keys="name")
    with h5py.File(file, "r+") as content:
        keys = content["path"].asstr()[:]
        keys[4] = keys[5]
        content["twice"] = keys.tolist()
    with pytest.raises(DatasetError, match="two rows are of one image"):
        imports(keys="twice")


def test_a_dataset_that_is_not_in_the_file_is_named_with_its_neighbours(imports: Import) -> None:
    with pytest.raises(UnknownNameError, match=r"layers/poled(.|\n)*layers/pooled"):
        imports(tap=("pooled=layers/poled",))
    with pytest.raises(UnknownNameError, match=r"no dataset in features\.h5 named 'layers'"):
        imports(tap=("pooled=layers",))
    with pytest.raises(UnknownNameError):
        imports(tap=("pooled=layers/../layers/pooled",))


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        (np.zeros(40, np.float32), "one vector, token matrix or map for each key"),
        (np.zeros((39, 3), np.float32), "one vector, token matrix or map for each key"),
        (np.zeros((40, 1, 1, 1, 1, 3), np.float32), "one vector, token matrix or map"),
        (np.zeros((40, 3), np.int32), "features are float16, float32 or float64"),
        (np.zeros((40, 3), np.complex64), "features are float16, float32 or float64"),
    ],
)
def test_features_of_wrong_shape_or_type_are_refused(
    imports: Import, file: Path, values: np.ndarray, sentence: str
) -> None:
    with h5py.File(file, "r+") as content:
        content["wrong"] = values
    with pytest.raises(FeatureFileError, match=sentence):
        imports(tap=("pooled=wrong",))


def test_objects_and_numbers_are_no_keys(imports: Import, file: Path) -> None:
    with h5py.File(file, "r+") as content:
        content.create_dataset("ragged", (40,), h5py.vlen_dtype(np.uint8))
        content.create_dataset("references", (40,), h5py.ref_dtype)
        for name in ("ragged", "references"):
            for row in range(40):
                content[name][row] = content.ref if name == "references" else [128, 4]
    for name in ("ragged", "references", "layers/pooled"):
        with pytest.raises(FeatureFileError, match="not one text for each row"):
            imports(keys=name)


def test_objects_are_no_features(imports: Import, file: Path) -> None:
    with h5py.File(file, "r+") as content:
        content.create_dataset("ragged", (40, 2), h5py.vlen_dtype(np.float32))[:] = [[[1.0]] * 2]
    with pytest.raises(FeatureFileError, match=r"features are float(.|\n)*objects"):
        imports(tap=("pooled=ragged",))


def test_a_shape_beyond_the_file_is_refused_before_memory_is_asked_for(
    imports: Import, file: Path
) -> None:
    with h5py.File(file, "r+") as content:
        content.create_dataset("huge", (40, 2**40), np.float32, chunks=(1, 1024))
    with pytest.raises(FeatureFileError, match="declared larger than what the file holds"):
        imports(tap=("pooled=huge",))


@pytest.mark.parametrize("link", [h5py.ExternalLink("other.h5", "/x"), h5py.SoftLink("/uid")])
def test_links_are_not_followed(imports: Import, file: Path, link: Any) -> None:
    with h5py.File(file.with_name("other.h5"), "w") as other:
        other["x/pooled"] = np.ones((40, 3), np.float32)
    with h5py.File(file, "r+") as content:
        content["link"] = link
    for tap in ("pooled=link", "pooled=link/pooled"):
        with pytest.raises(UnsafeFileError, match="links are not followed"):
            imports(tap=(tap,))


def test_the_same_through_large_packed_chunks(
    imports: Import, file: Path, features: dict[str, np.ndarray], order: np.ndarray
) -> None:
    with h5py.File(file, "r+") as content:
        values = features["pooled"][order]
        content.create_dataset("packed", data=values, chunks=(16, 6), compression="gzip")
    store = imports(tap=("pooled=packed",)).store
    assert torch.equal(store.read(range(40), 0)["pooled"], torch.from_numpy(features["pooled"]))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"dataset": None}, "say which images"),
        ({"teacher_name": None}, "say which images"),
        ({"keys": None}, "say which HDF5 datasets"),
        ({"tap": None}, "say which HDF5 datasets"),
        ({"tap": ("a=x", "a=y")}, "each name once"),
        ({"tokens": 4}, "patches are chosen in a folder of slides"),
    ],
)
def test_options_that_are_missing_or_too_many_are_named(
    imports: Import, changes: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(UsageError, match=sentence):
        imports(**changes)


def test_an_exported_store_comes_back_to_its_place(
    imports: Import, tmp_path: Path, file: Path
) -> None:
    store = imports().store
    export_hdf5(store, tmp_path / "out.h5")
    again = import_store(tmp_path / "out.h5", ImportConfig(root=tmp_path / "other"))
    below = store.location.relative_to(tmp_path / "root")
    assert again.store.location == tmp_path / "other" / below
    assert again.store.manifest == store.manifest
    with pytest.raises(UsageError, match="says itself what it holds"):
        import_store(tmp_path / "out.h5", ImportConfig(seed=1))


@pytest.mark.parametrize("method", ["none", "rd"])
def test_a_student_is_distilled_from_imported_features(
    imports: Import, folder: Path, tmp_path: Path, method: str
) -> None:
    save_image(folder / "benign" / "new.png", np.full((40, 40, 3), 7, np.uint8))
    store = imports(allow_missing=True).store
    quick = {"student": "shufflenet-x0.5", "image_size": 32, "batch_size": 8, "epochs": 1}
    run = rdcache.distill(
        store, method=method, dataset=f"folder:{folder}", out=tmp_path / "runs", **quick
    )
    assert 0 <= run.metrics["accuracy"] <= 1


@pytest.fixture
def slides(dataset: ImageDataset, tmp_path: Path) -> Path:
    """One bag of 1 to 9 patches for each image, in both usual shapes."""
    random = np.random.default_rng(4)
    for number, sample in enumerate(dataset.samples):
        patches = 1 + number % 9
        bag = random.standard_normal((patches, 5)).astype(np.float16)
        path = tmp_path / "slides" / sample.path.parent.name / f"{sample.path.stem}.h5"
        path.parent.mkdir(parents=True, exist_ok=True)
        with h5py.File(path, "w") as content:
            content["features"] = bag[None] if number % 2 else bag
            content["coords"] = random.integers(0, 9, (patches, 2))
    return tmp_path / "slides"


def bag_of(slides: Path, dataset: ImageDataset, number: int) -> np.ndarray:
    path = dataset.samples[number].path
    with h5py.File(slides / path.parent.name / f"{path.stem}.h5") as content:
        return content["features"][...].reshape(-1, 5)


BAGS: dict[str, Any] = {"tap": None, "keys": None}


def test_bags_are_pooled_and_their_patches_kept(
    imports: Import, slides: Path, dataset: ImageDataset
) -> None:
    store = imports(slides, tokens=4, **BAGS).store
    assert store.taps["tokens"].shape == (4, 5)
    for number in range(40):
        bag = bag_of(slides, dataset, number)
        kept = store.read([number], 0)
        assert np.allclose(kept["pooled"][0], bag.astype(np.float64).mean(axis=0), atol=1e-6)
        rows = [bag.tolist().index(row) for row in kept["tokens"][0].tolist()]
        assert rows == sorted(rows)
        assert len(set(rows)) == min(4, len(bag))
        assert (rows[0], rows[-1]) == (0, len(bag) - 1)


def test_without_tokens_only_the_mean_is_kept(imports: Import, slides: Path) -> None:
    store = imports(slides, **BAGS).store
    assert list(store.taps) == ["pooled"]
    assert store.manifest["teacher"]["default_tap"] == "pooled"
    assert store.taps["pooled"].dtype == "float32"


def test_an_empty_bag_and_one_with_nan_are_left_out(
    imports: Import, slides: Path, dataset: ImageDataset
) -> None:
    for number, bag in ((3, np.zeros((0, 5), np.float16)), (8, np.full((2, 5), np.nan, "f2"))):
        path = dataset.samples[number].path
        with h5py.File(slides / path.parent.name / f"{path.stem}.h5", "w") as content:
            content["features"] = bag
    imported = imports(slides, tokens=4, **BAGS)
    assert imported.not_finite == (dataset.uids[3], dataset.uids[8])


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ({"features": np.zeros((4, 6), np.float16)}, "differ in width"),
        ({"features": np.zeros((4, 5), np.float32)}, "differ in width or number format"),
        ({"features": np.zeros((2, 4, 5), np.float16)}, "no bag of patches"),
        ({"features": np.zeros((4, 5), np.int16)}, "features are float16"),
        ({"features": np.zeros((4, 5), "f2"), "coords": np.zeros((3, 2))}, "no bag of patches"),
        ({"feats": np.zeros((4, 5), np.float16)}, "no dataset in 07.h5 named 'features'"),
    ],
)
def test_a_bag_unlike_the_others_is_refused(
    imports: Import, slides: Path, content: dict[str, np.ndarray], sentence: str
) -> None:
    with h5py.File(slides / "benign" / "07.h5", "w") as file:
        for name, values in content.items():
            file[name] = values
    with pytest.raises((FeatureFileError, UnknownNameError), match=sentence):
        imports(slides, **BAGS)


def test_a_folder_without_bags_and_options_of_files_are_refused(
    imports: Import, slides: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(FeatureFileError, match="no HDF5 file in this folder"):
        imports(tmp_path / "empty", **BAGS)
    with pytest.raises(UsageError, match=r"all features are taken(.|\n)*--tap, --keys"):
        imports(slides)
