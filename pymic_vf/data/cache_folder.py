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

from torch.utils.data import get_worker_info

from pymic_vf.data.stored_voxels import StoredVoxels
from pymic_vf.data.volume_file import SUFFIX, compress, write_entry
from pymic_vf.errors import UserError

log = logging.getLogger(__name__)
GIB = 2**30
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
LEFTOVER_SECONDS = 3600  # no writer takes this long for one volume
COUNTS_PER_REST = 32  # looks at the folder while what is left of its cap is halved, about


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
        self._room = 0.0  # bytes that may be written before the folder has to be looked at again
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
        if not self._has_room(len(frame) + len(coding)):
            return False
        path = self.entry(key)
        try:
            path.parent.mkdir(exist_ok=True)
            write_entry(path, frame, coding)
        except OSError as error:
            if error.errno in FULL:
                raise UserError(self._full_disk(error)) from error
            raise UserError(f"VF_cache_dir = {self.path}: cannot be written to ({error})") from error
        return True

    def _has_room(self, size: int) -> bool:
        """Whether the cap allows `size` more bytes; these are then spoken for."""
        if self.max_bytes is None:
            return True
        if size > self._room:
            rest = self.max_bytes - self.used_bytes()
            self._full = size > rest
            if self._full and first_worker():
                log.warning(
                    "VF_cache_dir has reached VF_cache_max_gib = %.4g: further scans are decoded each time they are "
                    "needed, which is slow",
                    self.max_bytes / GIB,
                )
            # others write too: look again when a part of the rest is used up
            self._room = max(rest / COUNTS_PER_REST, size)
        self._room -= size
        return not self._full

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
