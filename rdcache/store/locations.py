"""Where stores lie: folders, or prefixes in a bucket. Both are joined with `/`."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from rdcache.errors import UsageError

SCHEMES = ("s3", "gs", "az")


@dataclass(frozen=True, order=True)
class RemotePath:
    """A prefix in a bucket, with the few parts of `pathlib.Path` that a location needs.

    >>> RemotePath("s3://team/rdcache") / "isic"
    RemotePath(url='s3://team/rdcache/isic')
    """

    url: str

    def __truediv__(self, name: str) -> RemotePath:
        return RemotePath(f"{self.url}/{name}")

    def __str__(self) -> str:
        return self.url

    @property
    def name(self) -> str:
        """The last part."""
        return self.url.rpartition("/")[2]

    @property
    def parent(self) -> RemotePath:
        """All but the last part."""
        return RemotePath(self.url.rpartition("/")[0])

    def with_name(self, name: str) -> RemotePath:
        """The same prefix with another last part."""
        return self.parent / name


Location: TypeAlias = Path | RemotePath


def below(root: Location, location: Location) -> str:
    """The part of a location that comes after the root it lies under."""
    return str(location).removeprefix(str(root)).lstrip("/")


def as_location(value: str | os.PathLike[str] | RemotePath) -> Location:
    """A location from what a user writes.

    Raises:
        UsageError: a URL of a kind that no store can lie under, or one without a bucket.
    """
    if isinstance(value, RemotePath):
        return value
    # `Path("s3://team")` has lost a slash.
    text = re.sub(r"^(\w+):/(?!/)", r"\1://", str(value)) if isinstance(value, Path) else str(value)
    scheme, separator, rest = text.partition("://")
    if not separator:
        return Path(value).expanduser()
    parts = rest.rstrip("/").split("/")
    if scheme not in SCHEMES:
        known = ", ".join(f"{scheme}://" for scheme in SCHEMES)
        raise UsageError("stores do not lie under such an address.", got=value, known=known)
    if any(part in ("", ".", "..") for part in parts) or set(rest) & set("?#\\"):
        raise UsageError(
            "this is no address of a bucket.", got=value, expected=f"{scheme}://BUCKET/FOLDER"
        )
    return RemotePath(f"{scheme}://{'/'.join(parts)}")
