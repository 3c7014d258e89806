"""``volume_transform`` in two halves: what is done to a whole volume, and what is done to each crop of it.

The transforms at the end of the list that work voxel by voxel, such as an intensity window, are applied to crops. Those
before them (resampling, cropping, any that is not known) are applied once to the whole volume; that is what is kept, as
the file's integers where nothing is lost.
"""

from __future__ import annotations

import copy
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from pymic_vf.data.scan import Scan, UnusableScanError, read_scan
from pymic_vf.data.seeds import VOLUME, seeded
from pymic_vf.data.views import Axes, View
from pymic_vf.data.voxel_wise import Numbers, Step, is_voxel_wise, measured_numbers, steps_of
from pymic_vf.errors import UserError
from pymic_vf.sizes import Size


@dataclass(frozen=True)
class Volume:
    """A volume of which crops can be read.

    Args:
        voxels: [C, D, H, W], integers or float32: an array, or a cache entry, which is read like one.
        steps: what is still to be done to a crop.
        axes: which of the voxels lie where, see :mod:`pymic_vf.data.views`; None where they all are in their places.
    """

    voxels: np.ndarray
    steps: Sequence[Step]
    axes: Axes | None = None

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(C, D, H, W) of what crops are read from."""
        return self.voxels.shape if self.axes is None else View(self.voxels, self.axes).shape

    def read(self, start: Size, size: Size) -> np.ndarray:
        """The box of `size` voxels from `start`, wholly inside: [C, D, H, W], float32, the caller's own."""
        box = (slice(None), *(slice(first, first + n) for first, n in zip(start, size, strict=True)))
        voxels = self.voxels if self.axes is None else View(self.voxels, self.axes)
        crop = voxels[box].astype(np.float32, order="C")
        for step in self.steps:
            step.apply(crop[step.channel])
        return crop

    def share_above(self, threshold: float, start: Size, size: Size) -> float:
        """The share of a box's voxels whose first channel, as it is kept, is above a threshold."""
        box = (slice(0, 1), *(slice(first, first + n) for first, n in zip(start, size, strict=True)))
        voxels = self.voxels if self.axes is None else View(self.voxels, self.axes)
        return float((voxels[box] > threshold).mean())

    def to_keep(self) -> list[Numbers]:
        """What opening the volume measured and the next opening can be given; nothing where nothing was measured."""
        return measured_numbers(self.steps)


class VolumeTransform:
    """PyMIC transforms of a whole volume, whatever sample it is for.

    Args:
        transforms: PyMIC transform objects, in order.
        channels: how many channels a scan must have; None takes what comes.
        smallest: (D, H, W), in voxels, of the smallest volume that is of use after the transforms.
    """

    key = "volume_transform"  # of the config, for messages

    def __init__(
        self, transforms: Sequence[Callable[[dict], dict]], channels: int | None = None, smallest: Size = (1, 1, 1)
    ) -> None:
        self.channels, self.smallest = channels, tuple(smallest)
        first = len(transforms)
        while first and is_voxel_wise(transforms[first - 1]):
            first -= 1
        self.of_volume, self.of_crops = tuple(transforms[:first]), tuple(transforms[first:])

    def decode(self, files: Sequence[Path]) -> np.ndarray:
        """What is kept of a scan: [C, D, H, W], integers or float32.

        Raises:
            UnusableScanError: it cannot be read, or a transform fails.
        """
        return self.transformed(files, self.of_volume)[0]

    def transformed(
        self, files: Sequence[Path], transforms: Sequence[Callable[[dict], dict]], **more: np.ndarray
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """What is kept of a scan after `transforms`, and their sample, which begins with the scan and `more`."""
        scan = read_scan(files, self.channels)
        voxels, sample = scan.voxels, more
        with self.named(files):
            if transforms:
                sample = _sample(scan, [str(file) for file in files], transforms, more)
                voxels = np.ascontiguousarray(sample["image"], np.float32)
            if voxels.ndim != 4 or not voxels.size:
                raise ValueError(f"it leaves no volume, but {list(voxels.shape)}")
        return _in_type_to_keep(voxels, scan.voxels.dtype), sample

    def volume(
        self, files: Sequence[Path], voxels: np.ndarray, ends: np.ndarray, known: Sequence[Numbers] = ()
    ) -> Volume:
        """A volume whose crops are those of the transformed volume.

        Args:
            files: of the scan.
            voxels: what :meth:`decode` made of it.
            ends: their :func:`extremes`.
            known: see :func:`pymic_vf.data.voxel_wise.steps_of`.

        Raises:
            UnusableScanError: a transform fails, or leaves NaN, the same value everywhere, or less than `smallest`.
        """
        with self.named(files), np.errstate(all="ignore"):
            volume = self._prepared(voxels, known)
            ends = replace(volume, voxels=ends, axes=None).read((0, 0, 0), (1, 1, 2))
        size = volume.shape[1:]
        if any(n < least for n, least in zip(size, self.smallest, strict=True)):
            least = list(self.smallest)
            raise UnusableScanError(f"{files[0]}: too small, {list(size)} voxels where {least} are the least")
        if not np.isfinite(ends).all():
            raise UnusableScanError(f"{files[0]}: {self.key} leaves NaN or infinite voxels")
        if ends.min() == ends.max():
            raise UnusableScanError(f"{files[0]}: flat, every voxel is {ends.flat[0]:g}")
        return volume

    def _prepared(self, voxels: np.ndarray, known: Sequence[Numbers]) -> Volume:
        return Volume(voxels, steps_of(self.of_crops, voxels, known))

    @contextmanager
    def named(self, files: Sequence[Path]) -> Iterator[None]:
        """Whatever a transform raises in the block becomes a reason why the scan cannot be used."""
        try:
            yield
        except UserError:
            raise
        except Exception as error:
            reason = f"{self.key} failed ({type(error).__name__}: {error})"
            raise UnusableScanError(f"{files[0]}: {reason}") from error


def _sample(
    scan: Scan, names: list[str], transforms: Sequence[Callable[[dict], dict]], more: dict[str, np.ndarray]
) -> dict[str, Any]:
    sample = {
        "image": scan.voxels.astype(np.float32),
        "names": names,
        "origin": scan.origin,
        "spacing": scan.spacing,
        "direction": scan.direction,
        **more,
    }
    # seeded by the name, so that a transform with random parts gives a volume the same voxels at every decoding
    with seeded(VOLUME, zlib.crc32(names[0].encode())):
        for transform in copy.deepcopy(transforms):  # some take the size of their first volume for all others'
            sample = transform(sample)
    return sample


def extremes(voxels: np.ndarray) -> np.ndarray:
    """The smallest and the largest voxel of each channel: float32 [C, 1, 1, 2]."""
    ends = [voxels.min(axis=(1, 2, 3)), voxels.max(axis=(1, 2, 3))]
    return np.stack(ends, axis=-1)[:, None, None].astype(np.float32)


def otsu_threshold(voxels: Any) -> float:
    """The threshold that parts the first channel best into two classes (Otsu 1979), by every 4th voxel of each axis.

    Args:
        voxels: [C, D, H, W], an array or a cache entry.
    """
    from skimage.filters import threshold_otsu  # slow to import, and few need it

    return float(threshold_otsu(np.ascontiguousarray(voxels[0][::4, ::4, ::4])))


def _in_type_to_keep(voxels: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """The same voxels as integers of `dtype`, the file's, where it can hold them; else floats as float32."""
    if voxels.dtype.kind == "f" and dtype.kind in "iu":
        with np.errstate(invalid="ignore"):
            whole = voxels.astype(dtype)
        voxels = whole if np.array_equal(whole, voxels) else voxels
    kind = {"b": np.uint8, "f": np.float32}.get(voxels.dtype.kind, voxels.dtype.newbyteorder("="))
    return voxels.astype(kind, order="C", copy=False)
