"""What is read from buckets is kept on this machine, up to a limit.

A shard is downloaded whole when it is first touched, compared with its receipt, and kept under its
own digest, so that no file of the cache can be stale, two stores that hold the same shard share it,
and a damaged download never gets in. When room is needed, what was used longest ago goes.

The cache is one folder for all processes of a user: `downloads` in the one that `RDCACHE_CACHE`
names. `RDCACHE_CACHE_SIZE` limits it, and with `RDCACHE_OFFLINE=1` nothing but the cache is asked.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from rdcache.errors import (
    BucketError,
    CorruptShardError,
    FileWriteError,
    UsageError,
)
from rdcache.files import sync_folder, user_cache
from rdcache.store.objects import TEMPORARY

DEFAULT_SIZE = "50 GB"
UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
LOCK = ".lock"
SHARDS = "shards"  # the folder of what goes first; all else is small
# So long others' downloads are waited for where there is no room beside them.
WAIT_SECONDS = 300.0


@dataclass(frozen=True)
class DownloadCache:
    """A folder of files that are named by what they hold, none of them needed.

    Attributes:
        limit: bytes of all files together, downloads under way included.
    """

    folder: Path
    limit: int

    @classmethod
    def of_environment(cls) -> DownloadCache:
        """The user's cache, as the environment variables say.

        Raises:
            UsageError: the size is none.
        """
        limit = os.environ.get("RDCACHE_CACHE_SIZE") or DEFAULT_SIZE
        return cls(user_cache() / "downloads", parse_size(limit))

    def read(self, key: str) -> bytes | None:
        """A small file, None where it is not kept."""
        path = self.folder / key
        with contextlib.suppress(OSError):
            data = path.read_bytes()
            touch(path)
            return data
        return None

    def find(self, key: str) -> Path | None:
        """A file that is kept, marked as just used; None where it is not."""
        path = self.folder / key
        if not path.is_file():
            return None
        touch(path)
        return path

    def keep(self, key: str, size: int, write: Callable[[Path], None]) -> Path:
        """Add a file, once room has been made for it.

        Args:
            write: fills a file that has its full size already.

        Raises:
            UsageError: it is larger than the whole cache may be, or than what others leave of it.
            FileWriteError: the cache cannot be written.
        """
        path = self.folder / key
        partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}{TEMPORARY}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with self._begun(partial, size) as file:
                try:
                    write(partial)
                    os.fsync(file.fileno())
                    with self._locked():  # nobody who counts meets it twice, or not at all
                        partial.replace(path)
                finally:
                    partial.unlink(missing_ok=True)
            sync_folder(path.parent)
        except OSError as error:
            if isinstance(error, BucketError | CorruptShardError):
                raise
            raise FileWriteError(
                "the download cache cannot be written.",
                folder=self.folder,
                why=error.strerror or error,
                next="free some space, or let RDCACHE_CACHE name another folder",
            ) from error
        return path

    def keep_bytes(self, key: str, data: bytes) -> None:
        """Add a small file; see `keep`."""
        self.keep(key, len(data), lambda path: _write(path, data))

    def drop(self, key: str) -> None:
        """Forget a file that turned out to be damaged."""
        with contextlib.suppress(OSError):
            (self.folder / key).unlink()

    def nbytes(self) -> int:
        """Bytes of all files."""
        return sum(length for *_, length, _ in self._files())

    def too_small(self) -> UsageError:
        """Say that others leave no room for what is needed now."""
        return UsageError(
            "the download cache is too small for all who use it.",
            folder=self.folder,
            limit=_readable(self.limit),
            next="let RDCACHE_CACHE_SIZE allow more",
        )

    def _files(self) -> list[tuple[bool, float, int, Path]]:
        """For each file whether it is no shard, its last use, length and path."""
        found = []
        for folder, _, names in os.walk(self.folder):
            small = Path(folder).relative_to(self.folder).parts[:1] != (SHARDS,)
            for name in names:
                with contextlib.suppress(FileNotFoundError):
                    path = Path(folder, name)
                    status = path.stat()
                    if name != LOCK:
                        found.append((small, status.st_mtime, status.st_size, path))
        return found

    @contextmanager
    def _begun(self, partial: Path, size: int) -> Iterator[IO[bytes]]:
        """A file for a download, locked as long as its process is at it."""
        if size > self.limit:
            raise UsageError(
                "the download cache is smaller than one file of this store.",
                folder=self.folder,
                limit=_readable(self.limit),
                needed=_readable(size),
                next="let RDCACHE_CACHE_SIZE allow more, or `rdcache pull` the store",
            )
        until = time.monotonic() + WAIT_SECONDS
        while True:
            with self._locked():
                if self._make_room(size):
                    file = partial.open("wb")
                    fcntl.flock(file, fcntl.LOCK_EX)
                    file.truncate(size)  # at its full length from the start: others count it
                    break
            if time.monotonic() > until:
                raise self.too_small()
            time.sleep(0.05)
        with file:
            yield file

    def _make_room(self, size: int) -> bool:
        """Delete what was used longest ago; False where downloads of others leave no room."""
        files = sorted(self._files())
        excess = sum(length for *_, length, _ in files) + size - self.limit
        for *_, length, path in files:
            if excess <= 0:
                break
            if not (path.name.endswith(TEMPORARY) and _is_locked(path)):
                path.unlink(missing_ok=True)
                excess -= length
        return excess <= 0

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Only one process at a time makes room; the lock goes with the process."""
        with (self.folder / LOCK).open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def parse_size(text: str) -> int:
    """Bytes of a size such as `50 GB`.

    Raises:
        UsageError: it is none.
    """
    number = text.strip().upper()
    unit = next((unit for unit in UNITS if number.endswith(unit)), "")
    try:
        size = int(float(number.removesuffix(unit)) * UNITS.get(unit, 1))
    except (ValueError, OverflowError):
        size = -1
    if size < 0:
        raise UsageError("this is no size.", got=text, expected="a number with KB, MB, GB or TB")
    return size


def _readable(size: int) -> str:
    """A size as people read it, as `parse_size` takes it again."""
    unit = next((unit for unit in reversed(UNITS) if size >= UNITS[unit]), None)
    return f"{size} bytes" if unit is None else f"{size / UNITS[unit]:.1f} {unit}"


def touch(path: Path) -> None:
    """Mark a file as just used."""
    with contextlib.suppress(OSError):
        os.utime(path)


def _is_locked(path: Path) -> bool:
    """Whether somebody is at a download; the lock goes with its process."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


def _write(path: Path, data: bytes) -> None:
    path.write_bytes(data)
