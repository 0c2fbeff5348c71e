"""What a run needs before its first step: the student, the method, and where their batches come
from.

Images and taps are opened once for all runs of a call.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from rdcache.data import ImageDataset, Jitter, StudentInputs, inputs_for
from rdcache.distillation.acceleration import compiled
from rdcache.distillation.batches import BatchSource
from rdcache.distillation.config import DistillConfig
from rdcache.distillation.folds import training_folds
from rdcache.distillation.hardware import autocast_for
from rdcache.distillation.randomness import counted_seed
from rdcache.distillation.residency import ReadTaps, ResidentTaps, TapSource, choose_residency
from rdcache.distillation.sampling import LEAST_BATCH, Shuffle, TrainingSamples
from rdcache.distillation.statistics import channel_statistics
from rdcache.distillation.subset import EVERYTHING, Subset
from rdcache.distillation.teacher_probe import linear_probe_of
from rdcache.distillation.training import Trainer
from rdcache.errors import UsageError
from rdcache.methods import ChannelStatistics, Method, MethodContext, create_method, task_loss
from rdcache.models import Student, create_student
from rdcache.store import Store, default_taps

Note = Callable[[str], None]


@dataclass(frozen=True)
class Job:
    """One run that is to be: a resolved config and one of its seeds."""

    config: DistillConfig
    seed: int


class Sources:
    """Images and cached taps of one store, for all who train on them.

    Args:
        device: where batches go.
        on_note: told in a sentence where taps and images are kept, and why.
    """

    def __init__(
        self, store: Store, dataset: ImageDataset, device: torch.device, on_note: Note
    ) -> None:
        self.store, self.dataset, self.device = store, dataset, device
        self.on_note = on_note
        self._part = EVERYTHING
        self._taps: dict[tuple[object, ...], tuple[TapSource, str]] = {}
        self._statistics: dict[tuple[str, Subset], ChannelStatistics] = {}
        self._probes: dict[tuple[str, Subset], tuple[torch.Tensor, torch.Tensor]] = {}
        self._cut: dict[tuple[object, ...], StudentInputs] = {}
        self._inputs: dict[tuple[object, ...], StudentInputs] = {}
        self._batches: dict[tuple[int, int], BatchSource] = {}

    def statistics(self, tap: str, subset: Subset = EVERYTHING) -> ChannelStatistics:
        """A tap's channels over a part of the training samples, read once for all."""
        key = (tap, subset)
        if key not in self._statistics:
            self._statistics[key] = channel_statistics(self.store, tap, subset)
        return self._statistics[key]

    def probe(self, tap: str, subset: Subset = EVERYTHING) -> tuple[torch.Tensor, torch.Tensor]:
        """A linear classifier of a tap's features, weight and bias, fitted once for all to a part
        of the training samples.
        """
        key = (tap, subset)
        if key not in self._probes:
            probe = linear_probe_of(self.store, tap, subset)
            self.on_note(
                f"teacher logits: a linear probe on {tap}, "
                f"{100 * probe.validation_accuracy:.1f} % right on validation"
            )
            self._probes[key] = probe.weight, probe.bias
        return self._probes[key]

    def taps(
        self, names: Sequence[str], config: DistillConfig, subset: Subset = EVERYTHING
    ) -> tuple[TapSource, str]:
        """Taps by name, of the views and the training samples that a config trains on, where the
        config wants them; and where that is, in a few words. Of several parts of the training
        samples the last is kept: runs of one part come together.
        """
        if subset != self._part:
            self._taps, self._batches, self._part = {}, {}, subset
        views = config.views or self.store.views
        key = (frozenset(names), views, config.resident)
        if key not in self._taps:
            residency = choose_residency(
                self.store, names, views, config.resident, self.device, subset
            )
            if names:
                self.on_note(f"taps: {residency}")
            source: TapSource = ReadTaps(self.store)
            if residency.where != "disk":
                place = self.device if residency.where == "device" else torch.device("cpu")
                source = ResidentTaps(self.store, names, views, place, subset)
            self._taps[key] = source, str(residency)
        return self._taps[key]

    def inputs(self, config: DistillConfig, student: Student) -> StudentInputs:
        """Images as a student wants them. Students that differ in jitter and normalisation alone
        share decoded images and cut views, but not the reading of taps (see `train_together`).
        """
        geometry = (config.image_size, config.views, config.working_scale, config.inputs_cache)
        look = (
            student.mean,
            student.std,
            Jitter(config.jitter, config.jitter) if config.jitter else None,
        )
        if geometry not in self._cut:
            self._cut[geometry] = inputs_for(self.device)(
                self.dataset,
                self.store.view_parameters[: config.views],
                config.image_size,
                *look,
                working_scale=config.working_scale,
                cache=config.inputs_cache,
            )
            self.on_note(f"images: {self._cut[geometry]}")
        key = (*geometry, look)
        if key not in self._inputs:
            self._inputs[key] = self._cut[geometry].for_student(*look)
        return self._inputs[key]

    def batches(self, taps: TapSource, inputs: StudentInputs) -> BatchSource:
        """Both in step; the same object for the same two."""
        key = (id(taps), id(inputs))
        if key not in self._batches:
            self._batches[key] = BatchSource(taps, inputs, self.device)
        return self._batches[key]


def create_trainers(sources: Sources, jobs: Sequence[Job]) -> list[Trainer]:
    """Build student, method and batches of some runs.

    A student's initial weights depend on the seed alone, so that methods can be compared in pairs.

    Raises:
        UsageError: the store does not suffice for what the config asks.
    """
    store, device = sources.store, sources.device
    built = [build_untrained(sources, job) for job in jobs]
    names = list(dict.fromkeys(tap for _, method, _ in built for tap in method.taps))
    trainers = []
    for job, (student, method, training) in zip(jobs, built, strict=True):
        # Taps take their memory at once, images by and by: taps first, so that images see what is
        # left.
        taps, where = sources.taps(names, job.config, job.config.subset(job.seed))
        batches = sources.batches(taps, sources.inputs(job.config, student))
        classes = tuple(store.manifest["dataset"]["classes"])
        autocast = autocast_for(device, job.config.amp)
        trainer = Trainer(
            job.config, job.seed, student, method, batches, training, classes, autocast
        )
        trainer.forward_student, how = compiled(student, job.config, trainer.steps, device)
        sources.on_note(f"compilation of {job.config.student}: {how}")
        trainer.ways = {"taps": where, "images": str(batches.inputs), "compiled": how}
        trainers.append(trainer)
    return trainers


def create_trainer(
    store: Store, dataset: ImageDataset, config: DistillConfig, seed: int, device: torch.device
) -> Trainer:
    """Build student, method and batches for one seed of a resolved config."""
    return create_trainers(Sources(store, dataset, device, lambda note: None), [Job(config, seed)])[
        0
    ]


def build_untrained(sources: Sources, job: Job) -> tuple[Student, Method, TrainingSamples]:
    """Student and method of a run before its first step, and the samples that it trains on."""
    store, device = sources.store, sources.device
    config, seed = job.config, job.seed
    order = seed if config.order_seed is None else config.order_seed
    shuffle: Shuffle = "shards" if config.shuffle == "shards" else "full"
    subset = config.subset(seed)
    training = TrainingSamples(store, order, config.views, shuffle, subset)
    _require_trainable(store, config, training)
    if config.train_fraction < 1:
        everything = len(store.samples_of("train"))
        sources.on_note(f"training images: {len(training)} of {everything}, seed {subset.seed}")
    classes = store.manifest["dataset"]["classes"]
    teachers = default_taps(store)
    torch.manual_seed(counted_seed("student", seed))
    student = create_student(config.student, len(classes), config.student_weights)
    student = student.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    torch.manual_seed(counted_seed("method", seed))
    labels = np.full(store.samples, -1, np.int64)
    labels[training.rows] = np.asarray(store.labels)[training.rows]
    counts = np.bincount(labels[training.rows], minlength=len(classes))
    context = MethodContext(
        taps=store.taps,
        default_tap=next(iter(teachers.values())),
        teachers=teachers,
        foreign_logits=store.manifest["teacher"].get("logits_classes", classes) != classes,
        feature_dim=student.feature_dim,
        student_stages=student.stages,
        num_classes=len(classes),
        classifier=student.classifier,
        task_loss=task_loss(
            store.manifest["dataset"]["task"],
            counts.tolist(),
            config.label_smoothing,
            config.class_weights,
        ),
        statistics=lambda tap: sources.statistics(tap, subset),
        probe=lambda tap: sources.probe(tap, subset),
        folds=lambda count: torch.from_numpy(training_folds(store, training.rows, count, seed)),
        labels=torch.from_numpy(labels),
        views=config.views or store.views,
        epochs=config.epochs,
        batch_size=config.batch_size,
    )
    return (
        student,
        create_method(config.method, config.method_options, context).to(device),
        training,
    )


def _require_trainable(store: Store, config: DistillConfig, training: TrainingSamples) -> None:
    """Refuse what cannot be trained or evaluated, before all else."""
    training.batches(config.batch_size, 0)  # refuses a batch that is too large
    if config.batch_size < LEAST_BATCH:
        raise UsageError("batch norm needs batches of at least 2.", given=config.batch_size)
    if not (store.splits == "test").any():
        raise UsageError(
            "there are no test images to evaluate on.",
            store=store.where,
            next="a dataset with a test split, or extract without --drop-leaks",
        )
    if config.select == "best" and not (store.splits == "val").any():
        raise UsageError(
            "there is no validation split to select an epoch on.", next="--select last"
        )
