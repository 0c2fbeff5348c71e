"""The kinds of task that there are, and what is said of one where only another will do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from rdcache.errors import UsageError

TaskName = Literal["multiclass", "multilabel", "segmentation"]

# The metric that tables show, that epochs are selected by, and that a gain is of.
HEADLINES: Mapping[str, str] = {
    "multiclass": "accuracy",
    "multilabel": "auroc",
    "segmentation": "dice",
}
OLD = ("multiclass", 2)  # what was written before there were other tasks


def task_of(facts: Mapping[str, Any]) -> tuple[TaskName, int]:
    """Task and dimensions, as a manifest says of its dataset, or a result of itself."""
    return facts.get("task", OLD[0]), int(facts.get("dimensions", OLD[1]))


def named(task: str, dimensions: int) -> str:
    """A task in words.

    >>> named("segmentation", 3)
    'segmentation of volumes'
    """
    what = {"multiclass": "classification", "multilabel": "multi-label classification"}
    return f"{what.get(task, task)} of {'volumes' if dimensions == 3 else '2D images'}"


def require_one_class(what: str, task: str, dimensions: int, **where: object) -> None:
    """Refuse what has no single class for each image or volume.

    Args:
        what: the subject of the sentence, such as a command's name.
        where: facts for the message.

    Raises:
        UsageError: the task is another one.
    """
    if task != OLD[0]:
        raise UsageError(
            f"{what} is for classification with one class each, "
            f"and this is {named(task, dimensions)}.",
            **where,
        )


def require_image_classification(what: str, task: str, dimensions: int, **where: object) -> None:
    """Refuse what has no single class for each 2D image; see `require_one_class`."""
    if (task, dimensions) != OLD:
        raise UsageError(
            f"{what} is for {named(*OLD)} with one class each, "
            f"and this is {named(task, dimensions)}.",
            **where,
        )
