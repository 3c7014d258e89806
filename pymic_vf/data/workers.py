"""Worker processes of a loader: how each is set up, and what happens when one dies."""

from __future__ import annotations

import ctypes
import logging
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TypeVar

from pymic_vf.errors import UserError

log = logging.getLogger(__name__)
T = TypeVar("T")
# glibc's M_TRIM_THRESHOLD (memory that a worker may keep) and M_MMAP_THRESHOLD, in bytes
MALLOC = {-1: 128 * 2**20, -3: 32 * 2**20}
DEATHS = 3  # in a row, without an item in between


def set_up_worker(_worker: int) -> None:
    """A worker's share is one core: numpy's and ITK's own threads would only fight with the other workers'."""
    import SimpleITK as sitk
    import torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that ends the workers
    torch.set_num_threads(1)
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    _keep_freed_memory()


def _keep_freed_memory() -> None:
    """Let glibc keep what a sample's arrays leave for the next sample's, which are of the same sizes.

    Its default hands them back to the system each time, and half of a sample's time went into getting them again (3500
    page faults). Whole volumes, larger than the second limit, are still handed back at once. No glibc: nothing to do.
    """
    with suppress(AttributeError, OSError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        for parameter, size in MALLOC.items():
            mallopt(parameter, size)


def outlive_workers(start: Callable[[int], Iterator[T]], stop: Callable[[], None]) -> Iterator[T]:
    """The items of a loader, whose workers are started anew where one was killed: nothing is lost or made twice.

    Args:
        start: the items from a number on.
        stop: ends the workers that are left.

    Raises:
        UserError: workers die again and again, without an item in between.
    """
    items, done, deaths = None, 0, 0
    while True:
        try:
            with _no_interruption_by_deaths():
                items = start(done) if items is None else items
            item = next(items)
        except StopIteration:
            return
        except (RuntimeError, OSError, EOFError) as error:
            if not _tells_of_a_death(error):
                raise
            items, deaths = None, deaths + 1
            stop()
            if deaths == DEATHS:
                raise UserError(
                    f"worker processes were killed {DEATHS} times in a row, as where the machine's memory is full, or "
                    f"/dev/shm of a container; fewer of them ([dataset] num_worker) need less ({error})"
                ) from error
            log.warning("a worker process was killed, new ones go on in its place (%s)", error)
        else:
            done, deaths = done + 1, 0
            yield item


def _tells_of_a_death(error: Exception) -> bool:
    """Whether torch found a worker dead, or its connection to one broke in the middle of a batch.

    What a worker raised itself begins with "Caught", and a file that is not there has a name.
    """
    if isinstance(error, RuntimeError):
        return str(error).startswith("DataLoader worker")
    broken = isinstance(error, (ConnectionError, EOFError)) or getattr(error, "filename", "") is None
    return broken and not str(error).startswith("Caught")


@contextmanager
def _no_interruption_by_deaths() -> Iterator[None]:
    """A loader started in the block finds a dead worker when it waits for it.

    torch's signal handler would raise at any place of the training besides, where nothing can go on.
    """
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "SIGCHLD"):
        yield
        return
    handler = signal.getsignal(signal.SIGCHLD) or signal.SIG_DFL
    if getattr(handler, "__module__", "").startswith("torch."):  # that of another loader, started before
        handler = signal.SIG_DFL
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, handler)
