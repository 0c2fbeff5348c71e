"""Command-line options made from a pydantic class: its fields, types, defaults and descriptions.

The Python call, the flags and the YAML recipes thus share one definition. An option that is not
given is left out of the config, so that presets can tell a default from a choice.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping
from functools import wraps
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

import click
import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from rdcache import configs

Command = TypeVar("Command", bound=Callable[..., Any])


signature_option = click.option(
    "--require-signature",
    type=click.Path(path_type=Path),
    envvar="RDCACHE_REQUIRE_SIGNATURE",
    metavar="KEY",
    help="Refuse a store that is not signed by this public key (default: "
    "RDCACHE_REQUIRE_SIGNATURE, else none).",
)


salt_option = click.option(
    "--uid-salt",
    envvar="RDCACHE_UID_SALT",
    metavar="TEXT|@FILE",
    help="Salt that the uids were made with, where they are salted (default: RDCACHE_UID_SALT, "
    "else none).",
)


class _LocationType(click.ParamType):
    """A folder, or an address in a bucket."""

    name = "LOCATION"

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        """Tell folders from addresses."""
        from rdcache.store.locations import as_location  # with it comes torch

        return as_location(value)


LOCATION = _LocationType()
root = click.option(
    "--root", type=LOCATION, help="Where stores are kept: a folder, or s3://BUCKET/FOLDER, …"
)
data_dir = click.option(
    "--data-dir", type=click.Path(path_type=Path), help="Where datasets are looked for."
)


def part(command: Command) -> Command:
    """Decorate a command with the options that choose a part of a store."""
    for decorate in reversed(
        (
            click.option("--taps", type=_CommaSeparated(str), help="Copy these taps only."),
            click.option(
                "--views",
                type=click.IntRange(min=1),
                metavar="K",
                help="Copy the first K views only, the clean one included.",
            ),
            click.option(
                "--split",
                "splits",
                type=_CommaSeparated(str),
                help="Copy these of train, val, test only.",
            ),
        )
    ):
        command = decorate(command)
    return command


def from_model(model: type[BaseModel], **renamed: str) -> Callable[[Command], Command]:
    """Decorate a command so that it is called with `config`, an instance of `model`.

    Args:
        renamed: option name for a field whose flag should differ, as in `seeds="--seed"`.
    """

    def decorate(command: Command) -> Command:
        @wraps(command)
        def with_config(*args: Any, **values: Any) -> Any:
            given = {
                name: value
                for name in model.model_fields
                if (value := values.pop(name, None)) is not None
            }
            return command(*args, config=validated(model, given, renamed), **values)

        decorated: Any = with_config
        for name, field in reversed(model.model_fields.items()):
            decorated = _option(name, field, renamed.get(name))(decorated)
        return decorated

    return decorate


def validated(
    model: type[BaseModel], given: Mapping[str, Any], renamed: Mapping[str, str] | None = None
) -> Any:
    """Build the config, or say in one sentence which option is wrong.

    Raises:
        UsageError: naming the flag and what it should be.
    """

    def flag(name: str) -> str:
        field = name.partition(".")[0]
        return (renamed or {}).get(field, "--" + field.replace("_", "-")) if field else ""

    return configs.validated(model, given, flag)


def _option(name: str, field: FieldInfo, flag: str | None) -> Callable[[Any], Any]:
    flag = flag or "--" + name.replace("_", "-")
    kind = _without_none(field.annotation)
    help_text = _help(field)
    required = field.is_required()
    if kind is bool:
        spelling = f"{flag}/--no-{flag[2:]}" if field.default else flag
        return click.option(spelling, name, is_flag=True, default=None, help=help_text)
    if get_origin(kind) is tuple:
        items = _CommaSeparated(get_args(kind)[0])
        return click.option(
            flag,
            name,
            multiple=True,
            type=items,
            callback=_joined,
            required=required,
            help=help_text,
        )
    if get_origin(kind) is dict:
        return click.option(
            flag, name, multiple=True, metavar="KEY=VALUE", callback=_mapping, help=help_text
        )
    if get_origin(kind) is Literal:
        choices = click.Choice([str(choice) for choice in get_args(kind)])
        return click.option(flag, name, type=choices, required=required, help=help_text)
    types_of_click: dict[Any, Any] = {int: int, float: float, Path: click.Path(path_type=Path)}
    return click.option(
        flag, name, type=types_of_click.get(kind, str), required=required, help=help_text
    )


def _without_none(annotation: Any) -> Any:
    """`int | None` → `int`: an option that is not given is None anyway."""
    if get_origin(annotation) in (Union, types.UnionType):
        kinds = [kind for kind in get_args(annotation) if kind is not type(None)]
        return kinds[0] if len(kinds) == 1 else str
    return annotation


def _help(field: FieldInfo) -> str:
    text = field.description or ""
    default = field.default
    silent = field.is_required() or default in (None, (), False) or field.default_factory
    if silent or "default" in text.lower():
        return text
    shown = ",".join(map(str, default)) if isinstance(default, tuple) else default
    return f"{text}  [default: {shown}]"


class _CommaSeparated(click.ParamType):
    """`0,1,2` as a tuple of the item type."""

    def __init__(self, item: type) -> None:
        self.item = item
        self.name = "LIST"

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        if isinstance(value, tuple):
            return value
        try:
            return tuple(self.item(part.strip()) for part in str(value).split(",") if part.strip())
        except ValueError:
            self.fail(
                f"{value!r} is not a comma-separated list of {self.item.__name__}.", param, ctx
            )


def _joined(ctx: click.Context, param: click.Parameter, values: tuple[Any, ...]) -> Any:
    """`--seed 0 --seed 1,2` → (0, 1, 2); nothing given → None."""
    if values and not any(values):
        raise click.BadParameter("the list is empty.", ctx, param)
    return tuple(item for value in values for item in value) or None


def _mapping(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> Any:
    """`--set alpha=0.5 --set kl_grad=both` → a dictionary; values are read as YAML scalars."""
    result: dict[str, Any] = {}
    for value in values:
        key, separator, text = value.partition("=")
        if not separator or not key:
            raise click.BadParameter(f"{value!r} is not of the form KEY=VALUE.", ctx, param)
        try:
            result[key.strip().replace("-", "_")] = yaml.safe_load(text)
        except yaml.YAMLError:
            raise click.BadParameter(f"{text!r} is not a value.", ctx, param) from None
    return result or None
