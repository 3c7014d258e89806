"""The paired difference of two arms that no report has side by side, from the scores of their comparisons:

python difference.py left_atrium/k/scores.csv VF_K1 left_atrium/k/scores.csv VF
python difference.py left_atrium/gamma/scores.csv scratch_gamma left_atrium/k/scores.csv scratch
"""

from __future__ import annotations

import sys

import pandas as pd

from pymic_vf.compare.statistics import MEAN, compare_pairs, with_means


def dice_of(file: str, arm: str) -> pd.DataFrame:
    """Dice of an arm, the mean over its classes: columns seed, case, value and others."""
    scores = with_means(pd.read_csv(file))
    main = MEAN if MEAN in set(scores["class"]) else scores["class"].iloc[0]
    return scores[(scores["metric"] == "dice") & (scores["arm"] == arm) & (scores["class"] == main)]


if __name__ == "__main__":
    file, arm, other_file, other_arm = sys.argv[1:]
    result = compare_pairs(dice_of(file, arm), dice_of(other_file, other_arm))
    seeds = ", ".join(f"{100 * value:+.1f}" for value in result.by_seed.values())
    interval = f"{100 * result.low:+.2f} to {100 * result.high:+.2f}"
    print(f"{arm} - {other_arm}: {100 * result.mean:+.2f} ({interval}) points of Dice, seeds {seeds}")
    print(f"higher in {result.higher} of {result.cases} cases, Wilcoxon p {result.p:.2g}")
