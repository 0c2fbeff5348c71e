"""Options that several commands have: their types and help texts, for the configs that use them.

Defaults stand in the configs, where type checkers look for them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from rdcache.store import Location, as_location


def _root(value: Any) -> Any:
    return value if value is None else as_location(value)


RootOption = Annotated[
    Location | None,
    BeforeValidator(_root),
    Field(
        description="Where stores are kept: a folder, or s3://BUCKET/FOLDER, gs://…, az://… "
        "(default: RDCACHE_ROOT, else the user's cache folder)."
    ),
]
DataDirOption = Annotated[
    Path | None,
    Field(description="Where datasets are looked for (default: RDCACHE_DATA, else `data`)."),
]
WeightsOption = Annotated[
    str | None,
    Field(
        description="Weight file of the teacher, or `random` for an untrained one (default: the "
        "published file under the data folder)."
    ),
]
FitOption = Annotated[
    Literal["squash", "center"],
    Field(
        description="The clean view: the whole image squashed to a square, or its central square."
    ),
]
SplitSeedOption = Annotated[int, Field(description="Seed of the splits that are drawn here.")]
ValFractionOption = Annotated[
    float,
    Field(
        gt=0,
        lt=1,
        description="Part of the training images kept for validation where the dataset has no "
        "official validation split.",
    ),
]
DropLeaksOption = Annotated[
    bool, Field(description="Leave out test images that also occur in train or val.")
]
KeepPathsOption = Annotated[
    bool,
    Field(
        description="Keep the images' relative paths in the store, for everyone who may read it."
    ),
]
SaltOption = Annotated[  # a secret: it is neither printed nor kept
    str | None,
    Field(
        exclude=True,
        repr=False,
        description="Salt of the uids, or @FILE: without it nobody can match them with images "
        "(default: RDCACHE_UID_SALT, else none; others on this machine see a command line).",
    ),
]
