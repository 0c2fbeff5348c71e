"""Choosing the weights of each method on the validation images, with the same budget for all.

Published weights belong to the data, the optimiser and the teacher they were found with. Every
method says which of its options weigh what it adds to the labels' loss (`Method.tuned`); these are
multiplied by each of a few factors, and the factor is kept that is best on validation. Runs that
tune are ordinary runs in ordinary folders: what the grid wants too is trained once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np

from rdcache.distillation import DistillConfig, Diverged, Run
from rdcache.errors import UsageError
from rdcache.methods import find_method
from rdcache.store import Store

FEW = 200  # validation images, of which one is half a point of a mean over them


@dataclass(frozen=True)
class Trial:
    """One factor as it was tried.

    Attributes:
        factor: what the reference weights were multiplied with.
        values: seed → validation metric, of the weights that are tested; None where it diverged, or
            the validation images are too few for the metric.
    """

    factor: float
    values: Mapping[int, float | None]

    @property
    def mean(self) -> float | None:
        """The validation metric over the seeds; None if one of them has none."""
        known = [value for value in self.values.values() if value is not None]
        return fmean(known) if len(known) == len(self.values) else None


@dataclass(frozen=True)
class Tuned:
    """What was chosen for one method, and from what.

    Attributes:
        factor: the chosen one.
        metric: what was compared on the validation images.
        options: the options that it multiplies.
        trials: one a factor.
        images: number of validation images.
    """

    factor: float
    metric: str
    options: tuple[str, ...]
    trials: tuple[Trial, ...]
    images: int


def tuned_options(config: DistillConfig) -> tuple[str, ...]:
    """The options of a config's method that a factor changes: weights that are not 0."""
    card = find_method(config.method)
    options = card.config(config.method_options).model_dump()
    return tuple(name for name in card.method.tuned if np.any(_numbers(options[name])))


def with_factor(config: DistillConfig, factor: float) -> DistillConfig:
    """The config with its method's weights multiplied; with a factor of 1 the config as it is."""
    if factor == 1:
        return config
    options = find_method(config.method).config(config.method_options).model_dump()
    scaled = {name: _scaled(options[name], factor) for name in tuned_options(config)}
    return config.model_copy(update={"method_options": {**config.method_options, **scaled}})


def chosen(trials: Sequence[Trial]) -> float:
    """The factor with the best mean; of equal ones the nearest to 1, then the smaller one.

    If training diverged with all of them, that nearest to 1.
    """
    best = max(-math.inf if trial.mean is None else trial.mean for trial in trials)
    level = [
        trial.factor
        for trial in trials
        if (-math.inf if trial.mean is None else trial.mean) >= best - 1e-12
    ]
    return min(level, key=lambda factor: (round(abs(math.log(factor)), 9), factor))


def tuned_by(
    config: DistillConfig,
    factors: Sequence[float],
    outcomes: Sequence[Run | Diverged],
    images: int,
    headline: str = "accuracy",
) -> Tuned:
    """Choose among the outcomes of a config, factor by factor in the order of its seeds.

    Args:
        headline: the metric of the task, for configs that name none.
    """
    metric = config.resolved().select_metric or headline
    left = iter(outcomes)
    trials = tuple(
        Trial(factor, {seed: _on_validation(next(left), metric) for seed in config.seeds})
        for factor in factors
    )
    return Tuned(chosen(trials), metric, tuned_options(config), trials, images)


def validation_images(store: Store) -> int:
    """How many images there are to tune on.

    Raises:
        UsageError: none.
    """
    count = int((store.splits == "val").sum())
    require_validation(count, store=store.where)
    return count


def require_validation(images: int, **where: object) -> None:
    """Refuse to tune on nothing.

    Args:
        where: facts for the message.

    Raises:
        UsageError: there are no validation images.
    """
    if not images:
        raise UsageError(
            "there is no validation split to tune on.",
            **where,
            next="a recipe without `tune`, or a store with a larger --val-fraction",
        )


def about_few(images: int) -> str | None:
    """What to say of a validation split on which a choice is hardly better than a guess."""
    if images >= FEW:
        return None
    return (
        f"weights are tuned on only {images} validation images: one of them is "
        f"{100 / images:.1f} points, so a chosen factor is weak evidence for it"
    )


def _on_validation(outcome: Run | Diverged, metric: str) -> float | None:
    value = None if isinstance(outcome, Diverged) else outcome.result["val"][metric]
    return None if value is None else float(value)


def _numbers(value: Any) -> np.ndarray:
    return np.atleast_1d(np.array(0.0 if value is None else value, dtype=np.float64))


def _scaled(value: Any, factor: float) -> Any:
    """A weight, or each of several, times a factor."""
    if isinstance(value, list | tuple):
        return type(value)(each * factor for each in value)
    return value * factor
