"""The pictures of a comparison, drawn with matplotlib's objects and never through pyplot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pymic_vf.demo.pictures import INK, PALE
from pymic_vf.files import whole_file

# Okabe and Ito's colours, which people with any colour vision tell apart
ARM_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")
MARKERS = "osD^vPX*"
WIDTH = 6.4  # inches: as wide as a phone can show and still be read
DPI = 130


Looks = Mapping[str, Mapping[str, str]]  # the colour and marker of each arm, the same in every picture


def looks_of(arms: Sequence[str]) -> Looks:
    return {
        arm: {"color": ARM_COLOURS[number % len(ARM_COLOURS)], "marker": MARKERS[number % len(MARKERS)]}
        for number, arm in enumerate(arms)
    }


def draw_curves(curves: Mapping[str, Sequence[pd.DataFrame]], looks: Looks, value: str, title: str, path: Path) -> bool:
    """Learning curves: for each arm a line a seed, thin, and their mean; training dashed where there is a validation.

    Args:
        curves: for each arm a table a seed, of :func:`pymic_vf.compare.results.learning_curve`.
        looks: of the arms.
        value: ``loss`` or ``dice``.
        title: above.
        path: the PNG.

    Returns:
        Whether there was anything to draw.
    """
    figure, axes = _figure(3.6)
    drawn = False
    for arm, tables in curves.items():
        tables = [table[np.isfinite(table[value])] for table in tables]
        for stage in ("train", "valid"):
            lines = [table[table["stage"] == stage].set_index("iteration")[value] for table in tables]
            lines = [line for line in lines if len(line)]
            if not lines:
                continue
            drawn = True
            style = {"color": looks[arm]["color"], "ls": "-" if stage == "train" else "--"}
            for line in lines if len(lines) > 1 else ():
                axes.plot(line.index, line, lw=0.6, alpha=0.45, **style)
            mean = pd.concat(lines, axis=1).mean(axis=1).sort_index()
            name = arm if stage == "train" else f"{arm}, validation"
            axes.plot(mean.index, mean, lw=1.8, label=name, **style)
    if drawn:
        axes.set_xlabel("iteration")
        axes.set_ylabel("training loss" if value == "loss" else "Dice of the crops (mean of the classes)")
        axes.set_title(title, loc="left", fontsize=11, color=INK)
        _legend(figure)
        _save(figure, path)
    return drawn


def draw_labels(scores: pd.DataFrame, looks: Looks, unit: str, path: Path) -> None:
    """The mean score against the number of labelled scans: a line an arm, a dot a seed.

    Args:
        scores: of one metric and class; columns arm, labels, seed, value.
        looks: of the arms.
        unit: of the value, on the axis.
        path: the PNG.
    """
    figure, axes = _figure(3.6)
    labels = sorted(scores["labels"].unique())
    places = {number: place for place, number in enumerate(labels)}
    arms = list(dict.fromkeys(scores["arm"]))
    for number, arm in enumerate(arms):
        of_arm = scores[scores["arm"] == arm]
        seeds = of_arm.groupby(["labels", "seed"], as_index=False)["value"].mean()
        shift = 0.12 * (number - (len(arms) - 1) / 2)
        axes.scatter(seeds["labels"].map(places) + shift, seeds["value"], s=12, alpha=0.5, lw=0, **looks[arm])
        mean = seeds.groupby("labels")["value"].mean()
        axes.plot([places[at] + shift for at in mean.index], mean, lw=1.6, ms=5, label=arm, **looks[arm])
    axes.set_xticks(range(len(labels)), [str(number) for number in labels])
    axes.set_xlabel("labelled scans")
    axes.set_ylabel(unit)
    axes.set_title("Mean over the test cases; a small dot is a seed", loc="left", fontsize=11, color=INK)
    _legend(figure)
    _save(figure, path)


def draw_cases(scores: pd.DataFrame, looks: Looks, unit: str, path: Path) -> None:
    """Each test case's score (its mean over the seeds), joined between the arms, and the arms' means.

    Args:
        scores: of one metric, class and number of labels; columns arm, seed, case, value.
        looks: of the arms, from left to right.
        unit: of the value, on the axis.
        path: the PNG.
    """
    arms = [arm for arm in looks if arm in set(scores["arm"])]
    table = scores.groupby(["case", "arm"])["value"].mean().unstack().reindex(columns=arms)
    figure, axes = _figure(3.8)
    places = np.arange(len(arms))
    for values in table.to_numpy():
        axes.plot(places, values, color=PALE, lw=0.7, alpha=0.6, marker="o", ms=3)
    for place, arm in zip(places, arms, strict=True):
        axes.plot([place - 0.17, place + 0.17], [table[arm].mean()] * 2, color=looks[arm]["color"], lw=3.2, zorder=3)
    axes.set_xticks(places, arms, rotation=20 if len(arms) > 4 else 0)
    axes.set_xlim(-0.5, len(arms) - 0.5)
    axes.set_ylabel(unit)
    title = f"A line is a test case (n = {len(table)}), a bar the mean"
    axes.set_title(title, loc="left", fontsize=11, color=INK)
    _save(figure, path)


def draw_differences(rows: Sequence[tuple[str, float, float, float]], unit: str, path: Path) -> None:
    """Mean differences with their intervals.

    Args:
        rows: what is compared, the mean difference and the ends of its interval.
        unit: of the differences.
        path: the PNG.
    """
    figure, axes = _figure(0.9 + 0.42 * len(rows))
    for place, (_name, mean, low, high) in enumerate(rows):
        colour = ARM_COLOURS[0] if low > 0 or high < 0 else PALE
        axes.plot([low, high], [place] * 2, color=colour, lw=2)
        axes.plot([mean], [place], "o", color=colour, ms=6)
    axes.axvline(0, color=INK, lw=0.8)
    axes.set_yticks(range(len(rows)), [row[0] for row in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlabel(unit)
    _save(figure, path)


def _figure(height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH, height), dpi=DPI, facecolor="white", layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=9)
    axes.xaxis.set_major_locator(MaxNLocator(6))
    return figure, axes


def _legend(figure: Figure) -> None:
    """Below the axes, where it hides no curve."""
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=8)


def _save(figure: Figure, path: Path) -> None:
    with whole_file(path) as temporary:
        figure.savefig(temporary, format="png")
