"""Planes through test images, classified point by point by the classifiers of finished runs.

What a plane is, and how alike two classifiers are on it, is the part of `boundaries.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, islice

import numpy as np
import torch

from rdcache.data import ImageDataset, cut_view
from rdcache.distillation.reevaluation import clean_views, dataset_of
from rdcache.distillation.run import Run
from rdcache.errors import TeacherOutputError, UnknownNameError, UsageError
from rdcache.models import Preprocessing, choose_device
from rdcache.progress import Progress, ignore
from rdcache.report.boundaries import (
    CORNERS,
    Agreement,
    Plane,
    agreement,
    drawn_triplets,
    plane_through,
)
from rdcache.report.plane_classifiers import (
    Classifiers,
    Note,
    Panel,
    TeachersHere,
    branches_of,
    left_out,
    students_of,
)
from rdcache.tasks import require_image_classification

# The pixel space in which planes are laid out. It is the same for all, so that a plane does not
# depend on which classifiers are looked at.
PLANE_INPUT = Preprocessing(size=224)
POINTS_AT_ONCE = 64
TRIES = 20  # triplets drawn for each plane: those with duplicates of one image span none


@dataclass(frozen=True)
class ImagePlane:
    """A plane through three images of a dataset.

    Attributes:
        samples: their numbers.
        uids: and their uids.
        labels: and their class numbers.
    """

    plane: Plane
    samples: tuple[int, ...]
    uids: tuple[str, ...]
    labels: tuple[int, ...]


@dataclass(frozen=True)
class ClassifiedPlanes:
    """Planes through test images as several classifiers see them.

    Attributes:
        classes: names of the classes.
        panels: the classifiers: teacher branches, then students.
        predicted: int64 (planes, panels, resolution, resolution), rows from bottom to top.
    """

    dataset: str
    classes: tuple[str, ...]
    planes: tuple[ImagePlane, ...]
    panels: tuple[Panel, ...]
    predicted: np.ndarray

    def agreements(self) -> dict[tuple[int, int], Agreement]:
        """Each two of the classifiers, by their numbers."""
        return {
            (one, other): agreement(self.predicted[:, one], self.predicted[:, other])
            for one, other in combinations(range(len(self.panels)), 2)
        }


def classify_planes(
    runs: Sequence[Run],
    *,
    triplets: int = 10,
    resolution: int = 50,
    seed: int = 0,
    images: Sequence[str] = (),
    here: TeachersHere | None = None,
    dataset: str | None = None,
    salt: str | None = None,
    device: str = "auto",
    on_progress: Progress = ignore,
    on_note: Note = lambda note: None,
) -> ClassifiedPlanes:
    """Classify planes through test images by the students and teacher branches of some runs.

    A teacher branch is left out, with a note, where its teacher or its store cannot be had, or the
    teacher gives NaN or Inf.

    Args:
        triplets: how many planes are drawn.
        resolution: points along each side of a plane.
        seed: of the triplets.
        images: uids of three test images, or what they begin with: their plane, and no other.
        here: where teachers and stores are on this machine.
        dataset, salt: see `evaluate_run`.

    Raises:
        UsageError: the runs are not of the same images, or the images span no plane.
        UnknownNameError: there is no such test image.
        StaleStoreError: the dataset has changed since.
    """
    here = here or TeachersHere()
    for run in runs:
        require_image_classification("what `rdcache boundaries` draws", *run.task, run=run.path)
    _require_same_images(runs)
    loaded = dataset_of(runs[0], dataset, here.data_dir, salt)
    cutter = _Cutter(loaded, clean_views(runs[0], loaded)[0])
    planes = [cutter.plane(_named(loaded, images))] if images else _drawn(cutter, triplets, seed)
    place = choose_device(device)
    groups = [*branches_of(runs, loaded, here, place, on_note), *students_of(runs, place)]
    panels: list[Panel] = []
    predicted = []
    for number, group in enumerate(groups):
        classes = []
        try:
            for each in planes:
                classes.append(_classified(each, group, cutter, resolution))
                on_progress(number * len(planes) + len(classes), len(groups) * len(planes))
        except TeacherOutputError as error:
            on_note(left_out(group.panels, error))
            continue
        panels += group.panels
        predicted.append(np.stack(classes))
    return ClassifiedPlanes(
        dataset=loaded.name,
        classes=tuple(loaded.classes),
        planes=tuple(planes),
        panels=tuple(panels),
        predicted=np.concatenate(predicted, axis=1),
    )


class _Cutter:
    """Images of a dataset as classifiers see them.

    Args:
        views: float64 (samples, 6), the clean view.
    """

    def __init__(self, dataset: ImageDataset, views: np.ndarray) -> None:
        self.dataset, self.views = dataset, views

    def cut(self, samples: Sequence[int], look: Preprocessing) -> np.ndarray:
        """uint8 (n, S, S, 3)."""
        cuts = [
            cut_view(self.dataset.decode(each), self.views[each], look.size, look.interpolation)
            for each in samples
        ]
        return np.stack(cuts)

    def plane(self, samples: tuple[int, ...]) -> ImagePlane:
        """The plane through three samples.

        Raises:
            UsageError: they span none.
        """
        return ImagePlane(
            plane_through(self.cut(samples, PLANE_INPUT)),
            samples,
            tuple(str(self.dataset.uids[each]) for each in samples),
            tuple(int(self.dataset.labels[each]) for each in samples),
        )


def _require_same_images(runs: Sequence[Run]) -> None:
    """Refuse runs that cannot be compared on one plane."""
    if not runs:
        raise UsageError("there are no runs to look at.")

    def images(run: Run) -> object:
        recorded = run.result["dataset"]
        return recorded["digest"], recorded["classes"], run.result["views"]["fit"]

    for run in runs[1:]:
        if images(run) != images(runs[0]):
            raise UsageError(
                "these runs are not of the same images: dataset, classes or --fit differ.",
                one=f"{runs[0].path}  {runs[0].result['dataset']['name']}",
                other=f"{run.path}  {run.result['dataset']['name']}",
            )


def _named(dataset: ImageDataset, uids: Sequence[str]) -> tuple[int, ...]:
    """Numbers of the test images whose uids begin so.

    Raises:
        UsageError: they are not three, or a beginning fits several.
        UnknownNameError: there is none.
    """
    if len(uids) != CORNERS:
        raise UsageError("a plane goes through three images.", given=", ".join(uids))
    test = np.flatnonzero(dataset.splits == "test")
    found = []
    for uid in uids:
        fitting = [int(each) for each in test if str(dataset.uids[each]).startswith(uid)]
        if not fitting:
            raise UnknownNameError(
                f"there is no test image whose uid begins with {uid!r}.",
                see="predictions.csv of a run has the uids of its test images",
            )
        if len(fitting) > 1:
            raise UsageError(f"several uids begin with {uid!r}.", images=len(fitting))
        found += fitting
    return tuple(found)


def _drawn(cutter: _Cutter, count: int, seed: int) -> list[ImagePlane]:
    """Draw triplets of test images until enough of them span a plane.

    Raises:
        UsageError: hardly any do, or there are fewer than three images.
    """
    test = np.flatnonzero(cutter.dataset.splits == "test")
    labels = np.asarray(cutter.dataset.labels)[test]
    planes: list[ImagePlane] = []
    for chosen in islice(drawn_triplets(labels, seed), TRIES * count):
        try:
            planes.append(cutter.plane(tuple(int(test[at]) for at in chosen)))
        except UsageError:
            continue
        if len(planes) == count:
            return planes
    raise UsageError("too few of these test images span a plane.", found=len(planes), wanted=count)


def _classified(
    plane: ImagePlane, group: Classifiers, cutter: _Cutter, resolution: int
) -> np.ndarray:
    """What some classifiers say of the grid: int64 (classifiers, resolution, resolution)."""
    points, _ = plane.plane.grid(resolution)
    weights = torch.from_numpy(plane.plane.weights(points)).float().reshape(-1, CORNERS)
    corners = [torch.from_numpy(cutter.cut(plane.samples, look)).float() for look in group.looks]
    found = [
        group.classify([torch.einsum("nk,khwc->nhwc", part, each) for each in corners])
        for part in weights.split(POINTS_AT_ONCE)
    ]
    return torch.cat(found, dim=1).reshape(-1, resolution, resolution).numpy()
