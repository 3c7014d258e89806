"""What may be concluded from a comparison, in words, and what not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pymic_vf.compare.statistics import Comparison, cases_needed, smallest_p

ALPHA = 0.05
FEW_SEEDS = 3


@dataclass(frozen=True)
class Metric:
    """How a metric is written.

    Args:
        name: as pymic_eval_seg has it.
        title: as the report has it.
        unit: "points" of a percentage, or mm.
        scale: by which values are multiplied.
        digits: after the decimal point.
        higher_is_better: of its values.
        worth_seeing: a difference that would matter to somebody, in `unit`.
    """

    name: str
    title: str
    unit: str
    scale: float
    digits: int
    higher_is_better: bool
    worth_seeing: float

    def value(self, value: float) -> str:
        return f"{value * self.scale:.{self.digits}f}"

    def signed(self, value: float) -> str:
        return f"{value * self.scale:+.{self.digits}f}"


METRIC = {
    "dice": Metric("dice", "Dice (%)", "points", 100, 2, True, 1.0),
    "iou": Metric("iou", "IoU (%)", "points", 100, 2, True, 1.0),
    "assd": Metric("assd", "ASSD (mm)", "mm", 1, 2, False, 0.5),
    "hd95": Metric("hd95", "HD95 (mm)", "mm", 1, 2, False, 1.0),
}


@dataclass(frozen=True)
class Pair:
    """An arm beside its baseline, with one number of labels, by one metric and class.

    Args:
        arm, baseline: their names.
        labels: labelled scans.
        metric: by which they are compared.
        of_class: a class, or the mean of all.
        result: the paired differences.
        p: Wilcoxon's after Holm's correction for all pairs of the table.
    """

    arm: str
    baseline: str
    labels: int
    metric: Metric
    of_class: str
    result: Comparison
    p: float


def verdict(pair: Pair) -> str:
    """One sentence or a few on one pair."""
    result, metric = pair.result, pair.metric
    what = f"{pair.arm} against {pair.baseline} with {_scans(pair.labels)}"
    title = metric.title.split(" ", maxsplit=1)[0]
    size = f"{metric.signed(result.mean)} {metric.unit} of {title}"
    interval = f"95 % interval {metric.signed(result.low)} to {metric.signed(result.high)}"
    facts = f"{size} ({interval}; n = {result.cases} cases, {_seeds(result)}; Wilcoxon {_p_equals(pair.p)} after Holm)"
    if result.cases < 2:
        return f"{what}: {size}, on one test case: nothing can be concluded from one case."
    if not result.excludes_zero:
        needed = cases_needed(result.deviation * metric.scale, metric.worth_seeing) if result.deviation > 0 else None
        power = (
            f" A true difference of {metric.worth_seeing:.1f} {metric.unit} would take about {needed} test cases to be "
            "found four times out of five, as these cases scatter."
            if needed and needed > result.cases
            else ""
        )
        return f"{what}: {facts}. The interval has 0 in it: these runs do not say which of the two is better.{power}"
    seeds = result.by_seed.values()
    if min(seeds) <= 0 <= max(seeds):
        return (
            f"{what}: {facts}. The seeds disagree, from {metric.signed(min(seeds))} to {metric.signed(max(seeds))} "
            f"{metric.unit}: what the cases show is the luck of single trainings. These runs do not say which "
            "of the two is better; more seeds may."
        )
    is_better = (result.mean > 0) == metric.higher_is_better
    text = f"{what}: {facts}. The interval excludes 0: {pair.arm} is {'better' if is_better else 'worse'} here."
    if pair.p > ALPHA:
        text += f" Wilcoxon's test after the correction does not agree ({_p_equals(pair.p)}): take it as a hint."
    if len(result.by_seed) < FEW_SEEDS:
        text += f" With {_seeds(result)} the training's luck is not averaged out: {FEW_SEEDS} are the least."
    return text


def cautions(pairs: Sequence[Pair], seeds: int, repeats_pretraining: bool) -> list[str]:
    """What the figures of a whole comparison do not say."""
    notes = []
    if pairs:
        cases, family = min(pair.result.cases for pair in pairs), len(pairs)
        if smallest_p(cases) * family > ALPHA:
            notes.append(
                f"With n = {cases} Wilcoxon's p cannot fall below {smallest_p(cases):.2g}, after Holm's correction for "
                f"{family} comparisons not below {min(1.0, smallest_p(cases) * family):.2g}: this test cannot find "
                "anything here, however large the difference. More test cases can."
            )
    notes.append(
        "The intervals resample the test cases, each with its mean over the seeds: they are about other scans like "
        "these, segmented by trainings like these. Scans of another hospital may differ by more than any of these "
        "intervals."
    )
    if seeds < FEW_SEEDS:
        notes.append(
            f"{seeds} seed{'s' * (seeds > 1)}: how much of a difference is the luck of one training cannot be told."
        )
    else:
        notes.append(
            f"The {seeds} seeds are averaged and not resampled; the column «by seed» shows how much hangs on them."
        )
    if not repeats_pretraining:
        notes.append(
            "Fine-tunings share pretrainings: how much a pretraining differs from the next one of its kind is not in "
            "these figures."
        )
    return notes


def p_text(p: float) -> str:
    """Such as 0.012."""
    return "< 0.0001" if p < 1e-4 else f"{p:.2g}" if p < 0.1 else f"{p:.2f}"


def _p_equals(p: float) -> str:
    return f"p {'' if p < 1e-4 else '= '}{p_text(p)}"


def _scans(labels: int) -> str:
    return f"{labels} labelled scan{'s' * (labels > 1)}"


def _seeds(result: Comparison) -> str:
    count = len(result.by_seed)
    return f"{count} seed{'s' * (count > 1)}"
