"""The runs of a comparison on a SLURM cluster: one array for each stage, through submitit.

The command waits for the arrays and tells how far they are. It may be stopped: the jobs stay in the queue, and the same
command finds them there again. A job that reaches its time limit is queued again and goes on from its last checkpoint.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pymic_vf.compare.job import LOG, run_job
from pymic_vf.compare.plan import Run, read_json, write_json, write_run
from pymic_vf.compare.progress import LiveLine, is_done
from pymic_vf.errors import UserError

if TYPE_CHECKING:
    import submitit

NOTE = "jobs.json"  # in the folder of the logs: the job of each run
TICK = 10.0  # seconds between two looks at the queue


class ArrayJob:
    """One run as submitit calls it; pickled, so it holds the folder alone."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self) -> int:
        return run_job(self.folder)

    def checkpoint(self) -> submitit.helpers.DelayedSubmission:
        """What submitit calls shortly before the time limit: the same job once more."""
        import submitit

        return submitit.helpers.DelayedSubmission(self)


class Cluster:
    """Submits the stages and waits for them.

    Args:
        out: the comparison's folder.
        parameters: submitit's, such as ``timeout_min`` and ``slurm_partition``.
        kind: ``slurm``; ``local`` for tests, the same without a cluster.

    Raises:
        UserError: submitit is not installed, there is no SLURM here, or it does not know a parameter.
    """

    def __init__(self, out: Path, parameters: Mapping[str, Any], kind: str = "slurm") -> None:
        try:
            import submitit
        except ImportError as error:
            raise UserError("--slurm needs the package submitit: pip install 'pymic_vf[slurm]'") from error
        self.out, self.folder, self.kind = out, out / "slurm", kind
        self.line = LiveLine()
        self.tick = TICK if kind == "slurm" else 0.2
        try:
            self.executor = submitit.AutoExecutor(folder=self.folder, cluster=kind)
            self.executor.update_parameters(name="pymic_vf_compare", **parameters)
        except (RuntimeError, NameError, ValueError, TypeError) as error:
            raise UserError(f"submitit: {error}") from error

    def run_all(self, runs: Sequence[Run]) -> dict[str, str]:
        """Do every run that is not done: first those that need no other; the reasons of those that failed, by name."""
        failed: dict[str, str] = {}
        first = [run for run in runs if run.pretraining is None]
        for stage in (first, [run for run in runs if run.pretraining is not None]):
            ready = []
            for run in (run for run in stage if not is_done(run, self.out)):
                if run.pretraining is None or is_done(run.pretraining, self.out):
                    ready.append(run)
                else:
                    failed[run.name] = f"its pretraining {run.pretraining.name} failed"
            failed |= self._run_stage(ready, runs)
        return failed

    def _run_stage(self, ready: Sequence[Run], runs: Sequence[Run]) -> dict[str, str]:
        jobs = self._jobs_of(ready)
        while waiting := [name for name, job in jobs.items() if not job.done()]:
            done = sum(is_done(run, self.out) for run in runs)
            self.line.show(f"{done} of {len(runs)} done, {len(waiting)} in the queue or running")
            time.sleep(self.tick)
        by_name = {run.name: run for run in ready}
        return {name: self._why(name) for name in jobs if not is_done(by_name[name], self.out)}

    def _jobs_of(self, ready: Sequence[Run]) -> dict[str, submitit.Job]:
        """The job of each run: one that is in the queue since an earlier call, or one of a new array."""
        known = read_json(self.folder / NOTE) or {}
        jobs = {run.name: job for run in ready if (job := self._queued(known.get(run.name))) is not None}
        fresh = [run for run in ready if run.name not in jobs]
        if fresh:
            folders = [write_run(run, self.out).absolute() for run in fresh]
            submitted = self._submit(folders)
            jobs |= {run.name: job for run, job in zip(fresh, submitted, strict=True)}
            self.line.say(f"{len(fresh)} runs submitted as {submitted[0].job_id.split('_')[0]}")
        write_json(self.folder / NOTE, {**known, **{name: job.job_id for name, job in jobs.items()}})
        return jobs

    def _submit(self, folders: Sequence[Path]) -> list[submitit.Job]:
        """One array of jobs.

        Raises:
            UserError: SLURM does not take them.
        """
        from submitit.core.utils import FailedJobError

        try:
            with self.executor.batch():
                return [self.executor.submit(ArrayJob(folder)) for folder in folders]
        except FailedJobError as error:
            raise UserError(
                f"SLURM does not take the jobs, which are as [slurm] in the config says: {error}"
            ) from error

    def _queued(self, job_id: str | None) -> submitit.Job | None:
        """A job of an earlier call that has not ended; None where there is none."""
        if job_id is None or self.kind != "slurm":
            return None
        import submitit

        job = submitit.SlurmJob(self.folder, job_id)
        return None if job.done() else job

    def _why(self, name: str) -> str:
        log = self.out / name / LOG
        end = "\n".join(log.read_text(errors="replace").splitlines()[-12:]) if log.is_file() else "(there is no log)"
        return f"its job ended without a result; the end of {log}, beside which {self.folder} has SLURM's own:\n{end}"
