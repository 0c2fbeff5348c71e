"""`rdcache list`: what there is to choose from."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from rdcache.cli import options
from rdcache.cli.output import in_age, in_bytes, json_option, print_json, print_table

if TYPE_CHECKING:
    from rdcache.store import Location

KINDS = ("stores", "teachers", "datasets", "students", "methods", "adapters")


@click.command(epilog="Example:  rdcache list teachers")
@click.argument("kind", type=click.Choice(KINDS))
@options.root
@options.data_dir
@json_option
def command(kind: str, root: Location | None, data_dir: Path | None, as_json: bool) -> None:
    """List what there is of one KIND."""
    rows = {
        "stores": lambda: _stores(root),
        "teachers": lambda: _teachers(data_dir),
        "datasets": lambda: _datasets(data_dir),
        "students": _students,
        "methods": _methods,
        "adapters": _adapters,
    }[kind]()
    if as_json:
        print_json({kind: [{**row, **_details(kind, row)} for row in rows]})
    elif rows:
        print_table(
            kind.capitalize(), list(rows[0]), [[_cell(*it) for it in row.items()] for row in rows]
        )
    else:
        click.echo(f"No {kind} yet. Make one:  rdcache extract --teacher … --dataset …")


def _details(kind: str, row: dict[str, object]) -> dict[str, object]:
    """What only the JSON form says: a method's options, with the preset's values as defaults, and
    which of them a recipe tunes.
    """
    if kind != "methods":
        return {}
    from rdcache.methods import find_method

    card = find_method(str(row["method"]))
    defaults = card.config({}).model_dump()
    fields = card.method.Config.model_fields
    return {
        "tuned": list(card.method.tuned),
        "options": {
            name: {"default": defaults[name], "meaning": field.description}
            for name, field in fields.items()
        },
    }


def _cell(column: str, value: object) -> str:
    if column == "made":
        return str(value)[:16]  # to the minute
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return "\n".join(f"{key} {'×'.join(map(str, shape))}" for key, shape in value.items())
    return str(value)


def _stores(root: Location | None) -> list[dict[str, object]]:
    from rdcache.store import default_root, list_stores

    return [
        {
            "dataset": summary.dataset,
            "teacher": summary.teacher,
            "samples": summary.samples,
            "views": summary.views,
            "taps": ", ".join(summary.taps),
            "size": in_bytes(summary.nbytes),
            "complete": summary.complete,
            "made": summary.created,
            "age": in_age(summary.created),
            "who": summary.who or "",
            "store": str(summary.location),
        }
        for summary in list_stores(default_root(root))
    ]


def _teachers(data_dir: Path | None) -> list[dict[str, object]]:
    from rdcache.models import list_teachers

    return [
        {
            "teacher": card.name,
            "what": card.title,
            "input": "×".join(map(str, card.input_shape[1:]))
            if card.dimensions == 3
            else card.input_size,
            "taps": {name: list(shape) for name, shape in card.taps.items()},
            "licence": card.licence,
            "weights": "present" if card.weights_present else f"missing: {card.expected_path}",
            "get them from": card.source,
        }
        for card in list_teachers(data_dir)
    ]


def _datasets(data_dir: Path | None) -> list[dict[str, object]]:
    from rdcache.data import list_datasets

    return [
        {
            "dataset": card.name,
            "what": card.title,
            "task": card.task if card.dimensions == 2 else f"{card.task}, {card.dimensions}D",
            "classes": len(card.classes) or "yours",
            "split": card.split,
            "licence": card.licence,
            "present": card.present,
            "get it from": card.source,
        }
        for card in list_datasets(data_dir)
    ]


def _students() -> list[dict[str, object]]:
    from rdcache.models import list_students

    return [
        {
            "student": card.name,
            "what": card.title,
            "task": card.task_kind,
            "dimensions": card.dimensions,
            "parameters": f"{card.parameters / 1e6:.2f} M" if card.parameters else "yours",
            "feature width": card.feature_dim or "yours",
        }
        for card in list_students()
    ]


def _methods() -> list[dict[str, object]]:
    from rdcache.methods import TASKS, list_methods

    return [
        {
            "method": card.name,
            "what": card.title,
            "needs": card.needs,
            "for": ", ".join(task for task in TASKS if task in card.method.tasks),
            "dimensions": ", ".join(f"{it}D" for it in sorted(card.method.dimensions)),
            "source": card.paper,
            "year": card.year or "–",
        }
        for card in list_methods()
    ]


def _adapters() -> list[dict[str, object]]:
    from rdcache.models.adapters import ADAPTERS

    return [
        {
            "adapter": card.name,
            "what": card.title,
            "needs": card.needs,
            "options": ", ".join(
                f"{name}={field.default}" for name, field in card.options.model_fields.items()
            ),
            "source": card.paper,
        }
        for card in ADAPTERS.values()
    ]
