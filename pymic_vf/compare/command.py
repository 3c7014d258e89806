"""``pymic_vf compare``: plan, check, run, report."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pymic_vf.compare.checks import check_runs
from pymic_vf.compare.plan import FINETUNING, Run, make_runs
from pymic_vf.compare.pool import Pool, remove_checkpoints, threads_of
from pymic_vf.compare.progress import begin_anew, duration, is_done, lost_pretrainings, time_left
from pymic_vf.compare.report import write_report
from pymic_vf.compare.settings import Settings, read_settings
from pymic_vf.compare.slurm import Cluster
from pymic_vf.compare.trial import time_trainings
from pymic_vf.errors import UserError


def compare(
    cfg: Path,
    jobs: int = 1,
    gpus: Sequence[int] = (),
    slurm: bool = False,
    dry_run: bool = False,
    report_only: bool = False,
) -> None:
    """Do the comparison that a config describes, as far as it is not done yet.

    Args:
        cfg: a compare.cfg.
        jobs: runs at once.
        gpus: CUDA devices that they take in turn.
        slurm: run them as jobs of a SLURM cluster instead of here.
        dry_run: only list the runs, check them and tell the time left.
        report_only: only write the report of the runs that are done.

    Raises:
        ConfigError: the mistakes of the config and of those that it names; no run has begun.
        UserError: runs that failed.
    """
    settings = read_settings(cfg)
    runs = make_runs(settings)
    if report_only:
        print(f"the report is {write_report(settings, runs)}")
        return
    check_runs(runs)
    if dry_run:
        print(overview(settings, runs, jobs))
        return
    settings.out.mkdir(parents=True, exist_ok=True)
    for run in lost_pretrainings(runs, settings.out):
        print(f"{run.name} is repeated: runs are to start from it, and its checkpoints are gone")
        begin_anew(run, settings.out)
    signal.signal(signal.SIGTERM, _interrupt)
    if slurm:
        failed = Cluster(settings.out, settings.slurm).run_all(runs)
        remove_checkpoints(runs, settings)
    else:
        failed = Pool(runs, settings, jobs, gpus).run_all()
    if any(run.kind == FINETUNING and is_done(run, settings.out) for run in runs):
        print(f"the report is {write_report(settings, runs)}")
    if failed:
        raise UserError(
            f"{len(failed)} of {len(runs)} runs failed; started again, the command repeats these alone:\n"
            + "\n".join(f"{name}: {reason}" for name, reason in failed.items())
        )


def overview(settings: Settings, runs: Sequence[Run], jobs: int) -> str:
    """The runs, which of them are done, and how long the others may take."""
    lost = {run.name for run in lost_pretrainings(runs, settings.out)}
    left = {run.name: run for run in runs if run.name in lost or not is_done(run, settings.out)}
    lines = [f"{'to do' if run.name in left else 'done':>6}  {run.name}" for run in runs]
    timed = time_trainings(list(left.values()), threads_of(jobs))
    seconds = time_left(list(left.values()), runs, settings.out, {}, jobs, timed)
    about = "not known, since there are methods of PyMIC's own" if seconds is None else f"about {duration(seconds)}"
    trial = " (from an iteration or two of each arm; starts, validations and tests come on top)" if timed else ""
    return "\n".join([*lines, f"nothing wrong found; time left with {jobs} at once: {about}{trial}"])


def _interrupt(_signal: int, _frame: Any) -> None:
    """SIGTERM ends the command as Ctrl-C does: its jobs first."""
    raise KeyboardInterrupt
