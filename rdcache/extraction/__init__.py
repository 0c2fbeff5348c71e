"""Phase 1: plan → run the teacher → write shards."""

from __future__ import annotations

from typing import Any

from rdcache.configs import config_of_call
from rdcache.extraction.config import ExtractConfig
from rdcache.extraction.plan import ExtractionPlan, plan_extraction
from rdcache.extraction.run import Extraction, run_extraction
from rdcache.progress import Progress, ignore
from rdcache.store import Store


def extract(
    config: ExtractConfig | None = None, *, on_progress: Progress = ignore, **options: Any
) -> Store:
    """Run a frozen teacher once over a dataset and keep its tensors.

    A complete store of the same fingerprint is returned as it is; an interrupted one is resumed.

    Args:
        config: all options at once; or give them by name, as in
            `extract(teacher="pmc-clip", dataset="isic", views="8")`. See `ExtractConfig`.
        on_progress: called with (images done, images in all, stage).

    Raises:
        RdcacheError: see `plan_extraction` and `run_extraction`.
    """
    config = config_of_call(ExtractConfig, config, options)
    return run_extraction(plan_extraction(config, on_progress), on_progress).store


__all__ = [
    "ExtractConfig",
    "Extraction",
    "ExtractionPlan",
    "extract",
    "plan_extraction",
    "run_extraction",
]
