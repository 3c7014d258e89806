"""When a cache entry is the one that is asked for: the same file, unchanged, after the same transforms."""

from __future__ import annotations

import enum
import hashlib
import json
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from pymic_vf.data.scan import UnusableScanError, files_of

FORMAT = 4  # changes when the same file and transforms are stored differently

# (size in bytes, time of the last change in ns) of each file of a scan, those that have but its voxels too
State = tuple[tuple[int, int], ...]


def scan_state(files: Sequence[Path]) -> State:
    """What tells a changed scan from the one before.

    Raises:
        UnusableScanError: a file is not there.
    """
    try:
        stats = [each.stat() for file in files for each in files_of(file)]
    except OSError as error:
        raise UnusableScanError(f"{files[0]}: cannot be read ({error.strerror})") from error
    return tuple((stat.st_size, stat.st_mtime_ns) for stat in stats)


def describe(transforms: Sequence[Any]) -> str:
    """The transforms and all that was set in them, defaults included, as text that is the same in every process."""
    if not transforms:
        return ""
    return json.dumps([version("PyMIC"), [_plain(transform) for transform in transforms]], sort_keys=True)


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, enum.Enum):
        return value.name
    if isinstance(value, np.ndarray):
        return [str(value.dtype), value.tolist()]
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, (set, frozenset)):
        return sorted(map(str, value))
    kind = value if isinstance(value, type) or callable(getattr(value, "__code__", None)) else type(value)
    return [f"{kind.__module__}.{kind.__qualname__}", _plain(getattr(value, "__dict__", {}))]


def cache_key(files: Sequence[Path], state: State, transforms: str) -> str:
    """The name of an entry: 40 hexadecimal digits; `transforms` as :func:`describe` has them."""
    return digest(json.dumps([FORMAT, [str(file.absolute()) for file in files], state, transforms]))


def digest(text: str) -> str:
    """40 hexadecimal digits that stand for a text."""
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:40]
