"""Which taps are kept unless told otherwise."""

from __future__ import annotations

import pytest

from rdcache.extraction import ExtractConfig
from rdcache.extraction.plan import chosen_taps
from rdcache.models import load_teacher


@pytest.mark.parametrize(
    ("teacher", "taps"),
    [
        ("timm:test_resnet", ["s3", "s4", "pooled"]),
        ("timm:test_vit", ["s4", "pooled"]),  # all of its maps are of one size
        ("ct-fm", ["s3", "pooled"]),  # of volumes, where a finer map is large
    ],
)
def test_a_finer_map_of_images_is_kept_beside_the_default_tap(
    teacher: str, taps: list[str]
) -> None:
    loaded = load_teacher(teacher, weights="random")
    config = ExtractConfig(teacher=teacher, dataset="phantom")
    assert [tap.name for tap in chosen_taps(loaded, config)] == taps
