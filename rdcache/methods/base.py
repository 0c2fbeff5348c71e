"""What a method is: named loss terms from (cached teacher taps, student output, target).

A method knows neither the loop nor the store; the loop knows no method by name. It sums the terms,
logs each under its name, and trains what `trainable_parameters` lists beside the student.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import nn

from rdcache.errors import UnknownNameError, UsageError
from rdcache.methods.task_losses import TaskLoss
from rdcache.models import Student, StudentOutput
from rdcache.models.taps import finer_map
from rdcache.store import TapSpec

Terms = dict[str, torch.Tensor]
StageName = Literal["teacher", "student"]

TASKS = ("multiclass", "multilabel", "segmentation")
CLASSIFICATION = frozenset(TASKS[:2])
EVERY_TASK = frozenset(TASKS)
IMAGES_AND_VOLUMES = frozenset({2, 3})


@dataclass(frozen=True)
class CachedBatch:
    """What the teacher's side and the labels say about a batch; its images go to the student.

    For a method with `views_each = 2` row B/2 + i is another view of the sample of row i.

    Attributes:
        samples: int64 (B,), sample numbers in the store.
        taps: tap name → (B, *tap), in the stored dtype, of the very views that the student sees.
        target: int64 (B,), class numbers; of several labels float32 (B, L), 1 where one is present;
            of masks int64 (B, *positions), cut with the view and the size of the student's images.
    """

    samples: torch.Tensor
    taps: Mapping[str, torch.Tensor]
    target: torch.Tensor


@dataclass(frozen=True)
class TrainingProgress:
    """Where training stands before a step; counts start at 0.

    Attributes:
        epoch: of `epochs`.
        step: of the `steps` of this epoch.
    """

    epoch: int
    epochs: int
    step: int = 0
    steps: int = 1

    @property
    def by_epoch(self) -> float:
        """Share of training done, constant within an epoch: 0 … (E−1)/E."""
        return self.epoch / self.epochs

    @property
    def by_step(self) -> float:
        """Share of training done, step by step."""
        return (self.epoch + self.step / self.steps) / self.epochs

    def risen(self, warmup: float) -> float:
        """A factor that rises from 0 to 1 in the share `warmup` of the training, and stays 1."""
        return min(1.0, self.by_step / warmup) if warmup else 1.0


@dataclass(frozen=True)
class ChannelStatistics:
    """Mean and standard deviation of each channel of a tap over the training samples.

    Attributes:
        mean: float32 (C,).
        std: float32 (C,).
    """

    mean: torch.Tensor
    std: torch.Tensor


@dataclass(frozen=True)
class MethodContext:
    """What a method is built for.

    Attributes:
        taps: taps that the store holds.
        default_tap: the tap that a method reads unless told otherwise.
        feature_dim: width D of the student's features.
        student_stages: the student's maps: stage name → (channels, stride).
        num_classes: number of classes.
        classifier: the student's own last layer; linear, for methods that share it, where it
            classifies whole samples.
        task_loss: what the labels ask for.
        statistics: reads the channel statistics of a tap, by its name, from the store.
        probe: fits a linear classifier to the mean over positions of a tap, by its name, on the
            clean views of the training samples: weight (C, channels) and bias (C,).
        folds: deals the training samples out to so many folds: int64 (N,), a fold for each sample
            of the store, -1 where it does not train.
        labels: int64 (N,), the class of each sample of the store, -1 where it does not train.
        views: views of a training sample that are trained on.
        epochs: epochs of the co-training.
        batch_size: samples a batch.
        teachers: teacher → its default tap; several where their stores are read in step.
        foreign_logits: taps of logits that are known to be of other classes, or of these in another
            order: those of a teacher that was adapted to another dataset.
        student: the network itself, for methods that run parts of it.
        task: `multiclass`, `multilabel` or `segmentation`.
        dimensions: 2 for images, 3 for volumes.
        sides: of what the student sees, in pixels or voxels; empty where that is not known.
    """

    taps: Mapping[str, TapSpec]
    default_tap: str
    feature_dim: int
    student_stages: Mapping[str, tuple[int, Any]]
    num_classes: int
    classifier: Any
    task_loss: TaskLoss
    statistics: Callable[[str], ChannelStatistics]
    probe: Callable[[str], tuple[torch.Tensor, torch.Tensor]]
    folds: Callable[[int], torch.Tensor]
    labels: torch.Tensor
    views: int
    epochs: int
    batch_size: int
    teachers: Mapping[str, str] = field(default_factory=dict)
    foreign_logits: frozenset[str] = frozenset()
    student: Student | None = None
    task: str = "multiclass"
    dimensions: int = 2
    sides: tuple[int, ...] = ()

    def taps_asked_for(self, names: str | None) -> tuple[str, ...]:
        """Names of taps as an option lists them, with commas; by default that of each teacher.

        Raises:
            UsageError: a name is empty, or there twice.
        """
        if names:
            listed = tuple(name.strip() for name in names.split(","))
            if "" in listed or len(set(listed)) < len(listed):
                raise UsageError("taps are to be named once each, with commas between.", got=names)
            return listed
        return tuple(self.teachers.values()) or (self.default_tap,)

    def tap(self, name: str | None) -> TapSpec:
        """Look up a tap, by default the teacher's own default.

        Raises:
            UnknownNameError: the store does not hold it.
            UsageError: there are several teachers, and none is named.
        """
        if name is None and len(self.teachers) > 1:
            raise one_tap_only(self.taps_asked_for(None), option=None)
        name = name or self.default_tap
        if name not in self.taps:
            error = UnknownNameError.of("tap in this store", name, self.taps)
            if len(self.teachers) < 2:
                error.facts["next"] = f"rdcache extract … --taps {','.join([*self.taps, name])}"
            raise error
        return self.taps[name]

    def finer_map(self) -> str | None:
        """The stored map of the teacher that `rdcache.models.taps.finer_map` finds; None where
        there are several teachers.
        """
        if len(self.teachers) > 1:
            return None
        return finer_map({tap.name: tap.shape for tap in self.taps.values()}, self.default_tap)

    def tap_of_teacher(self, name: str) -> str | None:
        """What the store calls a tap of the teacher that is read by default; None: it lacks it.

        Where several stores are read in step, the names of taps begin with their teacher's.
        """
        prefix, dot, _ = self.default_tap.rpartition(".")
        return next((it for it in (f"{prefix}{dot}{name}", name) if it in self.taps), None)

    def of_teacher_of(self, tap: str) -> MethodContext:
        """The same with one teacher of several, whose tap this is, and its default tap.

        Without change where there is one teacher only, or none has the tap.
        """
        if len(self.teachers) > 1 and tap in self.taps:
            for teacher, default in self.teachers.items():
                prefix, dot, _ = default.rpartition(".")
                if tap == default or (dot and tap.startswith(prefix + dot)):
                    return replace(self, default_tap=default, teachers={teacher: default})
        return self

    def statistics_for(self, feature_norm: str, tap: str) -> ChannelStatistics | None:
        """Those of a tap where an option `feature_norm` asks to standardise its channels."""
        return self.statistics(tap) if feature_norm == "channel" else None


def one_tap_only(taps: Sequence[str], option: str | None) -> UsageError:
    """What to say where one tap is read and several are given.

    Args:
        option: of the method, to name one of them; None where it has none.
    """
    others = "a single --teacher, or --method rd"
    return UsageError(
        "this method reads one tap, and there are several.",
        taps=", ".join(taps),
        next=f"--set {option}={taps[0]} to read one of them, {others}" if option else others,
    )


class MethodConfig(BaseModel):
    """Options of a method; field descriptions are help texts."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class TeacherConfig(MethodConfig):
    """Options of methods with a teacher branch."""

    tap: str | None = Field(
        default=None, description="Tap that is read (default: the teacher's default tap)."
    )


class Method(nn.Module):
    """Base of all methods; see `rd.py` for one with everything.

    Attributes:
        config: the method's own options.
        task_loss: what the labels ask for.
        taps: the taps that a batch must bring.
        student_stages: the student's maps that its output must bring.
        views_each: views of every sample that a batch must bring; see `CachedBatch`.
        tuned: the options, weights of its terms, that a comparison scales together to tune it.
        tasks: what it can be used for, with `dimensions`, those of the samples.
    """

    Config: ClassVar[type[MethodConfig]] = MethodConfig
    tuned: ClassVar[tuple[str, ...]] = ()
    views_each: ClassVar[int] = 1
    tasks: ClassVar[frozenset[str]] = frozenset({"multiclass"})
    dimensions: ClassVar[frozenset[int]] = frozenset({2})
    taps: tuple[str, ...] = ()
    student_stages: tuple[str, ...] = ()

    def __init__(self, config: MethodConfig, context: MethodContext) -> None:
        super().__init__()
        self.config = config
        self.task_loss = context.task_loss

    @classmethod
    def unread_options(cls, config: MethodConfig) -> frozenset[str]:
        """Options that nothing reads while the others are what they are."""
        return frozenset()

    @property
    def teacher_epochs(self) -> int:
        """Epochs of a first stage in which only the teacher branch trains."""
        return 0

    @property
    def has_teacher_branch(self) -> bool:
        """Whether `teacher_branch` can classify."""
        return False

    @property
    def branch_taps(self) -> tuple[str, ...]:
        """The taps that `teacher_branch` reads, where there is one."""
        return self.taps

    def teacher_state(self) -> dict[str, Any]:
        """The part of the state dict that `teacher_branch` depends on."""
        return self.state_dict()

    def forward(
        self, batch: CachedBatch, student: StudentOutput, progress: TrainingProgress
    ) -> Terms:
        """Compute the weighted loss terms of a batch; the loss is their sum."""
        raise NotImplementedError

    def teacher_terms(self, batch: CachedBatch, progress: TrainingProgress) -> Terms:
        """Compute the loss terms of the stage in which only the teacher branch trains."""
        raise NotImplementedError

    def teacher_branch(self, taps: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Classify by the teacher branch alone: features (B, D) and logits (B, C)."""
        raise NotImplementedError

    def trainable_parameters(self, stage: StageName) -> Iterator[nn.Parameter]:
        """List what trains in a stage, beside the student in the `student` stage."""
        yield from self.parameters()

    def begin_stage(self, stage: StageName) -> None:
        """Take note that a stage begins; also called when a run is resumed within it."""

    def after_step(self) -> None:
        """Take note that the optimiser has made a step."""

    @property
    def merged(self) -> nn.Module | None:
        """What trains beside the student and is merged into it by `deployed`, if anything; where
        the student's moving average counts, that of this does too.
        """
        return None

    def deployed(self, student: Student, merged: nn.Module | None = None) -> Student:
        """The student that is evaluated and saved: itself, unless something of the method has to
        be merged into its weights; then a copy.

        Args:
            merged: takes the place of `self.merged`.
        """
        return student

    def numbers(self) -> dict[str, float]:
        """What the line of an epoch should say beside the terms."""
        return {}


def require_batch_size(batch_size: int, least: int, why: str) -> None:
    """Refuse batches that are too small for a term.

    Raises:
        UsageError: naming both sizes.
    """
    if batch_size < least:
        raise UsageError(
            f"a batch of {batch_size} is too small for this method.",
            needs=f"at least {least}",
            why=why,
        )
