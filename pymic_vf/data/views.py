"""PyMIC's transforms that only move voxels, padding and cropping at fixed places, as indices along each axis.

With them a crop of a padded volume is read without padding the volume, and a cache entry serves every padding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from pymic.transform.crop import CenterCrop, CropWithBoundingBox
from pymic.transform.pad import Pad

from pymic_vf.sizes import Size

Axes = tuple[np.ndarray, np.ndarray, np.ndarray]  # for each axis, which voxel lies where


def is_view(transform: Any) -> bool:
    """Whether a transform can be made of indices: its places follow from the volume's size alone."""
    if type(transform) is CropWithBoundingBox:
        return transform.start is not None and transform.output_size is not None
    return type(transform) in (Pad, CenterCrop)


def all_of(size: Size) -> Axes:
    """The axes of a volume as it is."""
    return tuple(np.arange(n) for n in size)


def seen_through(transform: Any, axes: Axes) -> Axes:
    """The axes after a transform that is a view.

    Raises:
        ValueError: it does not fit the volume.
    """
    size = [len(axis) for axis in axes]
    if type(transform) is Pad:
        return padded(axes, *pad_margins(transform, size))
    wanted = list(transform.output_size)
    if len(wanted) != len(size):
        raise ValueError(f"output_size = {wanted} is for {len(wanted)} axes")
    if type(transform) is CenterCrop:
        wanted = [size[0] if wanted[0] is None else wanted[0], *wanted[1:]]
        start = [int((n - w) / 2) for n, w in zip(size, wanted, strict=True)]
    else:
        start = list(transform.start)
    stop = [first + w for first, w in zip(start, wanted, strict=True)]
    if any(first < 0 or last > n for first, last, n in zip(start, stop, size, strict=True)):
        raise ValueError(f"a volume of {size} voxels has no box from {start} to {stop}")
    return tuple(axis[first:last] for axis, first, last in zip(axes, start, stop, strict=True))


def pad_margins(transform: Pad, size: Sequence[int]) -> tuple[list[int], list[int]]:
    """The voxels that PyMIC's Pad adds before and after each axis."""
    wanted = [size[0], *transform.output_size] if len(transform.output_size) == 2 else list(transform.output_size)
    if transform.ceil_mode:
        wanted = [math.ceil(n / w) * w for n, w in zip(size, wanted, strict=True)]
    margins = [max(0, w - n) for n, w in zip(size, wanted, strict=True)]
    return [margin // 2 for margin in margins], [margin - margin // 2 for margin in margins]


def padded(axes: Axes, before: Sequence[int], after: Sequence[int]) -> Axes:
    """The axes of a volume that is mirrored beyond its ends, the end itself once, as PyMIC pads."""
    margins = zip(axes, before, after, strict=True)
    return tuple(np.pad(axis, (low, high), "reflect") for axis, low, high in margins)


class View:
    """An array [C, D, H, W] seen through axes, and read like an array.

    Args:
        voxels: an array, or a cache entry.
        axes: of the view; indices of `voxels`.
    """

    def __init__(self, voxels: Any, axes: Axes) -> None:
        self.voxels, self.axes = voxels, axes
        self.shape = (voxels.shape[0], *(len(axis) for axis in axes))

    def __getitem__(self, box: Any) -> np.ndarray:
        """The voxels of a channel, or of a box of four slices. Only the part they lie in is read of the array."""
        if not isinstance(box, tuple):
            return self[(slice(box, box + 1), slice(None), slice(None), slice(None))][0]
        channels, *slices = box
        axes = [axis[one] for axis, one in zip(self.axes, slices, strict=True)]
        first = [int(axis.min()) for axis in axes]
        part = self.voxels[(channels, *(slice(a, int(axis.max()) + 1) for a, axis in zip(first, axes, strict=True)))]
        for number, (a, axis) in enumerate(zip(first, axes, strict=True), start=1):
            if len(axis) != part.shape[number] or (np.diff(axis) != 1).any():
                part = part.take(axis - a, axis=number)
        return part
