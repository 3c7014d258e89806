"""Where crops come from: one small interface, and the reader that decodes whole volumes."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from pymic_vf.data.scan_list import ScanList
from pymic_vf.data.volume_transform import Volume, VolumeTransform, extremes, otsu_threshold
from pymic_vf.sizes import Size

MEMORY_BYTES = 512 * 2**20


class VolumeReader(Protocol):
    """Reads crops of the scans of a list, each after ``volume_transform``.

    Both methods raise UnusableScanError where the scan cannot be used, UserError where the cache cannot be written to.
    """

    def __len__(self) -> int: ...

    def shape(self, index: int) -> tuple[int, int, int, int]:
        """(C, D, H, W) of volume `index`."""

    def read(self, index: int, start: Size, size: Size) -> np.ndarray:
        """The box of `size` voxels from `start`, wholly inside: [C, D, H, W], float32, the caller's own."""

    def share_above(self, index: int, threshold: float, start: Size, size: Size) -> float:
        """The share of a box's voxels whose first channel is above a threshold, before the voxel-wise transforms."""

    def otsu(self, index: int) -> float:
        """Otsu's threshold of the first channel of volume `index`, before the voxel-wise transforms."""


class WholeVolumeReader:
    """Decodes whole volumes and keeps the most recent ones in memory.

    Args:
        scans: the list.
        transform: of each volume.
        memory_bytes: the volumes kept take no more than this in each process; the latest is always kept.
    """

    def __init__(self, scans: ScanList, transform: VolumeTransform, memory_bytes: int = MEMORY_BYTES) -> None:
        self.scans, self.transform, self._recent = scans, transform, RecentVolumes(memory_bytes)
        self._otsu: dict[int, float] = {}

    def __len__(self) -> int:
        return len(self.scans)

    def shape(self, index: int) -> tuple[int, int, int, int]:
        return self._volume(index).voxels.shape

    def read(self, index: int, start: Size, size: Size) -> np.ndarray:
        return self._volume(index).read(start, size)

    def share_above(self, index: int, threshold: float, start: Size, size: Size) -> float:
        return self._volume(index).share_above(threshold, start, size)

    def otsu(self, index: int) -> float:
        if index not in self._otsu:
            self._otsu[index] = otsu_threshold(self._volume(index).voxels)
        return self._otsu[index]

    def _volume(self, index: int) -> Volume:
        return self._recent.latest(index, lambda: self._decoded(self.scans.files(index)))

    def _decoded(self, files: Sequence[Path]) -> Volume:
        voxels = self.transform.decode(files)
        return self.transform.volume(files, voxels, extremes(voxels))


class RecentVolumes(dict):
    """The volumes used last, the latest at the end. Another process gets a copy without them.

    Args:
        memory_bytes: that they take together at most; the latest is always kept.
    """

    def __init__(self, memory_bytes: int) -> None:
        super().__init__()
        self.memory_bytes = memory_bytes

    def __reduce__(self) -> tuple[type, tuple[int]]:
        return RecentVolumes, (self.memory_bytes,)

    def latest(self, key: Hashable, load: Callable[[], Volume]) -> Volume:
        """The volume of a key, loaded where it is not there."""
        self[key] = volume = self.pop(key, None) or load()
        while len(self) > 1 and sum(volume.voxels.nbytes for volume in self.values()) > self.memory_bytes:
            del self[next(iter(self))]
        return volume
