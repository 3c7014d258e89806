"""What the finished runs of a comparison left: their scores as one table, their logs as learning curves."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from pymic_vf.compare.job import LOG, finished
from pymic_vf.compare.plan import FINETUNING, Run

COLUMNS = ["arm", "labels", "seed", "case", "class", "metric", "value"]
AT = re.compile(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d it (\d+)\s*$")
VALUES = re.compile(r"^(train|valid) loss (\S+?)(?:, avg foreground dice (\S+))?(?: |$)")
BOTH = re.compile(r"^train/valid loss (\S+)/(\S+)$")  # of a reconstruction


def finished_runs(runs: Iterable[Run], out: Path) -> dict[str, dict[str, Any]]:
    """The results of the runs that are done, by name."""
    results = {run.name: finished(out / run.name, run.fingerprint) for run in runs}
    return {name: result for name, result in results.items() if result is not None}


def all_scores(runs: Iterable[Run], results: dict[str, dict[str, Any]]) -> pd.DataFrame:
    """The scores of the fine-tunings that are done, a row each, with the columns `COLUMNS`."""
    rows = [
        {"arm": run.arm, "labels": run.labels, "seed": run.seed, **score}
        for run in runs
        if run.kind == FINETUNING and run.name in results
        for score in results[run.name]["scores"]
    ]
    return pd.DataFrame(rows, columns=COLUMNS)


def learning_curve(folder: Path) -> pd.DataFrame:
    """What a run's log says of its training: columns iteration, stage (train or valid), loss, dice.

    A run that was resumed has some iterations twice: the later line counts.
    """
    found: dict[tuple[int, str], tuple[float, float]] = {}
    at = None
    log = folder / LOG
    for line in log.read_text(errors="replace").splitlines() if log.is_file() else ():
        if match := AT.match(line):
            at = int(match[1])
        elif at is not None and (match := VALUES.match(line)):
            found[at, match[1]] = _number(match[2]), _number(match[3])
        elif at is not None and (match := BOTH.match(line)):
            for stage, loss in zip(("train", "valid"), match.groups(), strict=True):
                found[at, stage] = _number(loss), _number(None)
    rows = [(iteration, stage, *values) for (iteration, stage), values in sorted(found.items())]
    return pd.DataFrame(rows, columns=["iteration", "stage", "loss", "dice"])


def _number(text: str | None) -> float:
    try:
        return float(text or "nan")
    except ValueError:
        return float("nan")
