"""PyMIC's random crops of an image and its label, drawn as PyMIC draws them and read from the cache.

For the same state of Python's random generator it is the same crop, and leaves the generator in the same state; the
places of the foreground are known, so that the label is not searched.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from pymic.transform.crop import RandomCrop, RandomResizedCrop
from pymic.util.image_process import get_random_box_from_mask
from scipy import ndimage

from pymic_vf.data.foreground import Foreground
from pymic_vf.data.labelled_reader import LabelledReader
from pymic_vf.data.views import View, all_of, padded
from pymic_vf.sizes import Size

Pair = tuple[np.ndarray, np.ndarray]  # float32 [C, D, H, W] and int32 [1, D, H, W]


def is_random_crop(transform: Any) -> bool:
    """Whether :func:`random_crop` makes the crop of a transform."""
    return type(transform) in CROPS


def random_crop(transform: Any, reader: LabelledReader, index: int) -> Pair:
    """What a random crop of PyMIC's makes of an image and its label."""
    return CROPS[type(transform)](transform, reader, index)


def least_size(transform: Any) -> Size:
    """(D, H, W) of the smallest volume of which a random crop can be taken; another needs Pad."""
    if type(transform) is RandomCrop:
        return tuple(side or 1 for side in transform.output_size)
    return (1, 1, 1)


def check_foreground(transform: Any, foreground: Foreground) -> None:
    """Raise ValueError where a label lacks what a random crop may ask for: PyMIC fails when it does."""
    if type(transform) is RandomCrop:
        is_asked = transform.fg_focus and transform.fg_ratio > 0 and foreground.total > 0
    else:
        is_asked = type(transform) is RandomResizedCrop and transform.fg_ratio > 0
    if not is_asked:
        return
    key = type(transform).__name__
    if transform.mask_label is None and len(foreground.classes) < 2:
        raise ValueError(f"every voxel of the label is {foreground.classes[0]}, where {key} asks for a foreground")
    missing = [value for value in transform.mask_label or () if not foreground.count(value)]
    if missing:
        raise ValueError(
            f"{key}_mask_label = {list(transform.mask_label)}: the label has no voxel of {missing}, "
            f"its values are {foreground.classes.tolist()}"
        )


def _random_crop(transform: RandomCrop, reader: LabelledReader, index: int) -> Pair:
    shape = reader.shape(index)[1:]
    size = [n if side is None else side for n, side in zip(shape, transform.output_size, strict=True)]
    margins = [n - side for n, side in zip(shape, size, strict=True)]
    start = [0 if margin == 0 else random.randint(0, margin) for margin in margins]
    foreground = reader.foreground(index)
    if foreground.total > 0 and transform.fg_focus and random.random() < transform.fg_ratio:
        value = random.choice(foreground.classes[1:] if transform.mask_label is None else transform.mask_label)
        number = random.randint(0, foreground.count(value) - 1)
        centre = reader.voxel_of(index, value, number)
        start = [min(max(0, c - side // 2), m) for c, side, m in zip(centre, size, margins, strict=True)]
    return reader.read_pair(index, start, size)


def _random_resized_crop(transform: RandomResizedCrop, reader: LabelledReader, index: int) -> Pair:
    shape, wanted = reader.shape(index)[1:], list(transform.output_size)
    resizes = random.random() < transform.prob
    if resizes:
        limits = zip(transform.scale_lower, transform.scale_upper, strict=True)
        scale = [low + (high - low) * random.random() for low, high in limits]
        size = [int(n * factor) for n, factor in zip(wanted, scale, strict=True)]
    else:
        size = wanted
    missing = [max(0, n - have) for n, have in zip(size, shape, strict=True)]
    before = [n // 2 for n in missing]
    axes = padded(all_of(shape), before, [n - b for n, b in zip(missing, before, strict=True)])
    if random.random() < transform.fg_ratio:
        start = _around_foreground(transform, reader, index, size, axes if any(missing) else None)
    else:
        start = [random.randint(0, len(axis) - n) for axis, n in zip(axes, size, strict=True)]
    part = tuple(axis[first : first + n] for axis, first, n in zip(axes, start, size, strict=True))
    image, label = _read_axes(reader, index, part)
    if resizes:
        factors = [1.0] + [(n + 0.0) / have for n, have in zip(wanted, size, strict=True)]
        image, label = ndimage.zoom(image, factors, order=1), ndimage.zoom(label, factors, order=0)
    return image, label


def _around_foreground(
    transform: RandomResizedCrop, reader: LabelledReader, index: int, size: Sequence[int], axes: Any
) -> list[int]:
    """The first voxels of a box around a voxel of the foreground; `axes` of the padding, which has foreground too."""
    foreground = reader.foreground(index)
    value = random.choice(foreground.classes[1:] if transform.mask_label is None else transform.mask_label)
    shape = reader.shape(index)[1:]
    if axes is not None:
        label = reader.labels.read(index, (0, 0, 0), shape)
        mask = View(label, axes)[0] == value
        return get_random_box_from_mask(mask, size, mode=1)[0]
    centre = reader.voxel_of(index, value, random.randint(0, foreground.count(value) - 1))
    return [min(max(0, c - n // 2), have - n) for c, n, have in zip(centre, size, shape, strict=True)]


def _read_axes(reader: LabelledReader, index: int, axes: Any) -> Pair:
    """The voxels at the places that `axes` name, of the image and of the label."""
    first = [int(axis.min()) for axis in axes]
    size = [int(axis.max()) + 1 - a for axis, a in zip(axes, first, strict=True)]
    pair = reader.read_pair(index, first, size)
    places = tuple(axis - a for axis, a in zip(axes, first, strict=True))
    image, label = (np.ascontiguousarray(View(each, places)[(slice(None),) * 4]) for each in pair)
    return image, label


CROPS: dict[type, Callable[[Any, LabelledReader, int], Pair]] = {
    RandomCrop: _random_crop,
    RandomResizedCrop: _random_resized_crop,
}
