"""Where sub-volumes come from: one small interface, and the reader that decodes whole volumes."""

from __future__ import annotations

import zlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from pymic_vf.data.random_state import VOLUME, seeded
from pymic_vf.data.scan import Scan, UnusableScanError, read_scan
from pymic_vf.data.scan_list import ScanList
from pymic_vf.errors import UserError

MEMORY_BYTES = 512 * 2**20


class VolumeReader(Protocol):
    """Reads sub-volumes of the scans of a list, each after ``volume_transform``."""

    def __len__(self) -> int: ...

    def shape(self, index: int) -> tuple[int, int, int, int]:
        """(C, D, H, W) of volume `index`."""

    def read(self, index: int, start: Sequence[int], size: Sequence[int]) -> np.ndarray:
        """The box of `size` (d, h, w) voxels from `start`, wholly inside: [C, d, h, w], float32, the caller's own."""


class VolumeTransform:
    """PyMIC transforms applied once to a whole volume, whatever sample it is for.

    Args:
        transforms: PyMIC transform objects, in order.
        channels: how many channels a scan must have; None takes what comes.
        smallest: (D, H, W), in voxels, of the smallest volume that is of use after the transforms.
    """

    def __init__(
        self,
        transforms: Sequence[Callable[[dict], dict]],
        channels: int | None = None,
        smallest: Sequence[int] = (1, 1, 1),
    ) -> None:
        self.transforms, self.channels, self.smallest = tuple(transforms), channels, tuple(smallest)

    def load(self, scans: ScanList, index: int) -> np.ndarray:
        """Decode volume `index` and transform it: [C, D, H, W], in the file's type where there is no transform.

        Raises:
            UnusableScanError: the scan cannot be read, a transform cannot be applied to it or makes NaN of it, or what
                it leaves is smaller than `smallest` or has the same value everywhere.
        """
        files = scans.files(index)
        voxels = self.transformed(self.decode(files), files)
        self.check_use(files, voxels, voxels.shape[1:])
        return voxels

    def decode(self, files: Sequence[Path]) -> Scan:
        """The scan of those files as it is.

        Raises:
            UnusableScanError: it cannot be read, or has other channels.
        """
        return read_scan(files, self.channels)

    def transformed(self, scan: Scan, files: Sequence[Path]) -> np.ndarray:
        """What the transforms make of a scan: [C, D, H, W]; its own voxels where there is none.

        Raises:
            UnusableScanError: a transform cannot be applied to it or makes NaN of it.
        """
        if not self.transforms:
            return scan.voxels
        try:
            voxels = self._apply(scan, [str(file) for file in files])
        except UserError:
            raise
        except Exception as error:
            reason = f"volume_transform failed ({type(error).__name__}: {error})"
            raise UnusableScanError(f"{files[0]}: {reason}") from error
        if voxels.ndim != 4 or not np.isfinite(voxels).all():
            raise UnusableScanError(f"{files[0]}: volume_transform leaves NaN, infinite or missing voxels")
        return voxels

    def check_use(self, files: Sequence[Path], voxels: np.ndarray, size: Sequence[int]) -> None:
        """Whether a volume of that size (D, H, W), with those values among its `voxels`, can be trained on.

        Raises:
            UnusableScanError: it is smaller than `smallest`, or has the same value everywhere.
        """
        if any(n < least for n, least in zip(size, self.smallest, strict=True)):
            least = list(self.smallest)
            raise UnusableScanError(f"{files[0]}: too small, {list(size)} voxels where {least} are the least")
        if voxels.min() == voxels.max():
            raise UnusableScanError(f"{files[0]}: flat, every voxel is {voxels.flat[0]}")

    def _apply(self, scan: Scan, names: list[str]) -> np.ndarray:
        sample: dict[str, Any] = {
            "image": scan.voxels.astype(np.float32),
            "names": names,
            "origin": scan.origin,
            "spacing": scan.spacing,
            "direction": scan.direction,
        }
        # seeded by the name, so that a transform with random parts gives a volume the same voxels at every decoding
        with seeded(VOLUME, zlib.crc32(names[0].encode())):
            for transform in self.transforms:
                sample = transform(sample)
        return np.ascontiguousarray(sample["image"], np.float32)


class WholeVolumeReader:
    """Decodes whole volumes and keeps the most recent ones in memory.

    Args:
        scans: the list.
        transform: applied once to each volume that is decoded.
        memory_bytes: the decoded volumes kept take no more than this in each process; the latest is always kept.
    """

    def __init__(self, scans: ScanList, transform: VolumeTransform, memory_bytes: int = MEMORY_BYTES) -> None:
        self.scans, self.transform, self.memory_bytes = scans, transform, memory_bytes
        self._recent: OrderedDict[int, np.ndarray] = OrderedDict()

    def __len__(self) -> int:
        return len(self.scans)

    def shape(self, index: int) -> tuple[int, int, int, int]:
        return self._volume(index).shape

    def read(self, index: int, start: Sequence[int], size: Sequence[int]) -> np.ndarray:
        box = tuple(slice(s, s + n) for s, n in zip(start, size, strict=True))
        return self._volume(index)[(slice(None), *box)].astype(np.float32, order="C")

    def _volume(self, index: int) -> np.ndarray:
        if index in self._recent:
            self._recent.move_to_end(index)
        else:
            self._recent[index] = self.transform.load(self.scans, index)
            while len(self._recent) > 1 and sum(v.nbytes for v in self._recent.values()) > self.memory_bytes:
                self._recent.popitem(last=False)
        return self._recent[index]
