"""What does a step cost beside its arithmetic? `python -m benchmarks.epoch`

An epoch of distillation as `rdcache distill` trains it (taps from a store, images cut and jittered
on the fly) beside the very same steps on batches that lie ready in memory, and beside steps on one
batch of noise. The store is extracted before, from images that are drawn on the spot by the data
set `phantom`, with an untrained ResNet-50; the numbers in it decide nothing here.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import click
import torch

from benchmarks.comparison import Contender, compare, keep, show
from rdcache.data import load_dataset
from rdcache.distillation import DistillConfig
from rdcache.distillation.batches import TrainingBatch
from rdcache.distillation.preparing import create_trainer
from rdcache.distillation.sampling import Picks
from rdcache.distillation.training import Trainer
from rdcache.extraction import extract
from rdcache.methods import CachedBatch
from rdcache.models import choose_device
from rdcache.store import Store

STUDENTS = ("shufflenet-x0.5:64", "shufflenet:112", "resnet18:112")
# RD's branch as it costs least: the shorter a step, the more a wait for data shows.
LIGHT_BRANCH = {"spatial": "pooled", "map_side": None, "width": 256}
MOST_SLOWER = {"cpu": 1.05, "cuda": 1.10}


@click.command()
@click.option("--student", "students", multiple=True, default=STUDENTS, help="NAME:PIXELS.")
@click.option("--method", default="rd", show_default=True)
@click.option("--tap", default="s4", show_default=True, help="Tap that the method reads.")
@click.option("--steps", default=24, show_default=True, help="Steps of an epoch.")
@click.option("--rounds", default=7, show_default=True)
@click.option("--short", is_flag=True, help="The first student, few rounds.")
@click.option("--compile", "compiled", is_flag=True, help="Compile the student.")
@click.option("--device", default="auto", show_default=True)
@click.option("--out", type=click.Path(path_type=Path), help="Folder for the numbers as JSON.")
def main(
    students: tuple[str, ...],
    method: str,
    tap: str,
    steps: int,
    rounds: int,
    short: bool,
    compiled: bool,
    device: str,
    out: Path | None,
) -> None:
    """Time epochs from a store beside the same steps on tensors in memory."""
    if short:
        students, steps, rounds = students[:1], min(steps, 12), min(rounds, 3)
    place = choose_device(device)
    found = {}
    with tempfile.TemporaryDirectory(prefix="rdcache-epoch-") as folder:
        store = extract(
            teacher="timm:resnet50",
            weights="random",
            dataset="phantom",
            taps=("s4", "pooled"),
            views="2",
            root=folder,
            device=device,
        )
        for student in students:
            name, pixels = student.split(":")
            config = DistillConfig(
                student=name,
                method=method,
                method_options=_options(method, tap),
                image_size=int(pixels),
                device=str(place),
                compile="on" if compiled else "off",
                amp="bf16" if place.type == "cuda" else "off",
            ).resolved()
            found[student] = _one(store, config, place, steps, rounds, student)
    keep(out, "epoch", {"method": method, "tap": tap, "steps": steps, "students": found})


def _options(method: str, tap: str) -> dict[str, Any]:
    if method == "none":
        return {}
    return {"tap": tap, **(LIGHT_BRANCH if method == "rd" else {})}


def _one(
    store: Store, config: DistillConfig, device: torch.device, steps: int, rounds: int, title: str
) -> dict[str, object]:
    trainer = create_trainer(store, load_dataset("phantom"), config, 0, device)
    picks = trainer.picks()
    picks = (picks * (steps // len(picks) + 1))[:steps]
    began = time.perf_counter()
    ready = list(from_store(trainer, picks))
    making = time.perf_counter() - began
    noise = _like_noise(ready[0])
    lines = compare(
        [
            Contender("in memory", lambda: train(trainer, ready)),
            Contender("from the store", lambda: train(trainer, from_store(trainer, picks))),
            Contender("one batch of noise", lambda: train(trainer, [noise] * steps)),
        ],
        "in memory",
        rounds,
        {"from the store": 1 / MOST_SLOWER.get(device.type, 1.10)},
    )
    show(f"{title}, {config.method}: steps of {config.batch_size}", lines, steps, "step")
    click.echo(f"decoding, cutting and reading these {steps} batches anew: {making:.2f} s\n")
    return {"lines": lines, "seconds_of_making_batches_anew": making}


def from_store(trainer: Trainer, picks: list[Picks]) -> Iterator[TrainingBatch]:
    """Batches as a run gets them."""
    return trainer.source.training(picks, trainer.method.taps, True, "benchmark")


def train(trainer: Trainer, batches: Iterable[TrainingBatch]) -> None:
    """The steps of an epoch, until they are really done."""
    trainer.begin_epoch()
    for number, batch in enumerate(batches):
        trainer.step(batch, number)
    if trainer.source.device.type == "cuda":
        torch.cuda.synchronize(trainer.source.device)


def _like_noise(batch: TrainingBatch) -> TrainingBatch:
    """Noise of the same shapes, types and memory order."""
    taps = {
        name: torch.randn_like(tap.float()).to(tap.dtype) for name, tap in batch.cached.taps.items()
    }
    assert batch.images is not None
    cached = CachedBatch(batch.cached.samples, taps, batch.cached.target)
    return TrainingBatch(cached, torch.randn_like(batch.images))


if __name__ == "__main__":
    main()
