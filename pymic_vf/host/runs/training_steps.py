"""PyMIC's own training loop, one iteration at a time: between two of them a run is watched, saved and stopped.

PyMIC's ``training()`` makes the ``iter_valid`` iterations of a block at once. Called with ``iter_valid = 1`` it makes
one, so that nothing of it has to be copied.
"""

from __future__ import annotations

import functools
import logging
import math
import time
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from pymic_vf.data.workers import set_up_worker_of
from pymic_vf.errors import ConfigError, UserError
from pymic_vf.host.processes import Processes
from pymic_vf.host.runs.divergence import FILE, StepGuard, is_finite
from pymic_vf.host.runs.iteration_file import IterationFile
from pymic_vf.host.runs.resume import CheckpointFolder, Found, mismatch, position, state_of
from pymic_vf.host.runs.run_state import (
    ENTRY,
    FORMAT,
    WatchedLoader,
    provenance,
    random_states,
    restore_random_states,
    restore_schedule,
    schedule_state,
)
from pymic_vf.host.runs.scalars import Scalars, from_plain, mean_scalars, to_plain
from pymic_vf.host.runs.stop_signals import SUBMIT_AGAIN, Stopped, StopSignals
from pymic_vf.host.settings.config_keys import RUN_KEYS
from pymic_vf.host.weights import checkpoint
from pymic_vf.keys import Section

log = logging.getLogger(__name__)
MINUTES = 30  # checkpoint_minutes where resume = auto
STOPPED = "stopped"  # what a validation returns that was not finished

_active: TrainingRun | None = None  # the one in PyMIC's loop, whose functions to save and load know of no agent


def active_run() -> TrainingRun | None:
    """The run whose training PyMIC's loop is making."""
    return _active


def read_run_settings(training: Mapping[str, Any]) -> dict[str, Any]:
    """The values of `RUN_KEYS`.

    Raises:
        ConfigError: with every mistake found.
    """
    mistakes: list[str] = []
    values = Section(training, "training", mistakes).read(RUN_KEYS)
    if mistakes:
        raise ConfigError(mistakes)
    if values["checkpoint_minutes"] is None:
        values["checkpoint_minutes"] = MINUTES if values["resume"] == "auto" else math.inf
    return values


class TrainingRun:
    """One training by PyMIC's loop.

    Args:
        agent: PyMIC's, with its data sets and its network made.
        processes: those that train together.
        method: the pretraining method's name; None for a supervised training.
        signals: that may stop it.
    """

    def __init__(self, agent: Any, processes: Processes, method: str | None, signals: StopSignals) -> None:
        self.agent, self.processes, self.method, self.signals = agent, processes, method, signals
        self.training = agent.config["training"]
        self.settings = read_run_settings(self.training)
        self.folder = CheckpointFolder(self.training)
        self.net: nn.Module = agent.net
        self.block_size, self.last = self.training["iter_valid"], self.training["iter_max"]
        self.iteration = self.done = 0  # of the run, and how many of them are of the block that is not finished
        self.steps: list[tuple[Scalars, bool]] = []  # PyMIC's scalars of each of these; whether it was left out
        self.iteration_file = IterationFile()
        self.name = self.processes.from_rank_zero(lambda: uuid.uuid4().hex)
        self._chosen: checkpoint.Checkpoint | None = None  # by resume = auto
        self._state: Mapping[str, Any] | None = None  # to go on from
        self._random: Mapping[str, Any] | None = None  # the states to begin with
        self._block_end: dict[str, Any] = {}
        self._until_the_end = ExitStack()
        self._is_begun = False

    def train(self, train_valid: Callable[[], None]) -> None:
        """Run PyMIC's loop, from the checkpoint that the config asks for or from the start.

        Raises:
            UserError: a new run would replace another's checkpoints.
            Stopped: a signal came; all is saved.
        """
        global _active
        config = dict(self.training)
        self._provenance = provenance(self.agent.config, self.method)
        self._saved_at = time.monotonic()
        self.processes.from_rank_zero(self.folder.remove_leftovers)
        found = self._found() if self.settings["resume"] == "auto" else None
        self._chosen = found.content if found else None
        if self._chosen is not None:
            log.info("resume = auto: %s, after iteration %d", self._chosen.path, position(self._chosen)[0])
            if position(self._chosen) == (self.last, 0):
                log.info("resume = auto: this run has reached iter_max = %d; there is nothing left to do", self.last)
                self.processes.from_rank_zero(self.folder.remove_resume)
                return
            self.training.update(ckpt_init_name=str(self._chosen.path.absolute()), ckpt_init_mode=1)
        elif not self.settings["overwrite"] and not (config.get("ckpt_init_name") and config.get("ckpt_init_mode")):
            in_danger = found.of_others if found else self.folder.checkpoints()
            self.processes.from_rank_zero(lambda: self.folder.refuse_to_overwrite(in_danger))
        _active = self
        try:
            with self._until_the_end:
                train_valid()
            self.processes.from_rank_zero(self.folder.remove_resume)
        finally:
            _active = None
            self._let_go()
            self.training.clear()
            self.training.update(config)

    def _let_go(self) -> None:
        """tensorboardX's threads write what they have, or the end of the program would stop them by tracebacks."""
        if (writer := getattr(self.agent, "summ_writer", None)) is not None:
            writer.close()
        self.agent.trainIter = None  # its workers end now

    def _found(self) -> Found:
        """What there is to go on from, the same in all processes."""
        network = self.net.state_dict()
        found = Found()

        def search() -> tuple[Path | None, list[Path]]:
            nonlocal found
            found = self.folder.newest(network, self.method, self.block_size)
            if found.content is None:
                log.info("resume = auto: %s has no checkpoint to go on from", self.folder.path)
                return None, found.of_others
            self.folder.note_latest(found.content.path)
            return found.content.path, found.of_others

        path, of_others = self.processes.from_rank_zero(search)
        if not self.processes.is_rank_zero:
            found = Found(None if path is None else checkpoint.load(path, map_location="cpu"), of_others)
        return found

    # What PyMIC's loop calls

    def load(self, path: str, map_location: Any, **_options: Any) -> checkpoint.Checkpoint:
        """The checkpoint that PyMIC asks for; to resume, with the iteration at which its loop has to begin.

        Raises:
            UserError: it cannot be resumed with this config.
        """
        content = self._chosen or checkpoint.load(path, map_location=map_location)
        if not self.training.get("ckpt_init_mode"):
            return content
        if self._chosen is None and (reason := self._unfit(content)):
            raise UserError(f"ckpt_init_name = {content.path} with ckpt_init_mode = 1: {reason}")
        self._state = state_of(content)
        if self._state is None:
            log.warning("%s has no random states: what follows differs from a run without a break", content.path)
        self.iteration, done = position(content)
        if self.iteration - done >= self.last:
            raise UserError(
                f"{content.path} is at iteration {self.iteration} and iter_max = {self.last}: nothing to train"
            )
        return checkpoint.Checkpoint({**content, "iteration": self.iteration - done}, content.path)

    def _unfit(self, content: Mapping[str, Any]) -> str | None:
        # other weights than the network's are reported where they are loaded
        return mismatch(content, content["model_state_dict"], self.method, self.block_size)

    def begin(self, content: Mapping[str, Any] | None) -> None:
        """After the agent has its optimizer and scheduler: watch them, and put them where a checkpoint left them."""
        agent = self.agent
        path = self.folder.path / FILE
        self.guard = StepGuard(self.net, agent.optimizer, self.processes, path, self.settings["max_bad_steps"])
        self._until_the_end.callback(self.guard.close)
        self._replace("get_loss_value", self.guard.watch_loss(agent.get_loss_value))
        for loader in (agent.train_loader, agent.valid_loader):
            if isinstance(loader, DataLoader):  # PyMIC's; ours set their workers up themselves
                loader.worker_init_fn = functools.partial(set_up_worker_of, loader.worker_init_fn)
        if hasattr(agent.train_loader, "numbers"):  # a loader of ours goes on with the sample after the last one seen
            agent.train_loader.numbers.start = self.iteration * agent.config["dataset"]["train_batch_size"]
        self.loader = WatchedLoader(agent.train_loader)
        self._replace("train_loader", self.loader)
        if self._state is None:
            return
        self.name = self._state["run"]
        ranks = self._state["ranks"]
        mine = ranks[self.processes.rank if len(ranks) == self.processes.count else 0]
        self.net.load_state_dict(content["model_state_dict"])
        restore_schedule(self._state, agent.scheduler, agent.optimizer)
        # torch says so of a block whose steps were taken before the interruption
        self._until_the_end.enter_context(warnings.catch_warnings())
        warnings.filterwarnings("ignore", r"Detected call of `lr_scheduler\.step\(\)` before")
        agent.max_val_dice, agent.max_val_it = self._state["best"]
        self.guard.in_a_row = self._state["bad_steps"]
        self.done = self._state["done"]
        self.steps = [(from_plain(scalars), is_bad) for scalars, is_bad in mine["steps"]]
        if mine["loader"]:
            self.loader.resume(mine["loader"])
        if len(ranks) != self.processes.count:  # each drew its own dropout
            log.info("saved by %d processes, goes on in %d: equal but for dropout", len(ranks), self.processes.count)
        self._random = mine["random"]

    def _replace(self, name: str, value: Any) -> None:
        """Put something in the place of an attribute of the agent until the end of the run."""
        own = vars(self.agent)
        restore = (
            functools.partial(own.__setitem__, name, own[name]) if name in own else functools.partial(own.pop, name)
        )
        self._until_the_end.callback(restore)
        own[name] = value

    def block(self, step: Callable[[], Scalars]) -> Scalars:
        """One block of ``iter_valid`` iterations, or what is left of it; a progress line in a terminal.

        Args:
            step: PyMIC's ``training()``.

        Returns:
            PyMIC's scalars of the whole block, and ``block_time``, what it took in seconds.

        Raises:
            UserError: the training diverges.
            Stopped: a signal came; all is saved.
        """
        if not self._is_begun:
            self._until_the_end.enter_context(self.signals.deferred())
            self._is_begun = True
        if self._random is not None:
            restore_random_states(self._random, self.agent.device)
            self._random = None
        is_hidden = None if self.processes.is_rank_zero else True  # None: no line where the output is no terminal
        kind = "training" if self.method is None else "pretraining"
        with (
            self._single_iterations(),
            tqdm(total=self.last, initial=self.iteration, desc=kind, unit="it", disable=is_hidden, leave=False) as line,
        ):
            self._save_if_due()
            while self.done < self.block_size:
                self._iterate(step)
                line.update()
                self._save_if_due()
        self._block_end = self._here()
        scalars = mean_scalars(self.steps)
        self.done, self.steps = 0, []
        return scalars

    def _iterate(self, step: Callable[[], Scalars]) -> None:
        start = time.monotonic()
        with self.guard.step(self.iteration + 1, self.loader) as bad:
            scalars = step()
        self.steps.append(({**scalars, "block_time": time.monotonic() - start}, bool(bad)))
        self.iteration += 1
        self.done += 1
        if self.processes.is_rank_zero:
            self.iteration_file.write(self.iteration)

    @contextmanager
    def _single_iterations(self) -> Iterator[None]:
        self.training["iter_valid"] = 1
        try:
            yield
        finally:
            self.training["iter_valid"] = self.block_size

    def validated(self, validate: Callable[[], Scalars | None]) -> Scalars | None:
        """PyMIC's validation, which rank zero makes. One that is not finite is never the best.

        Raises:
            Stopped: a signal came; all is saved, and the validation is to be made again.
        """
        scalars = self.processes.from_rank_zero(lambda: self._valid_or_stopped(validate))
        if scalars == STOPPED:
            self._stop(self._block_end)
        if scalars is None or all(math.isfinite(scalars.get(name, 0)) for name in ("loss", "avg_fg_dice")):
            return scalars
        log.warning("the validation of iteration %d is not finite: it is never the best", self.iteration)
        return {**scalars, "avg_fg_dice": math.nan}

    def _valid_or_stopped(self, validate: Callable[[], Scalars | None]) -> Scalars | str | None:
        def stop_if_told(*_: Any) -> None:
            if self.signals.received:
                raise Stopped

        handle = self.agent.net.register_forward_pre_hook(stop_if_told)  # of one scan or one batch of windows
        try:
            return validate()
        except Stopped:
            return STOPPED
        finally:
            handle.remove()

    # Saving

    def completed(self, content: Mapping[str, Any], path: str | Path) -> dict[str, Any]:
        """A checkpoint of PyMIC's with what made it and what resuming needs. All processes come here together.

        Raises:
            UserError: the weights are not finite; the file is not written.
        """
        # PyMIC saves the best before it has done all that it does after a validation: it is to be repeated from there
        is_best = Path(path).name == f"{self.folder.prefix}_best.pt"
        return self._with_state(content, path, self._block_end if is_best else self._here())

    def _with_state(self, content: Mapping[str, Any], path: str | Path, here: Mapping[str, Any]) -> dict[str, Any]:
        if not is_finite(content["model_state_dict"]):
            raise UserError(
                f"the weights after iteration {self.iteration} are not finite numbers: {path} is not written, and the "
                "checkpoints of before stay as they are. Go on from one of them (resume = auto) with a smaller "
                "learning_rate, or with precision = fp32"
            )
        own = ("random", "loader", "steps")
        ranks = self.processes.gather({name: here[name] for name in own})
        state = {**{name: value for name, value in here.items() if name not in own}, "ranks": ranks}
        return {**content, ENTRY: {"format": FORMAT, "provenance": self._provenance, "state": state}}

    def _here(self) -> dict[str, Any]:
        """Where this process is, between two iterations."""
        agent = self.agent
        return {
            "run": self.name,
            "iteration": self.iteration,
            "done": self.done,
            "block": self.block_size,
            "best": [float(agent.max_val_dice), int(agent.max_val_it)],
            "bad_steps": self.guard.in_a_row,
            **schedule_state(agent.scheduler, agent.optimizer),
            "random": random_states(agent.device),
            "loader": self.loader.state(),
            "steps": [[to_plain(scalars), is_bad] for scalars, is_bad in self.steps],
        }

    def _save_if_due(self) -> None:
        """After an iteration: save where it is time, save and stop where a signal came to any of the processes."""
        is_time = time.monotonic() - self._saved_at >= 60 * self.settings["checkpoint_minutes"]
        is_time = is_time and self.processes.is_rank_zero and self.done > 0 and self.guard.in_a_row == 0
        told, is_time = self._of_any(self.signals.received is not None, is_time)
        if told:
            self._stop(self._here())
        if is_time:
            self._save(self._here())

    def _of_any(self, *facts: bool) -> list[bool]:
        """Each fact, whether it is so in any of the processes."""
        if self.processes.count == 1:
            return list(facts)
        counts = torch.tensor(facts, dtype=torch.float32, device=self.agent.device)
        dist.all_reduce(counts)
        return (counts > 0).tolist()

    def _stop(self, here: Mapping[str, Any]) -> None:
        self._save(here)
        hint = "" if self.settings["resume"] == "auto" else " with resume = auto"
        log.warning(
            "%s: saved after iteration %d in %s; submit the run again%s to go on (exit status %d)",
            self.signals.received or "a signal to another process",
            here["iteration"], self.folder.resume, hint, SUBMIT_AGAIN,
        )  # fmt: skip
        raise Stopped

    def _save(self, here: Mapping[str, Any]) -> None:
        content = {
            "iteration": here["iteration"],
            "model_state_dict": self.net.state_dict(),
            "optimizer_state_dict": self.agent.optimizer.state_dict(),
        }
        content = self._with_state(content, self.folder.resume, here)
        if self.processes.is_rank_zero:
            self.folder.save_resume(content)
        self._saved_at = time.monotonic()
