"""Salted uids: a store's samples cannot be matched with known images by those without the salt.

A uid is a digest of an image file, so that whoever has the file can see whether a store has it too.
With a salt it is a keyed digest. The key is made from the salt by scrypt, and so is the value by
which a store tells a wrong salt: guessing salts costs a tenth of a second each, whichever of the
two is compared with.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from rdcache.errors import StaleStoreError, UsageError

CHECK = "uid_salt_check"  # entry of what a manifest or a run says of its dataset, where salted
LEAST_LENGTH = 16
KEY_BYTES, CHECK_BYTES = 32, 8
GIVE = "set RDCACHE_UID_SALT, or pass --uid-salt @FILE"


@dataclass(frozen=True)
class UidSalt:
    """What is made from a salt.

    Attributes:
        key: of the digests that are uids.
        check: 16 hexadecimal digits that a store keeps.
    """

    key: bytes
    check: str

    def __repr__(self) -> str:
        return "UidSalt(…)"


NO_SALT = UidSalt(b"", "")


def salt_of_environment() -> str | None:
    """The salt of RDCACHE_UID_SALT, None where there is none."""
    return os.environ.get("RDCACHE_UID_SALT") or None


def uid_salt(text: str | None) -> UidSalt:
    """Read a salt: a text, or `@FILE`, whose content is the salt; without any, uids are plain.

    Raises:
        UsageError: too short to withstand guessing, or a file that cannot be read.
    """
    if text is None:
        return NO_SALT
    salt = _of_file(Path(text[1:])) if text.startswith("@") else os.fsencode(text)
    if len(salt) < LEAST_LENGTH:
        raise UsageError(
            f"a salt of uids has at least {LEAST_LENGTH} characters, so that nobody guesses it.",
            next='python -c "import secrets; print(secrets.token_hex(32))" > FILE, then @FILE',
        )
    return _derived(salt)


def salt_as_recorded(recorded: Mapping[str, Any], text: str | None, place: object) -> str | None:
    """The salt with which the images of a store or run are to be looked at: none if its uids are
    plain, whatever salt is given.

    Args:
        recorded: what it says of its dataset.
        place: of the store or run, for the error.

    Raises:
        UsageError: no salt is given where one is needed.
        StaleStoreError: it is another one.
    """
    check = recorded.get(CHECK)
    if check is None:
        return None
    if text is None:
        raise UsageError(
            "the uids here are salted: without the salt no image can be told to be theirs.",
            found_in=place,
            next=GIVE,
        )
    if uid_salt(text).check != check:
        raise StaleStoreError(
            "this is not the salt that the uids here were made with.", found_in=place, next=GIVE
        )
    return text


def _of_file(file: Path) -> bytes:
    try:
        return file.expanduser().read_bytes().strip()
    except OSError as error:
        raise UsageError(
            "the file of the salt cannot be read.", file=file, why=error.strerror
        ) from None


@cache
def _derived(salt: bytes) -> UidSalt:
    length = KEY_BYTES + CHECK_BYTES
    # 32 MiB and about 0.1 s
    derived = hashlib.scrypt(
        salt, salt=b"rdcache uids 1", n=2**15, r=8, p=1, maxmem=2**26, dklen=length
    )
    return UidSalt(derived[:KEY_BYTES], derived[KEY_BYTES:].hex())
