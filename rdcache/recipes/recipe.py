"""What a recipe may say, and the options of both phases that it comes to for a cell of its grid."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from rdcache.distillation import DistillConfig
from rdcache.errors import UsageError
from rdcache.extraction import ExtractConfig
from rdcache.recipes.places import Places

GRID = {"teacher", "dataset", "student", "method", "seeds"}
SEVERAL = " + "


class Overrides(BaseModel):
    """Options that differ for one dataset, or for one teacher, of the grid."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    extract: dict[str, Any] = {}
    distill: dict[str, Any] = {}


class Variant(BaseModel):
    """A method with some options changed, under a name of its own: a row of the table.

    Attributes:
        method: name of the method or preset.
        options: options of the method.
        distill: options of the training, such as `views: 1`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    method: str
    options: dict[str, Any] = {}
    distill: dict[str, Any] = {}


class Tuning(BaseModel):
    """How the weights of each method are chosen: the same small grid and budget for all of them.

    Attributes:
        factors: what a method's reference weights are multiplied with.
        seeds: with which seeds each factor is tried.
        distill: options of the training that differ while tuning, such as fewer `epochs`. Without
            any, a tuning run that the grid wants too is one run.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    factors: tuple[float, ...] = (0.1, 1.0, 10.0)
    seeds: tuple[int, ...] = Field(default=(0,), min_length=1)
    distill: dict[str, Any] = {}

    @field_validator("factors")
    @classmethod
    def _worth_a_choice(cls, factors: tuple[float, ...]) -> tuple[float, ...]:
        if len(factors) < 2 or min(factors) <= 0:
            raise ValueError("at least two factors, all above 0, are needed for a choice")
        return factors

    @field_validator("factors", "seeds")
    @classmethod
    def _tried_once_each(cls, them: tuple[Any, ...]) -> tuple[Any, ...]:
        if len(set(them)) < len(them):
            raise ValueError("an entry is listed twice")
        return them


class Grid(BaseModel):
    """One of several grids of a recipe, such as one for each kind of task. What it does not say is
    as in the recipe around it; of `extract` and `distill`, option by option. `seeds` and `tune` of
    its own replace the recipe's.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    datasets: tuple[str, ...] = Field(min_length=1)
    teachers: tuple[str, ...] = ()
    students: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()
    seeds: tuple[int, ...] | None = Field(default=None, min_length=1)
    tune: Tuning | None = None
    extract: dict[str, Any] = {}
    distill: dict[str, Any] = {}

    @field_validator("seeds")
    @classmethod
    def _without_repetition(cls, seeds: tuple[int, ...] | None) -> tuple[int, ...] | None:
        if seeds is not None and len(set(seeds)) < len(seeds):
            raise ValueError("an entry of seeds is listed twice")
        return seeds


class Recipe(BaseModel):
    """A grid, or several. Every list may hold one entry; every cell is trained with every seed.

    Attributes:
        teachers: names; `A + B` stands for both at once, whose stores are read in step.
        methods: names of methods, of presets, or of `variants`.
        variants: methods with some options changed, by the names that they get here.
        tune: how weights are chosen before the grid is trained; not at all by default.
        side_by_side: how many runs are trained at once, at most. They share images and batches, but
            each keeps its student, its method and their optimiser in memory.
        extract: options of `rdcache extract` for all cells, such as `views: 8`.
        distill: options of `rdcache distill` for all cells, such as `epochs: 100`.
        per_dataset: options that replace these for one dataset.
        per_teacher: options that replace both for one teacher, such as `pool` for its maps. Of an
            entry of several teachers: `extract` by each one's name, `distill` by the entry.
        per_method: options of `rdcache distill` that replace all of these for one method and its
            variants.
        grids: several grids in place of one, with what they have in common beside them: `datasets`
            are then theirs, and `teachers`, `students`, `methods` and `seeds` for those that name
            none.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    title: str
    teachers: tuple[str, ...] = ()
    datasets: tuple[str, ...] = ()
    students: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()
    variants: dict[str, Variant] = {}
    seeds: tuple[int, ...] = Field(default=(0,), min_length=1)
    tune: Tuning | None = None
    side_by_side: int = Field(default=8, gt=0)
    extract: dict[str, Any] = {}
    distill: dict[str, Any] = {}
    per_dataset: dict[str, Overrides] = {}
    per_teacher: dict[str, Overrides] = {}
    per_method: dict[str, dict[str, Any]] = {}
    grids: tuple[Grid, ...] = ()

    @field_validator("teachers", "datasets", "students", "methods", "seeds")
    @classmethod
    def _without_repetition(cls, names: tuple[Any, ...]) -> tuple[Any, ...]:
        if len(set(names)) < len(names):
            raise ValueError("an entry is listed twice")
        return names

    @model_validator(mode="after")
    def _grids_are_whole(self) -> Recipe:
        if self.grids and self.datasets:
            raise ValueError("datasets are listed by each of the grids, not beside them")
        cells: Counter[tuple[str, ...]] = Counter()
        for grid in self.grids or (self,):
            lists = []
            for name in ("teachers", "datasets", "students", "methods"):
                them = getattr(grid, name) or getattr(self, name)
                if not them:
                    raise ValueError(f"{name} are missing")
                if len(set(them)) < len(them):
                    raise ValueError(f"an entry of {name} is listed twice")
                lists.append(them)
            cells.update(product(*lists))
        if twice := [cell for cell, count in cells.items() if count > 1]:
            # Their rows would have one name, and tables show one of them.
            raise ValueError(
                f"two grids have {', '.join(twice[0])}; what differs in options alone is a variant"
            )
        return self

    @model_validator(mode="after")
    def _grid_is_given_once(self) -> Recipe:
        overrides = [*self.per_dataset.values(), *self.per_teacher.values()]
        parts = [part for own in overrides for part in (own.extract, own.distill)]
        parts += [variant.distill for variant in self.variants.values()]
        tunes = [self.tune, *(grid.tune for grid in self.grids)]
        parts += [tune.distill for tune in tunes if tune]
        parts += [part for grid in self.grids for part in (grid.extract, grid.distill)]
        for part in (self.extract, self.distill, *parts, *self.per_method.values()):
            if own := GRID & part.keys():
                raise ValueError(f"{min(own)} is given by the grid, not among the options")
        return self

    @property
    def single_teachers(self) -> tuple[str, ...]:
        """All teachers, those of an entry of several one by one."""
        return tuple(dict.fromkeys(name for entry in self.teachers for name in members(entry)))

    def as_grids(self) -> list[Recipe]:
        """A recipe of one grid for each of its grids; itself, where it has one."""
        return [self._of_grid(grid) for grid in self.grids] or [self]

    def _of_grid(self, grid: Grid) -> Recipe:
        names = ("datasets", "teachers", "students", "methods", "seeds", "tune")
        update = {name: getattr(grid, name) for name in names if getattr(grid, name)}
        options = {
            "extract": {**self.extract, **grid.extract},
            "distill": {
                **self.distill,
                **grid.distill,
                "method_options": merged_method_options((self.distill, grid.distill)),
            },
        }
        return self.model_copy(update={**update, **options, "grids": ()})

    def variant(self, entry: str) -> Variant:
        """What an entry of `methods` stands for; a method's own name for the method as it is."""
        return self.variants.get(entry) or Variant(method=entry)

    def extract_config(self, teacher: str, dataset: str, places: Places) -> ExtractConfig:
        """The options of phase 1 for one teacher and dataset."""
        options = {
            **self.extract,
            **self._of_dataset(dataset).extract,
            **self._of_teacher(teacher).extract,
            **places.for_extract(),
        }
        return ExtractConfig(
            teacher=teacher, dataset=dataset, **{**options, "views": str(options.get("views", 8))}
        )

    def distill_config(
        self,
        teacher: str,
        dataset: str,
        student: str,
        entry: str,
        places: Places,
        tuning: bool = False,
    ) -> DistillConfig:
        """The options of phase 2 for one cell, with its seeds.

        Args:
            entry: of `methods`.
            tuning: those of the runs that choose its weights.
        """
        variant = self.variant(entry)
        tune = self.tune if tuning and self.tune else Tuning(seeds=self.seeds)
        parts = (
            self.distill,
            self._of_dataset(dataset).distill,
            self._of_teacher(teacher).distill,
            self.per_method.get(variant.method, {}),
            {**variant.distill, "method_options": variant.options},
            tune.distill,
        )
        options = {name: value for part in parts for name, value in part.items()}
        options["method_options"] = merged_method_options(parts)
        options |= places.for_distill()
        return DistillConfig(
            dataset=dataset, student=student, method=variant.method, seeds=tune.seeds, **options
        )

    def _of_dataset(self, dataset: str) -> Overrides:
        return self.per_dataset.get(dataset, Overrides())

    def _of_teacher(self, teacher: str) -> Overrides:
        return self.per_teacher.get(teacher, Overrides())


def merged_method_options(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Options of the method from several parts of a recipe, of which later ones win one by one.

    Raises:
        UsageError: one of them is not a mapping.
    """
    merged: dict[str, Any] = {}
    for part in parts:
        own = part.get("method_options") or {}
        if not isinstance(own, Mapping):
            raise UsageError("method_options are names and values.", given=own)
        merged |= own
    return merged


def members(teachers: str) -> list[str]:
    """The teachers that an entry of `teachers` names."""
    return [name.strip() for name in teachers.split(SEVERAL)]
