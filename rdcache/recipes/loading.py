"""Reading a recipe, and checking all of it before anything runs."""

from __future__ import annotations

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
        _require_known(recipe)
        for teacher in recipe.teachers:
            for dataset in recipe.datasets:
                _require_valid(recipe, teacher, dataset)
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


def _require_known(recipe: Recipe) -> None:
    """Look up every name of the grid, so that no slip is found only after hours.

    Raises:
        UnknownNameError: a teacher, dataset, student or method that does not exist, or overrides
            for one that is not in the grid.
        UsageError: a variant that has a method's name.
    """
    for entry in recipe.methods:
        find_method(recipe.variant(entry).method)
    for name in recipe.variants.keys() & {card.name for card in list_methods()}:
        raise UsageError(
            "a variant needs a name of its own, or its rows would be taken for the method's.",
            variant=name,
        )
    of_teachers = {*recipe.teachers, *recipe.single_teachers}
    grid = [recipe.variant(entry).method for entry in recipe.methods]
    for known, names, kind in (
        ([card.name for card in list_teachers()], recipe.single_teachers, "teacher"),
        (dataset_names(), recipe.datasets, "dataset"),
        ([card.name for card in list_students()], recipe.students, "student"),
        (recipe.datasets, recipe.per_dataset, "dataset in this recipe"),
        (of_teachers, recipe.per_teacher, "teacher in this recipe"),
    ):
        for name in names:
            if name not in known and ":" not in name:
                raise UnknownNameError.of(kind, name, known)
    for name in recipe.per_method:
        if name not in grid:
            raise UnknownNameError.of("method in this recipe", name, grid)
    for name in recipe.variants:
        if name not in recipe.methods:
            raise UnknownNameError.of("entry of `methods`", name, recipe.methods)
