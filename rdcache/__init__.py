"""Run frozen foundation models once, keep their tensors, distil small students from them.

The two phases are `rdcache.extract` and `rdcache.distill`; `rdcache.open_store` opens what the
first one wrote. Names are imported on first use, so that `import rdcache` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rdcache import losses
    from rdcache.adaptation import adapt
    from rdcache.distillation import Run, distill, load_run, predict_files
    from rdcache.errors import RdcacheError
    from rdcache.extraction import extract
    from rdcache.store import Store, open_store
    from rdcache.transferability import rank

__version__ = "0.1.0"

_HOMES = {
    "adapt": "rdcache.adaptation",
    "extract": "rdcache.extraction",
    "distill": "rdcache.distillation",
    "load_run": "rdcache.distillation",
    "Run": "rdcache.distillation",
    "open_store": "rdcache.store",
    "predict_files": "rdcache.distillation",
    "rank": "rdcache.transferability",
    "Store": "rdcache.store",
    "RdcacheError": "rdcache.errors",
}

__all__ = [
    "RdcacheError",
    "Run",
    "Store",
    "adapt",
    "distill",
    "extract",
    "load_run",
    "losses",
    "open_store",
    "predict_files",
    "rank",
]


def __getattr__(name: str) -> Any:
    if name == "losses":
        return importlib.import_module("rdcache.losses")
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'rdcache' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
