"""When a cached volume is the one that is asked for: the same file, unchanged, transformed in the same way."""

from __future__ import annotations

import enum
import hashlib
import json
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from pymic_vf.data.scan import UnusableScanError

FORMAT = 4  # changes when the same file and transforms are stored or decoded differently

# (size in bytes, time of the last change in ns) of each file of a scan
State = tuple[tuple[int, int], ...]


def scan_state(files: Sequence[Path]) -> State:
    """What tells a changed scan from the one before.

    Raises:
        UnusableScanError: a file is not there.
    """
    try:
        stats = [file.stat() for file in files]
    except OSError as error:
        raise UnusableScanError(f"{files[0]}: cannot be read ({error.strerror})") from error
    return tuple((stat.st_size, stat.st_mtime_ns) for stat in stats)


def describe(transforms: Sequence[Any]) -> str:
    """The transforms and all that was set in them, defaults included, as text that is the same in every process."""
    return json.dumps([version("PyMIC"), list(transforms)], default=_plain, sort_keys=True) if transforms else ""


def _plain(value: Any) -> Any:
    """What JSON does not know, as what it knows."""
    if isinstance(value, enum.Enum):
        return value.name
    if isinstance(value, np.ndarray):
        return [str(value.dtype), value.tolist()]
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, (set, frozenset)):
        return sorted(map(str, value))
    kind = value if hasattr(value, "__qualname__") else type(value)  # a function, a class, or an object of one
    return [f"{kind.__module__}.{kind.__qualname__}", getattr(value, "__dict__", None) if kind is not value else None]


def cache_key(files: Sequence[Path], state: State, transforms: str) -> str:
    """The name of an entry: 40 hexadecimal digits; `transforms` as :func:`describe` has them."""
    return digest(json.dumps([FORMAT, [str(file.absolute()) for file in files], state, transforms]))


def digest(text: str) -> str:
    """40 hexadecimal digits that stand for a text."""
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:40]
