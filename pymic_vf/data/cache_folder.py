"""The folder of cached volumes: names, room, and what is left of writers that were killed."""

from __future__ import annotations

import errno
import logging
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from filelock import FileLock
from torch.utils.data import get_worker_info

from pymic_vf.data.stored_voxels import StoredVoxels
from pymic_vf.data.volume_file import SUFFIX, TRAILER, compress, write_entry
from pymic_vf.errors import UserError
from pymic_vf.files import whole_file

log = logging.getLogger(__name__)
GIB = 2**30
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
LEFTOVER_SECONDS = 3600  # no writer takes this long for one volume
# of a folder with a cap: who may write, and what has been written, since counting 100,000 files takes its time
LOCK, USED = ".lock", ".used_bytes"


def first_worker() -> bool:
    """Whether this process is the one of a loader's workers that speaks for all, or no worker."""
    worker = get_worker_info()
    return worker is None or worker.id == 0


class CacheFolder:
    """Where cached volumes lie: ``VF_cache_dir``, shared by any number of processes and machines.

    Args:
        path: made where it is not there.
        max_bytes: no volume is added beyond this; None for no cap.

    Raises:
        UserError: the folder cannot be made.
    """

    def __init__(self, path: Path, max_bytes: int | None = None) -> None:
        self.path, self.max_bytes = path, max_bytes
        self._full = False
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"VF_cache_dir = {path}: cannot be made ({error})") from error

    def entry(self, key: str) -> Path:
        """The file of a key; 256 folders, since some file systems are slow with 100,000 files in one."""
        return self.path / key[:2] / f"{key}{SUFFIX}"

    def add(self, key: str, stored: StoredVoxels, scan_bytes: int) -> bool:
        """Write a volume under its key; False where the cap does not allow it.

        Args:
            key: see :func:`pymic_vf.data.cache_key.cache_key`.
            stored: the volume.
            scan_bytes: what the scan's files take; the entry takes no more where that can be had.

        Raises:
            UserError: the disk is full, or the folder cannot be written to. Nothing incomplete is left.
        """
        if self._full:
            return False
        frame, coding = compress(stored, scan_bytes)
        try:
            if self.max_bytes is None:
                self._write(key, frame, coding)
                return True
            with FileLock(self.path / LOCK):  # one at a time, or together they would exceed the cap
                if not self._has_room(len(frame) + len(coding) + TRAILER.size):
                    return False
                self._write(key, frame, coding)
        except OSError as error:
            if error.errno in FULL:
                raise UserError(self._full_disk(error)) from error
            raise UserError(f"VF_cache_dir = {self.path}: cannot be written to ({error})") from error
        return True

    def _write(self, key: str, frame: bytes, coding: bytes) -> None:
        path = self.entry(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_entry(path, frame, coding)

    def _has_room(self, size: int) -> bool:
        """Whether the cap allows `size` more bytes; these are then noted as used, for the other writers too."""
        used = self._noted_bytes()
        if used is None or used + size > self.max_bytes:
            used = self.used_bytes()  # some may have been deleted, or written anew
        if used + size > self.max_bytes:
            self._full = True
            if first_worker():
                log.warning(
                    "VF_cache_dir has reached VF_cache_max_gib = %.4g: further scans are decoded each time they are "
                    "needed, which is slow",
                    self.max_bytes / GIB,
                )
            return False
        with whole_file(self.path / USED) as temporary:
            temporary.write_text(str(used + size))
        return True

    def _noted_bytes(self) -> int | None:
        try:
            return int((self.path / USED).read_text())
        except (FileNotFoundError, ValueError):
            return None

    def _full_disk(self, error: OSError) -> str:
        return (
            f"VF_cache_dir = {self.path}: the disk is full ({error.strerror}). What is in the cache stays usable: free "
            f"some space, or set VF_cache_max_gib (the cache has {self.used_bytes() / GIB:.4g} GiB), and resume"
        )

    def used_bytes(self) -> int:
        """What the cached volumes take now, whoever wrote them."""
        used = 0
        for file in self._files(SUFFIX):
            with suppress(FileNotFoundError):
                used += file.stat().st_size
        return used

    def free_bytes(self) -> int:
        """What the disk has left."""
        return shutil.disk_usage(self.path).free

    def remove_leftovers(self) -> None:
        """Delete what writers left that were killed, long enough ago to be sure."""
        for file in self._files(SUFFIX, incomplete=True):
            with suppress(OSError):
                if time.time() - file.stat().st_mtime > LEFTOVER_SECONDS:
                    Path(file.path).unlink()

    def _files(self, suffix: str, incomplete: bool = False) -> Iterator[os.DirEntry]:
        for folder in self.path.glob("[0-9a-f][0-9a-f]"):
            with suppress(OSError), os.scandir(folder) as entries:
                for entry in entries:
                    if entry.name.endswith(suffix) and entry.name.startswith(".incomplete-") == incomplete:
                        yield entry
