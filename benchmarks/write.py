"""How fast whole shards are written, and durably: `python -m benchmarks.write`.

A shard holds 256 samples of 200,704 bytes (float16 2048×7×7). The baseline writes the same bytes
to one file and syncs it. `StoreWriter.write` adds checksums, digest, rename, outcomes and receipt,
each of them synced; tensorstore, zarr-python and h5py leave their files to the page cache.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import click
import h5py
import numpy as np
import tensorstore
import zarr
from zarr.codecs import BytesCodec, Crc32cCodec

from benchmarks.comparison import Contender, compare, keep, show
from rdcache.store import (
    Fingerprint,
    SampleTable,
    StoreContent,
    StoreLayout,
    StoreWriter,
    TapSpec,
    create_store,
)

SAMPLES = 256  # of a shard
TAP = TapSpec("s4", "map2d", (2048, 7, 7))
RAW = "raw file + fsync"
OURS = "StoreWriter.write (synced)"
AIM = 0.7


def contenders(folder: Path, rows: np.ndarray, shards: int) -> list[Contender]:
    """Ways to write the same shards; each call begins with an empty folder and nothing to sync."""

    def contender(name: str, write: Callable[[Path], None]) -> Contender:
        return Contender(name, lambda: write(folder), lambda: _emptied(folder))

    def raw(place: Path) -> None:
        for number in range(shards):
            with (place / str(number)).open("wb", buffering=0) as file:
                file.write(rows)
                os.fsync(file.fileno())

    def zarr_python(place: Path) -> None:
        array = zarr.create_array(
            place / "zarr",
            shape=(shards * SAMPLES, *TAP.shape),
            chunks=(1, *TAP.shape),
            shards=(SAMPLES, *TAP.shape),
            dtype="float16",
            compressors=None,
            config={"write_empty_chunks": True},
        )
        for number in range(shards):
            array[number * SAMPLES : (number + 1) * SAMPLES] = rows

    def hdf5(place: Path) -> None:
        with h5py.File(place / "file.h5", "w") as file:
            shape = (shards * SAMPLES, *TAP.shape)
            data = file.create_dataset("s4", shape, "float16", chunks=(1, *TAP.shape))
            for number in range(shards):
                data[number * SAMPLES : (number + 1) * SAMPLES] = rows

    return [
        contender(RAW, raw),
        _ours(folder, rows, shards),
        contender("tensorstore, crc32c (not synced)", lambda at: _tensorstore(at, rows, shards)),
        contender("zarr-python (not synced)", zarr_python),
        contender("h5py, one chunk a sample (not synced)", hdf5),
    ]


def _ours(folder: Path, rows: np.ndarray, shards: int) -> Contender:
    """The writer's own call; the store is made beforehand, as in an extraction."""
    made: list[StoreWriter] = []

    def before() -> None:
        _emptied(folder)
        made[:] = [_store(folder / "store", shards * SAMPLES)]
        os.sync()

    def run() -> None:
        stored = np.ones(SAMPLES, np.uint8)
        for shard in made[0].layout.shards():
            made[0].write(shard, {"s4": rows}, stored)

    return Contender(OURS, run, before)


def _store(location: Path, samples: int) -> StoreWriter:
    layout = StoreLayout(samples, (samples,), (TAP,), SAMPLES)
    table = SampleTable(
        uids=tuple(f"{number:032x}" for number in range(samples)),
        labels=np.zeros(samples, int),
        splits=("train",) * samples,
        groups=np.zeros(samples, int),
    )
    facts = {"dataset": {"name": "invented"}, "teacher": {"name": "nobody"}}
    fingerprint = Fingerprint({"teacher": "nobody"})
    views = np.zeros((1, samples, 6))
    content = StoreContent(layout, fingerprint, table, views, ("a",) * 6, facts)
    return create_store(location, content)


def _tensorstore(place: Path, rows: np.ndarray, shards: int) -> None:
    inner = [BytesCodec().to_dict(), Crc32cCodec().to_dict()]
    array = tensorstore.open(
        {
            "driver": "zarr3",
            "kvstore": {"driver": "file", "path": str(place / "tensorstore")},
            "metadata": {
                "shape": [shards * SAMPLES, *TAP.shape],
                "data_type": "float16",
                "chunk_grid": {
                    "name": "regular",
                    "configuration": {"chunk_shape": [SAMPLES, *TAP.shape]},
                },
                "codecs": [
                    {
                        "name": "sharding_indexed",
                        "configuration": {"chunk_shape": [1, *TAP.shape], "codecs": inner},
                    }
                ],
            },
        },
        create=True,
        context=tensorstore.Context({"file_io_sync": False}),
    ).result()
    for number in range(shards):
        array[number * SAMPLES : (number + 1) * SAMPLES].write(rows).result()


def _emptied(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    os.sync()


@click.command()
@click.option("--rounds", default=7, show_default=True, help="How often each one writes.")
@click.option("--shards", default=4, show_default=True, help="Shards a round, of 51 MB each.")
@click.option("--short", is_flag=True, help="Two rounds of one shard.")
@click.option("--folder", type=click.Path(path_type=Path), help="Where to write (default: TMPDIR).")
@click.option("--out", type=click.Path(path_type=Path), help="Folder for write.json.")
def main(rounds: int, shards: int, short: bool, folder: Path | None, out: Path | None) -> None:
    """Compare ways to write whole shards."""
    rounds, shards = (2, 1) if short else (rounds, shards)
    # Half of the numbers zero, as after a ReLU.
    values = np.random.default_rng(0).standard_normal((SAMPLES, *TAP.shape), np.float32)
    rows = np.maximum(values, 0).astype(np.float16)
    with tempfile.TemporaryDirectory(dir=folder) as place:
        lines = compare(contenders(Path(place, "work"), rows, shards), RAW, rounds, {OURS: AIM})
    megabytes = shards * rows.nbytes / 1e6
    show(f"Writing {shards} shards of {rows.nbytes / 1e6:.0f} MB", lines, megabytes, "MB")
    keep(out, "write", {"shards": shards, "megabytes": megabytes, "lines": lines})


if __name__ == "__main__":
    main()
