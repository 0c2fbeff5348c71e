"""Which map RD's branch reads unless told otherwise."""

from __future__ import annotations

import pytest

from rdcache.models.taps import finer_map

PYRAMID = {
    "s1": (24, 56, 56),
    "s2": (48, 28, 28),
    "s3": (120, 14, 14),
    "s4_pre": (352, 7, 7),
    "s4": (1280, 7, 7),
    "pooled": (1280,),
}


@pytest.mark.parametrize(
    ("shapes", "default", "expected"),
    [
        (PYRAMID, "s4", "s3"),
        (PYRAMID | {"s2": (48, 14, 14)}, "s4", "s3"),
        (PYRAMID, "s3", "s2"),
        (PYRAMID, "s1", None),
        (PYRAMID | {"s3": (120, 7, 7), "s4_pre": (352, 9, 9)}, "s4", "s2"),
        ({"s4": (512, 2, 2), "logits": (3, 64, 64)}, "s4", None),
        ({"a.s4": (512, 2, 2), "a.logits": (3, 64, 64)}, "a.s4", None),
        (PYRAMID, "elsewhere", None),
        (PYRAMID, "pooled", None),
        ({"tokens": (196, 768), "s2": (768, 14, 14), "s4": (768, 14, 14)}, "s4", None),
        ({"tokens": (196, 768), "s2": (768, 14, 14)}, "tokens", None),
        ({"s2": (8, 8, 8, 8), "s3": (16, 4, 4, 8), "s4": (32, 4, 4, 4)}, "s4", "s3"),
        ({"logits": (3,)}, "logits", None),
    ],
)
def test_the_coarsest_map_that_is_finer_than_the_default_tap(
    shapes: dict[str, tuple[int, ...]], default: str, expected: str | None
) -> None:
    assert finer_map(shapes, default) == expected
