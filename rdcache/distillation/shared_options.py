"""Options that every training has, of students and of teachers that are adapted: types and help
texts; and how a Python call's options become a config.

Defaults stand in the configs, where type checkers look for them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from rdcache.configs import Config, validated


def _each_once(seeds: tuple[int, ...]) -> tuple[int, ...]:
    if len(set(seeds)) < len(seeds):
        raise ValueError("should name each seed once")
    return seeds


SeedsOption = Annotated[
    tuple[int, ...],
    Field(min_length=1, description="Seeds, comma-separated: one run for each."),
    AfterValidator(_each_once),
]
ThreadsOption = Annotated[
    int | None, Field(gt=0, description="CPU threads (default: PyTorch's choice).")
]
CheckpointSecondsOption = Annotated[
    float,
    Field(
        ge=0,
        description="Least time between checkpoints, from which --resume goes on; they are written "
        "at the ends of epochs.",
    ),
]


def from_call(model: type[Config], named: Mapping[str, Any], options: Mapping[str, Any]) -> Config:
    """Build a config from a Python call: sort its options into those of training and those of the
    method.

    `seed=3` stands for `seeds=(3,)`. A name that training does not know is taken for an option of
    the method, which then refuses it if it does not know it either.

    Args:
        named: what the call has parameters for.

    Raises:
        UsageError: a value out of range.
    """
    options = dict(options)
    if "seed" in options:
        options["seeds"] = (options.pop("seed"),)
    for_method = dict(options.pop("method_options", {}))
    unknown = [name for name in options if name not in model.model_fields]
    for_method |= {name: options.pop(name) for name in unknown}
    return validated(model, {**named, "method_options": for_method, **options})
