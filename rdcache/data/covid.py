"""COVID-CT: two folders of images, and official lists of names for each split."""

from __future__ import annotations

from pathlib import Path

from rdcache.data.listing import Entry, Listing, first_folder, image_files
from rdcache.data.registry import register
from rdcache.errors import DatasetNotFoundError
from rdcache.store import SPLITS

CLASSES = ("CT_COVID", "CT_NonCOVID")
LISTS = {"CT_COVID": "COVID", "CT_NonCOVID": "NonCOVID"}


@register(
    "covid",
    title="COVID-CT",
    classes=CLASSES,
    split="official train, val and test lists",
    symmetry="hflip",
    licence="research use",
    source="GitHub, UCSD-AI4H/COVID-CT",
    folders=("covid", "covid-ct", "COVID-CT"),
    layout="Images-processed/{CT_COVID,CT_NonCOVID}/*, Data-split/{COVID,NonCOVID}/*.txt",
)
def list_covid(folder: Path) -> Listing:
    """Every name of the official lists, found by its stem if its suffix is another."""
    images = first_folder(folder, ["Images-processed"]) or folder
    entries: list[Entry] = []
    missing: list[tuple[str, str]] = []
    for label, name in enumerate(CLASSES):
        # An archive unzipped into a folder of its own name holds that folder once more.
        files = image_files(images / name / name) or image_files(images / name)
        by_name = {path.name: path for path in files}
        by_stem = {path.stem: path for path in files}
        for split in SPLITS:
            list_file = folder / "Data-split" / LISTS[name] / f"{split}CT_{LISTS[name]}.txt"
            if files and not list_file.is_file():
                raise DatasetNotFoundError(
                    "an official list of COVID-CT is not there.",
                    looked_for=list_file,
                    get_it_from="GitHub, UCSD-AI4H/COVID-CT, folder Data-split",
                )
            for line in _lines(list_file):
                path = by_name.get(line) or by_stem.get(Path(line).stem)
                if path is None:
                    missing.append(
                        (f"{name}/{line}", f"listed, but there is no file (in {list_file.name})")
                    )
                else:
                    entries.append(Entry(path, path.relative_to(folder).as_posix(), label, split))
    official = dict.fromkeys(SPLITS, images.relative_to(folder).as_posix())
    return Listing(tuple(entries), CLASSES, tuple(missing), official)


def _lines(file: Path) -> list[str]:
    if not file.is_file():
        return []
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    return [line.strip() for line in lines if line.strip()]
