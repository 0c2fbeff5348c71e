"""Planes through three images, and agreement on them, against plain linear algebra in float64."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rdcache.distillation import Run
from rdcache.errors import UsageError
from rdcache.report.boundaries import agreement, drawn_triplets, plane_through
from rdcache.report.boundary_picture import COLOURS, draw_boundaries
from rdcache.report.classified_planes import ClassifiedPlanes, ImagePlane
from rdcache.report.plane_classifiers import Panel


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (3, 6, 5, 3)).astype(np.uint8)


def test_three_images_lie_on_their_plane_at_their_corners(images: np.ndarray) -> None:
    plane = plane_through(images)
    flat = images.reshape(3, -1).astype(np.float64)
    np.testing.assert_allclose(plane.axes @ plane.axes.T, np.eye(2), atol=1e-12)
    np.testing.assert_allclose(flat[0] + plane.corners @ plane.axes, flat, atol=1e-10)
    np.testing.assert_allclose(plane.weights(plane.corners), np.eye(3), atol=1e-12)


def test_a_point_of_the_plane_is_the_weighted_mean_of_the_images(images: np.ndarray) -> None:
    plane = plane_through(images)
    flat = images.reshape(3, -1).astype(np.float64)
    points = np.random.default_rng(1).normal(0, 200, (4, 5, 2))
    weights = plane.weights(points)
    np.testing.assert_allclose(weights.sum(axis=-1), 1)
    np.testing.assert_allclose(weights @ flat, flat[0] + points @ plane.axes, atol=1e-9)


def test_the_grid_has_a_margin_around_the_images(images: np.ndarray) -> None:
    plane = plane_through(images)
    points, (left, right, bottom, top) = plane.grid(7)
    width, height = plane.corners.max(axis=0) - plane.corners.min(axis=0)
    assert right - left == pytest.approx(1.2 * width)
    assert top - bottom == pytest.approx(1.2 * height)
    assert points.shape == (7, 7, 2)
    np.testing.assert_allclose(
        points[0, 0], (left + (right - left) / 14, bottom + (top - bottom) / 14)
    )
    np.testing.assert_allclose(points[-1, 0, 0], points[0, 0, 0])


def test_images_on_one_line_span_no_plane(images: np.ndarray) -> None:
    first, second, _ = images.astype(np.float64)
    for third in (first, second, 2 * second - first):
        with pytest.raises(UsageError, match="span no plane"):
            plane_through(np.stack([first, second, third]))
    with pytest.raises(UsageError, match="span no plane"):
        plane_through(np.stack([first, first, second]))


def test_agreement_is_the_share_of_equal_points() -> None:
    classes = np.random.default_rng(0).integers(0, 3, (4, 5, 5))
    assert (agreement(classes, classes).mean, agreement(classes, classes).std) == (1, 0)
    constant = agreement(np.zeros_like(classes), classes)
    shares = [np.count_nonzero(plane == 0) / 25 for plane in classes]
    assert constant.mean == pytest.approx(np.mean(shares))
    assert constant.std == pytest.approx(np.std(shares, ddof=1))
    assert agreement(classes[:1], classes[:1]).std == 0


@pytest.mark.parametrize(("classes", "distinct"), [(7, 3), (3, 3), (2, 2), (1, 1)])
def test_triplets_are_of_as_many_classes_as_there_are_and_always_the_same(
    classes: int, distinct: int
) -> None:
    labels = np.arange(30) % classes
    drawn = list(islice(drawn_triplets(labels, seed=3), 20))
    assert drawn[:5] == list(islice(drawn_triplets(labels, seed=3), 5))
    assert drawn[:5] != list(islice(drawn_triplets(labels, seed=4), 5))
    for triplet in drawn:
        assert len(set(triplet)) == 3
        assert len({int(labels[at]) for at in triplet}) == distinct


def classified(images: np.ndarray, names: int, classes: int) -> ClassifiedPlanes:
    """Vertical stripes, one a class."""
    plane = ImagePlane(plane_through(images), (0, 1, 2), ("a" * 32, "b" * 32, "c" * 32), (0, 1, 1))
    stripes = np.broadcast_to(np.arange(20) * classes // 20, (1, names, 20, 20))
    panels = tuple(Panel(f"number {number}", "student", Run(Path())) for number in range(names))
    titles = tuple(f"class {number}" for number in range(classes))
    return ClassifiedPlanes("phantom", titles, (plane,), panels, stripes)


@pytest.mark.parametrize(("names", "classes"), [(2, 3), (5, 12)])
def test_a_picture_has_every_panel_in_the_colours_of_the_classes(
    images: np.ndarray, tmp_path: Path, names: int, classes: int
) -> None:
    draw_boundaries(classified(images, names, classes), tmp_path / "one.png")
    with Image.open(tmp_path / "one.png") as picture:
        pixels = np.asarray(picture.convert("RGB")).reshape(-1, 3)
    if classes <= len(COLOURS):
        for colour in COLOURS[:classes]:
            wanted = [int(colour[at : at + 2], 16) for at in (1, 3, 5)]
            share = (pixels == wanted).all(axis=1).mean()
            assert share > 0.4 / classes, colour
        draw_boundaries(classified(images, names, classes), tmp_path / "two.png")
        assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()


def test_a_picture_of_another_format_is_refused(images: np.ndarray, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"\.png, \.pdf, \.svg"):
        draw_boundaries(classified(images, 1, 2), tmp_path / "picture.bmp")
