"""Signatures in a manifest, and the keys they are made with.

Signed (Ed25519) is the manifest's root, through which a signature stands for every number of the
store. Signatures lie beside the root in the manifest, by public key, so that several people can
sign one store, and so that they travel with every copy of it.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rdcache.errors import FileWriteError, SignatureError, UsageError
from rdcache.store.locations import Location
from rdcache.store.manifest import ROOT, SIGNATURES, require_root

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import (
        Ed25519PrivateKey,
        Ed25519PublicKey,
    )

MESSAGE = b"rdcache store root\0"  # before the root, so that no signature of other things fits
PUBLIC_KEY, SIGNATURE = re.compile(r"[0-9a-f]{64}"), re.compile(r"[0-9a-f]{128}")
PRIVATE_MODE = 0o600


def required_signature() -> Path | None:
    """The public key of RDCACHE_REQUIRE_SIGNATURE, by which every store that is used has to be
    signed; None where any store will do.
    """
    value = os.environ.get("RDCACHE_REQUIRE_SIGNATURE")
    return Path(value).expanduser() if value else None


def require_signed(manifest: Mapping[str, Any], location: Location, key: Path) -> None:
    """Refuse a store that the holder of a key has not signed.

    Args:
        key: PEM file of the public key.

    Raises:
        SignatureError: not finished, not signed, signed by others only, or the signature is wrong.
        StoreFormatError: the manifest is not the one that its root, which is signed, stands for.
        UsageError: this is no public key, or `cryptography` is not installed.
    """
    public = _public_key(key)
    facts = {"store": location, "key": f"{key} ({fingerprint(_raw(public))})"}
    if manifest.get("complete") is not True:
        raise SignatureError(
            "this store is not signed: its extraction has not finished.",
            **facts,
            next="run its `rdcache extract` again, then `rdcache sign`",
        )
    there = signatures_of(manifest)
    if _raw(public) not in there:
        signed_by = ", ".join(map(fingerprint, there))
        raise SignatureError(
            "this store is not signed by the key that is asked for."
            if there
            else "this store is not signed.",
            **facts,
            **({"signed_by": signed_by} if there else {}),
            next="ask its owner for `rdcache sign STORE --key PRIVATE_KEY`, or use another store",
        )
    require_root(manifest, location)
    if not _matches(public, there[_raw(public)], manifest[ROOT]):
        raise SignatureError(
            "the signature of this store is wrong: the store is not the one that was signed.",
            **facts,
            next="do not use it; ask its owner",
        )


def signed(manifest: Mapping[str, Any], key: Path) -> tuple[dict[str, Any], str]:
    """A finished store's manifest with one more signature, and the fingerprint of its key.

    Args:
        key: PEM file of the private key.

    Raises:
        UsageError: this is no private key, or `cryptography` is not installed.
    """
    private = _private_key(key)
    public = _raw(private.public_key())
    signature = private.sign(_message(manifest[ROOT])).hex()
    both = {**signatures_of(manifest), public: signature}
    return {**manifest, SIGNATURES: both}, fingerprint(public)


def signatures_of(manifest: Mapping[str, Any]) -> dict[str, str]:
    """Public key → signature, both in hexadecimal digits; whatever else lies there is none."""
    there = manifest.get(SIGNATURES)
    pairs = there.items() if isinstance(there, Mapping) else ()
    return {
        public: signature
        for public, signature in pairs
        if isinstance(signature, str)
        and PUBLIC_KEY.fullmatch(public)
        and SIGNATURE.fullmatch(signature)
    }


def fingerprint(public: str) -> str:
    """A short name of a public key: the first 16 digits of its sha256."""
    return hashlib.sha256(bytes.fromhex(public)).hexdigest()[:16]


def new_key(name: Path) -> tuple[Path, Path, str]:
    """Make a pair of keys: NAME.pem, which only its owner may read, and NAME.pub.pem for all.

    Returns:
        The two files, and the key's fingerprint.

    Raises:
        FileWriteError: a file of one of these names is there, or cannot be written.
        UsageError: `cryptography` is not installed.
    """
    _require_cryptography()
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    if name.name in ("", ".."):
        raise UsageError("a pair of keys needs a name.", got=name, expected="a file name, as ada")
    private = Ed25519PrivateKey.generate()
    public = private.public_key()
    private_file = name.with_name(f"{name.name}.pem")
    public_file = name.with_name(f"{name.name}.pub.pem")
    pem = private.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    public_pem = public.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    if public_file.exists():
        raise _not_written(public_file, "there is something of this name already")
    _create(private_file, pem, PRIVATE_MODE)
    try:
        _create(public_file, public_pem, 0o666)
    except FileWriteError:
        private_file.unlink()  # or the name could not be used again
        raise
    return private_file, public_file, fingerprint(_raw(public))


def _create(file: Path, content: bytes, mode: int) -> None:
    """Write a new file; it never has more rights than `mode`, not even for a moment."""
    try:
        with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as stream:
            stream.write(content)
    except FileExistsError:
        raise _not_written(file, "there is something of this name already") from None
    except OSError as error:
        raise _not_written(file, error.strerror) from None


def _not_written(file: Path, why: object) -> FileWriteError:
    return FileWriteError(
        "the key cannot be written.", file=file, why=why, next="choose another name"
    )


def _public_key(key: Path) -> Ed25519PublicKey:
    _require_cryptography()
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        public = load_pem_public_key(_content(key))
    except ValueError:
        public = None
    if not isinstance(public, Ed25519PublicKey):
        raise UsageError(
            "this file is no public key (Ed25519, PEM).",
            file=key,
            expected="the NAME.pub.pem of `rdcache sign --new-key NAME`",
        )
    return public


def _private_key(key: Path) -> Ed25519PrivateKey:
    _require_cryptography()
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        private = load_pem_private_key(_content(key), password=None)
    except (ValueError, TypeError):  # TypeError: it is locked by a password
        private = None
    if not isinstance(private, Ed25519PrivateKey):
        raise UsageError(
            "this file is no private key (Ed25519, PEM, without a password).",
            file=key,
            expected="the NAME.pem of `rdcache sign --new-key NAME`",
        )
    return private


def _content(key: Path) -> bytes:
    try:
        return key.read_bytes()
    except OSError as error:
        raise UsageError("this key cannot be read.", file=key, why=error.strerror) from None


def _require_cryptography() -> None:
    try:
        import cryptography  # noqa: F401
    except ImportError:
        raise UsageError(
            "signatures need the package cryptography.", next="pip install 'rdcache[sign]'"
        ) from None


def _matches(public: Ed25519PublicKey, signature: str, root: str) -> bool:
    from cryptography.exceptions import InvalidSignature

    try:
        public.verify(bytes.fromhex(signature), _message(root))
    except InvalidSignature:
        return False
    return True


def _message(root: str) -> bytes:
    return MESSAGE + bytes.fromhex(root)


def _raw(public: Ed25519PublicKey) -> str:
    return public.public_bytes_raw().hex()
