"""`rdcache cost`: what teachers and students cost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import click
import torch

from rdcache.cli import options
from rdcache.cli.comparisons import FORMATS, print_laid_out
from rdcache.cli.output import json_option, print_json, print_note, progress
from rdcache.probing import machine
from rdcache.report.cost_tables import cost_table
from rdcache.report.costs import Cost, CostConfig, measure_costs
from rdcache.report.latencies import timed_on


@click.command(
    epilog="Example:  rdcache cost --teacher lvm-med --student resnet18,mobilenet,shufflenet"
)
@options.from_model(CostConfig)
@click.option(
    "--format",
    "form",
    type=click.Choice(["text", *FORMATS]),
    default="text",
    show_default=True,
    help="How the table is printed.",
)
@json_option
def command(
    config: CostConfig, form: Literal["text", "markdown", "csv", "latex"], as_json: bool
) -> None:
    """Count parameters and operations of teachers and students, and measure times and sizes.

    No weights are needed: nothing of it depends on them.
    """
    with progress("Measuring") as bar:
        costs = measure_costs(config, bar)
    table = cost_table(costs, config.classes, _place(config))
    if as_json:
        print_json(_as_facts(costs, config))
    elif form == "text":
        print_laid_out(table)
    else:
        click.echo(FORMATS[form](table), nl=False)
    if form == "csv" and not as_json:  # which has no place for them
        for note in table.notes:
            print_note(note)


def _as_facts(costs: Sequence[Cost], config: CostConfig) -> dict[str, object]:
    return {
        "machine": _machine(config),
        "classes": config.classes,
        "networks": [
            {
                **vars(cost),
                "flops": cost.flops,
                "latencies": [vars(latency) for latency in cost.latencies],
            }
            for cost in costs
        ],
    }


def _machine(config: CostConfig) -> dict[str, object]:
    facts = {**machine(), **({"threads": config.threads} if config.threads else {})}
    gpus = [
        torch.cuda.get_device_name(device)
        for device in timed_on(config.device)
        if device.type == "cuda"
    ]
    return {**facts, **({"gpu": gpus[0]} if gpus else {})}


def _place(config: CostConfig) -> str:
    facts = _machine(config)
    gpu = f", {facts['gpu']}" if "gpu" in facts else ""
    return f"{facts['cpu']}, threads: {facts['threads']}, PyTorch {facts['torch']}{gpu}"
