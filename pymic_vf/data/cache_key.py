"""When a cached volume is the one that is asked for: the same file, unchanged, transformed in the same way."""

from __future__ import annotations

import enum
import hashlib
import json
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

FORMAT = 3  # changes when the same file and transforms are stored or decoded differently

# (size in bytes, time of the last change in ns) of each file of a scan
State = tuple[tuple[int, int], ...]


def scan_state(files: Sequence[Path]) -> State:
    """What tells a changed scan from the one before.

    Raises:
        OSError: a file cannot be looked at.
    """
    stats = [file.stat() for file in files]
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
    """The name of the cache entry: 40 hexadecimal digits.

    Args:
        files: of the scan.
        state: theirs, see :func:`scan_state`.
        transforms: see :func:`describe`.
    """
    content = json.dumps([FORMAT, [str(file.absolute()) for file in files], state, transforms])
    return hashlib.sha256(content.encode(errors="surrogateescape")).hexdigest()[:40]
