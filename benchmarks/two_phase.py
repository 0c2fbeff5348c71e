"""What do two phases gain over a live teacher? `python -m benchmarks.two_phase`

The same training is done twice: with the teacher running beside the student in every step, and by
`extract` followed by the steps of `distill` from its store. Both see the same views of the same
images in the same order. The gain in wall time stands beside the ideal one,

    E(1/T + 1/S) / (V/T + E/S),

of E epochs and V views, where T (images/s of the teacher's bare forward pass) and S (images/s of
training steps on tensors in memory) are measured in the same run. For V the formula counts what is
really extracted: the images of validation and test too. The teacher is tried in float32 and
bfloat16, and compiled with --compile; the faster one runs in both trainings. What comes before the
first image (loading, compiling, looking through the data set) is not timed, nor is validation,
which is the same for both.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import torch
from rich.console import Console
from rich.table import Table

from benchmarks.comparison import keep
from benchmarks.epoch import LIGHT_BRANCH, from_store, train
from benchmarks.extract import bare_forward, draw_images
from rdcache.data import ImageDataset
from rdcache.distillation import DistillConfig
from rdcache.distillation.batches import TrainingBatch
from rdcache.distillation.preparing import create_trainer
from rdcache.distillation.training import Trainer
from rdcache.extraction import ExtractConfig, ExtractionPlan, plan_extraction, run_extraction
from rdcache.extraction.forward import forward_of
from rdcache.methods import CachedBatch
from rdcache.models import choose_device
from rdcache.store import Store

TEACHERS = ("resnet50", "densenet121", "vit_base_patch16_224")
STUDENTS = ("shufflenet", "mobilenet", "resnet18")
TAPS = {"vit_base_patch16_224": "tokens"}
AIM = 0.9


@dataclass(frozen=True)
class Gain:
    """One line of the table.

    Attributes:
        teacher_rate, student_rate: images/s of the bare forward pass, and of steps in memory.
        live, extract, distill: seconds of wall time.
        speed_up, ideal: live against two phases, as measured and by the formula.
        share: how much of the ideal is reached.
    """

    teacher: str
    student: str
    precision: str
    teacher_rate: float
    student_rate: float
    live: float
    extract: float
    distill: float
    speed_up: float
    ideal: float
    share: float


@click.command()
@click.option("--teacher", "teachers", multiple=True, default=TEACHERS, help="A timm model.")
@click.option("--student", "students", multiple=True, default=STUDENTS)
@click.option("--epochs", default=8, show_default=True)
@click.option("--images", default=320, show_default=True)
@click.option("--image-size", default=112, show_default=True, help="Of the student, in pixels.")
@click.option("--compile", "compiled", is_flag=True, help="Also try a compiled teacher.")
@click.option("--short", is_flag=True, help="The first teacher and student, few epochs.")
@click.option("--device", default="auto", show_default=True)
@click.option("--out", type=click.Path(path_type=Path), help="Folder for the numbers as JSON.")
def main(
    teachers: tuple[str, ...],
    students: tuple[str, ...],
    epochs: int,
    images: int,
    image_size: int,
    compiled: bool,
    short: bool,
    device: str,
    out: Path | None,
) -> None:
    """Time whole trainings with a live teacher and in two phases."""
    if short:
        teachers, students, epochs, images = teachers[:1], students[:1], 3, 128
    place = choose_device(device)
    gains = []
    for teacher in teachers:
        with tempfile.TemporaryDirectory(prefix="rdcache-two-phase-") as folder:
            draw_images(Path(folder, "images"), images)
            plan, rate = _fastest(teacher, Path(folder), str(place), compiled)
            store = run_extraction(plan).store
            for student in students:
                config = DistillConfig(
                    student=student,
                    method_options={"tap": TAPS.get(teacher, "s4"), **LIGHT_BRANCH},
                    image_size=image_size,
                    device=str(place),
                    amp="bf16" if place.type == "cuda" else "off",
                    epochs=epochs,
                ).resolved()
                gains.append(_gain(plan, rate, store, config, place))
    _show(gains, epochs, image_size)
    keep(out, "two_phase", {"epochs": epochs, "image_size": image_size, "gains": gains})


def _fastest(
    teacher: str, folder: Path, device: str, compiled: bool
) -> tuple[ExtractionPlan, float]:
    """The plan whose teacher is fastest, and how fast it is."""
    found = []
    for precision in ("float32", "bfloat16"):
        for compile_it in (False, True) if compiled else (False,):
            plan = plan_extraction(
                ExtractConfig(
                    teacher=f"timm:{teacher}",
                    weights="random",
                    dataset=f"folder:{folder / 'images'}",
                    taps=(TAPS.get(teacher, "s4"),),
                    views="clean",
                    precision=precision,
                    compile=compile_it,
                    root=folder / f"{precision}-{compile_it}",
                    device=device,
                )
            )
            found.append((_teacher_rate(plan), plan))
    rate, plan = max(found, key=lambda each: each[0])
    return plan, rate


def _teacher_rate(plan: ExtractionPlan) -> float:
    """Images/s of the bare forward pass on batches that are cut already."""
    forward = forward_of(plan)
    images = 2 * forward.batch_size
    run = bare_forward(forward, images)
    return images / _median([_timed(run) for _ in range(4)][1:])


def _gain(
    plan: ExtractionPlan,
    teacher_rate: float,
    store: Store,
    config: DistillConfig,
    device: torch.device,
) -> Gain:
    trainer = create_trainer(store, plan.dataset, config, 0, device)
    picks = trainer.picks()
    ready = list(from_store(trainer, picks))[:8]
    step_seconds = _median([_timed(lambda: train(trainer, ready)) for _ in range(4)][1:])
    student_rate = len(ready) * config.batch_size / step_seconds

    live = _timed(lambda: _live(plan, store, config, device))
    shutil.rmtree(store.location)
    began = time.perf_counter()
    fresh = run_extraction(plan).store
    extracted = time.perf_counter() - began
    distilled = _timed(lambda: _epochs(fresh, plan.dataset, config, device, from_store))

    seen = len(picks) * config.batch_size * config.epochs
    of_student, of_teacher = seen / student_rate, seen / teacher_rate
    ideal = (of_teacher + of_student) / (len(plan.dataset) / teacher_rate + of_student)
    speed_up = live / (extracted + distilled)
    return Gain(
        plan.teacher.name,
        config.student,
        plan.config.precision + (", compiled" if plan.config.compile else ""),
        teacher_rate,
        student_rate,
        live,
        extracted,
        distilled,
        speed_up,
        ideal,
        speed_up / ideal,
    )


Batches = Callable[[Trainer, list], Iterator[TrainingBatch]]


def _live(plan: ExtractionPlan, store: Store, config: DistillConfig, device: torch.device) -> None:
    forward = forward_of(plan)

    def batches(trainer: Trainer, picks: list) -> Iterator[TrainingBatch]:
        """The student's images beside taps that the teacher computes now."""
        images = trainer.source.training(picks, (), True, "benchmark")
        requests = [(number, 0, each.samples.tolist()) for number, each in enumerate(picks)]
        for batch, (_, taps) in zip(images, forward.on_device(requests), strict=True):
            halves = {name: tap.half() for name, tap in taps.items()}
            cached = CachedBatch(batch.cached.samples, halves, batch.cached.target)
            yield TrainingBatch(cached, batch.images)

    _epochs(store, plan.dataset, config, device, batches)


def _epochs(
    store: Store,
    dataset: ImageDataset,
    config: DistillConfig,
    device: torch.device,
    batches: Batches,
) -> None:
    """Prepare a training and take its steps."""
    trainer = create_trainer(store, dataset, config, 0, device)
    for epoch in range(config.epochs):
        trainer.epoch = epoch
        train(trainer, batches(trainer, trainer.picks()))


def _timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


def _show(gains: list[Gain], epochs: int, image_size: int) -> None:
    table = Table(title=f"{epochs} epochs, students at {image_size} px")
    for header in ("teacher", "student", "teacher in"):
        table.add_column(header)
    for header in ("T", "S", "live s", "extract s", "distill s", "gain", "ideal", "share"):
        table.add_column(header, justify="right")
    for gain in gains:
        seconds = (f"{each:.1f}" for each in (gain.live, gain.extract, gain.distill))
        rates = (f"{each:.0f}" for each in (gain.teacher_rate, gain.student_rate))
        results = (f"{gain.speed_up:.2f}", f"{gain.ideal:.2f}", f"{gain.share:.2f}")
        names = (gain.teacher, gain.student, gain.precision)
        table.add_row(*names, *rates, *seconds, *results)
    Console(width=120).print(table)
    click.echo(f"T, S: images/s of the teacher alone and of steps in memory; share: aim ≥ {AIM}")


if __name__ == "__main__":
    main()
