"""What a run needs before its first step: the student, the method, and where their batches come
from. That these are opened once for all runs of a call is the part of `shared_sources.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from rdcache.data import ImageDataset
from rdcache.distillation.acceleration import compiled
from rdcache.distillation.config import DistillConfig
from rdcache.distillation.evaluators import evaluator_for
from rdcache.distillation.folds import training_folds
from rdcache.distillation.hardware import autocast_for, on_device
from rdcache.distillation.randomness import counted_seed
from rdcache.distillation.sampling import LEAST_BATCH, Shuffle, TrainingSamples
from rdcache.distillation.shared_sources import Note, Sources
from rdcache.distillation.student_views import seen_size
from rdcache.distillation.training import Trainer
from rdcache.errors import UsageError
from rdcache.methods import Method, MethodContext, create_method, task_loss
from rdcache.models import Student, create_student, require_fit
from rdcache.store import Store, classes_of_logits, default_taps
from rdcache.tasks import task_of


@dataclass(frozen=True)
class Job:
    """One run that is to be: a resolved config and one of its seeds."""

    config: DistillConfig
    seed: int


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
        evaluator = evaluator_for(sources.dataset, classes, job.config.nsd_tolerance)
        autocast = autocast_for(device, job.config.amp)
        trainer = Trainer(
            job.config, job.seed, student, method, batches, training, evaluator, autocast
        )
        trainer.ways = {"taps": where, "images": str(batches.inputs)}
        _accelerate(trainer, sources.on_note)
        trainers.append(trainer)
    return trainers


def _accelerate(trainer: Trainer, on_note: Note) -> None:
    """Have the student's forward pass compiled where that pays, and note whether it is."""
    name, ways = trainer.config.student, trainer.ways  # a note that held the trainer would keep it

    def note(how: str) -> None:
        on_note(f"compilation of {name}: {how}")
        ways["compiled"] = how

    trainer.forward_student, how = compiled(
        trainer.student, trainer.config, trainer.steps, trainer.source.device, note
    )
    note(how)


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
    student = on_device(_student(sources.dataset, config, len(classes)), device)
    torch.manual_seed(counted_seed("method", seed))
    labels = np.full_like(np.asarray(store.labels), -1, np.int64)
    labels[training.rows] = np.asarray(store.labels)[training.rows]
    task, dimensions = task_of(store.manifest["dataset"])
    context = MethodContext(
        taps=store.taps,
        default_tap=next(iter(teachers.values())),
        teachers=teachers,
        foreign_logits=frozenset(
            tap for tap, named in classes_of_logits(store).items() if named != classes
        ),
        feature_dim=student.feature_dim,
        student_stages=student.stages,
        num_classes=len(classes),
        classifier=student.classifier,
        task_loss=task_loss(
            task,
            class_counts(sources.dataset, training.rows),
            config.label_smoothing,
            config.class_weights,
            len(training),
        ),
        student=student,
        task=task,
        dimensions=dimensions,
        sides=_sides(store, sources.dataset, config),
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


def class_counts(dataset: ImageDataset, rows: np.ndarray) -> list[int]:
    """What there is of each class for training, as `task_loss` asks for it.

    Args:
        rows: sample numbers of the training samples.
    """
    if dataset.task == "segmentation":
        counts = np.array([dataset.samples[row].mask_counts for row in rows.tolist()], np.int64)
        return [int(count) for count in counts.sum(axis=0)]
    return [int(count) for count in dataset.occurrence[rows].sum(axis=0)]


def _sides(store: Store, dataset: ImageDataset, config: DistillConfig) -> tuple[int, ...]:
    """Of what a student sees, in pixels or voxels."""
    seen = seen_size(store.manifest["views"], dataset, config.image_size)
    return seen if isinstance(seen, tuple) else (seen, seen)


def _student(dataset: ImageDataset, config: DistillConfig, classes: int) -> Student:
    """A new student for a dataset.

    Raises:
        UsageError: it is made for another task.
    """
    require_fit(config.student, dataset.task, dataset.dimensions)
    if dataset.dimensions == 2:
        return create_student(config.student, classes, config.student_weights)
    return create_student(
        config.student, classes, config.student_weights, channels=dataset.channels
    )


def _require_trainable(store: Store, config: DistillConfig, training: TrainingSamples) -> None:
    """Refuse what cannot be trained or evaluated, before all else."""
    training.batches(config.batch_size, 0)  # refuses a batch that is too large
    if config.batch_size < LEAST_BATCH:
        raise UsageError("batch norm needs batches of at least 2.", given=config.batch_size)
    task = task_of(store.manifest["dataset"])
    if task == ("segmentation", 3) and not store.manifest["views"].get("patch"):
        raise UsageError(
            "volumes are segmented patch by patch, and the views of this store are whole volumes.",
            store=store.where,
            next="rdcache extract … --patch 96,96,96, or another size in voxels along z,y,x",
        )
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
