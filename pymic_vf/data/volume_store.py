"""A volume reader that decodes each scan once and keeps it, in chunks, in a folder (``VF_cache_dir``).

A crop then reads its own voxels and little else. An entry is named by the scan's path, size and time of change and by
the transforms with all their parameters, so a changed file or setting never gets old voxels: it gets another entry.
Two processes that need the same scan at the same time both write it; the later rename wins and the content is equal.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from pymic_vf.data.cache_folder import CacheFolder
from pymic_vf.data.cache_key import State, cache_key, describe, scan_state
from pymic_vf.data.point_wise import are_point_wise, number_range, numbers_to_transform
from pymic_vf.data.scan import Scan, UnusableScanError
from pymic_vf.data.scan_list import ScanList
from pymic_vf.data.stored_voxels import StoredVoxels, encode, encode_numbers
from pymic_vf.data.volume_file import DamagedEntryError, VolumeFile
from pymic_vf.data.volume_reader import MEMORY_BYTES, VolumeTransform
from pymic_vf.errors import UserError

log = logging.getLogger(__name__)
ATTEMPTS = 3  # to read a box of an entry that others write or damage
OPEN_VOLUMES = 64  # kept open in a process: one costs a file handle and some KiB, and 0.5 ms to open


class ChunkedVolumeReader:
    """Reads sub-volumes from cached volumes, and makes those that are not there.

    Args:
        scans: the list.
        transform: applied once to each volume, before it is stored.
        folder: where they are stored.
        memory_bytes: volumes that the folder's cap keeps out stay in memory, the most recent ones, up to this.
    """

    def __init__(
        self, scans: ScanList, transform: VolumeTransform, folder: CacheFolder, memory_bytes: int = MEMORY_BYTES
    ) -> None:
        self.scans, self.transform, self.folder, self.memory_bytes = scans, transform, folder, memory_bytes
        self._transforms = describe(transform.transforms)
        self._open: OrderedDict[int, tuple[State, VolumeFile | _InMemory]] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        """Without the open volumes: a worker that is not forked gets the reader as bytes."""
        return {**self.__dict__, "_open": OrderedDict()}

    def __len__(self) -> int:
        return len(self.scans)

    def shape(self, index: int) -> tuple[int, int, int, int]:
        """(C, D, H, W) of volume `index`.

        Raises:
            UnusableScanError: it is not in the cache, and its scan cannot be used.
            UserError: the cache cannot be written to.
        """
        return self._volume(index).shape

    def read(self, index: int, start: Sequence[int], size: Sequence[int]) -> np.ndarray:
        """The box of `size` (d, h, w) voxels from `start`, wholly inside: [C, d, h, w], float32, the caller's own.

        Raises:
            UnusableScanError, UserError: see :meth:`shape`.
        """
        box = (slice(None), *(slice(s, s + n) for s, n in zip(start, size, strict=True)))
        volume = self._volume(index)
        for _ in range(ATTEMPTS):
            try:
                return volume.read(box)
            except DamagedEntryError as error:
                # written anew by another process, or damaged: opening it tells
                reason = f"{volume.path} {error}"
            del self._open[index]
            volume = self._volume(index, in_doubt=True)
        raise UserError(f"VF_cache_dir = {self.folder.path}: what is written there does not stay ({reason})")

    def entry_bytes(self, index: int) -> int:
        """What volume `index` takes in the cache; 0 where it is not there."""
        volume = self._volume(index)
        return volume.path.stat().st_size if isinstance(volume, VolumeFile) else 0

    def _volume(self, index: int, in_doubt: bool = False) -> VolumeFile | _InMemory:
        files = self.scans.files(index)
        state = _state_of(files)
        known = self._open.get(index)
        if known is None or known[0] != state:
            self._open[index] = known = self._opened(files, state, in_doubt)
        self._open.move_to_end(index)
        self._forget()
        return known[1]

    def _forget(self) -> None:
        """Close the least recently used volumes beyond the limits; the latest stays."""
        used = sum(volume.memory_bytes for _, volume in self._open.values())
        while len(self._open) > 1 and (len(self._open) > OPEN_VOLUMES or used > self.memory_bytes):
            _, (_, volume) = self._open.popitem(last=False)
            used -= volume.memory_bytes

    def _opened(self, files: list[Path], state: State, in_doubt: bool) -> tuple[State, VolumeFile | _InMemory]:
        path = self.folder.entry(cache_key(files, state, self._transforms))
        try:
            return state, VolumeFile(path, in_doubt)
        except FileNotFoundError:
            pass
        except (DamagedEntryError, OSError) as error:
            log.warning("VF_cache_dir: %s is damaged (%s) and is made anew from %s", path, error, files[0])
        return self._made(files, state)

    def _made(self, files: list[Path], state: State) -> tuple[State, VolumeFile | _InMemory]:
        """Decode the scan and store it, under the state that it had before and after."""
        scan = self.transform.decode(files)
        after = _state_of(files)
        if after != state:  # replaced meanwhile: what was read may be half of each
            scan = self.transform.decode(files)
            if _state_of(files) != after:
                raise UnusableScanError(f"{files[0]}: is being written to while it is read")
        stored = stored_volume(self.transform, scan, files)
        key = cache_key(files, after, self._transforms)
        if self.folder.add(key, stored, sum(size for size, _ in after)):
            with suppress(DamagedEntryError, OSError):
                return after, VolumeFile(self.folder.entry(key))
        # the same rounding as in the folder: a sample does not depend on what had room
        return after, _InMemory(stored)


def stored_volume(transform: VolumeTransform, scan: Scan, files: Sequence[Path]) -> StoredVoxels:
    """What the cache keeps of a scan: its numbers and their new values, or its voxels transformed.

    Raises:
        UnusableScanError: see :meth:`VolumeTransform.transformed` and :meth:`VolumeTransform.check_use`.
    """
    limits = number_range(scan.voxels) if are_point_wise(transform.transforms) else None
    if limits is None:
        voxels = transform.transformed(scan, files)
        transform.check_use(files, voxels, voxels.shape[1:])
        return encode(voxels, scan.voxels)
    numbers = numbers_to_transform(scan.voxels, *limits)
    values = transform.transformed(replace(scan, voxels=numbers), files)
    transform.check_use(files, values, scan.voxels.shape[1:])
    return encode_numbers(scan.voxels, limits[0], values[:, 0, 0])


class _InMemory:
    """A volume that has no room in the folder."""

    def __init__(self, stored: StoredVoxels) -> None:
        self._stored = stored
        self.shape: tuple[int, int, int, int] = stored.numbers.shape
        self.memory_bytes = stored.numbers.nbytes

    def read(self, box: tuple[slice, ...]) -> np.ndarray:
        return self._stored.read(box)


def _state_of(files: list[Path]) -> State:
    try:
        return scan_state(files)
    except OSError as error:
        raise UnusableScanError(f"{files[0]}: cannot be read ({error.strerror})") from error
