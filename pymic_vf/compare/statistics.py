"""Paired statistics of two arms' scores on the same test cases: numbers in, numbers out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

CONFIDENCE = 0.95
RESAMPLES = 9999
SEED = 20240101  # of the bootstrap: the same scores give the same interval
MEAN = "average"  # the class that stands for the mean of all classes of a case
POWER = 0.8


@dataclass(frozen=True)
class Comparison:
    """What the paired differences between two arms say; an arm minus its baseline.

    Args:
        cases: n, the test cases that both have.
        mean: of the differences.
        low, high: ends of the bootstrap interval of the mean, cases resampled.
        p: of Wilcoxon's signed-rank test, two-sided.
        by_seed: the mean difference of each seed.
        higher: cases with a positive difference.
        deviation: standard deviation of the differences (n - 1).
    """

    cases: int
    mean: float
    low: float
    high: float
    p: float
    by_seed: dict[int, float]
    higher: int
    deviation: float

    @property
    def excludes_zero(self) -> bool:
        return self.low > 0 or self.high < 0


def with_means(scores: pd.DataFrame) -> pd.DataFrame:
    """The scores and, where there are several classes, their mean for each case as a class `MEAN`.

    Args:
        scores: columns arm, labels, seed, case, class, metric, value.
    """
    if scores["class"].nunique() < 2:
        return scores
    keys = ["arm", "labels", "seed", "case", "metric"]
    means = scores.groupby(keys, as_index=False, sort=False)["value"].mean().assign(**{"class": MEAN})
    return pd.concat([scores, means[scores.columns]], ignore_index=True)


def by_case(scores: pd.DataFrame) -> pd.Series:
    """The scores of one arm, number of labels, metric and class: each case's mean over the seeds."""
    return scores.groupby("case")["value"].mean()


def compare_pairs(arm: pd.DataFrame, baseline: pd.DataFrame) -> Comparison | None:
    """Compare two arms over the seeds and cases that both have; None where there are none.

    Each case's difference is the mean over the seeds; the cases are what is resampled and ranked.

    Args:
        arm: scores of one arm, number of labels, metric and class: columns seed, case, value.
        baseline: the same of the other.
    """
    joined = arm.merge(baseline, on=["seed", "case"], suffixes=("", "_baseline"))
    joined["difference"] = joined["value"] - joined["value_baseline"]
    joined = joined.dropna(subset="difference")
    if joined.empty:
        return None
    differences = joined.groupby("case")["difference"].mean().to_numpy()
    low, high = bootstrap_interval(differences)
    return Comparison(
        cases=len(differences),
        mean=float(differences.mean()),
        low=low,
        high=high,
        p=wilcoxon(differences),
        by_seed={int(seed): float(mean) for seed, mean in joined.groupby("seed")["difference"].mean().items()},
        higher=int((differences > 0).sum()),
        deviation=float(differences.std(ddof=1)) if len(differences) > 1 else math.nan,
    )


def bootstrap_interval(values: np.ndarray, resamples: int = RESAMPLES) -> tuple[float, float]:
    """The bias-corrected and accelerated bootstrap interval of a mean (Efron 1987), from SciPy with a fixed seed.

    Of fewer than two values, where nothing can be resampled, it is minus to plus infinity.
    """
    if len(values) < 2:
        return -math.inf, math.inf
    if np.ptp(values) == 0:  # SciPy has no acceleration for them
        return float(values[0]), float(values[0])
    result = stats.bootstrap(
        (values,), np.mean, confidence_level=CONFIDENCE, n_resamples=resamples, method="BCa",
        rng=np.random.default_rng(SEED),
    )  # fmt: skip
    return float(result.confidence_interval.low), float(result.confidence_interval.high)


def wilcoxon(differences: np.ndarray) -> float:
    """The two-sided p of Wilcoxon's signed-rank test; 1 where all differences are zero."""
    return 1.0 if not np.any(differences) else float(stats.wilcoxon(differences).pvalue)


def smallest_p(cases: int) -> float:
    """What Wilcoxon's p cannot fall below with so many cases: both signs of the one extreme order of ranks."""
    return min(1.0, 2.0 ** (1 - cases))


def holm(ps: Sequence[float]) -> list[float]:
    """Holm's step-down correction (1979): the k-th smallest of m counts m - k + 1 times, none less than one before."""
    corrected = [0.0] * len(ps)
    largest = 0.0
    for rank, index in enumerate(sorted(range(len(ps)), key=lambda index: ps[index])):
        largest = max(largest, min(1.0, (len(ps) - rank) * ps[index]))
        corrected[index] = largest
    return corrected


def cases_needed(deviation: float, difference: float) -> int:
    """Cases with which a paired test at 5 % finds a true difference four times of five, by the normal distribution."""
    quantiles = stats.norm.ppf(1 - (1 - CONFIDENCE) / 2) + stats.norm.ppf(POWER)
    return math.ceil((quantiles * deviation / difference) ** 2)
