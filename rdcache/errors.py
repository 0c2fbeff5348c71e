"""Every mistake a user can make, as one exception class each.

An error is a sentence that says what is wrong, followed by aligned facts: which file, what was
expected, what to type next. It is raised where the fact is known and printed in one place,
`rdcache.cli`. Each class also derives from the built-in it resembles, so that `except
FileNotFoundError` works for users of the Python API.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydantic import ValidationError

MOST_OF_A_REASON = 300  # characters


class RdcacheError(Exception):
    """Base class: `summary` is one sentence, `facts` are the lines below it.

    >>> print(RdcacheError("the weights of pmc-clip are not there.", looked_for="data/weights"))
    the weights of pmc-clip are not there.
      looked for   data/weights

    Attributes:
        exit_code: the status `rdcache` exits with: 1 for a failure, 2 for wrong usage.
    """

    exit_code = 1

    def __init__(self, summary: str, /, **facts: object) -> None:
        super().__init__(summary)
        self.summary = summary
        self.facts = {name.replace("_", " ").strip(): str(value) for name, value in facts.items()}

    def __str__(self) -> str:
        if not self.facts:
            return self.summary
        width = max(map(len, self.facts))
        lines = [f"  {name:<{width}}   {value}" for name, value in self.facts.items()]
        return "\n".join([self.summary, *lines])

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle with the facts, so that an error crosses process borders whole."""
        return _rebuild, (type(self), self.summary, self.facts)


def _rebuild(cls: type[RdcacheError], summary: str, facts: dict[str, str]) -> RdcacheError:
    return cls(summary, **facts)


def reason_of(error: BaseException) -> str:
    """The first line of what an error of somebody else's says, for a fact; its kind if it says
    nothing.
    """
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:MOST_OF_A_REASON]


class UsageError(RdcacheError, ValueError):
    """Options that do not go together, or a value outside its range."""

    exit_code = 2

    @classmethod
    def of_validation(
        cls, error: ValidationError, given: Mapping[str, Any], flag: Callable[[str], str] = str
    ) -> UsageError:
        """Say in one sentence what pydantic found first.

        Args:
            given: the values that were validated.
            flag: how the user calls an entry, as in `--batch-size` for `batch_size`.
        """
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"]))
        reason = first["msg"].removeprefix("Value error, ")
        return cls(
            f"{flag(name)}: {reason[:1].lower()}{reason[1:]}.".removeprefix(": "),
            given=given.get(name.partition(".")[0], "nothing"),
        )


class UnknownNameError(UsageError, LookupError):
    """A teacher, dataset, student, tap or method that is not in the catalogue."""

    @classmethod
    def of(cls, kind: str, name: str, known: Iterable[str]) -> UnknownNameError:
        """Build the error with the nearest known names, or all of them if none is near."""
        known = sorted(known)
        near = difflib.get_close_matches(name.lower(), known, n=3, cutoff=0.5)
        facts = {"did_you_mean": ", ".join(near)} if near else {"known": ", ".join(known)}
        return cls(f"there is no {kind} named {name!r}.", **facts)


class WeightsNotFoundError(RdcacheError, FileNotFoundError):
    """The weight file of a teacher or student is not where it is looked for."""


class WeightsMismatchError(RdcacheError, ValueError):
    """A weight file does not belong to the architecture it was given for."""


class UnsafeFileError(RdcacheError, ValueError):
    """A file that would have to be unpickled, or that points outside its folder."""


class DatasetNotFoundError(RdcacheError, FileNotFoundError):
    """The folder or file of a dataset is missing, or is not laid out as expected."""


class DatasetError(RdcacheError, ValueError):
    """A dataset that is there but cannot be used: one class only, unreadable in strict mode…"""


class DeviceMemoryError(RdcacheError, MemoryError):
    """A GPU's memory does not suffice, however little is asked of it at once."""


class StoreNotFoundError(RdcacheError, FileNotFoundError):
    """No store at this location, or none under the root that fits."""


class StoreFormatError(RdcacheError, ValueError):
    """A store of another schema version, or one whose structure contradicts itself."""


class StoreIncompleteError(RdcacheError, ValueError):
    """Shards are missing that the operation needs."""


class StaleStoreError(RdcacheError, ValueError):
    """What the store was extracted from has changed since."""


class CorruptShardError(RdcacheError, OSError):
    """Stored bytes do not match their checksum."""


class CorruptInputsError(RdcacheError, OSError):
    """An image that was kept on disk for students does not match its checksum."""


class SignatureError(RdcacheError, ValueError):
    """A store that is not signed by the key that is asked for, or whose signature is wrong."""


class StoreReadError(RdcacheError, OSError):
    """A file of a store is there, but the system does not let us read it."""


class StoreWriteError(RdcacheError, OSError):
    """The root cannot be written: read-only, full, or gone."""


class BucketError(RdcacheError, OSError):
    """A bucket that does not answer, does not exist, or may not be read."""


class FileWriteError(RdcacheError, OSError):
    """A run folder or a table cannot be written: read-only, full, or not a folder."""


class FeatureFileError(RdcacheError, ValueError):
    """A file of features that cannot be read, or does not hold what it is said to hold."""


class TeacherOutputError(RdcacheError, ValueError):
    """A teacher gave something its taps did not promise."""


class TrainingError(RdcacheError, ArithmeticError):
    """A loss that is no longer a finite number."""


class ClusterError(RdcacheError, ConnectionError):
    """A Dask scheduler that does not answer, or workers that do not stay alive."""


class RunNotFoundError(RdcacheError, FileNotFoundError):
    """No finished run in this folder."""
