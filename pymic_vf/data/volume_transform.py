"""``volume_transform`` in two halves: what is done to a whole volume, and what is done to each crop of it.

The transforms at the end of the list that work voxel by voxel, such as an intensity window, are applied to crops. Those
before them (resampling, cropping, any that is not known) are applied once to the whole volume; that is what is kept, as
the file's integers where nothing is lost.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from pymic_vf.data.scan import Scan, UnusableScanError, in_memory, read_scan
from pymic_vf.data.seeds import VOLUME, seeded
from pymic_vf.data.voxel_wise import Numbers, Step, is_voxel_wise, steps_of
from pymic_vf.errors import UserError
from pymic_vf.sizes import Size


@dataclass(frozen=True)
class Volume:
    """A volume of which crops can be read.

    Args:
        voxels: [C, D, H, W], integers or float32: an array, or a cache entry, which is read like one.
        steps: what is still to be done to a crop.
    """

    voxels: np.ndarray
    steps: Sequence[Step]

    def read(self, start: Size, size: Size) -> np.ndarray:
        """The box of `size` voxels from `start`, wholly inside: [C, D, H, W], float32, the caller's own."""
        box = (slice(None), *(slice(first, first + n) for first, n in zip(start, size, strict=True)))
        crop = self.voxels[box].astype(np.float32, order="C")
        for step in self.steps:
            step.apply(crop[step.channel])
        return crop


class VolumeTransform:
    """PyMIC transforms of a whole volume, whatever sample it is for.

    Args:
        transforms: PyMIC transform objects, in order.
        channels: how many channels a scan must have; None takes what comes.
        smallest: (D, H, W), in voxels, of the smallest volume that is of use after the transforms.
    """

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
        scan = read_scan(files, self.channels)
        with _named(files):
            voxels = self._transformed(scan, [str(file) for file in files]) if self.of_volume else scan.voxels
            if voxels.ndim != 4 or not voxels.size:
                raise ValueError(f"it leaves no volume, but {list(voxels.shape)}")
        with in_memory(files):
            return _in_type_to_keep(voxels, scan.voxels.dtype)

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
        size = voxels.shape[1:]
        if any(n < least for n, least in zip(size, self.smallest, strict=True)):
            least = list(self.smallest)
            raise UnusableScanError(f"{files[0]}: too small, {list(size)} voxels where {least} are the least")
        with _named(files), np.errstate(all="ignore"):
            volume = Volume(voxels, steps_of(self.of_crops, voxels, known))
            ends = replace(volume, voxels=ends).read((0, 0, 0), (1, 1, 2))
        if not np.isfinite(ends).all():
            raise UnusableScanError(f"{files[0]}: volume_transform leaves NaN or infinite voxels")
        if ends.min() == ends.max():
            raise UnusableScanError(f"{files[0]}: flat, every voxel is {ends.flat[0]:g}")
        return volume

    def _transformed(self, scan: Scan, names: list[str]) -> np.ndarray:
        sample = {
            "image": scan.voxels.astype(np.float32),
            "names": names,
            "origin": scan.origin,
            "spacing": scan.spacing,
            "direction": scan.direction,
        }
        # seeded by the name, so that a transform with random parts gives a volume the same voxels at every decoding
        with seeded(VOLUME, zlib.crc32(names[0].encode())):
            for transform in self.of_volume:
                sample = transform(sample)
        return np.ascontiguousarray(sample["image"], np.float32)


def extremes(voxels: np.ndarray) -> np.ndarray:
    """The smallest and the largest voxel of each channel: float32 [C, 1, 1, 2]."""
    ends = [voxels.min(axis=(1, 2, 3)), voxels.max(axis=(1, 2, 3))]
    return np.stack(ends, axis=-1)[:, None, None].astype(np.float32)


def _in_type_to_keep(voxels: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """The same voxels as integers of `dtype`, the file's, where it can hold them; else floats as float32."""
    if voxels.dtype.kind == "f" and dtype.kind in "iu":
        with np.errstate(invalid="ignore"):
            whole = voxels.astype(dtype)
        voxels = whole if np.array_equal(whole, voxels) else voxels
    kind = {"b": np.uint8, "f": np.float32}.get(voxels.dtype.kind, voxels.dtype.newbyteorder("="))
    return voxels.astype(kind, order="C", copy=False)


@contextmanager
def _named(files: Sequence[Path]) -> Iterator[None]:
    """Whatever a transform raises in the block becomes a reason why the scan cannot be used."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = f"volume_transform failed ({type(error).__name__}: {error})"
        raise UnusableScanError(f"{files[0]}: {reason}") from error
