"""Transforms that give a voxel its new value by its old one alone: worked out once for each number of a scan.

A CT of 50 million voxels has some 4,000 different numbers. What such a transform makes of them is a table, and the
scan's numbers with that table are what the cache stores anyway; so the volume itself need not be transformed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from pymic.transform.normalize import NormalizeWithMeanStd, NormalizeWithMinMax

MOST_VALUES = 2**16  # of a table


def are_point_wise(transforms: Sequence[Callable[[dict], dict]]) -> bool:
    """Whether all transforms are known to depend on a voxel's value and its channel's extremes alone, monotonously."""
    return bool(transforms) and all(_is_point_wise(transform) for transform in transforms)


def _is_point_wise(transform: Callable[[dict], dict]) -> bool:
    kind = type(transform)  # a class derived from one of these may do anything
    if kind is NormalizeWithMeanStd:
        given = all(value is not None for values in (transform.mean, transform.std) for value in (values or [None]))
        return given and transform.mask_thrd is None
    return kind is NormalizeWithMinMax


def number_range(voxels: np.ndarray) -> tuple[int, int] | None:
    """The smallest and the largest number of a scan of small whole numbers; None where a table would be too long."""
    if voxels.dtype.kind not in "iu":
        return None
    lowest, highest = int(voxels.min()), int(voxels.max())
    return (lowest, highest) if highest - lowest < MOST_VALUES else None


def numbers_to_transform(voxels: np.ndarray, lowest: int, highest: int) -> np.ndarray:
    """A volume [C, 1, 1, n], float32, of the numbers from the smallest to the largest, in place of `voxels` [C, ...].

    Each channel has the extremes of its own: a number beyond them, which it does not have, is the nearer one of them.
    """
    numbers = np.arange(lowest, highest + 1)
    ends = [(channel.min(), channel.max()) for channel in voxels]
    return np.stack([np.clip(numbers, *end) for end in ends]).astype(np.float32)[:, None, None]
