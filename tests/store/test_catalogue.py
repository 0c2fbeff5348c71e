"""Which stores lie under a root, and which of them is taken when none is named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from rdcache.errors import StoreNotFoundError
from rdcache.store import Store, default_root, list_stores, newest_store

from .conftest import FINGERPRINT, LAYOUT, TAPS, begin


def dated(store: Store, created: str) -> Path:
    path = store.location / "zarr.json"
    document = json.loads(path.read_text())
    document["attributes"]["rdcache"]["created"] = created
    path.write_text(json.dumps(document))
    return store.location


def named(dataset: str, teacher: str) -> dict[str, dict[str, str]]:
    return {"dataset": {"name": dataset}, "teacher": {"name": teacher}}


def test_the_list_says_what_each_store_is(build: Callable[..., Store], tmp_path: Path) -> None:
    store = build("root/busi/resnet/3f9c", facts=named("busi", "resnet"))
    (summary,) = list_stores(tmp_path / "root")
    assert summary.location == store.location
    assert (summary.dataset, summary.teacher) == ("busi", "resnet")
    assert summary.fingerprint == FINGERPRINT.digest
    assert summary.complete
    assert (summary.samples, summary.views) == (10, 3)
    assert summary.taps == tuple(tap.name for tap in TAPS)
    assert summary.nbytes == LAYOUT.nbytes()
    assert summary.created == store.manifest["created"]


def test_the_newest_complete_store_is_taken(build: Callable[..., Store], tmp_path: Path) -> None:
    root = tmp_path / "root"
    new = dated(build("root/busi/resnet/new", facts=named("busi", "resnet")), "2026-03-01")
    old = dated(build("root/btc/vit/old", facts=named("btc", "vit")), "2026-01-01")
    begin(root / "busi" / "vit" / "incomplete")

    assert newest_store(root) == new
    assert newest_store(root, dataset="btc") == old
    assert newest_store(root, teacher="vit") == old
    assert newest_store(root, "busi", "resnet") == new
    assert [summary.complete for summary in list_stores(root)] == [True, True, False]


def test_without_a_fitting_store_the_error_says_what_to_type(tmp_path: Path) -> None:
    with pytest.raises(StoreNotFoundError, match="rdcache extract --teacher vit --dataset NAME"):
        newest_store(tmp_path, teacher="vit")


def test_what_is_no_store_of_ours_is_passed_over(
    build: Callable[..., Store], tmp_path: Path
) -> None:
    root = tmp_path / "root"
    for name, text in {"a": "{}", "b": "no json", "c": '{"attributes": {"rdcache": 3}}'}.items():
        (root / "x" / "y" / name).mkdir(parents=True)
        (root / "x" / "y" / name / "zarr.json").write_text(text)
    store = build("root/busi/resnet/3f9c", facts={})
    (summary,) = list_stores(root)
    assert summary.location == store.location
    assert (summary.dataset, summary.teacher) == ("busi", "resnet")
    assert list_stores(tmp_path / "nowhere") == []


def test_the_root_is_as_given_then_the_environments_then_the_users_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert default_root(tmp_path / "given") == tmp_path / "given"
    monkeypatch.setenv("RDCACHE_ROOT", str(tmp_path / "environment"))
    assert default_root() == tmp_path / "environment"
    monkeypatch.delenv("RDCACHE_ROOT")
    assert default_root().parts[-2:] == ("rdcache", "stores")
