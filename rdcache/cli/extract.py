"""`rdcache extract`: phase 1."""

from __future__ import annotations

from typing import Any

import click

from rdcache.cli import options
from rdcache.cli.output import in_bytes, json_option, print_facts, print_json, progress
from rdcache.extraction import (
    ExtractConfig,
    Extraction,
    ExtractionPlan,
    plan_extraction,
    run_extraction,
)


@click.command(epilog="Example:  rdcache extract --teacher pmc-clip --dataset isic")
@options.from_model(ExtractConfig)
@click.option("--dry-run", is_flag=True, help="Print what would be written, and write nothing.")
@json_option
def command(config: ExtractConfig, dry_run: bool, as_json: bool) -> None:
    """Run a frozen teacher once over a dataset and keep its tensors.

    A store that is complete already is left as it is; one that was interrupted is resumed.
    """
    with progress("Scanning") as bar:
        plan = plan_extraction(config, bar)
    if dry_run:
        (print_json if as_json else _print_plan)(plan_facts(plan))
        plan.require_space(plan.layout.nbytes())
        return
    with progress("Extracting") as bar:
        extraction = run_extraction(plan, bar)
    if as_json:
        print_json(extraction_facts(plan, extraction))
    else:
        _print_extraction(plan, extraction)


def plan_facts(plan: ExtractionPlan) -> dict[str, Any]:
    """What a dry run says: counts and bytes, with no side effect."""
    layout = plan.layout
    return {
        "store": str(plan.location),
        "samples": layout.samples,
        "skipped": len(plan.dataset.skipped),
        "views": layout.views,
        "forwards": plan.forwards,
        "shards": len(layout.shards()),
        "taps": {
            tap.name: {
                "shape": list(tap.shape),
                "dtype": tap.dtype,
                "bytes": tap.nbytes * plan.forwards,
            }
            for tap in layout.taps
        },
        "bytes": layout.nbytes(),
        "free_bytes": plan.free_bytes(),
    }


def extraction_facts(plan: ExtractionPlan, extraction: Extraction) -> dict[str, Any]:
    """What `--json` says of an extraction."""
    store = extraction.store
    return {
        "store": str(store.location),
        "status": extraction.status,
        "samples": store.samples,
        "views": store.views,
        "taps": {
            name: {"shape": list(tap.shape), "dtype": tap.dtype} for name, tap in store.taps.items()
        },
        "skipped": [
            {"path": str(skipped.path), "reason": skipped.reason}
            for skipped in plan.dataset.skipped
        ],
        "not_finite": [
            {"uid": str(store.uids[sample]), "view": view} for sample, view in extraction.not_finite
        ],
        "promoted_to_float32": list(extraction.promoted),
        "copied": extraction.copied,
        "leaks": plan.dataset.leaks.summary(),
        "seconds": round(extraction.seconds, 2),
        "bytes": store.nbytes,
    }


def _print_plan(facts: dict[str, Any]) -> None:
    taps = [
        f"{name}  {'×'.join(map(str, tap['shape']))} {tap['dtype']}  {in_bytes(tap['bytes'])}"
        for name, tap in facts["taps"].items()
    ]
    print_facts(
        "This would be written (nothing has been):",
        {
            "store": facts["store"],
            "samples": f"{facts['samples']} ({facts['skipped']} unreadable files left out)",
            "views": f"{facts['views']} ({facts['forwards']} teacher forwards)",
            "taps": "\n".join(taps),
            "total": f"{in_bytes(facts['bytes'])} in {facts['shards']} shards a tap",
            "free": "no limit" if facts["free_bytes"] is None else in_bytes(facts["free_bytes"]),
        },
    )


def _print_extraction(plan: ExtractionPlan, extraction: Extraction) -> None:
    store = extraction.store
    headline = {
        "extracted": "Extracted.",
        "resumed": "Resumed and completed.",
        "joined": "Completed together with another process.",
        "unchanged": "Nothing to do: this store is complete already.",
    }[extraction.status]
    taps = ", ".join(
        f"{name} {'×'.join(map(str, tap.shape))} {tap.dtype}" for name, tap in store.taps.items()
    )
    facts: dict[str, object] = {
        "store": store.location,
        "samples": f"{store.samples} × {store.views} views (views beyond the first: train only)",
        "taps": taps,
        "size": in_bytes(store.nbytes),
        "time": f"{extraction.seconds:.1f} s",
        "leaks": "\n".join(plan.dataset.leaks.summary()),
    }
    if extraction.copied:
        facts["copied"] = f"{extraction.copied} views of images from other stores of this teacher"
    if extraction.promoted:
        facts["float32"] = f"{', '.join(extraction.promoted)} (values too large for float16)"
    if extraction.not_finite:
        facts["left out"] = f"{len(extraction.not_finite)} views with NaN or Inf from the teacher"
    if plan.config.keep_paths and "paths" not in store.manifest["dataset"]:
        facts["paths"] = "not kept: this store was begun without them"
    if plan.dataset.skipped:
        facts["skipped"] = "\n".join(f"{s.path}: {s.reason}" for s in plan.dataset.skipped)
    if plan.teacher.weights.source == "random":
        facts["warning"] = "the teacher's weights are random: its tensors mean nothing"
    facts["next"] = "rdcache distill --student shufflenet"
    print_facts(headline, facts)
