"""Running a recipe: for each store and student, the tuning first, then all methods side by side.

Every store is planned before the first student is trained, so that a dataset or weights that are
missing, or a split that cannot be tuned on, are found at once and not after hours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from rdcache.distillation import DistillConfig, Diverged, Run, choose_store, distill_each
from rdcache.distillation.session import once_each, silently
from rdcache.extraction import plan_extraction, run_extraction
from rdcache.methods import find_method
from rdcache.models import require_fit
from rdcache.progress import Progress, ignore
from rdcache.recipes.places import Places
from rdcache.recipes.recipe import Recipe, members
from rdcache.recipes.tuning import (
    Tuned,
    about_few,
    require_validation,
    tuned_by,
    tuned_options,
    validation_images,
    with_factor,
)
from rdcache.store import Store
from rdcache.tasks import HEADLINES, task_of

Note = Callable[[str], None]


@dataclass(frozen=True)
class Cell:
    """One cell of the grid and what its runs came to, one a seed.

    Attributes:
        method: the entry of the recipe's `methods`: a method, a preset, or a variant.
        runs: those that are finished.
        diverged: those that are not, and why.
        tuned: how its weights were chosen, if they were.
        metric: the headline of the dataset's task.
    """

    dataset: str
    teacher: str
    student: str
    method: str
    runs: tuple[Run, ...]
    diverged: tuple[Diverged, ...] = ()
    tuned: Tuned | None = None
    metric: str = "accuracy"


def run_recipe(
    recipe: Recipe,
    places: Places,
    on_progress: Progress = ignore,
    on_note: Note = silently,
) -> Iterator[Cell]:
    """Run the grid and yield every cell, complete, when those of its store and student are done.

    A run that diverges is part of its cell; the others go on.

    Args:
        on_note: told, in a sentence, what was chosen for this machine and a dataset.

    Raises:
        RdcacheError: a store of the grid cannot be extracted, or not be tuned on; before training.
    """
    tell = once_each(on_note)
    grids = recipe.as_grids()
    for grid in grids:
        _require_possible(grid, places, on_progress)
    for grid in grids:
        yield from _run_grid(grid, places, on_progress, tell)


def _run_grid(recipe: Recipe, places: Places, on_progress: Progress, tell: Note) -> Iterator[Cell]:
    """Run one grid of a recipe."""
    for dataset in recipe.datasets:
        for teacher in recipe.teachers:
            store = _extracted(recipe, teacher, dataset, places, on_progress)
            for student in recipe.students:
                setting = _Setting(
                    recipe, store, teacher, dataset, student, places, on_progress, tell
                )
                yield from setting.cells()


def _require_possible(recipe: Recipe, places: Places, on_progress: Progress) -> None:
    """Plan every store of a grid of several, and look whether students and methods are for its task
    and whether there is something to tune on. What a plan holds in memory, the teacher above all,
    is let go of before the next one.

    Raises:
        RdcacheError: see `plan_extraction`, `require_fit` and `require_validation`.
    """
    for dataset in recipe.datasets:
        for teacher in recipe.single_teachers:

            def report(
                done: int, total: int, note: str = "", at: str = f"{dataset} {teacher}"
            ) -> None:
                on_progress(done, total, f"{at} {note}")

            plan = plan_extraction(recipe.extract_config(teacher, dataset, places), report)
            task = plan.dataset.task, plan.dataset.dimensions
            for student in recipe.students:
                require_fit(student, *task)
            for entry in recipe.methods:
                find_method(recipe.variant(entry).method).require_fit(*task)
            if recipe.tune is not None:
                images = int((plan.dataset.splits == "val").sum())
                require_validation(images, dataset=dataset, teacher=teacher)


@dataclass(frozen=True)
class _Setting:
    """Where the methods of a recipe are compared: one store and one student."""

    recipe: Recipe
    store: Store
    teacher: str
    dataset: str
    student: str
    places: Places
    on_progress: Progress
    on_note: Note

    @property
    def metric(self) -> str:
        """The headline of the dataset's task."""
        return HEADLINES[task_of(self.store.manifest["dataset"])[0]]

    def cells(self) -> Iterator[Cell]:
        """Tune, train, and yield method by method."""
        tuned = self._tune()
        entries = self.recipe.methods
        configs = [
            with_factor(self._config(entry), tuned[entry].factor if entry in tuned else 1)
            for entry in entries
        ]
        outcomes = self._trained(configs, "training")
        for entry, config in zip(entries, configs, strict=True):
            own = [next(outcomes) for _ in config.seeds]
            yield Cell(
                *(self.dataset, self.teacher, self.student, entry),
                tuple(it for it in own if isinstance(it, Run)),
                tuple(it for it in own if isinstance(it, Diverged)),
                tuned.get(entry),
                self.metric,
            )

    def _tune(self) -> dict[str, Tuned]:
        """Choose a factor for each method that has weights to tune, by the name of its entry."""
        tune = self.recipe.tune
        if tune is None:
            return {}
        configs = {entry: self._config(entry, tuning=True) for entry in self.recipe.methods}
        configs = {entry: config for entry, config in configs.items() if tuned_options(config)}
        images = validation_images(self.store)
        if few := about_few(images):
            self.on_note(f"on {self.dataset}, {few}")
        tried = [with_factor(it, factor) for it in configs.values() for factor in tune.factors]
        outcomes = self._trained(tried, "tuning")
        return {
            entry: tuned_by(
                config,
                tune.factors,
                [next(outcomes) for _ in tune.factors for _ in config.seeds],
                images,
                self.metric,
            )
            for entry, config in configs.items()
        }

    def _config(self, entry: str, tuning: bool = False) -> DistillConfig:
        cell = (self.teacher, self.dataset, self.student, entry)
        return self.recipe.distill_config(*cell, self.places, tuning)

    def _trained(self, configs: Sequence[DistillConfig], what: str) -> Iterator[Run | Diverged]:
        """What configs come to, config by config, in the order of their seeds."""

        def report(done: int, total: int, note: str = "") -> None:
            self.on_progress(done, total, f"{self.dataset} {self.student} {what} {note}".strip())

        return iter(
            distill_each(
                self.store,
                configs,
                side_by_side=self.recipe.side_by_side,
                resume=True,
                on_progress=report,
                on_note=lambda note: self.on_note(f"on {self.dataset}, {note}"),
            )
        )


def _extracted(
    recipe: Recipe, teachers: str, dataset: str, places: Places, on_progress: Progress
) -> Store:
    """The store of a teacher, or those of several, which are read in step."""
    stores = []
    for teacher in members(teachers):
        plan = plan_extraction(recipe.extract_config(teacher, dataset, places), on_progress)

        def report(done: int, total: int, note: str = "", teacher: str = teacher) -> None:
            on_progress(done, total, f"{dataset} {teacher} {note}")

        stores.append(run_extraction(plan, report).store)
    return choose_store(stores)
