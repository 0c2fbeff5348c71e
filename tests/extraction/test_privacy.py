"""What a store tells of the images: nothing that names a person, a machine or a file, unless asked.

And with a salt not even which images they are.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import platform
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest
from small_inputs import Pooling, save_image
from torch import nn

from rdcache.cli import run_command_line
from rdcache.data import load_dataset
from rdcache.distillation.source import open_dataset
from rdcache.errors import StaleStoreError, UsageError
from rdcache.extraction import ExtractConfig, plan_extraction, run_extraction
from rdcache.extraction.checking import plan_again
from rdcache.extraction.importing import ImportConfig, import_store
from rdcache.store import Store
from rdcache.store.hdf5_export import export_hdf5

SALT = "a salt that nobody knows"
PATIENTS = ("smith_john", "mueller_eva", "okafor_ada")
SECRETS = (*PATIENTS, "dr-jones-archive", "ward-seven", "lovelace-u", "icu-workstation", "tumour-x")


@pytest.fixture(autouse=True)
def _named_user_and_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("USER", "LOGNAME", "USERNAME"):
        monkeypatch.setenv(name, "lovelace-u")
    for module, name in ((platform, "node"), (socket, "gethostname"), (socket, "getfqdn")):
        monkeypatch.setattr(module, name, lambda: "icu-workstation")
    monkeypatch.setenv("HOME", "/home/lovelace-u")
    monkeypatch.delenv("RDCACHE_UID_SALT", raising=False)


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """Images whose folders, files and groups name people; duplicates across splits; broken ones."""
    random = np.random.default_rng(0)
    folder = tmp_path / "dr-jones-archive" / "ward-seven" / "images"
    for split, count in (("train", 8), ("test", 4)):
        for label, offset in (("benign", 60), ("malignant", 140)):
            for number in range(count):
                noise = random.integers(0, 60, (40, 40, 3))
                name = f"{PATIENTS[number % 3]}-{number}.png"
                save_image(folder / split / label / name, (noise + offset).astype(np.uint8))
    twin = folder / "train" / "benign" / "smith_john-0.png"
    (folder / "test" / "benign" / "mueller_eva-twin.png").write_bytes(twin.read_bytes())
    (folder / "train" / "benign" / "okafor_ada-broken.png").write_bytes(twin.read_bytes()[:-99])
    (folder / "train" / "benign" / "tumour-x.png").write_text("smith_john")
    save_image(folder / "train" / "smith_john-stray.png", np.zeros((40, 40, 3), np.uint8))
    return folder


@pytest.fixture
def table(archive: Path) -> Path:
    """A table beside the archive, one row with the absolute path of its image, one without."""
    rows = []
    for path in sorted(archive.glob("*/*/*.png")):
        name = path if not rows else path.relative_to(archive.parent)
        split, label = path.parts[-3:-1]
        rows.append([str(name), label, split, f"patient {path.name.partition('-')[0]}"])
    rows.append(["images/train/benign/mueller_eva-lost.png", "benign", "train", "okafor_ada"])
    with (archive.parent / "scans.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["path", "label", "split", "group"], *rows])
    return archive.parent / "scans.csv"


@pytest.fixture
def teacher(script: Callable[[nn.Module], str], tmp_path: Path) -> str:
    made = Path(script(Pooling(1.0)).partition(":")[2])
    folder = tmp_path / "dr-jones-archive" / "models"
    folder.mkdir(parents=True, exist_ok=True)
    return f"torchscript:{made.rename(folder / 'pooling.pt')}"


def imported(archive: Path) -> Store:
    """A store of features from elsewhere, keyed by names of patients."""
    file = archive.parent / "smith_john.h5"
    places = [sample.path for sample in load_dataset(f"folder:{archive}").samples]
    with h5py.File(file, "w") as content:
        content["features"] = np.random.default_rng(0).random((len(places), 4), np.float32)
        content["path"] = ["/".join(place.parts[-3:]) for place in places]
    options = {"dataset": f"folder:{archive}", "teacher_name": "theirs", "keys": "path"}
    return import_store(file, ImportConfig(**options, tap=("pooled=features",))).store


def bags(archive: Path) -> Store:
    """A store of a folder of slides, a file each."""
    folder = archive.parent / "slides"
    folder.mkdir()
    for sample in load_dataset(f"folder:{archive}").samples:
        below = folder / sample.path.parent.parent.name / sample.path.parent.name
        below.mkdir(parents=True, exist_ok=True)
        with h5py.File(below / f"{sample.path.stem}.h5", "w") as content:
            content["features"] = np.ones((3, 4), np.float32)
    options = {"dataset": f"folder:{archive}", "teacher_name": "theirs"}
    return import_store(folder, ImportConfig(**options)).store


def extracted(teacher: str, dataset: str, **options: object) -> Store:
    config = ExtractConfig(teacher=teacher, dataset=dataset, views="3", **options)  # type: ignore[arg-type]
    return run_extraction(plan_extraction(config)).store


def everything(root: Path) -> Iterator[bytes]:
    """The name and the bytes of every file and folder below the root."""
    for path in root.rglob("*"):
        yield path.relative_to(root).as_posix().encode()
        if path.is_file():
            yield path.read_bytes()


@pytest.mark.parametrize("kind", ["folder", "table", "phantom", "imported", "bags"])
def test_a_store_names_no_person_no_machine_and_no_file(
    kind: str, archive: Path, table: Path, teacher: str, tmp_path: Path
) -> None:
    store = {
        "folder": lambda: extracted(teacher, f"folder:{archive}"),
        "table": lambda: extracted(teacher, f"table:{table}"),
        "phantom": lambda: extracted(teacher, "phantom"),
        "imported": lambda: imported(archive),
        "bags": lambda: bags(archive),
    }[kind]()
    root = Path(os.environ["RDCACHE_ROOT"])
    export_hdf5(store, root / "out.h5")
    secrets = [secret.encode() for secret in (*SECRETS, str(tmp_path), tmp_path.name)]
    secrets += [b".png", b"home/", b"smith", b"patient"]
    seen = 0
    for data in everything(root):
        seen += 1
        for secret in secrets:
            assert secret not in data, secret
            assert secret.decode().encode("utf-16-le") not in data
    assert seen > 20


def test_who_extracts_still_sees_which_files_were_left_out(archive: Path, teacher: str) -> None:
    plan = plan_extraction(ExtractConfig(teacher=teacher, dataset=f"folder:{archive}"))
    skipped = {each.path: each.reason for each in plan.dataset.skipped}
    assert "train/benign/okafor_ada-broken.png" in skipped
    kept = plan.facts()["dataset"]["skipped"]
    assert len(kept) == len(skipped) == 3
    assert all("(" not in reason for reason in kept)


def test_paths_are_kept_only_if_asked_for_and_change_no_fingerprint(
    archive: Path, teacher: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = extracted(teacher, f"folder:{archive}", root=tmp_path / "plain")
    store = extracted(teacher, f"folder:{archive}", root=tmp_path / "kept", keep_paths=True)
    assert store.fingerprint == plain.fingerprint
    assert "paths" not in plain.manifest["dataset"]
    paths = store.manifest["dataset"]["paths"]
    dataset = load_dataset(f"folder:{archive}")
    assert [archive / path for path in paths] == [sample.path for sample in dataset.samples]
    assert run_command_line(["info", str(store.location)]) == 0
    assert f"names its {store.samples} files" in capsys.readouterr().out
    again = ["extract", "--teacher", teacher, "--dataset", f"folder:{archive}", "--views", "3"]
    assert run_command_line([*again, "--keep-paths", "--root", str(tmp_path / "plain")]) == 0
    assert "not kept: this store was begun without them" in capsys.readouterr().out


def test_salted_uids_are_keyed_digests_and_nothing_of_the_plain_ones_is_left(
    archive: Path, teacher: str
) -> None:
    plain = load_dataset(f"folder:{archive}")
    store = extracted(teacher, f"folder:{archive}", uid_salt=SALT)
    derived = hashlib.scrypt(
        SALT.encode(), salt=b"rdcache uids 1", n=2**15, r=8, p=1, maxmem=2**26, dklen=40
    )
    contents = [hashlib.blake2b(s.path.read_bytes(), digest_size=16) for s in plain.samples]
    expected = {
        hashlib.blake2b(content.digest(), digest_size=16, key=derived[:32]).hexdigest()
        for content in contents
    }
    twins = 1
    assert len(set(store.uids) - expected) == twins
    assert store.manifest["dataset"]["uid_salt_check"] == derived[32:].hex()
    for data in everything(Path(os.environ["RDCACHE_ROOT"])):
        assert SALT.encode() not in data
        assert derived[:32] not in data
        for uid, content in zip(plain.uids, contents, strict=True):
            assert uid.encode() not in data
            assert bytes.fromhex(uid) not in data
            assert content.digest() not in data
    leaks = store.manifest["dataset"]["leaks"]
    assert len(leaks["leaked_test_uids"]) == 1
    assert set(leaks["leaked_test_uids"]) <= set(store.uids)


def test_the_same_salt_gives_the_same_store_and_another_one_another(
    archive: Path, teacher: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def location() -> Path:
        return plan_extraction(ExtractConfig(teacher=teacher, dataset=f"folder:{archive}")).location

    plain = location()
    monkeypatch.setenv("RDCACHE_UID_SALT", SALT)
    salted = location()
    (tmp_path / "salt").write_text(f"{SALT}\n")
    monkeypatch.setenv("RDCACHE_UID_SALT", f"@{tmp_path / 'salt'}")
    assert location() == salted
    monkeypatch.setenv("RDCACHE_UID_SALT", SALT + "!")
    assert len({plain, salted, location()}) == 3


def test_a_salted_store_is_used_with_its_salt_and_no_other(
    archive: Path, teacher: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = f"folder:{archive}"
    store = extracted(teacher, where, uid_salt=SALT)
    plain = extracted(teacher, where)
    uses = (
        lambda at, salt: open_dataset(at, where, None, salt),
        lambda at, salt: plan_again(at.location, teacher=teacher, dataset=where, salt=salt),
    )
    for use in uses:
        use(store, SALT)
        with pytest.raises(UsageError, match=r"uids here are salted[\s\S]*RDCACHE_UID_SALT"):
            use(store, None)
        with pytest.raises(StaleStoreError, match="this is not the salt"):
            use(store, SALT + "!")
        use(plain, SALT)
        monkeypatch.setenv("RDCACHE_UID_SALT", SALT)
        use(plain, None)
        monkeypatch.delenv("RDCACHE_UID_SALT")


def test_a_run_of_a_salted_store_is_evaluated_with_the_salt_and_does_not_tell_it(
    archive: Path, teacher: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = extracted(teacher, f"folder:{archive}", uid_salt=SALT)
    where = ["--dataset", f"folder:{archive}"]
    distill = ["distill", "--store", str(store.location), *where, "--student", "shufflenet-x0.5"]
    distill += ["--method", "none", "--epochs", "1", "--image-size", "32", "--batch-size", "4"]
    distill += ["--out", str(tmp_path / "runs"), "--uid-salt", SALT, "--json"]
    assert run_command_line(distill) == 0
    (run,) = json.loads(capsys.readouterr().out)["students"][0]["runs"]
    for data in everything(tmp_path / "runs"):
        assert SALT.encode() not in data
    evaluate = ["evaluate", run["run"], *where, "--json"]
    assert run_command_line(evaluate) == 2
    assert "salted" in capsys.readouterr().err
    assert run_command_line([*evaluate, "--uid-salt", SALT]) == 0
    metrics = json.loads(capsys.readouterr().out)["metrics"]
    assert metrics["accuracy"] == pytest.approx(run["metrics"]["accuracy"])


def test_a_short_salt_is_refused_and_not_repeated(archive: Path, teacher: str) -> None:
    for salt in ("", "secret"):
        config = ExtractConfig(teacher=teacher, dataset=f"folder:{archive}", uid_salt=salt)
        assert "secret" not in repr(config)
        with pytest.raises(UsageError, match="at least 16 characters") as caught:
            plan_extraction(config)
        assert "secret'" not in str(caught.value)
    with pytest.raises(UsageError, match=r"cannot be read[\s\S]*No such file"):
        load_dataset(f"folder:{archive}", salt=f"@{archive / 'none'}")
