"""The cache: a reader of crops that decodes each scan once and keeps it in a folder (``cache_dir``).

An entry is a file of compressed chunks: the voxels of one scan, in the type of its file, after the transforms that need
the whole volume. A crop is read from the chunks that it touches, made float32, and given the voxel-wise transforms. If
these need something of the whole volume, such as its mean, it is measured once and kept in a small file beside the
entry.

An entry is named by the scan's path, size and time of change, and by the transforms that it was stored after, with all
their parameters. So a changed file or setting never gets old voxels but another entry, and a changed intensity window
goes on with the same one. Two processes that need a scan at the same time both write its entry; the later rename wins,
and the content is equal.
"""

from __future__ import annotations

import json
import logging
import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from pymic_vf.data.cache_entry import CacheEntry, DamagedEntryError, packed
from pymic_vf.data.cache_folder import CacheFolder
from pymic_vf.data.cache_key import State, cache_key, describe, digest, scan_state
from pymic_vf.data.scan import UnusableScanError
from pymic_vf.data.scan_list import ScanList
from pymic_vf.data.volume_reader import MEMORY_BYTES, RecentVolumes
from pymic_vf.data.volume_transform import Volume, VolumeTransform, extremes, otsu_threshold
from pymic_vf.data.voxel_wise import Numbers
from pymic_vf.errors import UserError
from pymic_vf.files import whole_file
from pymic_vf.sizes import Size

log = logging.getLogger(__name__)
OTSU = ".otsu.json"
ATTEMPTS = 3  # to read from an entry that others write or damage


class CachedVolumeReader:
    """Reads crops from cache entries, and makes those that are not there.

    Args:
        scans: the list.
        transform: of each volume.
        folder: where the entries lie.
        memory_bytes: volumes that the folder's cap keeps out stay in memory, the most recent ones, up to this.
    """

    def __init__(
        self, scans: ScanList, transform: VolumeTransform, folder: CacheFolder, memory_bytes: int = MEMORY_BYTES
    ) -> None:
        self.scans, self.transform, self.folder = scans, transform, folder
        self._recent = RecentVolumes(memory_bytes)
        self._stored_after = describe(transform.of_volume)
        self._numbers_suffix = f".{digest(describe(transform.of_crops))}.json"

    def __len__(self) -> int:
        return len(self.scans)

    def shape(self, index: int) -> tuple[int, int, int, int]:
        return self.volume(index).shape

    def read(self, index: int, start: Size, size: Size) -> np.ndarray:
        return self._tried(index, lambda volume: volume.read(start, size))

    def share_above(self, index: int, threshold: float, start: Size, size: Size) -> float:
        return self._tried(index, lambda volume: volume.share_above(threshold, start, size))

    def otsu(self, index: int) -> float:
        """Otsu's threshold, measured once a scan and kept beside its entry."""
        return self._tried(index, self._otsu)

    def _otsu(self, volume: Volume) -> float:
        if not isinstance(volume.voxels, CacheEntry):
            return otsu_threshold(volume.voxels)
        path = volume.voxels.path
        if not (kept := self._read_numbers(path, OTSU)):
            kept = [otsu_threshold(volume.voxels)]
            self._write_numbers(path, OTSU, kept)
        return kept[0]

    def _tried(self, index: int, use: Callable[[Volume], Any]) -> Any:
        """What `use` makes of a volume, whose entry is made anew where it is found damaged in use."""
        for attempt in range(ATTEMPTS):
            volume = self.volume(index, in_doubt=attempt > 0)
            try:
                return use(volume)
            except DamagedEntryError as error:  # or written anew by another process: opening it decides
                reason = error
        raise UserError(f"cache_dir = {self.folder.path}: what is written there does not stay ({reason})")

    def entry_bytes(self, index: int) -> int:
        """What volume `index` takes in the cache; 0 where the cap keeps it out."""
        voxels = self.volume(index).voxels
        return voxels.path.stat().st_size if isinstance(voxels, CacheEntry) else 0

    def volume(self, index: int, in_doubt: bool = False) -> Volume:
        """The volume of a scan as its files are now; `in_doubt`, its entry is opened anew and verified."""
        files = self.scans.files(index)
        state = scan_state(files)
        if in_doubt:
            self._recent.pop((index, state), None)
        return self._recent.latest((index, state), lambda: self._opened(files, state, in_doubt))

    def _opened(self, files: Sequence[Path], state: State, in_doubt: bool) -> Volume:
        path = self.folder.entry(cache_key(files, state, self._stored_after))
        try:
            entry = CacheEntry(path, in_doubt)
            volume = self.transform.volume(files, entry, entry.extremes, self._kept_numbers(path))
            self._keep_numbers(path, volume)
            return volume
        except FileNotFoundError:
            pass
        except (DamagedEntryError, OSError) as error:
            log.warning("cache_dir: %s is damaged (%s) and is made anew from %s", path, error, files[0])
        return self._made(files, state)

    def _made(self, files: Sequence[Path], state: State) -> Volume:
        """Decode a scan and store it, under the state that its files had before and after."""
        voxels, after = self.transform.decode(files), scan_state(files)
        if after != state:  # replaced meanwhile: what was read may be half of each
            voxels = self.transform.decode(files)
            if scan_state(files) != after:
                raise UnusableScanError(f"{files[0]}: is being written to while it is read")
        return self._stored(files, after, voxels)

    def keep(self, files: Sequence[Path], state: State, voxels: np.ndarray) -> None:
        """Store what the transform decodes of a scan, where somebody else had to do it anyway and it is not there."""
        if not self.folder.entry(cache_key(files, state, self._stored_after)).exists():
            with suppress(UnusableScanError):  # whoever needs the scan is told
                self._stored(files, state, voxels)

    def _stored(self, files: Sequence[Path], state: State, voxels: np.ndarray) -> Volume:
        ends = extremes(voxels)
        volume = self.transform.volume(files, voxels, ends)  # a scan that cannot be used is not stored
        key = cache_key(files, state, self._stored_after)
        path, budget = self.folder.entry(key), sum(size for size, _ in state)
        if not self.folder.is_full and self.folder.add(path, packed(key, voxels, ends, budget)):
            self._keep_numbers(path, volume)
            with suppress(DamagedEntryError, OSError):
                return replace(volume, voxels=CacheEntry(path))
        return volume

    def _kept_numbers(self, path: Path) -> list[Numbers]:
        """What was measured in the volume of an entry; nothing where that is missing or damaged."""
        return self._read_numbers(path, self._numbers_suffix)

    def _keep_numbers(self, path: Path, volume: Volume) -> None:
        if numbers := volume.to_keep():
            self._write_numbers(path, self._numbers_suffix, numbers)

    @staticmethod
    def _read_numbers(path: Path, suffix: str) -> list:
        with suppress(FileNotFoundError, ValueError, TypeError):
            numbers, checksum = json.loads(path.with_suffix(suffix).read_bytes())
            if checksum == _checksum(path, numbers):
                return numbers
        return []

    def _write_numbers(self, path: Path, suffix: str, numbers: list) -> None:
        with self.folder.writing(), whole_file(path.with_suffix(suffix)) as temporary:
            temporary.write_text(json.dumps([numbers, _checksum(path, numbers)]))


def _checksum(path: Path, numbers: list) -> int:
    """Of the numbers of an entry; those of another one have another."""
    return zlib.crc32(json.dumps([path.name, numbers]).encode())
