"""`rdcache extract`: phase 1."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import click

from rdcache.cli import options
from rdcache.cli.output import (
    described,
    fidelity_lines,
    in_bytes,
    json_option,
    print_facts,
    print_json,
    print_table,
    progress,
)
from rdcache.errors import UsageError
from rdcache.extraction import (
    ExtractConfig,
    Extraction,
    ExtractionPlan,
    comparison,
    plan_extraction,
    run_extraction,
)
from rdcache.extraction.volumes import spacing_advice, window_advice
from rdcache.store import Store
from rdcache.store.quantisation import with_scales
from rdcache.tasks import task_of

# A small student for those that the usual one is none for.
STUDENTS = {
    ("segmentation", 2): "unet-shufflenet",
    ("segmentation", 3): "unet3d",
    ("multiclass", 3): "resnet3d-18",
    ("multilabel", 3): "resnet3d-18",
}


@click.command(epilog="Example:  rdcache extract --teacher pmc-clip --dataset isic")
@options.from_model(ExtractConfig)
@click.option(
    "--compare-codecs",
    is_flag=True,
    help="With --dry-run: measure on 64 images what each way of keeping the taps saves and costs.",
)
@click.option("--dry-run", is_flag=True, help="Print what would be written, and write nothing.")
@json_option
def command(config: ExtractConfig, compare_codecs: bool, dry_run: bool, as_json: bool) -> None:
    """Run a frozen teacher once over a dataset and keep its tensors.

    A store that is complete already is left as it is; one that was interrupted is resumed.
    """
    if compare_codecs and not dry_run:
        raise UsageError("--compare-codecs writes nothing: give it with --dry-run.")
    with progress("Scanning") as bar:
        plan = plan_extraction(config, bar)
    if compare_codecs:
        with progress("Measuring") as bar:
            comparisons = comparison.compare_codecs(plan, bar)
        if as_json:
            print_json({**plan_facts(plan), "codecs": comparison_facts(comparisons)})
        else:
            _print_comparisons(comparisons)
        return
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
        "precision": _precision(plan),
        **box_facts(plan),
        "taps": {
            tap.name: {
                "shape": list(tap.shape),
                "dtype": tap.dtype,
                **({"codec": tap.codec} if tap.codec != "none" else {}),
                "bytes": sum(it.nbytes for it in with_scales([tap])) * plan.forwards,
            }
            for tap in layout.public
        },
        "bytes": layout.nbytes(),
        "free_bytes": plan.free_bytes(),
        "warning": plan.teacher.weights.warning,
    }


def box_facts(plan: ExtractionPlan) -> dict[str, Any]:
    """What a teacher sees of a volume, and what would suit it better; of images nothing."""
    if plan.dataset.dimensions == 2:
        return {}
    patch = plan.teacher.of_volumes.patch
    cut = "cut without resampling" if plan.view_spec.patch else "resized from whole volumes"
    told = (advise(plan.dataset, plan.teacher) for advise in (spacing_advice, window_advice))
    advice = "; ".join(each for each in told if each)
    return {
        "box": f"{'×'.join(map(str, patch))} voxels (z, y, x), {cut}",
        **({"advice": advice} if advice else {}),
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
        "fidelity": store.manifest.get("fidelity", {}),
        "warning": plan.teacher.weights.warning,
        "seconds": round(extraction.seconds, 2),
        "bytes": store.nbytes,
    }


def comparison_facts(comparisons: list[comparison.TapComparison]) -> dict[str, Any]:
    """What `--json` says of each tap's candidates."""
    return {
        it.tap.name: {
            "samples": it.samples,
            "candidates": [asdict(candidate) for candidate in it.candidates],
            "recommended": it.recommended,
            "why": it.why,
        }
        for it in comparisons
    }


def _print_comparisons(comparisons: list[comparison.TapComparison]) -> None:
    columns = ("kept as", "bytes", "ratio", "encode", "decode", "cosine", "CKA", "options")
    for it in comparisons:
        rows = [
            (
                candidate.name,
                in_bytes(candidate.nbytes),
                f"{candidate.ratio:.2f}",
                f"{candidate.encode_mb_s:.0f} MB/s",
                f"{candidate.decode_mb_s:.0f} MB/s",
                f"{candidate.cosine:.4f}",
                "" if candidate.cka is None else f"{candidate.cka:.4f}",
                candidate.options,
            )
            for candidate in it.candidates
        ]
        shape = "×".join(map(str, it.tap.shape))
        print_table(f"{it.tap.name} {shape}, {it.samples} training images", columns, rows)
        click.echo(f"Recommended for {it.tap.name}: {it.recommended} ({it.why}).\n")


def _precision(plan: ExtractionPlan) -> str:
    """The arithmetic, and why it was chosen if it was."""
    why = f" ({plan.why_precision})" if plan.why_precision else ""
    return f"{plan.config.precision}{why}"


def _other_codecs(plan: ExtractionPlan, store: Store) -> str:
    """That the store was there already, compressed otherwise than it would be now."""
    differing = [
        f"{it.kept.name} is {store.taps[it.kept.name].codec}"
        for it in plan.kept
        if store.taps[it.kept.name].codec != it.kept.codec
    ]
    return f"{', '.join(differing)}: the store was begun so, and keeps it" if differing else ""


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
            "precision": facts["precision"],
            **{name: facts[name] for name in ("box", "advice") if name in facts},
            "taps": "\n".join(taps),
            "total": f"{in_bytes(facts['bytes'])} in {facts['shards']} shards a tap",
            "free": "no limit" if facts["free_bytes"] is None else in_bytes(facts["free_bytes"]),
            **({"warning": facts["warning"]} if facts["warning"] else {}),
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
    facts: dict[str, object] = {
        "store": store.location,
        "samples": f"{store.samples} × {store.views} views (views beyond the first: train only)",
        "taps": "\n".join(map(described, store.taps.values())),
        "size": in_bytes(store.nbytes),
        "time": f"{extraction.seconds:.1f} s",
        "leaks": "\n".join(plan.dataset.leaks.summary()),
        "licence": f"{plan.teacher.weights.licence} (the teacher's weights)",
        **box_facts(plan),
    }
    if plan.why_precision:
        facts["precision"] = _precision(plan)
    if fidelity := fidelity_lines(store.manifest):
        facts["fidelity"] = "\n".join(fidelity)
    if codecs := _other_codecs(plan, store):
        facts["codec"] = codecs
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
    if warning := plan.teacher.weights.warning:
        facts["warning"] = warning
    task, dimensions = task_of(store.manifest["dataset"])
    facts["next"] = f"rdcache distill --student {STUDENTS.get((task, dimensions), 'shufflenet')}"
    print_facts(headline, facts)
