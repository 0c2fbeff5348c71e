"""Recipes: a YAML file that names a grid of teachers × datasets × students × methods × seeds.

A recipe holds no code: its `extract` and `distill` parts are the options of the two commands.
Running one does both phases for every cell of the grid; stores and runs that are finished already
are taken as they are, so that an interrupted recipe goes on where it stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

import rdcache
from rdcache.data import list_datasets
from rdcache.distillation import DistillConfig, Run, distill_seeds
from rdcache.distillation.session import once_each, silently
from rdcache.errors import UnknownNameError, UsageError
from rdcache.extraction import ExtractConfig, plan_extraction, run_extraction
from rdcache.methods import find_method
from rdcache.models import list_students, list_teachers
from rdcache.progress import Progress, ignore
from rdcache.store import Location, Store

GRID = {"teacher", "dataset", "student", "method", "seeds"}


class Overrides(BaseModel):
    """Options that differ for one dataset of the grid."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    extract: dict[str, Any] = {}
    distill: dict[str, Any] = {}


class Recipe(BaseModel):
    """A grid. Every list may hold one entry; every cell is trained with every seed.

    Attributes:
        extract: options of `rdcache extract` for all cells, such as `views: 8`.
        distill: options of `rdcache distill` for all cells, such as `epochs: 100`.
        per_dataset: options that replace these for one dataset.
        per_method: options of `rdcache distill` that replace both for one method.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    title: str
    teachers: tuple[str, ...] = Field(min_length=1)
    datasets: tuple[str, ...] = Field(min_length=1)
    students: tuple[str, ...] = Field(min_length=1)
    methods: tuple[str, ...] = Field(min_length=1)
    seeds: tuple[int, ...] = (0,)
    extract: dict[str, Any] = {}
    distill: dict[str, Any] = {}
    per_dataset: dict[str, Overrides] = {}
    per_method: dict[str, dict[str, Any]] = {}

    @field_validator("teachers", "datasets", "students", "methods", "seeds")
    @classmethod
    def _without_repetition(cls, names: tuple[Any, ...]) -> tuple[Any, ...]:
        if len(set(names)) < len(names):
            raise ValueError("an entry is listed twice")
        return names

    @model_validator(mode="after")
    def _grid_is_given_once(self) -> Recipe:
        overrides = list(self.per_dataset.values())
        parts = [part for own in overrides for part in (own.extract, own.distill)]
        for part in (self.extract, self.distill, *parts, *self.per_method.values()):
            if own := GRID & part.keys():
                raise ValueError(f"{min(own)} is given by the grid, not among the options")
        return self


@dataclass(frozen=True)
class Cell:
    """One cell of the grid and its finished runs, one a seed."""

    dataset: str
    teacher: str
    student: str
    method: str
    runs: tuple[Run, ...]


@dataclass(frozen=True)
class Places:
    """Where a recipe reads and writes; None stands for the usual place of each."""

    root: Location | None = None
    data_dir: Path | None = None
    out: Path | None = None

    def for_extract(self) -> dict[str, Any]:
        """As options of `rdcache extract`."""
        return _given(root=self.root, data_dir=self.data_dir)

    def for_distill(self) -> dict[str, Any]:
        """As options of `rdcache distill`."""
        return _given(data_dir=self.data_dir, out=self.out)


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
        for dataset in recipe.datasets:
            for teacher in recipe.teachers:
                extract_config(recipe, teacher, dataset, Places())
            for method in recipe.methods:
                distill_config(recipe, dataset, recipe.students[0], method, Places()).resolved()
    except ValidationError as error:
        wrong = UsageError.of_validation(error, content if isinstance(content, dict) else {})
        raise UsageError(wrong.summary, file=path) from None
    except UsageError as error:
        error.facts["file"] = str(path)
        raise
    return recipe


def _require_known(recipe: Recipe) -> None:
    """Look up every name of the grid, so that no slip is found only after hours.

    Raises:
        UnknownNameError: a teacher, dataset, student or method that does not exist, or overrides
            for one that is not in the grid.
    """
    for method in recipe.methods:
        find_method(method)
    for known, names, kind in (
        ([card.name for card in list_teachers()], recipe.teachers, "teacher"),
        ([card.name for card in list_datasets()], recipe.datasets, "dataset"),
        ([card.name for card in list_students()], recipe.students, "student"),
        (recipe.datasets, recipe.per_dataset, "dataset in this recipe"),
        (recipe.methods, recipe.per_method, "method in this recipe"),
    ):
        for name in names:
            if name not in known and ":" not in name:
                raise UnknownNameError.of(kind, name, known)


def run_recipe(
    recipe: Recipe,
    places: Places,
    on_progress: Progress = ignore,
    on_note: Callable[[str], None] = silently,
) -> Iterator[Cell]:
    """Run every cell of the grid and yield it when its last seed is done.

    Args:
        on_note: told, in a sentence, what was chosen for this machine and a dataset.
    """
    tell = once_each(on_note)
    for dataset in recipe.datasets:
        for teacher in recipe.teachers:
            store = _extracted(recipe, teacher, dataset, places, on_progress)
            for student in recipe.students:
                for method in recipe.methods:
                    config = distill_config(recipe, dataset, student, method, places)
                    label = f"{dataset} {student} {method}"
                    runs = distill_seeds(
                        store,
                        config,
                        resume=True,
                        on_progress=lambda done, total, note="", label=label: on_progress(
                            done, total, f"{label} {note}".strip()
                        ),
                        on_note=_about(dataset, tell),
                    )
                    yield Cell(dataset, teacher, student, method, tuple(runs))


def extract_config(recipe: Recipe, teacher: str, dataset: str, places: Places) -> ExtractConfig:
    """The options of phase 1 for one teacher and dataset."""
    own = recipe.per_dataset.get(dataset, Overrides())
    options = {**recipe.extract, **own.extract, **places.for_extract()}
    return ExtractConfig(
        teacher=teacher, dataset=dataset, **{**options, "views": str(options.get("views", 8))}
    )


def distill_config(
    recipe: Recipe, dataset: str, student: str, method: str, places: Places
) -> DistillConfig:
    """The options of phase 2 for one cell."""
    own = recipe.per_dataset.get(dataset, Overrides())
    options = {
        **recipe.distill,
        **own.distill,
        **recipe.per_method.get(method, {}),
        **places.for_distill(),
    }
    return DistillConfig(
        dataset=dataset, student=student, method=method, seeds=recipe.seeds, **options
    )


def shipped_recipe(name: str) -> Path:
    """The path of a recipe that travels with the package, such as `demo.yaml`."""
    package = Path(rdcache.__file__).parent
    folder = next(f for f in (package, package.parent) if (f / "pipelines").is_dir()) / "pipelines"
    if not (folder / name).is_file():
        raise UnknownNameError.of("recipe", name, (path.name for path in folder.glob("*.yaml")))
    return folder / name


def _extracted(
    recipe: Recipe, teacher: str, dataset: str, places: Places, on_progress: Progress
) -> Store:
    config = extract_config(recipe, teacher, dataset, places)
    plan = plan_extraction(config, on_progress)
    return run_extraction(
        plan,
        lambda done, total, note="": on_progress(done, total, f"{dataset} {teacher} {note}"),
    ).store


def _about(dataset: str, on_note: Callable[[str], None]) -> Callable[[str], None]:
    return lambda note: on_note(f"on {dataset}, {note}")


def _given(**options: Any) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}
