"""Splits the Decathlon's hippocampus into halves: one to train a teacher on, one to distil on.

    python pipelines/hippocampus_halves.py data/msd/Task04_Hippocampus data/hippocampus

writes `hippocampus-a.csv` and `hippocampus-b.csv` there, tables for `--dataset table:FILE`,
with every second case each, and the names of the classes beside them. `drd_hippocampus.yaml` says
what they are for.
"""

from __future__ import annotations

import csv
import os
import sys
from pathlib import Path

CLASSES = ("background", "anterior", "posterior")


def write_half(images: list[Path], path: Path) -> None:
    """Write a table of these images and their masks, by paths relative to the table."""
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["path", "mask"])
        for image in images:
            mask = image.parent.parent / "labelsTr" / image.name
            rows.writerow([os.path.relpath(each, path.parent) for each in (image, mask)])


def main() -> None:
    """Read the task's folder and the folder for the tables from the command line."""
    if len(sys.argv) != 3:
        raise SystemExit("usage: hippocampus_halves.py TASK_FOLDER OUT_FOLDER")
    task, out = Path(sys.argv[1]), Path(sys.argv[2])
    images = sorted((task / "imagesTr").glob("hippocampus_*.nii.gz"))
    if not images:
        raise SystemExit(f"{task / 'imagesTr'} has no hippocampus_*.nii.gz; see data/README.md")
    out.mkdir(parents=True, exist_ok=True)
    (out / "classes.txt").write_text("\n".join(CLASSES) + "\n", encoding="utf-8")
    for half, chosen in zip("ab", (images[::2], images[1::2]), strict=True):
        write_half(chosen, out / f"hippocampus-{half}.csv")
        print(out / f"hippocampus-{half}.csv", len(chosen), "cases")


if __name__ == "__main__":
    main()
