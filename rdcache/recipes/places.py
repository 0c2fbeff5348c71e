"""Where a recipe reads and writes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rdcache.store import Location


@dataclass(frozen=True)
class Places:
    """Where a recipe reads and writes; None stands for the usual place of each."""

    root: Location | None = None
    data_dir: Path | None = None
    out: Path | None = None

    def for_extract(self) -> dict[str, Any]:
        """As options of `rdcache extract`."""
        return _given(root=self.root, data_dir=self.data_dir)

    def for_distill(self) -> dict[str, Any]:
        """As options of `rdcache distill`."""
        return _given(data_dir=self.data_dir, out=self.out)


def _given(**options: Any) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}
