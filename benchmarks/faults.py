"""Does a store survive what happens to it? `python -m benchmarks.faults` tries, and prints a table.

- **kills**: an extraction is killed (SIGKILL) at random moments and resumed, again and again; the
  store must be bit for bit that of an undisturbed extraction.
- **together**: eight processes extract one store together, a random one is killed every moment and
  another comes in its place; the same must hold.
- **damage**: a random bit is flipped, or a random file cut short or deleted; `verify` must find it,
  and reading with checksums must give the right numbers or an error.
- **full disk**: the extraction runs into a limit of file size; one sentence, nothing half-written,
  and the same command goes on when there is room.

Images and teacher (a TorchScript file that pools pixels) are made on the spot and small, so that
most of the time goes into writing, which is what is to be disturbed.
"""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import click
import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch import nn

from rdcache.errors import RdcacheError, StoreWriteError
from rdcache.extraction import ExtractConfig, plan_extraction, run_extraction
from rdcache.store import open_store, verify_store

PROCESSES = 8
FAILED = 3  # exit status of a child that met an error it should not have met
GIVE_UP = 5  # failures in a row, without a shard written in between


@dataclass(frozen=True)
class Outcome:
    """One line of the table.

    Attributes:
        faults: how often something was done to the store.
        lost: how often that went unnoticed, or left another store than an undisturbed one.
    """

    what: str
    faults: int
    lost: int
    seconds: float


@click.command()
@click.option("--kills", default=200, show_default=True, help="At least so many kills.")
@click.option("--seconds", default=60.0, show_default=True, help="How long eight work together.")
@click.option("--damages", default=1000, show_default=True, help="How much damage is done.")
@click.option("--views", default=24, show_default=True, help="Views, and with them shards.")
@click.option("--images", default=48, show_default=True, help="Images of each class.")
@click.option("--seed", default=0, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), help="Also write the table as JSON.")
def main(
    kills: int, seconds: float, damages: int, views: int, images: int, seed: int, out: Path | None
) -> None:
    """Kill, crowd, damage and starve extractions, and count what was lost."""
    torch.set_num_threads(1)  # also a condition for forking
    generator = random.Random(seed)
    with tempfile.TemporaryDirectory(prefix="rdcache-faults-") as name:
        folder = Path(name)
        draw_images(folder / "images", images)
        config = ExtractConfig(
            teacher=f"torchscript:{save_teacher(folder / 'teacher.pt')}",
            dataset=f"folder:{folder / 'images'}",
            views=str(views),
            device="cpu",
        )
        began = time.perf_counter()
        if wait(start(config, folder / "undisturbed")):
            raise click.ClickException("even an undisturbed extraction fails; see above.")
        undisturbed = contents(folder / "undisturbed")
        alone = time.perf_counter() - began
        click.echo(f"An undisturbed extraction: {alone:.1f} s, {len(undisturbed)} files.")
        outcomes = [
            timed(lambda: killed(config, folder, undisturbed, kills, alone / 2, generator)),
            timed(lambda: together(config, folder, undisturbed, seconds, generator)),
            timed(lambda: damaged(folder / "undisturbed", damages, generator)),
            timed(lambda: starved(config, folder, undisturbed)),
        ]
    show(outcomes)
    if out is not None:
        out.write_text(json.dumps([asdict(outcome) for outcome in outcomes], indent=2) + "\n")
    sys.exit(any(outcome.lost for outcome in outcomes))


class Pooling(nn.Module):
    """A black box with a map and a vector."""

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, 3, H, W) → (B, 3, 14, 14) and (B, 3)."""
        pooled = nn.functional.adaptive_avg_pool2d(images, [14, 14])
        return pooled, pooled.mean(dim=[2, 3])


def save_teacher(path: Path) -> Path:
    """Write the teacher's file."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch deprecates what users still have
        torch.jit.trace(Pooling().eval(), torch.rand(2, 3, 224, 224)).save(path)
    return path


def draw_images(folder: Path, images: int) -> None:
    """Two classes of noise."""
    noise = np.random.default_rng(0)
    for name in ("benign", "malignant"):
        (folder / name).mkdir(parents=True)
        for number in range(images):
            pixels = noise.integers(0, 256, (40, 48, 3), np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number:02}.png")


def killed(
    config: ExtractConfig,
    folder: Path,
    undisturbed: dict[str, bytes],
    kills: int,
    moment: float,
    generator: random.Random,
) -> Outcome:
    """Kill extractions after random times, `moment` seconds on average, and resume them."""
    done, lost, stores = 0, 0, 0
    while done < kills:
        root = folder / f"killed-{stores}"
        stores += 1
        endings = Endings(root)
        while not is_complete(root):
            child = start(config, root)
            time.sleep(generator.expovariate(1 / moment))
            os.kill(child, signal.SIGKILL)
            endings.note(wait(child))
        done += endings.killed
        lost += endings.failed + (contents(root) != undisturbed)
    return Outcome(f"kills of {stores} extractions, each resumed", done, lost, 0)


def together(
    config: ExtractConfig,
    folder: Path,
    undisturbed: dict[str, bytes],
    seconds: float,
    generator: random.Random,
) -> Outcome:
    """Let processes share extractions, while random ones are killed and replaced."""
    config = config.model_copy(update={"join": True})
    end = time.monotonic() + seconds
    done, lost, stores = 0, 0, 0
    while time.monotonic() < end:
        root = folder / f"together-{stores}"
        stores += 1
        endings = Endings(root)
        children = [start(config, root) for _ in range(PROCESSES)]
        while not is_complete(root):
            time.sleep(generator.uniform(0.1, 1))
            children = [child for child in children if not endings.noted(child)]
            if children and time.monotonic() < end:
                victim = generator.choice(children)
                os.kill(victim, signal.SIGKILL)
                endings.note(wait(victim))
                children.remove(victim)
            children += [start(config, root) for _ in range(PROCESSES - len(children))]
        for child in children:
            endings.note(wait(child))
        done += endings.killed
        lost += endings.failed + (contents(root) != undisturbed)
    return Outcome(f"kills among {PROCESSES} processes, {stores} stores", done, lost, 0)


def damaged(root: Path, damages: int, generator: random.Random) -> Outcome:
    """Damage a store at random, and look whether anybody notices."""
    location = location_under(root)
    files = sorted(path for path in location.rglob("*") if path.is_file())
    samples = range(0, open_store(location).samples, 7)
    right = open_store(location).read(samples, 0)
    unnoticed = 0
    for _ in range(damages):
        path = generator.choice(files)
        good = path.read_bytes()
        path.unlink()
        kind = generator.choice(("flip", "flip", "cut", "delete"))
        if kind == "flip":
            position = generator.randrange(len(good))
            bit = bytes([good[position] ^ 1 << generator.randrange(8)])
            path.write_bytes(good[:position] + bit + good[position + 1 :])
        elif kind == "cut":
            path.write_bytes(good[: generator.randrange(len(good))])
        unnoticed += not noticed(location) or read_wrongly(location, samples, right)
        path.write_bytes(good)
    assert verify_store(location) == []
    return Outcome("flipped bits, cut and deleted files", damages, unnoticed, 0)


def noticed(location: Path) -> bool:
    """Whether verify finds something, or refuses the store altogether."""
    try:
        return bool(verify_store(location))
    except RdcacheError:
        return True


def read_wrongly(location: Path, samples: range, right: dict[str, torch.Tensor]) -> bool:
    """Whether reading with checksums gives other numbers without an error."""
    try:
        read = open_store(location).read(samples, 0, verify=True)
    except RdcacheError:
        return False
    return any(not torch.equal(read[tap], values) for tap, values in right.items())


def starved(config: ExtractConfig, folder: Path, undisturbed: dict[str, bytes]) -> Outcome:
    """Let an extraction run into a limit of file size, again and again, and then finish it."""
    root, lost = folder / "starved", 0
    largest = max(map(len, undisturbed.values()))
    limits = [largest // 100, largest // 3, largest - 1]
    for limit in limits:
        lost += wait(start(config, root, limit)) != 0
        lost += bool(list(root.rglob("*.partial")))
    lost += wait(start(config, root)) != 0
    lost += contents(root) != undisturbed
    return Outcome("extractions that run out of space", len(limits), lost, 0)


def start(config: ExtractConfig, root: Path, limit: int | None = None) -> int:
    """Fork a process that extracts; with a limit of file size, one that has to fail by it."""
    child = os.fork()
    if child:
        return child
    status = FAILED
    try:
        if limit is not None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        run_extraction(plan_extraction(config.model_copy(update={"root": root})))
        status = 0 if limit is None else FAILED
    except StoreWriteError as error:
        status = 0 if limit is not None and "file size limit" in str(error) else FAILED
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
    finally:
        os._exit(status)


def wait(child: int) -> int:
    """The exit status of a child, negative for the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


class Endings:
    """How the processes ended that were at work on the store under a root.

    Attributes:
        killed: how many died of SIGKILL.
        failed: how many met an error they should not have met.
    """

    def __init__(self, root: Path) -> None:
        self.killed = 0
        self.failed = 0
        self._root = root
        self._shards = 0
        self._in_a_row = 0

    def note(self, status: int) -> None:
        """Count an ending.

        Raises:
            ClickException: one fails after the other, and none writes a shard.
        """
        self.killed += status == -signal.SIGKILL
        shards = sum(1 for _ in self._root.glob("*/*/*/receipt/c/*/*/0/0"))
        if shards > self._shards:
            self._shards, self._in_a_row = shards, 0
        if status == FAILED:
            self.failed += 1
            self._in_a_row += 1
        if self._in_a_row >= GIVE_UP:
            raise click.ClickException(
                f"{GIVE_UP} extractions have failed and written nothing; their errors are above."
            )

    def noted(self, child: int) -> bool:
        """Whether a child has ended, which then is counted."""
        number, status = os.waitpid(child, os.WNOHANG)
        if number:
            self.note(os.waitstatus_to_exitcode(status))
        return number != 0


def location_under(root: Path) -> Path:
    """The only store under a root."""
    (document,) = root.glob("*/*/*/zarr.json")
    return document.parent


def is_complete(root: Path) -> bool:
    """Whether there is a finished store."""
    try:
        return open_store(location_under(root)).complete
    except (RdcacheError, ValueError):
        return False


def contents(root: Path) -> dict[str, bytes]:
    """Every file of the only store under a root but the manifest, which holds the time."""
    location = location_under(root)
    return {
        path.relative_to(location).as_posix(): path.read_bytes()
        for path in location.rglob("*")
        if path.is_file() and path != location / "zarr.json"
    }


def timed(measure: Callable[[], Outcome]) -> Outcome:
    """Note how long something took."""
    began = time.perf_counter()
    outcome = measure()
    click.echo(f"{outcome.what}: {outcome.faults} faults, {outcome.lost} lost.")
    return Outcome(outcome.what, outcome.faults, outcome.lost, time.perf_counter() - began)


def show(outcomes: list[Outcome]) -> None:
    """Print the table."""
    table = Table(title="What was done to stores, and what was lost", title_justify="left")
    for column in ("what", "faults", "lost", "seconds"):
        table.add_column(column, justify="left" if column == "what" else "right")
    for outcome in outcomes:
        row = (outcome.what, outcome.faults, outcome.lost, f"{outcome.seconds:.0f}")
        table.add_row(*map(str, row))
    Console().print(table)


if __name__ == "__main__":
    main()
