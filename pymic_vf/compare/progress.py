"""How far the runs of a comparison are, and how long the rest may take: from their folders alone."""

from __future__ import annotations

import re
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from pymic_vf.compare.config_text import value_of
from pymic_vf.compare.job import ITERATION, LOG, RESULT, STATE, finished
from pymic_vf.compare.plan import MODEL, Run, read_json
from pymic_vf.host.runs.iteration_file import read_iteration

LOGGED = re.compile(rb"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d it (\d+)\s*$", re.M)
TAIL = 20_000  # bytes at the end of a log that are searched


@dataclass
class Forecast:
    """Seconds that a kind of run takes, and where that is from."""

    seconds: dict[tuple[str, str], float]

    def of(self, run: Run) -> float | None:
        """The seconds of a run: as other runs of its arm, else as the other runs of its kind."""
        exact = self.seconds.get((run.kind, run.arm))
        if exact is not None:
            return exact
        alike = [seconds for (kind, _arm), seconds in self.seconds.items() if kind == run.kind]
        return statistics.mean(alike) if alike else None


def is_done(run: Run, out: Path) -> bool:
    return finished(out / run.name, run.fingerprint) is not None


def lost_pretrainings(runs: Iterable[Run], out: Path) -> list[Run]:
    """Those that are done but whose checkpoints are gone, and from which a run is to start that is not done."""
    left = [run.pretraining for run in runs if run.pretraining is not None and not is_done(run, out)]
    lost = {run.name: run for run in left if is_done(run, out) and not list((out / run.name / MODEL).glob("*.pt"))}
    return list(lost.values())


def begin_anew(run: Run, out: Path) -> None:
    """Forget that a run is done: the next start repeats it."""
    for name in (RESULT, STATE):
        (out / run.name / name).unlink(missing_ok=True)


def iteration(folder: Path) -> int:
    """The iteration that a run has reached: by its own file, or the last that its log tells of."""
    written = read_iteration(folder / ITERATION)
    if written is not None:
        return written
    try:
        with (folder / LOG).open("rb") as log:
            log.seek(max(0, (folder / LOG).stat().st_size - TAIL))
            found = LOGGED.findall(log.read())
    except OSError:
        return 0
    return int(found[-1]) if found else 0


def stage(run: Run, out: Path) -> str:
    """How far a run is, in words: the iteration of its training, or what comes after it."""
    state = read_json(out / run.name / STATE) or {"done": []}
    if "train" in state["done"]:
        return "evaluating" if "test" in state["done"] else "testing"
    return f"{iteration(out / run.name)}/{value_of(run.config, 'training', 'iter_max')}"


def forecast(runs: Iterable[Run], out: Path, running: Mapping[str, float]) -> Forecast:
    """From the runs that have ended; for arms without one, from the iterations of those that are running.

    Args:
        runs: of the comparison.
        out: its folder.
        running: the seconds since a job began by the run's name.
    """
    ended: dict[tuple[str, str], list[float]] = {}
    started: dict[tuple[str, str], list[float]] = {}
    for run in runs:
        key = run.kind, run.arm
        result = read_json(out / run.name / RESULT)
        if result is not None:
            ended.setdefault(key, []).append(sum(result["seconds"].values()))
        elif run.name in running:
            done = iteration(out / run.name)
            last = float(value_of(run.config, "training", "iter_max", "0") or 0)
            if done and last:
                started.setdefault(key, []).append(_spent(run, out, running) * max(1, last / done))
    return Forecast({key: statistics.mean(values) for key, values in {**started, **ended}.items()})


def time_left(
    left: Sequence[Run],
    runs: Iterable[Run],
    out: Path,
    running: Mapping[str, float],
    jobs: int,
    timed: Mapping[tuple[str, str], float] = MappingProxyType({}),
) -> float | None:
    """Seconds until the runs that are left are done, `jobs` at once; None where nothing is known of one of them.

    Args:
        left: those that are to do or running.
        runs: of the comparison.
        out: its folder.
        running: the seconds since a job began by the run's name.
        jobs: at once.
        timed: seconds by kind and arm, for those of which nothing has run yet.
    """
    known = forecast(runs, out, running).seconds
    expected = Forecast({**timed, **known})
    total = 0.0
    for run in left:
        seconds = expected.of(run)
        if seconds is None:
            return None
        total += max(0.0, seconds - _spent(run, out, running))
    return total / max(1, min(jobs, len(left)))


def _spent(run: Run, out: Path, running: Mapping[str, float]) -> float:
    """The seconds that a run has had: of this job, or by its state, which counts earlier ones and is a minute old."""
    state = read_json(out / run.name / STATE) or {"seconds": {}}
    return max(running.get(run.name, 0.0), sum(state["seconds"].values()))


def duration(seconds: float) -> str:
    """Such as 3 h 20 min."""
    minutes = round(seconds / 60)
    if minutes < 1:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


class LiveLine:
    """One line that changes where the output is a terminal, else lines of what happened.

    Args:
        write: where text goes.
        is_terminal: whether a line can be written over.
    """

    def __init__(self, write: Callable[[str], object] | None = None, is_terminal: bool | None = None) -> None:
        self.write = write or sys.stdout.write
        self.is_terminal = sys.stdout.isatty() if is_terminal is None else is_terminal
        self._shown = 0

    def say(self, text: str) -> None:
        """A line that stays."""
        self._wipe()
        self.write(f"{time.strftime('%H:%M:%S')} {text}\n")
        sys.stdout.flush()

    def show(self, text: str) -> None:
        """The line that changes."""
        if self.is_terminal:
            self._wipe()
            self.write(text)
            self._shown = len(text)
            sys.stdout.flush()

    def _wipe(self) -> None:
        if self._shown:
            self.write("\r" + " " * self._shown + "\r")
            self._shown = 0
