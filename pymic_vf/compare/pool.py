"""The runs of a comparison on this machine, so many at once, until all are done or cannot be."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path

from pymic_vf.compare.job import DONE, ELSEWHERE, LOG, MODEL, PRELOAD, main_of_process
from pymic_vf.compare.plan import Run, write_run
from pymic_vf.compare.progress import LiveLine, duration, is_done, stage, time_left
from pymic_vf.compare.settings import Settings
from pymic_vf.errors import UserError

TICK = 1  # seconds between two looks at the logs
GRACE = 60  # seconds that a stopped run has to write its checkpoint
TAIL = 12  # lines of a failed run's log that are shown


@dataclass
class _Job:
    run: Run
    process: BaseProcess
    began: float
    slot: int


class Pool:
    """Runs jobs in processes of their own.

    Args:
        runs: all runs, those that others start from first.
        settings: of the comparison.
        jobs: how many at once.
        gpus: CUDA devices that the jobs take in turn; empty: each takes what its config names.
    """

    def __init__(self, runs: Sequence[Run], settings: Settings, jobs: int, gpus: Sequence[int]) -> None:
        self.runs, self.settings, self.out, self.jobs, self.gpus = runs, settings, settings.out, jobs, gpus
        self.failed: dict[str, str] = {}  # the reason by the run's name
        self.line = LiveLine()
        self._running: list[_Job] = []
        if "forkserver" not in multiprocessing.get_all_start_methods():
            raise UserError("pymic_vf compare needs a system that can fork: Linux or macOS, or WSL on Windows")
        # read when torch is imported, which the server below does once for all jobs
        os.environ.setdefault("OMP_NUM_THREADS", str(threads_of(jobs)))
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(list(PRELOAD))

    def run_all(self) -> dict[str, str]:
        """Do every run that is not done; the reasons of those that failed, by name."""
        waiting = [run for run in self.runs if not is_done(run, self.out)]
        done = len(self.runs) - len(waiting)
        self.line.say(f"{len(self.runs)} runs, {done} of them done already, {self.jobs} at once")
        try:
            while waiting or self._running:
                self._start_what_can(waiting)
                self._show()
                wait([job.process.sentinel for job in self._running], TICK)
                for job in [job for job in self._running if not job.process.is_alive()]:
                    self._ended(job)
        finally:
            self._stop()
        return self.failed

    def _start_what_can(self, waiting: list[Run]) -> None:
        for run in list(waiting):
            source = run.pretraining
            if source is not None and source.name in self.failed:
                waiting.remove(run)
                self._fail(run, f"its pretraining {source.name} failed")
            elif len(self._running) < self.jobs and (source is None or is_done(source, self.out)):
                waiting.remove(run)
                self._running.append(self._start(run))

    def _start(self, run: Run) -> _Job:
        folder = write_run(run, self.out)
        slot = min(set(range(self.jobs)) - {job.slot for job in self._running})
        environment = {"CUDA_VISIBLE_DEVICES": str(self.gpus[slot % len(self.gpus)])} if self.gpus else {}
        process = self._context.Process(target=main_of_process, args=(str(folder.absolute()), environment))
        process.start()
        self.line.say(f"{run.name} begins")
        return _Job(run, process, time.monotonic(), slot)

    def _ended(self, job: _Job) -> None:
        job.process.join()
        self._running.remove(job)
        status, seconds = job.process.exitcode, time.monotonic() - job.began
        if status == DONE and is_done(job.run, self.out):
            self.line.say(f"{job.run.name} is done ({duration(seconds)}); {self._state()}")
            remove_checkpoints(self.runs, self.settings)
        elif status == ELSEWHERE:
            self._fail(job.run, "another pymic_vf compare is at it")
        else:
            self._fail(job.run, f"ended with status {status}; the end of {self.out / job.run.name / LOG}:\n"
                       + _tail(self.out / job.run.name / LOG))  # fmt: skip

    def _fail(self, run: Run, reason: str) -> None:
        self.failed[run.name] = reason
        self.line.say(f"{run.name} failed: {reason.splitlines()[0]}")

    def _state(self) -> str:
        done = f"{sum(is_done(run, self.out) for run in self.runs)} of {len(self.runs)} done"
        left = self._possible()
        if not left:
            return done
        seconds = time_left(left, self.runs, self.out, self._seconds(), self.jobs)
        if seconds is None:
            return f"{done}, time left not known yet"
        return f"{done}, {f'about {duration(seconds)}' if seconds >= 60 else 'under 1 min'} left"

    def _possible(self) -> list[Run]:
        """The runs that are to do or running, without those that failed or start from one that did."""
        runs = [run for run in self.runs if not is_done(run, self.out) and run.name not in self.failed]
        return [run for run in runs if run.pretraining is None or run.pretraining.name not in self.failed]

    def _seconds(self) -> dict[str, float]:
        return {job.run.name: time.monotonic() - job.began for job in self._running}

    def _show(self) -> None:
        if self.line.is_terminal:
            at = (f"{job.run.name.partition('/')[2]} {stage(job.run, self.out)}" for job in self._running)
            self.line.show(f"{self._state()}; {', '.join(at)}"[: shutil.get_terminal_size().columns - 1])

    def _stop(self) -> None:
        """End the jobs that are still there, with their commands: they go on from their checkpoints another time."""
        if self._running:
            self.line.say(f"stopping {len(self._running)} runs, which write their checkpoints first")
        for job in self._running:
            _signal(job.process, signal.SIGTERM)
        end = time.monotonic() + GRACE
        for job in self._running:
            job.process.join(max(0.0, end - time.monotonic()))
            _signal(job.process, signal.SIGKILL)


def remove_checkpoints(runs: Sequence[Run], settings: Settings) -> None:
    """With ``keep_checkpoints = False`` those that no run needs any more: of a fine-tuning that is done, and of a
    pretraining from which all are done that start from it."""
    if settings.keep_checkpoints:
        return
    done = {run.name for run in runs if is_done(run, settings.out)}
    for run in (run for run in runs if run.name in done):
        if all(other.name in done for other in runs if other.pretraining is run):
            for checkpoint in (settings.out / run.name / MODEL).glob("*.pt"):
                checkpoint.unlink()


def threads_of(jobs: int) -> int:
    """The threads of each of so many jobs at once: the cores that this process may use, where the system tells, shared
    between them."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // jobs)


def _signal(process: BaseProcess, number: int) -> None:
    """To the job's whole process group, its commands and their workers."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def _tail(log: Path) -> str:
    try:
        return "\n".join(log.read_text(errors="replace").splitlines()[-TAIL:])
    except OSError:
        return "(there is no log)"
