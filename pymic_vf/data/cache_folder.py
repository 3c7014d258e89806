"""The folder of cache entries: names, room, and what is left of writers that were killed."""

from __future__ import annotations

import errno
import logging
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock
from torch.utils.data import get_worker_info

from pymic_vf.data.cache_entry import SUFFIX, write_entry
from pymic_vf.errors import UserError

log = logging.getLogger(__name__)
GIB = 2**30
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
LEFTOVER_SECONDS = 3600  # no writer takes this long for one entry
# of a folder with a cap: who may write, and what has been written, since counting 100,000 files takes its time
LOCK, USED = ".lock", ".used_bytes"


class CacheFolder:
    """Where cache entries lie: ``cache_dir``, shared by any number of processes and machines.

    Args:
        path: made where it is not there.
        max_bytes: no entry is added beyond this; None for no cap.

    Raises:
        UserError: the folder cannot be made.
    """

    def __init__(self, path: Path, max_bytes: int | None = None) -> None:
        self.path, self.max_bytes = path, max_bytes
        self.is_full = False  # as far as this process knows
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cache_dir = {path}: cannot be made ({error})") from error

    def entry(self, key: str) -> Path:
        """The file of a key; 256 folders, since some file systems are slow with 100,000 files in one."""
        return self.path / key[:2] / f"{key}{SUFFIX}"

    def add(self, path: Path, content: bytes) -> bool:
        """Write an entry, see :func:`pymic_vf.data.cache_entry.packed`; False where the cap does not allow it.

        Raises:
            UserError: the disk is full, or the folder cannot be written to. Nothing incomplete is left.
        """
        with self.writing():
            path.parent.mkdir(parents=True, exist_ok=True)
            if self.max_bytes is None:
                write_entry(path, content)
                return True
            with FileLock(self.path / LOCK):  # one at a time, or together they would exceed the cap
                if has_room := self._has_room(len(content)):
                    write_entry(path, content)
                return has_room

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Errors of the file system in the block are raised as :class:`UserError`, with what can be done."""
        try:
            yield
        except OSError as error:
            if error.errno not in FULL:
                raise UserError(f"cache_dir = {self.path}: cannot be written to ({error})") from error
            raise UserError(
                f"cache_dir = {self.path}: the disk is full ({error.strerror}). What is in the cache stays usable: "
                f"free some space, or set cache_max_gib (the cache has {self.used_bytes() / GIB:.4g} GiB), and resume"
            ) from error

    def _has_room(self, size: int) -> bool:
        """Whether the cap allows `size` more bytes; these are then noted as used, for the other writers too."""
        note = self.path / USED
        try:
            used = int(note.read_text())
        except (FileNotFoundError, ValueError):
            used = self.max_bytes
        if used + size > self.max_bytes:
            used = self.used_bytes()  # some may have been deleted, or written anew
        self.is_full = used + size > self.max_bytes
        worker = get_worker_info()
        if not self.is_full:
            note.write_text(str(used + size))
        elif worker is None or worker.id == 0:
            log.warning(
                "cache_dir has reached cache_max_gib = %.4g: further scans are decoded each time they are needed, "
                "which is slow",
                self.max_bytes / GIB,
            )
        return not self.is_full

    def used_bytes(self) -> int:
        """What lies in the folder now, whoever wrote it."""
        used = 0
        for file in self._files():
            with suppress(FileNotFoundError):
                used += file.stat().st_size
        return used

    def free_bytes(self) -> int:
        """What the disk has left."""
        return shutil.disk_usage(self.path).free

    def remove_leftovers(self) -> None:
        """Delete what writers left that were killed, long enough ago to be sure."""
        for file in self._files():
            with suppress(OSError):
                if file.name.startswith(".incomplete-") and time.time() - file.stat().st_mtime > LEFTOVER_SECONDS:
                    Path(file.path).unlink()

    def _files(self) -> Iterator[os.DirEntry]:
        for folder in self.path.glob("[0-9a-f][0-9a-f]"):
            with suppress(OSError), os.scandir(folder) as files:
                yield from files
