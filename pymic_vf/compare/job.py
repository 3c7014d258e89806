"""One run, from its folder's run.json to its result.json: PyMIC's commands one after the other, each once.

A run can be stopped at any time and begun again: a command that has ended is not repeated, and a training goes on from
its last checkpoint by ``resume = auto``. The commands are PyMIC's own main functions, each in a process of its own that
is forked from this one, so that their imports (10 to 20 s) are paid once.
"""

from __future__ import annotations

import hashlib
import importlib
import multiprocessing
import os
import platform
import shutil
import signal
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib import metadata
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from filelock import FileLock, Timeout
from pymic.util.parse_config import parse_value_from_string

from pymic_vf.compare.config_text import read_text
from pymic_vf.compare.plan import MODEL, PRETRAINING, SEGMENTATIONS, read_json, write_json
from pymic_vf.data.scan import read_scan
from pymic_vf.host.runs import iteration_file
from pymic_vf.host.weights import checkpoint
from pymic_vf.host.weights.checkpoint_file import checksum

MAIN = {
    "pymic_train": "pymic.net_run.train",
    "pymic_test": "pymic.net_run.predict",
    "pymic_eval_seg": "pymic.util.evaluation_seg",
}
PRELOAD = ("pymic_vf.compare.job", *MAIN.values())
RUN, STATE, RESULT, LOG, ITERATION = "run.json", "state.json", "result.json", "log.txt", "iteration.txt"
PACKAGES = ("pymic_vf", "PyMIC", "torch", "monai", "numpy", "SimpleITK")
DONE, FAILED, STOPPED, ELSEWHERE = 0, 1, 143, 75  # exit statuses of a job
FORMAT = 1
MINUTE = 60.0


def run_job(folder: str | os.PathLike, environment: Mapping[str, str] | None = None) -> int:
    """Do what is left of a run.

    Args:
        folder: of the run, with its run.json.
        environment: variables for its commands, such as CUDA_VISIBLE_DEVICES.

    Returns:
        `DONE`, `FAILED` (log.txt says why), `STOPPED` by SIGTERM, or `ELSEWHERE`: another job is at it.
    """
    folder = Path(folder)
    lock = FileLock(folder / ".lock")
    try:
        with lock.acquire(timeout=0):
            return _Job(folder, environment or {}).run()
    except Timeout:
        return ELSEWHERE


def main_of_process(folder: str, environment: Mapping[str, str]) -> None:
    """:func:`run_job` as a process of its own, in a process group of its own: signals reach its commands too."""
    os.setpgid(0, 0)
    sys.exit(run_job(folder, environment))


def finished(folder: Path, fingerprint: str) -> dict[str, Any] | None:
    """The result of a run; None where it has none, or one of other settings or of another pretraining."""
    result = read_json(folder / RESULT)
    if result is None or result["fingerprint"] != fingerprint:
        return None
    if result["pretraining"] is None:
        return result
    source = read_json(Path(result["pretraining"]) / RESULT)
    return result if source is not None and source["weights"] == result["starts_from"] else None


class _Job:
    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self.folder, self.environment = folder, environment
        self.spec = read_json(folder / RUN)
        self.is_stopped = False

    def run(self) -> int:
        spec = self.spec
        if finished(self.folder, spec["fingerprint"]):
            return DONE
        source = read_json(Path(spec["pretraining"]) / RESULT) if spec["pretraining"] else None
        if spec["pretraining"] and source is None:
            self._say(f"the pretraining {spec['pretraining']} has no result")
            return FAILED
        starts_from = source["weights"] if source else None
        state = self._state(starts_from)
        signal.signal(signal.SIGTERM, self._stop)
        for step, command in spec["commands"].items():
            if step in state["done"]:
                continue
            self._say(f"\n$ {' '.join(command)}")
            status = self._call(command, step, state)
            if status == 0 and not self.is_stopped:
                state["done"].append(step)
            write_json(self.folder / STATE, state)
            if self.is_stopped:
                return STOPPED
            if status:
                self._say(f"{command[0]} ended with status {status}")
                return FAILED
        try:
            outcome = self._outcome()
        except (OSError, ValueError, KeyError) as error:
            self._say(f"what the commands left cannot be read: {error}")
            return FAILED
        write_json(self.folder / RESULT, self._result(state, starts_from, outcome))
        return DONE

    def _state(self, starts_from: str | None) -> dict[str, Any]:
        """What is done already; of other settings or other initial weights nothing is, and goes aside."""
        key = {"fingerprint": self.spec["fingerprint"], "starts_from": starts_from}
        state = read_json(self.folder / STATE)
        if state is not None and {name: state[name] for name in key} == key:
            return state
        if state is not None:
            self._put_aside()
        state = {**key, "done": [], "seconds": {}, "begun": time.time()}
        write_json(self.folder / STATE, state)
        return state

    def _put_aside(self) -> None:
        number = 1
        while (aside := self.folder / f"before_{number}").exists():
            number += 1
        aside.mkdir()
        for name in (MODEL, SEGMENTATIONS, LOG, STATE, RESULT, ITERATION):
            if (self.folder / name).exists():
                shutil.move(self.folder / name, aside / name)
        self._say(f"what earlier settings made is in {aside}")

    def _stop(self, _signal: int, _frame: Any) -> None:
        self.is_stopped = True

    def _call(self, command: Sequence[str], step: str, state: dict[str, Any]) -> int:
        """Run a command in a forked process, ended with this one's parent; its exit status.

        The seconds that it takes are added to the state's, which is written every minute: a kill loses no more.
        """
        before, begin = state["seconds"].get(step, 0), time.monotonic()
        process = multiprocessing.get_context("fork").Process(target=_command, args=(command, self.folder / LOG, self))
        process.start()
        parent = multiprocessing.parent_process()
        sentinels = [process.sentinel, *([parent.sentinel] if parent else [])]
        while process.sentinel not in (ready := wait(sentinels, MINUTE)):
            if ready:  # the command that started this job has been killed
                os.killpg(0, signal.SIGKILL)
            state["seconds"][step] = before + time.monotonic() - begin
            write_json(self.folder / STATE, state)
        process.join()
        state["seconds"][step] = before + time.monotonic() - begin
        return process.exitcode

    def _say(self, text: str) -> None:
        with (self.folder / LOG).open("a") as log:
            log.write(text + "\n")

    def _outcome(self) -> dict[str, Any]:
        """What is to be known of the run: the weights' hash of a pretraining, the scores of a fine-tuning."""
        if self.spec["kind"] == PRETRAINING:
            return {"weights": hash_of_weights(self.folder / MODEL)}
        scores = read_scores(self.folder)
        return {"scores": without_absent(scores, self.folder) if self.spec["leaves_out"] else scores}

    def _result(self, state: Mapping[str, Any], starts_from: str | None, outcome: Mapping[str, Any]) -> dict[str, Any]:
        spec = self.spec
        return {
            "format": FORMAT,
            **{key: spec[key] for key in ("name", "kind", "arm", "seed", "labels", "fingerprint", "pretraining")},
            "starts_from": starts_from,
            "working_folder": spec["working_folder"],
            "commands": spec["commands"],
            "seconds": {step: round(seconds, 2) for step, seconds in state["seconds"].items()},
            "begun": state["begun"],
            "ended": time.time(),
            "machine": machine(),
            "versions": versions(),
            **outcome,
        }


def _command(command: Sequence[str], log: Path, job: _Job) -> None:
    """The body of a forked process: PyMIC's command as its script would run it, its output in a log."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    # by which SLURM tells that time is nearly over; submitit's handler in the job is the one to act
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    os.environ.update(job.environment, **{iteration_file.VARIABLE: str((job.folder / ITERATION).absolute())})
    os.chdir(job.spec["working_folder"])
    with log.open("ab", buffering=0) as stream:
        for descriptor in (1, 2):
            os.dup2(stream.fileno(), descriptor)
    sys.stdout = os.fdopen(1, "w", buffering=1)
    sys.stderr = os.fdopen(2, "w", buffering=1)
    sys.argv = list(command)
    try:
        importlib.import_module("pymic_vf")
        importlib.import_module(MAIN[command[0]]).main()
    except Exception as error:
        sys.excepthook(type(error), error, error.__traceback__)
        sys.exit(1)
    finally:
        # A command ends the workers of its loaders in exit handlers, which a forked process does not run: it would wait
        # for them for ever.
        for worker in multiprocessing.active_children():
            worker.kill()


def hash_of_weights(model: Path) -> str:
    """A hash of the weights of the checkpoints that a fine-tuning may start from; a training that is repeated and ends
    with the same weights has the same.

    Raises:
        UserError: one of them cannot be read.
    """
    digest = hashlib.sha256()
    for note in sorted([*model.glob("*_latest.txt"), *model.glob("*_best.txt")]):
        prefix, which = note.stem.rsplit("_", 1)
        name = f"{prefix}_best.pt" if which == "best" else f"{prefix}_{note.read_text().strip()}.pt"
        weights = checkpoint.load(model / name, map_location="cpu")["model_state_dict"]
        digest.update(f"{name} {checksum(weights)}".encode())
    return digest.hexdigest()


def read_scores(folder: Path) -> list[dict[str, Any]]:
    """The scores that pymic_eval_seg wrote: case, class, metric, value. Its rows of means are left out."""
    scores = []
    for file in sorted((folder / SEGMENTATIONS).glob("eval_*.csv")):
        metric = file.stem.removeprefix("eval_")
        table = pd.read_csv(file, dtype={"image": str}).iloc[:-2]  # its last two rows are mean and std
        for row in table.to_dict("records"):
            for name in table.columns[1:]:
                if name != "average":
                    scores.append({"case": row["image"], "class": name, "metric": metric, "value": row[name]})
    if not scores:
        raise ValueError(f"no eval_*.csv in {folder / SEGMENTATIONS}")
    return scores


def without_absent(scores: Sequence[Mapping[str, Any]], folder: Path) -> list[Mapping[str, Any]]:
    """The scores of the classes that the truth of their case has.

    Raises:
        UserError: a truth cannot be read.
    """
    config = read_text(folder / "evaluation.cfg")["evaluation"]
    names = parse_value_from_string(config["class_name_list"])
    labels = dict(zip(map(str, names), parse_value_from_string(config["label_list"]), strict=True))
    pairs = pd.read_csv(folder / "evaluation.csv", dtype=str).set_index("segmentation")["ground_truth"]
    truths = {case: read_scan([Path(config["ground_truth_folder"]) / file]).voxels for case, file in pairs.items()}
    present = {case: set(np.unique(voxels).tolist()) for case, voxels in truths.items()}
    return [score for score in scores if labels[score["class"]] in present[score["case"]]]


def versions() -> dict[str, str]:
    """The versions of Python and of the packages that a result depends on."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


def machine() -> dict[str, Any]:
    """Where a run was done."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else _processor()
    return {"host": socket.gethostname(), "device": device, "cores": os.cpu_count()}


def _processor() -> str:
    """The processor's name, where Linux tells it."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
