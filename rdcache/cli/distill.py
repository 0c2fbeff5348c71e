"""`rdcache distill`: phase 2."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import click

from rdcache.cli import options
from rdcache.cli.output import (
    in_percent,
    json_option,
    print_facts,
    print_json,
    print_note,
    progress,
)
from rdcache.distillation import DistillConfig, Run, choose_store, distill_many, summarise
from rdcache.store import Store
from rdcache.store.locations import Location

SHOWN = {
    "accuracy": ("accuracy", "balanced_accuracy", "macro_f1", "auroc", "ece"),
    "auroc": ("auroc", "average_precision", "accuracy", "subset_accuracy"),
    "dice": ("dice", "dice_present", "iou", "nsd"),
}


@click.command(
    epilog="Example:  rdcache distill --student shufflenet --teacher pmc-clip --dataset isic"
)
@options.from_model(DistillConfig, seeds="--seed", method_options="--set")
@click.option(
    "--store",
    "stores",
    type=options.LOCATION,
    multiple=True,
    help="Take this store; of several, by repeating it, all are read in step.",
)
@click.option("--resume", is_flag=True, help="Go on with a run that was interrupted.")
@click.option("--overwrite", is_flag=True, help="Train again even if the same run is finished.")
@json_option
def command(
    config: DistillConfig,
    stores: tuple[Location, ...],
    resume: bool,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Train a student from the cached tensors of a teacher, or of several.

    Without --store, --teacher or --dataset it takes the newest complete store under the root, and
    says which.
    """
    opened = choose_store(
        stores or None,
        root=config.root,
        dataset=config.dataset,
        teacher=config.teacher,
        require_signature=config.require_signature,
        verify_shards=config.verify_shards,
    )
    configs = config.for_each_student()
    print_note(f"Distilling from {opened.where}")
    with progress("Distilling") as bar:
        runs = distill_many(
            opened,
            configs,
            resume=resume,
            overwrite=overwrite,
            on_progress=bar,
            on_note=print_note,
        )
    seeds = len(config.seeds)
    of_student = {
        each.student: runs[number * seeds : (number + 1) * seeds]
        for number, each in enumerate(configs)
    }
    if as_json:
        print_json(_as_facts(opened, of_student))
        return
    for each in configs:
        _print_runs(opened, each, of_student[each.student])


def _as_facts(store: Store, of_student: dict[str, list[Run]]) -> dict[str, object]:
    """All runs in one list, and student by student; of a single student also its summary."""
    students = [
        {
            "student": student,
            "runs": [
                {
                    "student": student,
                    "run": str(run.path),
                    "status": run.status,
                    "seed": run.seed,
                    "metrics": run.metrics,
                }
                for run in runs
            ],
            "summary": summarise(runs),
        }
        for student, runs in of_student.items()
    ]
    facts: dict[str, object] = {
        "store": store.where,
        "runs": [run for each in students for run in each["runs"]],
        "students": students,
    }
    if len(students) == 1:
        facts["summary"] = students[0]["summary"]
    return facts


def _print_runs(store: Store, config: DistillConfig, runs: list[Run]) -> None:
    summary = summarise(runs)
    dataset, teacher = store.manifest["dataset"]["name"], store.manifest["teacher"]["name"]
    headline = runs[0].metric
    also = {f"{headline}_without_leaks": "without leaks", f"teacher_{headline}": "teacher branch"}
    facts: dict[str, object] = {
        name.replace("_", " "): in_percent(summary[name])
        for name in SHOWN[headline]
        if name in summary
    }
    if "hd95" in summary:
        facts["hd95"] = _distance(runs, summary["hd95"])
    facts |= {title: in_percent(summary[name]) for name, title in also.items() if name in summary}
    if len(runs) == 1 and (interval := runs[0].metrics.get(f"{headline}_ci95")):
        facts[headline] = (
            f"{facts[headline]} (95 % bootstrap interval {100 * interval[0]:.1f} to "
            f"{100 * interval[1]:.1f})"
        )
    facts["runs"] = "\n".join(f"{run.path} ({run.status})" for run in runs)
    facts["next"] = (
        f"rdcache distill --student {config.student} --method none   # the plain student"
    )
    print_facts(
        f"{config.student} by {config.method} from {teacher} on {dataset}, test images, in per cent"
        + (f", mean ± std of {len(runs)} seeds:" if len(runs) > 1 else ":"),
        facts,
    )


def _distance(runs: Sequence[Run], summary: Mapping[str, float]) -> str:
    """Mean ± standard deviation of a distance, which is no percentage, and what it leaves out."""
    spread = f" ± {summary['std']:.2f}" if summary["n"] > 1 else ""
    undefined = sum(run.metrics["hd95_undefined"] for run in runs)
    without = f", without {undefined} where one mask is empty" if undefined else ""
    return f"{summary['mean']:.2f}{spread} {runs[0].metrics['distance_unit']}{without}"
