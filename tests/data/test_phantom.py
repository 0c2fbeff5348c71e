"""The drawn data: the same everywhere, quick to draw, and worth learning from."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import time

import numpy as np
import pytest

from rdcache.data import list_datasets, load_dataset
from rdcache.data.phantom import CLASSES, PER_CLASS, draw, read

NAMES = [f"{kind}/{number:03}" for kind in CLASSES for number in range(0, PER_CLASS, 10)]


def test_six_hundred_images_with_no_leaks() -> None:
    dataset = load_dataset("phantom")
    assert dataset.classes == CLASSES == ("benign", "malignant", "normal")
    assert len(dataset) == 600
    assert dataset.counts() == {
        "train": dict.fromkeys(CLASSES, 136),
        "val": dict.fromkeys(CLASSES, 24),
        "test": dict.fromkeys(CLASSES, 40),
    }
    assert not dataset.leaks.pairs
    assert not dataset.skipped
    sample = dataset.samples[0]
    assert dataset.decode(0).shape == (sample.size[1], sample.size[0], 3)
    assert next(card for card in list_datasets() if card.name == "phantom").present


def test_another_process_draws_the_same_bytes() -> None:
    program = (
        "import hashlib\nfrom rdcache.data.phantom import draw\n"
        "image, mask = draw('malignant/007')\n"
        "print(hashlib.sha256(image.tobytes() + mask.tobytes()).hexdigest())"
    )
    other = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    image, mask = draw("malignant/007")
    here = hashlib.sha256(image.tobytes() + mask.tobytes()).hexdigest()
    assert other.stdout.strip() == here


@pytest.mark.parametrize("name", NAMES)
def test_an_image_is_speckled_grey_with_a_mask_only_where_there_is_a_lesion(name: str) -> None:
    image, mask = draw(name)
    assert image.dtype == np.uint8
    assert mask.dtype == bool
    assert image.shape == mask.shape
    assert all(128 <= side <= 160 for side in image.shape)
    assert image.std() > 15
    if name.startswith("normal"):
        assert not mask.any()
    else:
        assert 0.005 < mask.mean() < 0.3
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        assert len(rows) > 8
        assert len(columns) > 8


def test_lesions_are_darker_than_what_surrounds_them() -> None:
    def contrast(name: str) -> float:
        image, mask = draw(name)
        band = mask.any(axis=1)  # at the same depth
        return float(image[mask].mean() / image[band][~mask[band]].mean())

    ratios = [contrast(name) for name in NAMES if not name.startswith("normal")]
    assert np.mean(ratios) < 0.8


def test_pixels_are_the_drawing_on_three_channels_and_may_be_written() -> None:
    pixels = read(load_dataset("phantom").samples[0].path)
    before = pixels.copy()
    pixels[:] = 0
    np.testing.assert_array_equal(read(load_dataset("phantom").samples[0].path), before)
    assert (before[..., 0] == before[..., 2]).all()


def test_an_image_is_drawn_in_milliseconds() -> None:
    begin = time.process_time()
    for number in range(20):
        draw.__wrapped__(f"malignant/{number:03}")
    assert (time.process_time() - begin) / 20 < 0.1
