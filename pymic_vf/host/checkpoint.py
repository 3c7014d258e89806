"""PyMIC's checkpoints: read safely, written whole, and a report of what a checkpoint gives a network.

A checkpoint is a dict of ``iteration``, ``model_state_dict``, ``optimizer_state_dict`` and, after a validation,
``valid_pred``, a numpy scalar. A bare state dict (name to tensor), as weights are often released, is taken too.
"""

from __future__ import annotations

import logging
import os
import pickle
import re
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pymic_vf.errors import UserError
from pymic_vf.files import whole_file

log = logging.getLogger(__name__)
LATEST, PARALLEL = "latest", "module."
CONTENT = {
    "model_state_dict": "the network's weights",
    "optimizer_state_dict": "which resuming (ckpt_init_mode = 1) needs",
    "iteration": "which resuming (ckpt_init_mode = 1) needs",
}


class Checkpoint(dict):
    """A loaded checkpoint that says in words which entry it lacks."""

    def __init__(self, content: Mapping[str, Any], path: Path) -> None:
        super().__init__(content)
        self.path = path

    def __missing__(self, name: str) -> None:
        raise UserError(f"{self.path}: this checkpoint has no {name!r} ({CONTENT.get(name, 'unknown to PyMIC')})")


def save_whole(checkpoint: Mapping[str, Any], path: str | os.PathLike) -> None:
    """`torch.save`, but a checkpoint of that name is replaced only by a complete one.

    Raises:
        UserError: the disk is full, or the folder cannot be written to.
    """
    try:
        with whole_file(path) as temporary, temporary.open("wb") as file:
            torch.save(checkpoint, file)
    except (OSError, RuntimeError) as error:  # torch's own writer ends a failed write by a RuntimeError of its end
        cause = error if isinstance(error, OSError) else error.__context__
        if not isinstance(cause, OSError):
            raise
        raise UserError(
            f"the checkpoint {path} cannot be written ({cause.strerror}); those written before are whole. Make room "
            "and submit the run again with resume = auto"
        ) from error


def load(path: str | os.PathLike, map_location: Any = None, **_options: Any) -> Checkpoint:
    """`torch.load` for PyMIC's agents; only tensors and plain values are read, whatever the caller asks for.

    Args:
        path: as PyMIC makes it, ``ckpt_dir/ckpt_init_name``, see :func:`find_checkpoint`.
        map_location: as in `torch.load`.

    Raises:
        UserError: there is no such file, or it holds no checkpoint, or code.
    """
    found = find_checkpoint(path)
    _check_archive(found)
    try:
        content = torch.load(found, map_location=map_location, weights_only=True)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f" ({named[1]})" if named else ""
        raise UserError(f"{found}: this file contains code{what}; not loaded") from error
    except (RuntimeError, EOFError, OSError) as error:
        raise UserError(f"{found}: not a checkpoint that can be loaded ({_first_line(error)})") from error
    if not isinstance(content, Mapping):
        raise UserError(f"{found}: a checkpoint is a dict of weights, this file holds a {type(content).__name__}")
    if "model_state_dict" not in content and content and all(isinstance(v, torch.Tensor) for v in content.values()):
        content = {"model_state_dict": content}
    return Checkpoint(_without_prefix(content, found), found)


def _check_archive(path: Path) -> None:
    """torch reads an archive without comparing its checksums: a flipped bit would become a weight.

    Raises:
        UserError: the archive is damaged.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except (zipfile.BadZipFile, OSError):  # not an archive, or cut off: torch says what it is
        return
    if damaged:
        raise UserError(f"{path}: damaged, the checksum of {damaged} in it is wrong; not loaded")


def _without_prefix(content: Mapping[str, Any], path: Path) -> Mapping[str, Any]:
    """The checkpoint without the "module." that DataParallel puts before each name of a state dict."""
    weights = content.get("model_state_dict")
    if not isinstance(weights, Mapping) or not weights or not all(str(n).startswith(PARALLEL) for n in weights):
        return content
    log.info("%s: the names of its weights begin with %r, which is left out", path, PARALLEL)
    return {**content, "model_state_dict": {name.removeprefix(PARALLEL): w for name, w in weights.items()}}


def find_checkpoint(path: str | os.PathLike) -> Path:
    """The file that `path` means: itself, an absolute path behind ``ckpt_dir//``, or ``FOLDER/latest``, the last
    checkpoint of the run that wrote to FOLDER, by PyMIC's ``PREFIX_latest.txt``.

    Raises:
        UserError: there is none; the message tells where it was looked for.
    """
    candidates = [Path(path)]
    _folder, slashes, absolute = str(path).partition("//")
    if slashes:
        candidates.append(Path("/" + absolute))
    for candidate in candidates:
        if candidate.is_file():
            return candidate
        if candidate.name == LATEST and candidate.parent.is_dir():
            return _latest_checkpoint(candidate.parent)
    raise UserError(
        f"no checkpoint {' or '.join(map(str, reversed(candidates)))} "
        "(ckpt_init_name is relative to ckpt_dir, or absolute)"
    )


def _latest_checkpoint(folder: Path) -> Path:
    notes = sorted(folder.glob("*_latest.txt"))
    if len(notes) != 1:
        found = "none" if not notes else ", ".join(note.name for note in notes)
        raise UserError(
            f"{folder}/{LATEST}: one file PREFIX_latest.txt must name the last checkpoint, there is {found}"
        )
    prefix = notes[0].name.removesuffix("_latest.txt")
    checkpoint = folder / f"{prefix}_{notes[0].read_text().strip()}.pt"
    if not checkpoint.is_file():
        raise UserError(f"{notes[0]} names {checkpoint}, which is not there")
    return checkpoint


def allow_numpy_scalars() -> None:
    """Let ``weights_only=True`` load numpy's float scalars, which PyMIC writes as ``valid_pred``: those types alone."""
    scalar = np.float64(0).__reduce__()[0]
    torch.serialization.add_safe_globals(
        [
            # numpy 2 and numpy 1 pickle the same function under two module names
            (scalar, "numpy._core.multiarray.scalar"),
            (scalar, "numpy.core.multiarray.scalar"),
            np.dtype,
            type(np.dtype(np.float32)),
            type(np.dtype(np.float64)),
        ]
    )


@dataclass(frozen=True)
class WeightReport:
    """What a checkpoint gives a network: names, with both shapes or a reason where there is one."""

    loaded: list[str]
    mis_shaped: list[str]
    missing: list[str]
    unused: list[str]

    def table(self, title: str) -> str:
        """The report as text: a row of counts, then every name that was not loaded."""
        rows = {"loaded": self.loaded, "mis-shaped": self.mis_shaped, "missing": self.missing, "unused": self.unused}
        lines = [title, *(f"  {name:<11}{len(names):>5}" for name, names in rows.items())]
        for name in ("mis-shaped", "missing", "unused"):
            lines += [f"  {name}: {entry}" for entry in rows[name]]
        return "\n".join(lines)


def compare_weights(
    given: Mapping[str, torch.Tensor],
    wanted: Mapping[str, torch.Tensor],
    explain: Callable[[str], str | None] = lambda _name: None,
) -> WeightReport:
    """Compare a checkpoint's weights with a network's.

    Args:
        given: the checkpoint's state dict.
        wanted: the network's, or the part of it that may be loaded.
        explain: for a name that does not fit, why; None where the network has nothing to say.
    """
    loaded, mis_shaped = [], []
    for name in wanted:
        if name not in given:
            continue
        if given[name].shape == wanted[name].shape:
            loaded.append(name)
        else:
            shapes = f"{tuple(given[name].shape)} in the file, {tuple(wanted[name].shape)} in the network"
            mis_shaped.append(f"{name}: {shapes}{_because(explain(name))}")
    missing = [name for name in wanted if name not in given]
    return WeightReport(loaded, mis_shaped, missing, _unused([n for n in given if n not in wanted], explain))


def _unused(names: Iterable[str], explain: Callable[[str], str | None]) -> list[str]:
    """Unused names; those that share a reason, as another resolution mode's hundred weights do, become one entry."""
    plain: list[str] = []
    by_reason: dict[tuple[str, str], int] = {}
    for name in names:
        reason = explain(name)
        if reason is None:
            plain.append(name)
        else:
            group = (".".join(name.split(".")[:2]), reason)
            by_reason[group] = by_reason.get(group, 0) + 1
    return plain + [f"{prefix}.* ({count} weights){_because(reason)}" for (prefix, reason), count in by_reason.items()]


def _because(reason: str | None) -> str:
    return f" ({reason})" if reason else ""


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
