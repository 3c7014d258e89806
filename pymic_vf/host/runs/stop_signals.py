"""SIGTERM and SIGUSR1 end a run where nothing is lost, with an exit status that says "submit again".

SLURM sends SIGUSR1 ahead of the end of the time (``--signal=USR1@120``) and SIGTERM at it, ``torchrun`` hands SIGTERM
on, and so do most other schedulers and containers.
"""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

log = logging.getLogger(__name__)
SUBMIT_AGAIN = 75  # EX_TEMPFAIL of sysexits.h: a failure that goes away by trying again
NAMES = ("SIGTERM", "SIGUSR1")  # not every system has the second


class Stopped(SystemExit):
    """The end of a run that was told to stop, with the exit status 75."""

    def __init__(self) -> None:
        super().__init__(SUBMIT_AGAIN)


class StopSignals:
    """What the process was told: `received` is the signal's name, None where there was none.

    Before and after the training, when there is nothing to save, a signal raises :class:`Stopped` at once; within
    :meth:`deferred` it is only noted.
    """

    def __init__(self) -> None:
        self.received: str | None = None
        self._is_deferred = False

    @contextmanager
    def heard(self) -> Iterator[None]:
        """Within the block, the signals come here. Only the main thread of a program can hear them."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        numbers = [getattr(signal, name) for name in NAMES if hasattr(signal, name)]
        before = {number: signal.signal(number, self._hear) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, signal.SIG_DFL if handler is None else handler)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Within the block, a signal is noted and raises nothing."""
        self._is_deferred = True
        try:
            yield
        finally:
            self._is_deferred = False

    def _hear(self, number: int, _frame: FrameType | None) -> None:
        self.received = signal.Signals(number).name
        if not self._is_deferred:
            log.warning("%s: stopped before the training; nothing was begun", self.received)
            raise Stopped
