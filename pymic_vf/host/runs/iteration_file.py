"""The iteration that a training has reached, in a file, for those who watch it from another process.

PyMIC's log tells of iterations only after a block of ``iter_valid`` of them.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path

VARIABLE = "PYMIC_VF_ITERATION_FILE"  # of the environment: the file's name; without it nothing is written
SECONDS = 0.5  # between two writes


class IterationFile:
    """Written now and then; a failure to write is no reason to end a training."""

    def __init__(self) -> None:
        name = os.environ.get(VARIABLE)
        self.path = Path(name) if name else None
        self._written = -SECONDS

    def write(self, iteration: int) -> None:
        now = time.monotonic()
        if self.path is not None and now - self._written >= SECONDS:
            self._written = now
            with suppress(OSError):
                self.path.write_text(f"{iteration}\n")


def read_iteration(path: Path) -> int | None:
    """The iteration in a file; None where there is none, or where it is being written."""
    with suppress(OSError, ValueError):
        return int(path.read_text())
    return None
