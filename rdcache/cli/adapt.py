"""`rdcache adapt`: a live teacher, fine-tuned."""

from __future__ import annotations

import click

from rdcache.adaptation import AdaptConfig, AdaptRun, adapt_seeds
from rdcache.cli import options
from rdcache.cli.output import (
    in_bytes,
    in_percent,
    json_option,
    print_facts,
    print_json,
    print_note,
    progress,
)
from rdcache.distillation import summarise
from rdcache.models.adapters import FILE

SHOWN = ("accuracy", "balanced_accuracy", "macro_f1", "auroc", "ece")
ALSO = {"accuracy_without_leaks": "without leaks"}


@click.command(
    epilog="Example:  rdcache adapt --teacher timm:vit_tiny_patch16_224 --dataset busi "
    "--method lora --set rank=8"
)
@options.from_model(AdaptConfig, seeds="--seed", method_options="--set")
@click.option("--resume", is_flag=True, help="Go on with a run that was interrupted.")
@click.option("--overwrite", is_flag=True, help="Train again even if the same run is finished.")
@json_option
def command(config: AdaptConfig, resume: bool, overwrite: bool, as_json: bool) -> None:
    """Fine-tune a live teacher on a dataset, in part or whole.

    What comes out is a frozen teacher again, which goes through the same two phases:
    rdcache extract --teacher adapted:RUN
    """
    with progress("Adapting") as bar:
        runs = adapt_seeds(
            config, resume=resume, overwrite=overwrite, on_progress=bar, on_note=print_note
        )
    if as_json:
        print_json({"runs": [_as_facts(run) for run in runs], "summary": summarise(runs)})
    else:
        _print_runs(config, runs)


def _as_facts(run: AdaptRun) -> dict[str, object]:
    return {
        "run": str(run.path),
        "teacher": run.teacher_name,
        "status": run.status,
        "seed": run.seed,
        "parameters": run.result["adapted"]["parameters"],
        "metrics": run.metrics,
    }


def _print_runs(config: AdaptConfig, runs: list[AdaptRun]) -> None:
    summary, first = summarise(runs), runs[0]
    facts: dict[str, object] = {
        name.replace("_", " "): in_percent(summary[name]) for name in SHOWN if name in summary
    }
    facts |= {title: in_percent(summary[name]) for name, title in ALSO.items() if name in summary}
    parts = {"adapter": "adapter", "head": "classifier", "base": "the teacher itself"}
    counts = first.result["adapted"]["parameters"]
    facts["learned"] = ", ".join(
        f"{counts[name]:,} numbers of {title}" for name, title in parts.items() if counts[name]
    )
    facts["kept in"] = f"{FILE}, {in_bytes((first.path / FILE).stat().st_size)}"
    facts["runs"] = "\n".join(f"{run.path} ({run.status})" for run in runs)
    facts["next"] = f"rdcache extract --teacher {first.teacher_name} --dataset {config.dataset}"
    dataset, teacher = first.result["dataset"]["name"], first.result["teacher"]["name"]
    print_facts(
        f"{teacher} adapted to {dataset} by {config.method}, test images, in per cent"
        + (f", mean ± std of {len(runs)} seeds:" if len(runs) > 1 else ":"),
        facts,
    )
