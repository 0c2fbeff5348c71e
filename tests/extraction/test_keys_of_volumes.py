"""Features from elsewhere are told by the names of volumes, whose suffix may have two parts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from small_volumes import drawn_dataset

from rdcache.extraction.matching import match_rows


@pytest.mark.parametrize("key", ["case_{}", "case_{}.nii", "imagesTr/case_{}.nii.gz"])
def test_a_volume_is_known_by_its_name_with_or_without_suffix(key: str) -> None:
    dataset = drawn_dataset()
    samples = tuple(
        replace(sample, path=Path(f"/set/imagesTr/case_{number}.nii.gz"))
        for number, sample in enumerate(dataset.samples)
    )
    keys = [key.format(number) for number in range(len(samples))]
    rows, unmatched = match_rows(keys, replace(dataset, samples=samples))
    assert rows.tolist() == list(range(len(samples)))
    assert unmatched == []
