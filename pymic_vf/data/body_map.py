"""Crops that hold body: a coarse map of each volume tells what a crop would hold, so that another can be drawn.

CT has much air, and a crop of air alone teaches nothing. The map is every second voxel along z and every fourth along
y and x, each a bit; a share counted from it needs no voxel decoded. Not of the paper, which draws crops uniformly.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import SimpleITK as sitk

STRIDE = (2, 4, 4)
TRIES = 32  # places of which the first that holds enough is taken


@dataclass(frozen=True)
class LeastBody:
    """What a crop must hold.

    Args:
        share: of its voxels, in [0, 1], that are body.
        threshold: above which a voxel is, in the units that ``cache_dir`` keeps; None: by Otsu's method
            (N. Otsu 1979), for each volume.
    """

    share: float
    threshold: float | None

    def body(self, voxels: np.ndarray) -> np.ndarray:
        """The map of a volume.

        Args:
            voxels: [C, D, H, W]; body is what is above the threshold in any channel.

        Returns:
            bool [D / 2, H / 4, W / 4], rounded up.
        """
        coarse = voxels[(slice(None), *(slice(None, None, step) for step in STRIDE))]
        return np.stack([channel > self._threshold(channel) for channel in coarse]).any(axis=0)

    def _threshold(self, channel: np.ndarray) -> float:
        if self.threshold is not None:
            return self.threshold
        otsu = sitk.OtsuThresholdImageFilter()
        otsu.Execute(sitk.GetImageFromArray(channel.astype(np.float32)))
        return otsu.GetThreshold()


def share_of_body(body: np.ndarray, volume: Sequence[int], start: Sequence[int], crop: Sequence[int]) -> float:
    """The share of a crop that is body, by those of its voxels that the map has.

    Args:
        body: the map of a volume.
        volume: (D, H, W) of the volume.
        start: (z, y, x) of the crop in it; what lies outside is mirrored.
        crop: (D, H, W) of the crop.
    """
    places = []
    for size, first, length, step in zip(volume, start, crop, STRIDE, strict=True):
        place = np.arange(first, first + length, step) % (2 * size)
        places.append(np.minimum(place, 2 * size - 1 - place) // step)
    return float(body[np.ix_(*places)].mean())


def first_with(share: float, places: Iterable[np.ndarray], share_at: Callable[[np.ndarray], float]) -> np.ndarray:
    """The first place that has at least a share of body; without one, that which has the most."""
    best, most = None, -1.0
    for place in places:
        if (found := share_at(place)) > most:
            best, most = place, found
        if most >= share:
            break
    return best


def packed_map(body: np.ndarray) -> bytes:
    """A map as the content of a file, with a checksum."""
    bits = np.packbits(body).tobytes()
    return zlib.crc32(bits).to_bytes(4, "little") + bits


def unpacked_map(content: bytes, size: Sequence[int]) -> np.ndarray | None:
    """The map of a volume of (D, H, W) from :func:`packed_map`'s content; None where that is damaged."""
    shape = [-(-n // step) for n, step in zip(size, STRIDE, strict=True)]
    bits, count = content[4:], int(np.prod(shape))
    if len(bits) != -(-count // 8) or zlib.crc32(bits).to_bytes(4, "little") != content[:4]:
        return None
    return np.unpackbits(np.frombuffer(bits, np.uint8), count=count).astype(bool).reshape(shape)
