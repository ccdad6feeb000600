"""Intervals and paired tests of studies, against SciPy and against what they claim."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from deepavfusion.study import statistics
from deepavfusion.study.statistics import deviation, over_clips_and_seeds, over_seeds, p_value


@pytest.mark.parametrize("seeds", [2, 3, 5, 30])
def test_the_interval_over_seeds_is_that_of_scipy(seeds: int) -> None:
    values = np.random.default_rng(seeds).normal(0.7, 0.05, seeds)
    found = over_seeds(values)
    low, high = stats.t.interval(0.95, seeds - 1, loc=values.mean(), scale=stats.sem(values))
    assert (found.mean, found.low, found.high) == pytest.approx((values.mean(), low, high), rel=1e-12)


@pytest.mark.parametrize("seeds", [2, 3, 5, 30])
def test_p_is_that_of_the_paired_t_test_and_below_one_in_twenty_where_the_interval_excludes_0(seeds: int) -> None:
    generator = np.random.default_rng(seeds)
    for shift in (0.0, 0.02, 0.2):
        one, other = generator.normal([[0.5 + shift], [0.5]], 0.05, (2, seeds))
        p = p_value(one - other)
        assert p == pytest.approx(stats.ttest_rel(one, other).pvalue, rel=1e-9)
        assert over_seeds(one - other).excludes_zero == (p < 0.05)


def test_one_seed_has_no_interval() -> None:
    found = over_seeds(np.array([0.5]))
    assert found.mean == 0.5
    assert math.isnan(found.low)
    assert math.isnan(deviation(np.array([0.5])))
    assert math.isnan(p_value(np.array([0.1])))
    assert not found.excludes_zero


def test_two_equal_cells_do_not_differ() -> None:
    scores = np.random.default_rng(0).random((3, 100)).round() - np.random.default_rng(0).random((3, 100)).round()
    assert p_value(scores.mean(axis=1)) == 1.0
    assert not over_seeds(scores.mean(axis=1)).excludes_zero
    assert not over_clips_and_seeds(scores).excludes_zero


def test_the_same_difference_for_every_seed_is_certain() -> None:
    assert p_value(np.full(3, 0.25)) == 0.0
    assert over_seeds(np.full(3, 0.25)).excludes_zero


def test_with_one_seed_the_bootstrap_is_that_of_scipy_over_clips() -> None:
    scores = np.random.default_rng(1).random((1, 300))
    found = over_clips_and_seeds(scores)
    theirs = stats.bootstrap((scores[0],), np.mean, method="percentile", n_resamples=10_000, rng=2).confidence_interval
    assert found.mean == pytest.approx(scores.mean())
    assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high), abs=0.002)  # Monte Carlo


def test_the_bootstrap_over_both_holds_what_other_seeds_and_clips_would_give(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scores of a seed's skill, a clip's difficulty and noise: the interval holds the true mean about as often as it
    says. Of 12 seeds it is slightly too narrow, as its docstring says of few seeds."""
    monkeypatch.setattr(statistics, "RESAMPLES", 1000)
    generator, inside, rounds = np.random.default_rng(3), 0, 200
    for n in range(rounds):
        skill, ease = generator.normal(0, 0.05, (12, 1)), generator.normal(0, 0.3, (1, 60))
        found = over_clips_and_seeds(0.5 + skill + ease + generator.normal(0, 0.1, (12, 60)), seed=n)
        inside += found.low <= 0.5 <= found.high
    assert 0.88 <= inside / rounds <= 0.99


def test_the_draws_follow_from_the_seed() -> None:
    scores = np.random.default_rng(4).random((3, 50))
    assert over_clips_and_seeds(scores, seed=1) == over_clips_and_seeds(scores, seed=1)
    assert over_clips_and_seeds(scores, seed=1) != over_clips_and_seeds(scores, seed=2)
