"""The checkpoints of a run's folder: which one a run goes on from, and those that are written between PyMIC's own.

PyMIC writes ``PREFIX_ITER.pt`` and ``PREFIX_best.pt``. What is saved by the clock or on a signal goes to
``PREFIX_resume.pt``; the one before is kept as ``PREFIX_resume_before.pt`` until the run has ended.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from pymic_vf.errors import UserError
from pymic_vf.files import remove_leftovers, whole_file
from pymic_vf.host.runs.run_state import ENTRY, FORMAT
from pymic_vf.host.weights import checkpoint

log = logging.getLogger(__name__)


class CheckpointFolder:
    """The folder ``ckpt_dir`` of a run.

    Args:
        training: PyMIC's section [training].
    """

    def __init__(self, training: Mapping[str, Any]) -> None:
        name = training["ckpt_dir"].removesuffix("/")
        self.path = Path(name)
        self.prefix = training.get("ckpt_prefix") or name.split("/")[-1]  # as PyMIC makes it
        self.resume = self.path / f"{self.prefix}_resume.pt"
        self.resume_before = self.path / f"{self.prefix}_resume_before.pt"

    def checkpoints(self) -> list[Path]:
        """Those of this prefix, in no order."""
        return [path for path in self.path.glob("*.pt") if path.name.startswith(f"{self.prefix}_")]

    def remove_leftovers(self) -> None:
        """Remove what killed writers left."""
        for path in remove_leftovers(self.path):
            log.info("%s: removed, a writer that was killed left it", path)

    def save_resume(self, content: Mapping[str, Any]) -> None:
        """Write ``PREFIX_resume.pt``; at any moment there is a whole one, this or the one before."""
        if self.resume.is_file():
            self.resume.replace(self.resume_before)
        checkpoint.save_whole(content, self.resume)

    def remove_resume(self) -> None:
        """After the end of a run: what PyMIC saved at its end stays."""
        for path in (self.resume, self.resume_before):
            with suppress(OSError):
                path.unlink()

    def note_latest(self, path: Path) -> None:
        """Let ``PREFIX_latest.txt`` name a checkpoint of PyMIC's, which a kill after writing it prevented."""
        number = re.fullmatch(re.escape(self.prefix) + r"_(\d+)", path.stem)
        note = self.path / f"{self.prefix}_latest.txt"
        if number and not (note.is_file() and note.read_text().strip() == number[1]):
            with whole_file(note) as temporary:
                temporary.write_text(number[1])

    def refuse_to_overwrite(self, paths: Collection[Path]) -> None:
        """Raise UserError where a new run would replace these checkpoints of another."""
        if found := sorted(path.name for path in paths):
            listed = ", ".join(found[:3]) + (f" and {len(found) - 3} more" if len(found) > 3 else "")
            raise UserError(
                f"ckpt_dir = {self.path} has the checkpoints of another run ({listed}), which a new one would replace. "
                "To go on with that run set [training] resume = auto; to start anew choose another ckpt_dir, or set "
                "[training] overwrite = True"
            )

    def newest(self, network: Mapping[str, torch.Tensor], method: str | None, block: int) -> Found:
        """The checkpoint to go on from: the newest whole one that fits.

        Args:
            network: the state dict of the network that is to go on.
            method: the pretraining method, None for a supervised training.
            block: ``iter_valid``.
        """
        found = Found()
        for path in self._newest_first():
            try:
                content = checkpoint.load(path, map_location="cpu")
                reason = mismatch(content, network, method, block)
            except UserError as error:
                log.warning("resume = auto: %s; the one before is tried", error)
                continue
            if not reason:
                found.content = content
                break
            found.of_others.append(path)
            log.warning("resume = auto: %s is passed over: %s", path, reason)
        return found

    def _newest_first(self) -> list[Path]:
        """Those of the run that wrote last come first, each run's by what they have seen."""
        entries, last_write = [], {}
        for path in self.checkpoints():
            try:  # the tables alone: the weights stay on the disk
                content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
                run, (iteration, done), time = _run_of(content), position(content), path.stat().st_mtime_ns
            except Exception as error:  # damaged in any way
                log.warning("resume = auto: %s cannot be read (%s); it is passed over", path, type(error).__name__)
                continue
            state = state_of(content)
            is_good = state is None or state["bad_steps"] == 0  # or it was saved where the run may have diverged
            # of two at one iteration, the one after whose validation all was done that PyMIC does there
            entries.append((run, is_good, iteration, -done, time, path))
            last_write[run] = max(time, last_write.get(run, 0))
        entries.sort(key=lambda entry: (last_write[entry[0]], *entry[1:]), reverse=True)
        return [path for *_, path in entries]


@dataclass
class Found:
    """What a search for a checkpoint came to.

    Args:
        content: the checkpoint, None where there is none to go on from.
        of_others: whole ones that were passed over, since they do not fit.
    """

    content: checkpoint.Checkpoint | None = None
    of_others: list[Path] = field(default_factory=list)


def state_of(content: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The state of a run of ours in a checkpoint; None where it has none of this format."""
    entry = content.get(ENTRY)
    if isinstance(entry, Mapping) and entry.get("format") == FORMAT and isinstance(entry.get("state"), Mapping):
        return entry["state"]
    return None


def position(content: Mapping[str, Any]) -> tuple[int, int]:
    """The iterations that a checkpoint has seen, and how many of them are of a block that is not finished."""
    state = state_of(content)
    return (content["iteration"], 0) if state is None else (state["iteration"], state["done"])


def mismatch(
    content: Mapping[str, Any], network: Mapping[str, torch.Tensor], method: str | None, block: int
) -> str | None:
    """Why a run cannot go on from a checkpoint; None where it can. Arguments as of :meth:`CheckpointFolder.newest`."""
    weights, _ = content["model_state_dict"], content["optimizer_state_dict"]
    shapes = ({name: tuple(w.shape) for name, w in given.items()} for given in (weights, network))
    if next(shapes) != next(shapes):
        return "it is of another network"
    entry = content.get(ENTRY)
    if entry is not None and entry["provenance"]["method"] != method:
        other = entry["provenance"]["method"] or "a supervised training"
        return f"it is of {other}, not of {method or 'a supervised training'}"
    iteration, done = position(content)
    if (iteration - done) % block or done > block or (done and state_of(content)["block"] != block):
        return f"it is of iteration {iteration} of a run with another iter_valid than {block}"
    return None


def _run_of(content: Mapping[str, Any]) -> str:
    """What tells the checkpoints of one run, interrupted or not, from those of another."""
    state = state_of(content)
    return "" if state is None else state["run"]
