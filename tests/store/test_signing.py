"""Signed stores: whoever changes a byte of one is refused by those who ask for the signature."""

from __future__ import annotations

import builtins
import hashlib
import json
import pickle
import shutil
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rdcache.errors import (
    CorruptShardError,
    FileWriteError,
    RdcacheError,
    SignatureError,
    StaleStoreError,
    StoreFormatError,
    StoreIncompleteError,
    UsageError,
)
from rdcache.store import (
    Problem,
    Store,
    StoreLayout,
    StoreWriter,
    TapSpec,
    open_store,
    signing,
    verify_store,
)
from rdcache.store.hdf5_export import export_hdf5
from rdcache.store.hdf5_import import import_hdf5
from rdcache.store.manifest import read_manifest, root_of
from rdcache.store.projection import Projection
from rdcache.store.quantisation import quantised, with_scales
from rdcache.store.signatures import fingerprint, new_key, signatures_of
from rdcache.store.signing import sign_store

from .conftest import begin, contents, fill

Keys = tuple[Path, Path]


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    private, public, _ = new_key(tmp_path / "ada")
    return private, public


@pytest.fixture
def signed(store: Store, keys: Keys) -> Path:
    sign_store(store.location, keys[0])
    return store.location


def edit(location: Path, **changes: Any) -> None:
    """Change entries of the manifest and make its root fit again, as someone who tampers would."""
    path = location / "zarr.json"
    document = json.loads(path.read_text())
    manifest = document["attributes"]["rdcache"]
    manifest.update(changes)
    manifest["root"] = root_of(manifest)
    path.write_text(json.dumps(document, indent=2))


def test_a_signed_store_opens_with_the_public_key_and_reads_the_same(
    signed: Path, keys: Keys
) -> None:
    before, after = open_store(signed), open_store(signed, require_signature=keys[1])
    for tap, values in before.read(range(10), 0).items():
        assert (after.read(range(10), 0)[tap] == values).all()
    assert (after.array("pooled")[0] == before.array("pooled")[0]).all()
    assert verify_store(signed, require_signature=keys[1]) == []


def test_signing_changes_nothing_but_one_entry_of_the_manifest(store: Store, keys: Keys) -> None:
    before, manifest = contents(store.location), read_manifest(store.location)
    sign_store(store.location, keys[0])
    signed = read_manifest(store.location)
    (signature,) = signed.pop("signatures").values()
    assert signed == manifest
    assert len(signature) == 128
    after = contents(store.location)
    assert {name for name in after if after[name] != before.get(name)} == {"zarr.json"}
    sign_store(store.location, keys[0])
    assert contents(store.location) == after


def test_a_store_without_a_signature_is_refused_in_one_sentence(store: Store, keys: Keys) -> None:
    with pytest.raises(SignatureError, match=r"^this store is not signed\.\n"):
        open_store(store.location, require_signature=keys[1])
    (problem,) = verify_store(store.location, require_signature=keys[1])
    assert "not signed" in problem.what


def test_a_store_signed_by_others_names_them(signed: Path, tmp_path: Path, keys: Keys) -> None:
    _, stranger, _ = new_key(tmp_path / "stranger")
    with pytest.raises(SignatureError, match="not signed by the key") as caught:
        open_store(signed, require_signature=stranger)
    (public,) = signatures_of(read_manifest(signed))
    assert caught.value.facts["signed by"] == fingerprint(public)


def test_several_people_sign_one_store(signed: Path, tmp_path: Path, keys: Keys) -> None:
    private, public, _ = new_key(tmp_path / "bob")
    sign_store(signed, private)
    for key in (keys[1], public):
        assert open_store(signed, require_signature=key).samples == 10


def test_a_signature_moved_from_another_store_is_wrong(signed: Path, keys: Keys) -> None:
    edit(signed, created="2000-01-01")
    open_store(signed)
    with pytest.raises(SignatureError, match="signature of this store is wrong"):
        open_store(signed, require_signature=keys[1])


@pytest.mark.parametrize("lie", [7, None, [], {"x": "y"}, {"ab": 3}, {"0" * 64: "zz"}], ids=str)
def test_what_is_no_signature_counts_as_none(signed: Path, keys: Keys, lie: Any) -> None:
    edit(signed, signatures=lie)
    open_store(signed)
    with pytest.raises(SignatureError):
        open_store(signed, require_signature=keys[1])


def test_every_changed_byte_of_a_signed_store_is_refused(signed: Path, keys: Keys) -> None:
    good = open_store(signed, require_signature=keys[1])
    expected = {view: good.read(range(good.extents[view]), view) for view in range(3)}
    for path in sorted(path for path in signed.rglob("*") if path.is_file()):
        content = path.read_bytes()
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        with pytest.raises(RdcacheError):  # noqa: PT012  (at opening or at the first touch)
            store = open_store(signed, require_signature=keys[1])
            for view, extent in enumerate(store.extents):
                store.read(range(extent), view)
        path.write_bytes(content)
    again = open_store(signed, require_signature=keys[1])
    for view, batch in expected.items():
        for tap, values in batch.items():
            assert (again.read(range(good.extents[view]), view)[tap] == values).all()


@pytest.fixture
def signed_and_small(tmp_path: Path, keys: Keys) -> Path:
    """A store with an int8 tap, a projected one and a compressed one."""
    int8 = TapSpec("map", "map2d", (3, 2, 4), "int8")
    projected = TapSpec("s4", "map2d", (2, 3, 3), "float32", projected_from=7)
    packed = TapSpec("logits", "logits", (4,), "float16", "zstd")
    layout = StoreLayout(6, (6, 4), with_scales([int8, projected, packed]), 4)
    basis = Projection(torch.arange(7.0), torch.linalg.qr(torch.randn(7, 2))[0].T.contiguous())
    writer = begin(tmp_path / "small", layout, projections={"s4": basis})
    random = torch.Generator().manual_seed(3)
    for shard in writer.missing():
        count = shard.stop - shard.start
        given = {
            tap.name: torch.randn((count, *tap.shape), generator=random) for tap in layout.public
        }
        rows = quantised(given, layout.taps)
        stored = {tap.name: rows[tap.name].numpy().astype(tap.stored_dtype) for tap in layout.taps}
        writer.write(shard, stored, np.ones(count, np.uint8))
    sign_store(writer.commit({}).location, keys[0])
    return tmp_path / "small"


def test_int8_projected_and_compressed_taps_are_read_from_a_signed_store(
    signed_and_small: Path, keys: Keys
) -> None:
    before = open_store(signed_and_small)
    after = open_store(signed_and_small, require_signature=keys[1])
    assert {tap.dtype for tap in after.taps.values()} == {"int8", "float32", "float16"}
    for view, extent in enumerate(before.extents):
        there = after.read(range(extent), view)
        for tap, values in before.read(range(extent), view).items():
            assert torch.equal(there[tap], values)
    assert verify_store(signed_and_small, require_signature=keys[1]) == []


@pytest.mark.parametrize(
    "damaged",
    [
        "taps/s4.basis/c/0/0",
        "taps/s4.mean/c/0",
        "taps/s4/c/1/0/0/0/0",
        "taps/map.scale/c/0/1/0",
        "taps/map/c/0/1/0/0/0",
        "taps/logits/c/0/1/0",
    ],
)
def test_a_changed_byte_of_basis_scale_or_compressed_shard_is_refused(
    signed_and_small: Path, keys: Keys, damaged: str
) -> None:
    path = signed_and_small / damaged
    content = path.read_bytes()
    path.write_bytes(bytes([content[0] ^ 1]) + content[1:])
    with pytest.raises((CorruptShardError, StoreFormatError)):  # noqa: PT012  (whenever it is seen)
        store = open_store(signed_and_small, require_signature=keys[1])
        for view, extent in enumerate(store.extents):
            store.read(range(extent), view)
    assert verify_or_refusal(signed_and_small, keys[1])
    path.write_bytes(content)
    assert verify_store(signed_and_small, require_signature=keys[1]) == []


def verify_or_refusal(location: Path, key: Path) -> bool:
    """Whether verify finds something, or refuses the store altogether."""
    try:
        return bool(verify_store(location, require_signature=key))
    except RdcacheError:
        return True


def forge_shard(location: Path) -> None:
    """Write other numbers into a shard so that all its checksums fit, and its receipt too."""
    other = begin(location.parent / "forged")
    shard = other.layout.shard(0, 1)
    zeros = {
        tap.name: np.zeros((shard.stop - shard.start, *tap.shape), tap.stored_dtype)
        for tap in other.layout.taps
    }
    other.write(shard, zeros, np.ones(shard.stop - shard.start, np.uint8))
    for name in [f"taps/{tap.name}/c/0/1" for tap in other.layout.taps]:
        shutil.rmtree(location / name, ignore_errors=True)
        source = other.location / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, location / name)
    shutil.copytree(
        other.location / "receipt/c/0/1", location / "receipt/c/0/1", dirs_exist_ok=True
    )


def test_a_shard_that_fits_all_its_own_checksums_is_refused_all_the_same(
    signed: Path, keys: Keys
) -> None:
    receipt = signed / "receipt/c/0/1/0/0"
    good = receipt.read_bytes()
    forge_shard(signed)
    assert not open_store(signed).read([5], 0, verify=True)["pooled"].any(), (
        "believed without a key"
    )
    with pytest.raises(StoreFormatError, match="receipt"):
        open_store(signed, require_signature=keys[1])
    receipt.write_bytes(good)
    store = open_store(signed, require_signature=keys[1])
    for use in (
        lambda: store.read([5], 0, ["pooled"]),
        lambda: store.array("pooled"),
        lambda: pickle.loads(pickle.dumps(store)).read([5], 0, ["pooled"]),
        lambda: export_hdf5(store, signed.parent / "out.h5"),
    ):
        with pytest.raises(CorruptShardError, match=r"pooled|layer4"):
            use()


def test_a_signature_survives_copies_and_hdf5(signed: Path, keys: Keys, tmp_path: Path) -> None:
    shutil.copytree(signed, tmp_path / "copy")
    export_hdf5(open_store(signed), tmp_path / "out.h5")
    import_hdf5(tmp_path / "out.h5", tmp_path / "imported")
    for place in ("copy", "imported"):
        assert verify_store(tmp_path / place, require_signature=keys[1]) == []
        assert open_store(tmp_path / place, require_signature=keys[1]).samples == 10


def test_mending_drops_the_signature(signed: Path, keys: Keys) -> None:
    (signed / "taps/pooled/c/0/1/0").unlink()
    writer = begin(signed)
    with pytest.raises(SignatureError, match="not signed: its extraction has not finished"):
        open_store(signed, allow_incomplete=True, require_signature=keys[1])
    fill(writer)
    writer.commit({})
    assert "signatures" not in read_manifest(signed)
    with pytest.raises(SignatureError, match="not signed"):
        open_store(signed, require_signature=keys[1])


def test_only_whole_stores_are_signed(store: Store, keys: Keys) -> None:
    (store.location / "notes.txt").write_text("a stranger")
    with pytest.raises(CorruptShardError, match=r"damaged store is not signed[\s\S]*notes.txt"):
        sign_store(store.location, keys[0])
    StoreWriter(store.location, store.manifest).reopen()
    with pytest.raises(StoreIncompleteError):
        sign_store(store.location, keys[0])


def test_what_is_signed_is_what_the_format_document_says(signed: Path, keys: Keys) -> None:
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    manifest = read_manifest(signed)
    public: Any = load_pem_public_key(keys[1].read_bytes())
    ((key, signature),) = manifest["signatures"].items()
    assert key == public.public_bytes_raw().hex()
    message = b"rdcache store root\0" + bytes.fromhex(manifest["root"])
    public.verify(bytes.fromhex(signature), message)
    entries = {k: v for k, v in manifest.items() if k not in ("root", "signatures")}
    text = json.dumps(entries, sort_keys=True, separators=(",", ":"))
    assert hashlib.sha256(text.encode()).hexdigest() == manifest["root"]


def test_keys_are_never_overwritten_and_the_private_one_is_its_owners(tmp_path: Path) -> None:
    private, public, _ = new_key(tmp_path / "ada")
    assert stat.S_IMODE(private.stat().st_mode) == 0o600
    before = private.read_bytes(), public.read_bytes()
    for kept in (private, public):
        others = {private, public} - {kept}
        saved = {path: path.read_bytes() for path in others}
        for path in others:
            path.unlink()
        with pytest.raises(FileWriteError, match="something of this name"):
            new_key(tmp_path / "ada")
        for path, content in saved.items():
            assert not path.exists()
            path.write_bytes(content)
    assert (private.read_bytes(), public.read_bytes()) == before
    with pytest.raises(FileWriteError, match="No such file"):
        new_key(tmp_path / "nowhere" / "ada")


def test_wrong_keys_are_one_sentence(store: Store, keys: Keys, tmp_path: Path) -> None:
    (tmp_path / "no.pem").write_text("hello")
    for wrong in (keys[1], tmp_path / "no.pem", tmp_path / "none.pem"):
        with pytest.raises(UsageError, match=r"no private key|cannot be read"):
            sign_store(store.location, wrong)
    for wrong in (keys[0], tmp_path / "no.pem", tmp_path):
        with pytest.raises(UsageError, match=r"no public key|cannot be read"):
            open_store(store.location, require_signature=wrong)


def test_without_cryptography_the_error_says_what_to_install(
    store: Store, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def without(name: str, *arguments: Any, **options: Any) -> Any:
        if name.startswith("cryptography"):
            raise ImportError(name)
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    for use in (
        lambda: sign_store(store.location, keys[0]),
        lambda: open_store(store.location, require_signature=keys[1]),
    ):
        with pytest.raises(UsageError, match=r"pip install 'rdcache\[sign\]'"):
            use()
    assert open_store(store.location).samples == 10


def test_what_others_signed_meanwhile_stays_and_what_they_changed_is_not_signed(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = {name: new_key(tmp_path / name)[:2] for name in ("ada", "grace")}
    verify = signing.verify_store

    def sign_meanwhile(location: Path, *arguments: Any) -> list[Problem]:
        monkeypatch.setattr(signing, "verify_store", verify)
        sign_store(location, keys["grace"][0])
        return verify(location, *arguments)

    monkeypatch.setattr(signing, "verify_store", sign_meanwhile)
    sign_store(store.location, keys["ada"][0])
    for _, public in keys.values():
        assert open_store(store.location, require_signature=public).complete

    def change_meanwhile(location: Path, *arguments: Any) -> list[Problem]:
        found = verify(location, *arguments)
        writer = StoreWriter(location, read_manifest(location))
        writer.reopen()
        writer.commit({"another": "fact"})
        return found

    monkeypatch.setattr(signing, "verify_store", change_meanwhile)
    with pytest.raises(StaleStoreError, match="while it was verified"):
        sign_store(store.location, keys["ada"][0])
