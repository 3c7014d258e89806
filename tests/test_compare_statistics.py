"""The statistics of a comparison, against values known from elsewhere."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from pymic_vf.compare.statistics import (
    bootstrap_interval,
    cases_needed,
    compare_pairs,
    holm,
    smallest_p,
    wilcoxon,
    with_means,
)


def table(arm: str, values: dict[tuple[int, str], float]) -> pd.DataFrame:
    rows = [
        {"arm": arm, "labels": 4, "seed": s, "case": c, "class": "1", "metric": "dice", "value": v}
        for (s, c), v in values.items()
    ]
    return pd.DataFrame(rows)


def test_holm_by_hand():
    # 0.01 x 3, 0.02 x 2, 0.03 x 1 but not below the one before
    assert holm([0.03, 0.01, 0.02]) == pytest.approx([0.04, 0.03, 0.04])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    assert holm([0.2]) == [0.2] and holm([]) == []


def test_wilcoxon_is_that_of_tables_and_of_scipy():
    # all of 8 of one sign: p = 2 / 2^8, the floor
    assert wilcoxon(np.arange(1.0, 9)) == pytest.approx(0.0078125) == smallest_p(8)
    # n = 6, rank sum of the negative one 1: 2 x 2 of 2^6 orders are as extreme
    assert wilcoxon(np.array([-1.0, 2, 3, 4, 5, 6])) == pytest.approx(4 / 64)
    differences = np.random.default_rng(0).normal(0.3, 1, 30)
    assert wilcoxon(differences) == stats.wilcoxon(differences).pvalue
    assert wilcoxon(np.zeros(5)) == 1


def test_bootstrap_covers_as_often_as_it_says():
    """Of 400 intervals of normal samples of 40 the mean is in 95 %; BCa's own error is about 1 %, the binomial standard
    deviation 1.1 %: four of them off would be a mistake."""
    rng = np.random.default_rng(1)
    inside = 0
    for _ in range(400):
        low, high = bootstrap_interval(rng.normal(2, 3, 40), resamples=999)
        inside += low <= 2 <= high
    assert 0.895 <= inside / 400 <= 0.985


def test_bootstrap_of_few_values():
    assert bootstrap_interval(np.array([3.0])) == (-math.inf, math.inf)
    assert bootstrap_interval(np.full(5, 1.5)) == (1.5, 1.5)
    values = np.array([0.0, 1, 2, 3, 10])
    assert bootstrap_interval(values) == bootstrap_interval(values)
    low, high = bootstrap_interval(values)
    assert 0 < low < values.mean() < high < 10


def test_pairs_are_of_the_seeds_and_cases_that_both_have():
    arm = table("VF", {(1, "a"): 0.9, (1, "b"): 0.8, (2, "a"): 0.7, (3, "a"): 0.1, (1, "c"): math.nan})
    baseline = table("scratch", {(1, "a"): 0.5, (1, "b"): 0.9, (2, "a"): 0.6, (1, "c"): 0.5, (2, "d"): 0.5})
    result = compare_pairs(arm, baseline)
    # a: mean of 0.4 and 0.1; b: -0.1
    assert result.cases == 2 and result.higher == 1
    assert result.mean == pytest.approx((0.25 - 0.1) / 2)
    assert result.by_seed == pytest.approx({1: 0.15, 2: 0.1})
    assert result.deviation == pytest.approx(0.35 / math.sqrt(2))
    assert compare_pairs(arm, baseline.assign(seed=7)) is None


def test_interval_that_excludes_zero():
    cases = [f"case_{i}" for i in range(12)]
    rng = np.random.default_rng(2)
    base = {(s, c): v for s in (1, 2) for c, v in zip(cases, rng.uniform(0.5, 0.8, 12), strict=True)}
    better = {key: value + 0.05 + rng.normal(0, 0.01) for key, value in base.items()}
    result = compare_pairs(table("VF", better), table("scratch", base))
    assert result.excludes_zero and 0.04 < result.low < 0.05 < result.high < 0.06
    assert not compare_pairs(table("VF", base), table("scratch", base)).excludes_zero


def test_means_over_the_classes():
    scores = pd.concat([table("VF", {(1, "a"): 0.4}), table("VF", {(1, "a"): 0.8}).assign(**{"class": "2"})])
    means = with_means(scores)
    assert means.loc[means["class"] == "average", "value"].tolist() == pytest.approx([0.6])
    assert len(means) == 3
    assert with_means(scores[scores["class"] == "1"])["class"].tolist() == ["1"]


def test_cases_needed_for_a_point():
    # METHODS: an interval one point wide takes 100 to 200 cases at a deviation of 3 points; a difference of one point
    # is found with (1.96 + 0.84)^2 x 9 = 71 of them
    assert cases_needed(3, 1) == 71
