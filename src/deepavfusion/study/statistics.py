"""Means with their spread over seeds, intervals, and paired differences."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Values = NDArray[np.float64]
CONFIDENCE = 0.95
RESAMPLES = 10_000
SAME = 1e-9  # largest deviation of values that differ by rounding only


@dataclass(frozen=True)
class Interval:
    """A mean and where it lies with a confidence of `CONFIDENCE`; NaN where there are too few values to say."""

    mean: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        return self.low > 0 or self.high < 0

    @property
    def has_width(self) -> bool:
        return self.high - self.low > SAME


def deviation(values: Values) -> float:
    """Standard deviation of a sample [S], with S − 1 in the denominator; NaN of one value."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")


def over_seeds(values: Values) -> Interval:
    """Student's t interval of the mean of values [S], one a seed.

    It says what other seeds would give on the same test clips. For differences of pairs it is that of the paired t
    test: it excludes 0 where that test's p is below 1 − `CONFIDENCE`.
    """
    mean = float(np.mean(values))
    if len(values) < 2:
        return Interval(mean, float("nan"), float("nan"))
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1)) * deviation(values) / len(values) ** 0.5
    return Interval(mean, mean - half, mean + half)


def over_clips_and_seeds(scores: Values, seed: int = 0) -> Interval:
    """Percentile interval of the mean of scores [S, N] over both their seeds and their clips.

    Both are drawn anew with replacement, `RESAMPLES` times: it says what other seeds on other test clips of the same
    kind would give. The clips are the same for all seeds, so they are drawn for all of them together (the pigeonhole
    bootstrap: Owen, "The pigeonhole bootstrap", 2007). With S = 1 it is the usual bootstrap over clips. Of few seeds it
    is too narrow, since their spread is known badly; `over_seeds` allows for that.

    Args:
        scores: of each clip with each seed, or differences of pairs of them.
        seed: of the draws.
    """
    seeds, clips = scores.shape
    generator = np.random.default_rng(seed)
    means = np.empty(RESAMPLES)
    for number, of_seeds in enumerate(generator.multinomial(seeds, np.full(seeds, 1 / seeds), RESAMPLES)):
        means[number] = (of_seeds @ scores)[generator.integers(clips, size=clips)].mean() / seeds
    low, high = np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Interval(float(scores.mean()), float(low), float(high))


def p_value(differences: Values) -> float:
    """Two-sided p of the paired t test for differences [S] of pairs; NaN of one pair, 1 where all are 0, 0
    where all are the same other number."""
    if len(differences) < 2:
        return float("nan")
    if deviation(differences) < SAME:
        return 1.0 if abs(float(differences.mean())) < SAME else 0.0
    return float(stats.ttest_1samp(differences, 0.0).pvalue)
