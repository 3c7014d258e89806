"""Worker processes of a loader: how each is set up, and what is said when one is killed."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from pymic_vf.errors import UserError


def set_up_worker(_worker: int) -> None:
    """A worker's share is one core: numpy's and ITK's own threads would only fight with the other workers'."""
    import SimpleITK as sitk

    _leave_signals_to_the_training()
    torch.set_num_threads(1)
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)


def set_up_worker_of(stock: Callable[[int], None] | None, worker: int) -> None:
    """A worker of PyMIC's loader: as PyMIC does it, but for the signals."""
    _leave_signals_to_the_training()
    if stock is not None:
        stock(worker)


def _leave_signals_to_the_training() -> None:
    """What a terminal or a scheduler sends to all processes is for the one that ends the workers when it has saved.

    Its SIGTERM ends a worker, nobody else's.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "SIGUSR1"):
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # which tells who sent a signal
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_when_the_training_says_so, daemon=True).start()


def _end_when_the_training_says_so() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)


@contextmanager
def killed_workers_explained() -> Iterator[None]:
    """Within the block, torch's error about a worker that was killed becomes a message of what to do.

    Raises:
        UserError: instead of that error.
    """
    try:
        yield
    except (RuntimeError, OSError, EOFError) as error:
        if not is_death_of_a_worker(error):
            raise
        raise UserError(
            "a worker process was killed, as the system does where the machine's memory is full, or the shared memory "
            "(/dev/shm; in a container docker's --shm-size): fewer workers ([dataset] num_worker) need less. To go on "
            f"from the last checkpoint: resume = auto ({error})"
        ) from error


def is_death_of_a_worker(error: Exception) -> bool:
    """Whether torch found a worker dead, or its connection to one broke in the middle of a batch.

    What a worker raised itself begins with "Caught", and a file that is not there has a name.
    """
    if isinstance(error, RuntimeError):
        return str(error).startswith("DataLoader worker")
    is_broken = isinstance(error, (ConnectionError, EOFError)) or getattr(error, "filename", "") is None
    return is_broken and not str(error).startswith("Caught")
