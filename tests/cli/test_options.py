"""Flags made from a pydantic class."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import click
import pytest
from click.testing import CliRunner
from pydantic import BaseModel, ConfigDict, Field

from rdcache.cli import options
from rdcache.errors import UsageError


class Soup(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: str = Field(description="What it is called.")
    heat: Literal["mild", "hot"] = Field(default="mild", description="How hot.")
    spoons: int = Field(default=2, gt=0, description="How many spoons.")
    seeds: tuple[int, ...] = Field(default=(0,), description="Seeds.")
    vegan: bool = Field(default=False, description="No meat.")
    salted: bool = Field(default=True, description="With salt.")
    pot: Path | None = Field(default=None, description="Where it is cooked.")
    extras: dict[str, Any] = Field(default={}, description="Anything else.")


@click.command()
@options.from_model(Soup, seeds="--seed")
def cook(config: Soup) -> Soup:
    """Cook."""
    return config


def cooked(*arguments: str) -> Soup:
    result = cook.main(list(arguments), standalone_mode=False)
    assert isinstance(result, Soup)
    return result


def test_what_is_not_given_keeps_its_default_and_is_known_as_not_given() -> None:
    soup = cooked("--name", "pho")
    assert soup == Soup(name="pho")
    assert soup.model_fields_set == {"name"}


def test_every_kind_of_field_is_a_flag() -> None:
    soup = cooked(
        *("--name", "pho", "--heat", "hot", "--spoons", "3", "--seed", "0,1", "--seed", "5"),
        *("--vegan", "--no-salted", "--pot", "big/pot", "--extras", "chili-oil=0.5"),
        *("--extras", "lime=true"),
    )
    assert soup.seeds == (0, 1, 5)
    assert (soup.heat, soup.spoons, soup.vegan, soup.salted) == ("hot", 3, True, False)
    assert soup.pot == Path("big/pot")
    assert soup.extras == {"chili_oil": 0.5, "lime": True}


def test_help_comes_from_the_descriptions() -> None:
    text = CliRunner().invoke(cook, ["--help"]).output
    assert "How many spoons." in text
    assert "[default: 2]" in text
    assert "[mild|hot]" in text


def test_a_value_out_of_range_names_the_flag() -> None:
    with pytest.raises(UsageError, match="--spoons: input should be greater than 0"):
        cooked("--name", "pho", "--spoons", "0")


def test_a_mapping_needs_key_and_value() -> None:
    with pytest.raises(click.BadParameter, match="KEY=VALUE"):
        cooked("--name", "pho", "--extras", "chili")
