"""PyMIC's checkpoints: found, read safely and written whole.

A checkpoint is a dict of ``iteration``, ``model_state_dict``, ``optimizer_state_dict`` and, after a validation,
``valid_pred``, a numpy scalar. A bare state dict (name to tensor), as weights are often released, is taken too.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pymic_vf.errors import UserError
from pymic_vf.files import whole_file
from pymic_vf.host.weights.checkpoint_file import read_file
from pymic_vf.host.weights.state_dicts import refuse_non_finite, with_weights

LATEST = "latest"
LONGEST_NOTE = 100  # bytes of a file that names an iteration
CONTENT = {
    "model_state_dict": "the network's weights",
    "optimizer_state_dict": "which resuming (ckpt_init_mode = 1) needs",
    "iteration": "which resuming (ckpt_init_mode = 1) needs",
}

RULES = {
    "optimizer_state_dict": (lambda value: isinstance(value, Mapping), "a dict"),
    "iteration": (lambda value: isinstance(value, int) and 0 <= value < 2**63, "a whole number"),
    "valid_pred": (lambda value: isinstance(value, (int, float, np.floating)), "a number"),
}


class Checkpoint(dict):
    """A loaded checkpoint that says in words which entry it lacks, or has of another type."""

    def __init__(self, content: Mapping[str, Any], path: Path) -> None:
        super().__init__(content)
        self.path = path

    def __getitem__(self, name: str) -> Any:
        value = super().__getitem__(name)
        if name in RULES and not RULES[name][0](value):
            raise UserError(f"{self.path}: its {name!r} must be {RULES[name][1]}, got a {type(value).__name__}")
        return value

    def get(self, name: str, default: Any = None) -> Any:
        """As of a dict, of the right type."""
        return self[name] if name in self else default  # noqa: SIM401 (which would be this method)

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
        UserError: there is no such file, or it holds no checkpoint, or code, or weights that are not finite.
    """
    checkpoint = read(path, map_location)
    refuse_non_finite(checkpoint["model_state_dict"], checkpoint.path)
    return checkpoint


def read(path: str | os.PathLike, map_location: Any = None) -> Checkpoint:
    """As :func:`load`, but weights that are not finite are taken too."""
    found = find_checkpoint(path)
    return Checkpoint(with_weights(read_file(found, map_location), found), found)


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
        try:
            if candidate.is_file():
                return candidate
            if candidate.name == LATEST and candidate.parent.is_dir():
                return _latest_checkpoint(candidate.parent)
            if candidate.exists():
                what = "a folder" if candidate.is_dir() else "a device or a pipe"
                raise UserError(f"{candidate}: a checkpoint is a file, this is {what}")
        except (OSError, ValueError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"{candidate}: cannot be read ({getattr(error, 'strerror', None) or error})") from error
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
    checkpoint = folder / f"{prefix}_{read_note(notes[0])}.pt"
    if not checkpoint.is_file():
        raise UserError(f"{notes[0]} names {checkpoint}, which is not there")
    return checkpoint


def read_note(path: Path) -> str:
    """The iteration in PyMIC's ``PREFIX_latest.txt`` or ``PREFIX_best.txt``.

    Raises:
        UserError: it is no such file.
    """
    if not path.is_file():
        raise UserError(f"{path}: must be a file that names an iteration")
    try:
        with path.open("rb") as file:
            text = file.read(LONGEST_NOTE).strip()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    if not re.fullmatch(rb"[\w.-]+", text):
        raise UserError(f"{path}: must name the iteration of a checkpoint, got {text.decode(errors='replace')!r}")
    return text.decode()
