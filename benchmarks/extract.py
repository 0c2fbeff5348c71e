"""Phase 1 against the bare forward pass of the same teacher: `python -m benchmarks.extract`.

The baseline runs the teacher over batches that are decoded already and forgets what it gives. An
extraction decodes JPEG files, cuts the clean view, runs the same teacher, and writes its default
tap and `pooled` to a fresh store, durably. The teacher is loaded, the folder scanned and the plan
made outside the timing. Weights are random: they cost the same.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import click
import numpy as np
import torch
from PIL import Image

from benchmarks.comparison import Contender, Line, compare, keep, show
from rdcache.extraction import ExtractConfig, ExtractionPlan, plan_extraction, run_extraction
from rdcache.extraction.forward import TeacherForward, forward_of
from rdcache.extraction.precision import arithmetic

MODELS = "resnet50,densenet121,vit_base_patch16_224"
BARE, OURS = "bare forward, images decoded", "extraction from JPEG files"
AIM = 0.95
WIDTH, HEIGHT = 500, 375  # pixels of an image, as in ImageNet


def draw_images(folder: Path, count: int) -> None:
    """JPEG files of two classes, of the size and detail of photographs."""
    random = np.random.default_rng(0)
    for number in range(count):
        coarse = Image.fromarray(random.integers(0, 256, (24, 32, 3)).astype(np.uint8))
        smooth = np.asarray(coarse.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC), np.int16)
        noisy = np.clip(smooth + random.integers(-12, 13, smooth.shape), 0, 255).astype(np.uint8)
        place = folder / ("benign" if number % 2 else "malignant")
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noisy).save(place / f"{number:05}.jpg", quality=90)


def bare_forward(forward: TeacherForward, images: int) -> Callable[[], None]:
    """The teacher's arithmetic alone, over as many images in the same batches."""
    size = forward.teacher.preprocessing.size
    pixels = torch.randint(0, 256, (images, size, size, 3), dtype=torch.uint8)
    device = forward.teacher.device
    batches = [batch.to(device) for batch in pixels.split(forward.batch_size)]

    def run() -> None:
        for batch in batches:
            normalised = forward.teacher.preprocessing.normalise(batch)
            with arithmetic(device, forward.precision):
                forward.teacher.forward_taps(normalised, forward.taps)
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return run


def measured(plan: ExtractionPlan, shard_samples: int | None, rounds: int) -> list[Line]:
    """Let both take turns, each extraction into a store of its own."""
    if shard_samples is not None:
        plan = replace(plan, layout=replace(plan.layout, shard_samples=shard_samples))

    def before() -> None:
        shutil.rmtree(plan.location, ignore_errors=True)

    contenders = [
        Contender(BARE, bare_forward(forward_of(plan), len(plan.dataset))),
        Contender(OURS, lambda: run_extraction(plan), before),
    ]
    return compare(contenders, BARE, rounds, {OURS: AIM})


@click.command()
@click.option("--models", default=MODELS, show_default=True, help="timm models.")
@click.option("--images", default=256, show_default=True, help="Images of a round.")
@click.option("--shard", type=int, help="Images of a shard (default: as planned).")
@click.option("--batch", default=32, show_default=True, help="Images of a forward pass.")
@click.option("--precision", type=click.Choice(["float32", "bfloat16", "auto"]), default="float32")
@click.option("--compile", "compiled", is_flag=True, help="Compile the teacher.")
@click.option("--device", default="auto", show_default=True)
@click.option("--rounds", default=5, show_default=True)
@click.option("--short", is_flag=True, help="Two rounds of 64 images with ResNet-50 alone.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder for extract.json.")
def main(
    models: str,
    images: int,
    shard: int | None,
    batch: int,
    precision: str,
    compiled: bool,
    device: str,
    rounds: int,
    short: bool,
    out: Path | None,
) -> None:
    """Compare whole extractions with the teacher's bare forward pass."""
    if short:
        models, images, rounds = "resnet50", 64, 2
    results = []
    with tempfile.TemporaryDirectory() as place:
        draw_images(Path(place, "images"), images)
        for name in models.split(","):
            config = ExtractConfig(
                teacher=f"timm:{name}",
                weights="random",
                dataset=f"folder:{Path(place, 'images')}",
                taps=("s4", "pooled"),
                views="clean",
                precision=precision,
                compile=compiled,
                batch_size=batch,
                device=device,
                root=Path(place, "root"),
            )
            plan = plan_extraction(config)
            lines = measured(plan, shard, rounds)
            title = f"{name}, {images} images, {plan.config.precision}, {plan.teacher.device}"
            show(title, lines, images, "images")
            results.append({"model": name, "precision": plan.config.precision, "lines": lines})
    options = {"images": images, "batch": batch, "shard": shard, "compiled": compiled}
    keep(out, "extract", {**options, "models": results})


if __name__ == "__main__":
    main()
