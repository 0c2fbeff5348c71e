"""Paired tests on test images, against what their definitions say in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest

from rdcache.report import image_test, mcnemar


def outcomes(seeds: int, images: int, accuracy: float, key: int) -> dict[int, np.ndarray]:
    random = np.random.default_rng(key)
    return {seed: random.random(images) < accuracy for seed in range(seeds)}


def test_mcnemar_is_the_binomial_test_of_the_images_that_one_alone_gets_right() -> None:
    one = np.array([1] * 9 + [0] * 2 + [1] * 20 + [0] * 5, bool)
    other = np.array([0] * 9 + [1] * 2 + [1] * 20 + [0] * 5, bool)
    tail = sum(math.comb(11, wins) for wins in range(3)) / 2**11
    assert mcnemar(one, other) == pytest.approx(2 * tail)
    assert mcnemar(other, one) == pytest.approx(2 * tail)
    assert mcnemar(one, one) == 1.0


def test_the_interval_over_images_is_that_of_the_mean_of_their_differences() -> None:
    """For many images the bootstrap's interval is ±1.96 standard errors of that mean."""
    better, base = outcomes(3, 3000, 0.75, 1), outcomes(3, 3000, 0.70, 2)
    test = image_test(better, base)
    assert test is not None
    by_image = np.mean([better[s].astype(float) - base[s] for s in range(3)], axis=0)
    error = by_image.std() / math.sqrt(3000)
    assert test.mean == pytest.approx(by_image.mean())
    assert test.low == pytest.approx(by_image.mean() - 1.96 * error, abs=0.1 * error)
    assert test.high == pytest.approx(by_image.mean() + 1.96 * error, abs=0.1 * error)
    z = abs(by_image.mean()) / error
    assert test.p == pytest.approx(math.erfc(z / math.sqrt(2)), abs=2e-3)
    assert test.images == 3000


def test_equal_methods_differ_with_p_below_a_twentieth_in_a_twentieth_of_all_cases() -> None:
    values = []
    for key in range(40):
        test = image_test(outcomes(2, 80, 0.7, 2 * key), outcomes(2, 80, 0.7, 2 * key + 1))
        assert test is not None
        values.append(test.p)
    assert np.count_nonzero(np.array(values) < 0.05) <= 6, "more in 1 of 300 cases"
    assert np.mean(values) == pytest.approx(0.5, abs=0.15)


def test_drawing_seeds_too_widens_the_interval_if_seeds_disagree() -> None:
    base = {seed: np.zeros(100, bool) for seed in range(3)}
    random = np.random.default_rng(0)
    agreeing = {seed: random.random(100) < 0.5 for seed in range(3)}
    split = {0: np.ones(100, bool), 1: np.zeros(100, bool), 2: random.random(100) < 0.5}
    agree, disagree = image_test(agreeing, base), image_test(split, base)
    assert agree is not None
    assert disagree is not None
    assert disagree.high - disagree.low < agree.high - agree.low
    assert disagree.high_both - disagree.low_both > 3 * (agree.high_both - agree.low_both)


def test_without_any_difference_nothing_is_found_and_every_call_says_the_same() -> None:
    some = outcomes(2, 50, 0.8, 5)
    same = image_test(some, some)
    assert same is not None
    assert (same.mean, same.low, same.high, same.p) == (0.0, 0.0, 0.0, 1.0)
    assert same.mcnemar == {0: 1.0, 1: 1.0}
    other = outcomes(2, 50, 0.6, 6)
    assert image_test(some, other) == image_test(some, other)


def test_only_common_seeds_count_and_without_any_there_is_no_test() -> None:
    some = outcomes(3, 40, 0.8, 7)
    pair = image_test({0: some[0], 1: some[1]}, {1: some[2], 2: some[0]})
    assert pair is not None
    assert list(pair.mcnemar) == [1]
    assert pair.low_both == pair.low, "one seed can only be drawn again"
    assert image_test({0: some[0]}, {1: some[1]}) is None
