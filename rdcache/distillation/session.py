"""Phase 2 from a store to finished runs: prepare, train, evaluate, write.

One call may train several students with several seeds; images and store are opened once for all
of them. What is finished already is returned as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch

from rdcache.distillation.acceleration import choose_amp
from rdcache.distillation.config import DistillConfig, config_from_options
from rdcache.distillation.diverged import Diverged, in_one
from rdcache.distillation.hardware import threads, within_device_memory
from rdcache.distillation.preparing import Job
from rdcache.distillation.residency import choose_shuffle
from rdcache.distillation.run import FILES, Run
from rdcache.distillation.run_folders import (
    Outcome,
    earlier_outcome,
    refuse_interrupted,
    run_folder,
    train_runs,
)
from rdcache.distillation.shared_sources import Note, Sources
from rdcache.distillation.source import Places, choose_store, open_dataset
from rdcache.errors import UsageError
from rdcache.models import choose_device, require_fit
from rdcache.models.taps import finer_map
from rdcache.progress import Progress, ignore
from rdcache.store import Store, default_taps
from rdcache.tasks import task_of

# What configs that are trained from one store must have in common.
OF_THE_STORE = (
    "root",
    "dataset",
    "teacher",
    "data_dir",
    "uid_salt",
    "require_signature",
    "verify_shards",
)


def silently(note: str) -> None:
    """Take no note."""


def distill(
    store: Places = None,
    student: str = "shufflenet",
    method: str = "rd",
    *,
    resume: bool = False,
    overwrite: bool = False,
    on_progress: Progress = ignore,
    on_note: Note = silently,
    **options: Any,
) -> Run:
    """Train a student from a store of cached tensors.

    Args:
        store: a store or its folder, or several, which are read in step; by default the newest
            complete one under the root.
        student: see `rdcache list students`.
        method: see `rdcache list methods`.
        resume: go on with a run that was interrupted.
        overwrite: train again even if the same run is finished.
        on_progress: called with (steps done, steps in all, seed).
        on_note: told, in a sentence, what was chosen for this machine.
        options: fields of `DistillConfig`, `seed`, and options of the method:
            `distill(store, epochs=240, seed=1, temperature=2.0)`.

    Raises:
        RdcacheError: see `distill_seeds`.
    """
    config = config_from_options(student, method, options)
    if len(config.seeds) != 1:
        raise UsageError(
            "distill trains one student.", seeds=config.seeds, instead="distill_seeds(store, …)"
        )
    (run,) = distill_seeds(
        store,
        config,
        resume=resume,
        overwrite=overwrite,
        on_progress=on_progress,
        on_note=on_note,
    )
    return run


def distill_seeds(
    store: Places,
    config: DistillConfig,
    *,
    resume: bool = False,
    overwrite: bool = False,
    on_progress: Progress = ignore,
    on_note: Note = silently,
) -> list[Run]:
    """Train the config's student with each of its seeds; see `summarise` for mean and deviation.

    Raises:
        RdcacheError: see `distill_many`.
    """
    return distill_many(
        store,
        [config],
        resume=resume,
        overwrite=overwrite,
        on_progress=on_progress,
        on_note=on_note,
    )


def distill_many(
    store: Places,
    configs: Sequence[DistillConfig],
    *,
    resume: bool = False,
    overwrite: bool = False,
    on_progress: Progress = ignore,
    on_note: Note = silently,
) -> list[Run]:
    """Train each config with each of its seeds, from one store.

    Runs whose batches have the same order (those of one seed, or all with `order_seed`) are trained
    side by side from one stream of batches, others one after the other. Each comes to the weights
    that it would have come to alone. One that diverges is set aside; the others are finished.

    Args:
        on_note: told, in a sentence, what was chosen for this machine.

    Returns:
        The runs, config by config, in the order of their seeds. Configs that differ only in where
        and how fast they run stand for the same run.

    Raises:
        TrainingError: a loss became NaN or infinite; all other runs are finished then.
        RdcacheError: see `distill_each`.
    """
    outcomes = distill_each(
        store,
        configs,
        resume=resume,
        overwrite=overwrite,
        on_progress=on_progress,
        on_note=on_note,
    )
    diverged = {it.path: it for it in outcomes if isinstance(it, Diverged)}
    runs = [run for run in outcomes if isinstance(run, Run)]
    if diverged:
        finished = len({run.path for run in runs})
        named = [
            (f"{it.student} by {it.method}, seed {it.seed}", it.error) for it in diverged.values()
        ]
        raise in_one(named, finished)
    return runs


def distill_each(
    store: Places,
    configs: Sequence[DistillConfig],
    *,
    side_by_side: int | None = None,
    resume: bool = False,
    overwrite: bool = False,
    on_progress: Progress = ignore,
    on_note: Note = silently,
) -> list[Run | Diverged]:
    """Train as `distill_many` does, and say of each run what it came to.

    Args:
        side_by_side: how many runs are trained at once, at most (default: all that can share
            batches). Each keeps its student, its method and their optimiser in memory.
        resume: go on with runs that were interrupted, and train none again that has diverged.

    Raises:
        StoreNotFoundError: there is no store that fits.
        StaleStoreError: the images are not those of the store.
        UsageError: options that do not go together, or an interrupted run without `resume`.
        UnknownNameError: no such student, method, option, or tap in the store.
        DeviceMemoryError: training does not fit into the memory of the GPU.
    """
    if resume and overwrite:
        raise UsageError("a run can be gone on with (--resume) or overwritten, not both.")
    _require_trainable_together(configs)
    first, on_note = configs[0], once_each(on_note)
    opened = choose_store(
        store,
        root=first.root,
        dataset=first.dataset,
        teacher=first.teacher,
        require_signature=first.require_signature,
        verify_shards=first.verify_shards,
    )
    resolved = [_as_computed(config.resolved(), opened, on_note) for config in configs]
    wanted = [Job(config, seed) for config in resolved for seed in config.seeds]
    folders = [run_folder(opened, job.config, job.seed) for job in wanted]
    jobs = dict(zip(folders, wanted, strict=True))
    for folder in jobs:
        refuse_interrupted(folder, resume, overwrite)
    outcomes: dict[Path, Outcome] = {}
    for folder in jobs:
        earlier = earlier_outcome(folder, Run, FILES, resume, overwrite)
        if earlier is not None:
            outcomes[folder] = earlier
    waiting = {folder: job for folder, job in jobs.items() if folder not in outcomes}

    @cache
    def sources(device: str) -> Sources:
        dataset = open_dataset(opened, first.dataset, first.data_dir, first.uid_salt)
        return Sources(opened, dataset, choose_device(device), on_note)

    for group in _groups(waiting, side_by_side):
        config = next(iter(group.values())).config
        with (
            threads(config.num_threads),
            torch.random.fork_rng(_cuda_devices(config)),
            within_device_memory(),
        ):
            outcomes |= train_runs(sources(config.device), group, on_progress)
    return [_outcome(folder, jobs[folder], outcomes[folder]) for folder in folders]


def _groups(jobs: dict[Path, Job], most: int | None) -> list[dict[Path, Job]]:
    """Jobs that are trained side by side, at most so many at once."""
    companies: dict[tuple[object, ...], list[Path]] = {}
    for folder, job in jobs.items():
        companies.setdefault(_company(job), []).append(folder)
    return [
        {folder: jobs[folder] for folder in folders[first : first + (most or len(folders))]}
        for folders in companies.values()
        for first in range(0, len(folders), most or len(folders))
    ]


def _outcome(folder: Path, job: Job, outcome: Outcome) -> Run | Diverged:
    if isinstance(outcome, Run):
        return outcome
    return Diverged(folder, job.config.student, job.config.method, job.seed, outcome)


def _require_trainable_together(configs: Sequence[DistillConfig]) -> None:
    """Refuse configs that do not name one student each, or that are of several stores.

    Raises:
        UsageError: naming what is wrong.
    """
    if not configs:
        raise UsageError("there is nothing to train: the list of configs is empty.")
    for config in configs:
        if "," in config.student:
            raise UsageError(
                "a run is of one student.",
                got=config.student,
                next="distill_many(store, config.for_each_student())",
            )
    for name in OF_THE_STORE:
        if any(getattr(config, name) != getattr(configs[0], name) for config in configs):
            raise UsageError(
                f"{name} differs between the configs, which are all trained from one store.",
                next="a call of distill_many for each store",
            )


def once_each(on_note: Note) -> Note:
    """Pass on what was not said before."""
    said: set[str] = set()

    def note(text: str) -> None:
        if text not in said:
            said.add(text)
            on_note(text)

    return note


def _company(job: Job) -> tuple[object, ...]:
    """Jobs of which this is the same are trained side by side: they can share batches."""
    config = job.config
    order = job.seed if config.order_seed is None else config.order_seed
    place = (config.device, config.num_threads, config.resident, config.inputs_cache)
    images = (config.image_size, config.views, config.jitter, config.working_scale)
    subset = config.subset(job.seed)
    return (order, config.shuffle, config.batch_size, subset, *images, *place)


def _as_computed(config: DistillConfig, store: Store, on_note: Note) -> DistillConfig:
    """Settle what depends on this machine and this store, so that the run's digest has it."""
    task, dimensions = task_of(store.manifest["dataset"])
    require_fit(config.student, task, dimensions)
    config = config.for_task(task, dimensions)
    training = int(config.train_fraction * len(store.samples_of("train")))
    steps = config.epochs * (training // config.batch_size)
    amp, why = choose_amp(config, steps, choose_device(config.device), dimensions)
    on_note(f"precision of {config.student}: {'bfloat16' if amp == 'bf16' else 'float32'} ({why})")
    views = min(config.views or store.views, store.views)
    shuffle = choose_shuffle(store, _taps_read(config, store), views, config.shuffle)
    return config.model_copy(update={"amp": amp, "views": views, "shuffle": shuffle})


def _taps_read(config: DistillConfig, store: Store) -> list[str]:
    """The taps that a method reads, as far as its options and the store tell."""
    options, defaults = config.method_options, list(default_taps(store).values())
    if "tap" not in options:
        return []
    given = options["tap"]
    if given is None and options.get("finer_tap") and len(defaults) == 1:
        given = finer_map({tap.name: tap.shape for tap in store.taps.values()}, defaults[0])
    names = given.split(",") if given else defaults
    return [name.strip() for name in names if name.strip() in store.taps]


def _cuda_devices(config: DistillConfig) -> list[torch.device]:
    device = choose_device(config.device)
    return [device] if device.type == "cuda" else []
