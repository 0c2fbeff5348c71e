"""Reading a recipe, and checking all of it before anything runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import yaml
from pydantic import ValidationError

import rdcache
from rdcache.data import dataset_names
from rdcache.errors import UnknownNameError, UsageError
from rdcache.methods import find_method, list_methods
from rdcache.models import list_students, list_teachers
from rdcache.recipes.places import Places
from rdcache.recipes.recipe import Recipe, members
from rdcache.recipes.tuning import tuned_options, with_factor


def load_recipe(path: Path) -> Recipe:
    """Read and check a recipe, every option in it included, before anything runs.

    Raises:
        UsageError: no such file, not YAML, or an entry that is unknown or out of range.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError("the recipe cannot be read.", file=path, why=error.strerror) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(
            "the recipe is not YAML.", file=path, why=str(error).replace("\n", " ")
        ) from None
    try:
        recipe = Recipe.model_validate(content)
        grids = recipe.as_grids()
        _require_known(recipe, grids)
        for grid in grids:
            for teacher in grid.teachers:
                for dataset in grid.datasets:
                    _require_valid(grid, teacher, dataset)
    except ValidationError as error:
        wrong = UsageError.of_validation(error, content if isinstance(content, dict) else {})
        raise UsageError(wrong.summary, file=path) from None
    except UsageError as error:
        error.facts["file"] = str(path)
        raise
    return recipe


def shipped_recipe(name: str) -> Path:
    """The path of a recipe that travels with the package, such as `demo.yaml`."""
    package = Path(rdcache.__file__).parent
    folder = next(f for f in (package, package.parent) if (f / "pipelines").is_dir()) / "pipelines"
    if not (folder / name).is_file():
        raise UnknownNameError.of("recipe", name, (path.name for path in folder.glob("*.yaml")))
    return folder / name


def _require_valid(recipe: Recipe, teacher: str, dataset: str) -> None:
    """Build the options of every cell of a teacher and a dataset.

    Raises:
        ValidationError, UsageError: an option that does not exist or is out of range.
    """
    for member in members(teacher):
        recipe.extract_config(member, dataset, Places())
    for entry in recipe.methods:
        cell = (teacher, dataset, recipe.students[0], entry, Places())
        recipe.distill_config(*cell).resolved()
        tried = recipe.distill_config(*cell, tuning=True)
        if recipe.tune and tuned_options(tried):
            for factor in recipe.tune.factors:
                with_factor(tried, factor).resolved()


def _require_known(recipe: Recipe, grids: Sequence[Recipe]) -> None:
    """Look up every name of the grids, so that no slip is found only after hours.

    Args:
        grids: those of the recipe.

    Raises:
        UnknownNameError: a teacher, dataset, student or method that does not exist, or overrides
            for one that is not in the grid.
        UsageError: a variant that has a method's name.
    """
    entries, single_teachers, datasets, students = (
        list(dict.fromkeys(name for grid in grids for name in getattr(grid, names)))
        for names in ("methods", "single_teachers", "datasets", "students")
    )
    for entry in entries:
        find_method(recipe.variant(entry).method)
    for name in recipe.variants.keys() & {card.name for card in list_methods()}:
        raise UsageError(
            "a variant needs a name of its own, or its rows would be taken for the method's.",
            variant=name,
        )
    of_teachers = {*single_teachers, *(name for grid in grids for name in grid.teachers)}
    methods = [recipe.variant(entry).method for entry in entries]
    for known, names, kind in (
        ([card.name for card in list_teachers()], single_teachers, "teacher"),
        (dataset_names(), datasets, "dataset"),
        ([card.name for card in list_students()], students, "student"),
        (datasets, recipe.per_dataset, "dataset in this recipe"),
        (of_teachers, recipe.per_teacher, "teacher in this recipe"),
    ):
        for name in names:
            if name not in known and ":" not in name:
                raise UnknownNameError.of(kind, name, known)
    for name in recipe.per_method:
        if name not in methods:
            raise UnknownNameError.of("method in this recipe", name, methods)
    for name in recipe.variants:
        if name not in entries:
            raise UnknownNameError.of("entry of `methods`", name, entries)
