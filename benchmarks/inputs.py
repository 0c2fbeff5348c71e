"""How fast does a student see its images? `python -m benchmarks.inputs` measures all ways.

Each call makes one batch of views that were not cut before, jittered and normalised: from image
files, from images kept in memory (as they are, and reduced to their working size), and by the
batched kernels of the device route, on this CPU and on a GPU if there is one. `cached cuts` takes
views that were cut before, as epochs do once all views have been seen; `step by step` jitters and
normalises them with a pass for each step. A second table says how far views of reduced images are
from those of the originals, in grey levels.

Without --dataset, JPEG files of 600 × 450 pixels are drawn for it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from itertools import count
from pathlib import Path

import click
import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from scipy.ndimage import gaussian_filter

from benchmarks.comparison import Contender, Line, compare, keep, show
from rdcache.data import (
    DeviceInputs,
    ImageDataset,
    Jitter,
    StudentInputs,
    ViewSpec,
    load_dataset,
    view_parameters,
)

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
VIEWS = 100
DRAWN = 160
SCALES = (1.0, 1.5, 2.0, 4.0)
GIB = 2**30


@click.command()
@click.option("--dataset", help="As in `rdcache extract` (default: drawn images).")
@click.option("--data-dir", type=click.Path(path_type=Path), help="Where datasets are looked for.")
@click.option("--sizes", default="64,224", help="Sides of the student's input, comma-separated.")
@click.option("--batch", default=32, help="Images per batch.")
@click.option("--rounds", default=7, help="How often each way is timed.")
@click.option("--short", is_flag=True, help="64 px and three rounds.")
@click.option("--threads", default=None, type=int, help="Threads of PyTorch.")
@click.option("--out", type=click.Path(path_type=Path), help="Keep numbers as JSON in this folder.")
def main(
    dataset: str | None,
    data_dir: Path | None,
    sizes: str,
    batch: int,
    rounds: int,
    short: bool,
    threads: int | None,
    out: Path | None,
) -> None:
    """Measure the student's inputs."""
    if short:
        sizes, rounds = "64", 3
    if threads:
        torch.set_num_threads(threads)
    measured: dict[str, object] = {"batch": batch, "dataset": dataset or "drawn"}
    with tempfile.TemporaryDirectory() as folder:
        if dataset is None:
            draw_images(Path(folder) / "drawn")
        images = load_dataset(dataset or f"folder:{folder}/drawn", data_dir)
        for size in map(int, sizes.split(",")):
            lines = speeds(images, size, batch, rounds)
            show(f"Batches of {batch} at {size} px", lines, batch, "images")
            far = deviations(images, size)
            show_deviations(size, far)
            measured[str(size)] = {"speed": lines, "deviation": far}
    keep(out, "inputs", measured)


def speeds(dataset: ImageDataset, size: int, batch: int, rounds: int) -> list[Line]:
    """Time all ways in turns."""
    parameters = _parameters(dataset)
    training = np.flatnonzero(dataset.splits == "train")
    samples = np.random.default_rng(0).permutation(training)[:batch]

    def inputs(ram_limit: int = 4 * GIB, working_scale: float = 0.0) -> StudentInputs:
        return StudentInputs(
            dataset, parameters, size, MEAN, STD, Jitter(), ram_limit, working_scale=working_scale
        )

    def on(device: str, working_scale: float) -> StudentInputs:
        return DeviceInputs(
            dataset,
            parameters,
            size,
            MEAN,
            STD,
            Jitter(),
            device=torch.device(device),
            device_limit=4 * GIB,
            working_scale=working_scale,
        )

    contenders = {
        "decode, cut": fresh_views(inputs(ram_limit=0), samples),
        "image kept, cut": fresh_views(inputs(), samples),
        "working image kept, cut": fresh_views(inputs(working_scale=2.0), samples),
        "cached cuts": same_view(inputs(), samples),
        "cached cuts, step by step": step_by_step(inputs(), samples),
        "device route, on this CPU": fresh_views(on("cpu", 2.0), samples),
    }
    if torch.cuda.is_available():
        contenders["device route, full images"] = fresh_views(on("cuda", 0.0), samples)
        contenders["device route"] = fresh_views(on("cuda", 2.0), samples)
    made = [Contender(name, run) for name, run in contenders.items()]
    return compare(made, "decode, cut", rounds)


def fresh_views(inputs: StudentInputs, samples: np.ndarray) -> Callable[[], None]:
    """A batch of views that were never cut; that of the first call is not timed."""
    views = count()

    def run() -> None:
        inputs.batch(samples, next(views) % VIEWS, np.random.default_rng(0))
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    return run


def same_view(inputs: StudentInputs, samples: np.ndarray) -> Callable[[], object]:
    """Always the same batch."""
    return lambda: inputs.batch(samples, 1, np.random.default_rng(0))


def step_by_step(inputs: StudentInputs, samples: np.ndarray) -> Callable[[], object]:
    """The same with one pass of PyTorch for each step of the formula."""
    mean, std = (torch.tensor(each).view(3, 1, 1) * 255 for each in (MEAN, STD))

    def run() -> torch.Tensor:
        pixels = torch.from_numpy(inputs.cuts(samples, 1)[0]).permute(0, 3, 1, 2).float()
        factors = Jitter().factors(len(samples), np.random.default_rng(0))
        bright, contrast = (torch.from_numpy(each).view(-1, 1, 1, 1) for each in factors)
        images = pixels * bright
        centre = images.mean(dim=(1, 2, 3), keepdim=True)
        images = ((images - centre) * contrast + centre).clamp_(0, 255)
        return images.sub_(mean).div_(std)

    return run


def deviations(dataset: ImageDataset, size: int, most: int = 40) -> list[dict[str, float]]:
    """How far views of reduced images are from exact ones, for each scale."""
    parameters = _parameters(dataset)[:4]
    exact = StudentInputs(dataset, parameters, size, MEAN, STD)
    found = []
    for scale in SCALES:
        inputs = StudentInputs(dataset, parameters, size, MEAN, STD, working_scale=scale)
        own = np.array([sample.size for sample in dataset.samples])
        reduced = np.flatnonzero((inputs.images.sizes < own).any(axis=1))
        if not len(reduced):
            continue
        samples = reduced[:: -(-len(reduced) // most)]
        errors = np.stack(
            [
                np.abs(
                    inputs.cuts(samples, view)[0].astype(np.float64) - exact.cuts(samples, view)[0]
                )
                for view in range(4)
            ]
        )
        of_images = errors.mean(axis=(2, 3, 4))
        found.append(
            {
                "scale": scale,
                "part of the pixels": float(inputs.images.nbytes.sum() / (3 * own.prod(1).sum())),
                "reduced": len(reduced) / len(own),
                "mean": float(errors.mean()),
                "largest mean of a view": float(of_images.max()),
                "99 % are within": float(np.percentile(errors, 99)),
            }
        )
    return found


def show_deviations(size: int, found: list[dict[str, float]]) -> None:
    """Print a table, if any image was reduced."""
    if not found:
        return
    table = Table(title=f"Views at {size} px from reduced images, grey levels from exact")
    for header in found[0]:
        table.add_column(header, justify="right")
    for line in found:
        table.add_row(*(f"{value:.2f}" for value in line.values()))
    Console().print(table)


def draw_images(folder: Path) -> None:
    """JPEG files of 600 × 450 pixels: blobs, edges and grain, as photographs of skin have them."""
    random = np.random.default_rng(0)
    for number in range(DRAWN):
        coarse, fine = (
            gaussian_filter(random.standard_normal((450, 600)), width) * width * 3
            for width in (25, 2)
        )
        spot = gaussian_filter(random.standard_normal((450, 600)), 40) > 0.008
        grey = 150 + 40 * coarse + 6 * fine - 60 * spot
        pixels = grey[..., None] * (1.0, 0.8, 0.7) + random.normal(0, 3, (450, 600, 3))
        path = folder / "ab"[number % 2] / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path, quality=92)


def _parameters(dataset: ImageDataset) -> np.ndarray:
    spec = ViewSpec.parse(str(VIEWS), symmetry=dataset.symmetry)
    return view_parameters(spec, dataset.uids, [sample.size for sample in dataset.samples])


if __name__ == "__main__":
    main()
