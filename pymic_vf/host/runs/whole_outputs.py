"""What PyMIC writes besides checkpoints appears whole or not at all, and a full disk is told, not passed over.

Repairs, a function each: see plugin.py.
"""

from __future__ import annotations

import errno
import functools
import logging
import threading
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np

from pymic_vf.files import check_volume, open_whole, whole_file, written

log = logging.getLogger(__name__)
DISK_ERRORS = (
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE,
    errno.ENOENT, errno.ENOTDIR,
)  # fmt: skip


def write_images_whole(host: ModuleType) -> None:
    """PyMIC's images are written in place, by writers of which one ignores that the disk is full."""
    host.save_array_as_nifty_volume = _whole(host.save_array_as_nifty_volume)
    host.save_array_as_rgb_image = _whole(host.save_array_as_rgb_image)


def _whole(stock: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(stock)
    def save(data: np.ndarray, image_name: str, *args: Any, **options: Any) -> None:
        with written(image_name), whole_file(image_name) as temporary:
            try:
                stock(data, str(temporary), *args, **options)
            except RuntimeError as error:  # of SimpleITK
                if str(temporary) not in str(error):
                    raise
                raise OSError(errno.EIO, str(error).strip().splitlines()[-1].strip()) from error
            check_volume(temporary, data.nbytes)

    return save


def write_texts_whole(host: ModuleType) -> None:
    """PyMIC writes tables and copies of configs in place."""
    host.open = open_whole


def explain_disk_at_start(host: ModuleType) -> None:
    """PyMIC's commands first write a log and a copy of the config: a full disk is a traceback there, and one more for
    each line of the log."""
    stock: Callable = host.wrtie_config

    @functools.wraps(stock)
    def write_config(config: Any, output_name: str) -> None:
        for handler in logging.getLogger().handlers:
            if isinstance(handler, logging.FileHandler):
                handler.handleError = functools.partial(_log_is_lost, handler.baseFilename)
        with written(output_name):
            stock(config, output_name)

    host.wrtie_config = write_config


@functools.cache
def _say_once(message: str, name: str) -> None:
    print(f"{name}: {message}", flush=True)  # not by the log, which may be what cannot be written


def _log_is_lost(name: str, _record: logging.LogRecord) -> None:
    _say_once("the log cannot be written; its lines are lost", name)


def survive_lost_events(host: ModuleType) -> None:
    """tensorboardX writes in threads that end at the first error; what is handed to them then blocks for ever."""
    if hasattr(host, "SummaryWriter"):
        host.SummaryWriter = functools.partial(EventWriter, host.SummaryWriter)


class EventWriter:
    """A tensorboardX writer that is given up, with a line, as soon as something cannot be written.

    Args:
        make: tensorboardX's class; other arguments are its own.
    """

    def __init__(self, make: Callable[..., Any], *args: Any, **options: Any) -> None:
        self._is_lost = False
        self._previous_hook = threading.excepthook
        threading.excepthook = self._in_thread
        self._writer = None
        self._writer = self._tried(make, *args, **options)

    def __getattr__(self, name: str) -> Any:
        if self._writer is None:
            return lambda *_, **__: None
        value = getattr(self._writer, name)
        return functools.partial(self._tried, value) if callable(value) else value

    def close(self) -> None:
        """Write what is left, where that is possible."""
        if self._writer is not None:
            self._tried(self._writer.close)
        if threading.excepthook == self._in_thread and not self._is_lost:  # or threads may still end by an error
            threading.excepthook = self._previous_hook

    def _tried(self, call: Callable[..., Any], *args: Any, **options: Any) -> Any:
        if self._is_lost:
            return None
        try:
            return call(*args, **options)
        except OSError as error:
            self._give_up(error)
            return None

    def _in_thread(self, failed: threading.ExceptHookArgs) -> None:
        if isinstance(failed.exc_value, OSError) and type(failed.thread).__module__.startswith("tensorboardX"):
            self._give_up(failed.exc_value)
        else:
            self._previous_hook(failed)

    def _give_up(self, error: OSError) -> None:
        if not self._is_lost:
            self._is_lost = True
            log.warning("tensorboard's events cannot be written (%s): the run goes on without them", error.strerror)
