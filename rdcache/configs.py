"""Options as pydantic classes: built from what a user gave, or refused in one sentence."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from rdcache.errors import UnknownNameError, UsageError

Config = TypeVar("Config", bound=BaseModel)


def validated(
    model: type[Config], given: Mapping[str, Any], flag: Callable[[str], str] = str
) -> Config:
    """Build a config, or say in one sentence which option is wrong.

    Args:
        flag: how the user calls an entry, as in `--batch-size` for `batch_size`.

    Raises:
        UsageError: naming the option and what it should be.
    """
    try:
        return model(**given)
    except ValidationError as error:
        raise UsageError.of_validation(error, given, flag) from None


def validated_options(
    of: str,
    model: type[Config],
    given: Mapping[str, Any],
    defaults: Mapping[str, Any] | None = None,
) -> Config:
    """Complete the options of something that has a name, such as a method.

    Args:
        of: that name.
        defaults: what comes before the model's own.

    Raises:
        UnknownNameError: it has no such option.
        UsageError: a value out of range.
    """
    for name in given:
        if name not in model.model_fields:
            raise UnknownNameError.of(f"option of {of}", name, model.model_fields)
    return validated(model, {**(defaults or {}), **given})


def config_of_call(
    model: type[Config], config: Config | None, options: Mapping[str, Any]
) -> Config:
    """The config of a Python call that takes all options at once, or one by one.

    Raises:
        UsageError: both are given, or an option is wrong.
    """
    if config is not None and options:
        raise UsageError("give either a config or options, not both.", options=", ".join(options))
    return config or validated(model, options)
