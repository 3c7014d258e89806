"""PyMIC's transforms of an image and its label, split by what can be kept of them.

The transforms up to the first random one are the same for every sample of a scan. What they leave of the image is kept
as for a pretraining, see :mod:`pymic_vf.data.volume_transform`, with paddings and crops at fixed places as views, so
that one entry of a scan serves a pretraining, the training and the validation. What they leave of the label is kept
whole, a byte a voxel, and with it where its classes are. The rest, from the first random transform on, are PyMIC's own
objects, for every sample.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from pymic.transform.crop import CenterCrop, CropHumanRegion, CropWithBoundingBox
from pymic.transform.intensity import GrayscaleToRGB, HistEqual
from pymic.transform.label_convert import LabelConvert, LabelConvertNonzero, LabelSelect
from pymic.transform.pad import Pad
from pymic.transform.rescale import Resample, Rescale
from pymic.transform.threshold import ChannelWiseThreshold, ChannelWiseThresholdWithNormalize

from pymic_vf.data.cache_key import State, scan_state
from pymic_vf.data.foreground import Foreground
from pymic_vf.data.scan import UnusableScanError, read_scan
from pymic_vf.data.scan_header import read_header
from pymic_vf.data.views import View, all_of, is_view, seen_through
from pymic_vf.data.volume_transform import Volume, VolumeTransform
from pymic_vf.data.voxel_wise import Numbers, is_voxel_wise, steps_of
from pymic_vf.sizes import Size

Transform = Callable[[dict], dict]
OF_LABELS = (LabelConvert, LabelConvertNonzero, LabelSelect)
SAME_EACH_TIME = (
    *OF_LABELS, Rescale, Resample, Pad, CenterCrop, CropWithBoundingBox, CropHumanRegion, GrayscaleToRGB, HistEqual,
    ChannelWiseThreshold,
)  # fmt: skip
LABEL_TYPES = (np.uint8, np.int16, np.int32)


def split_at_random(transforms: Sequence[Transform]) -> tuple[tuple[Transform, ...], tuple[Transform, ...]]:
    """The transforms that are the same for every sample of a scan, and those from the first one on that may not be."""
    head = tuple(itertools.takewhile(is_same_each_time, transforms))
    return head, tuple(transforms[len(head) :])


def is_same_each_time(transform: Any) -> bool:
    """Whether a transform is known to draw nothing and to need nothing but the sample's image and label."""
    kind = type(transform)  # a class derived from one of these may do anything
    if kind is ChannelWiseThresholdWithNormalize:
        return not transform.mean_std_mode  # which puts noise where the threshold is not met
    return kind in SAME_EACH_TIME or is_voxel_wise(transform)


class ImageTransform(VolumeTransform):
    """What a list of transforms, the same each time, does to the image.

    Args:
        transforms: PyMIC transform objects, in order; those of labels alone are passed over.
        key: the key of the config that has them, for messages.
        channels: how many channels a scan must have; None takes what comes.
        smallest: (D, H, W), in voxels, of the smallest volume that is of use after the transforms.
    """

    def __init__(
        self, transforms: Sequence[Transform], key: str, channels: int | None = None, smallest: Size = (1, 1, 1)
    ) -> None:
        super().__init__((), channels, smallest)
        self.key = key
        images = tuple(each for each in transforms if type(each) not in OF_LABELS)
        first = len(images)
        while first and (is_voxel_wise(images[first - 1]) or is_view(images[first - 1])):
            first -= 1
        self.of_volume, self.of_crops = images[:first], images[first:]

    def _prepared(self, voxels: np.ndarray, known: Sequence[Numbers]) -> Volume:
        volume = Volume(voxels, ())
        for transform in self.of_crops:
            if is_view(transform):
                axes = volume.axes or all_of(voxels.shape[1:])
                volume = replace(volume, axes=seen_through(transform, axes))
                continue
            seen = voxels if volume.axes is None else View(voxels, volume.axes)
            volume = replace(volume, steps=steps_of([transform], seen, known, volume.steps))
        return volume


@dataclass(frozen=True)
class LabelVolume:
    """A label of which crops can be read.

    Args:
        voxels: [1, D, H, W], whole numbers: an array, or a cache entry.
        foreground: where its classes are.
        is_measured: whether that was found just now.
    """

    voxels: np.ndarray
    foreground: Foreground
    is_measured: bool = False

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(1, D, H, W)."""
        return self.voxels.shape

    def read(self, start: Size, size: Size) -> np.ndarray:
        """The box of `size` voxels from `start`, wholly inside: [1, D, H, W], int32 as in PyMIC, the caller's own."""
        box = (slice(None), *(slice(first, first + n) for first, n in zip(start, size, strict=True)))
        return self.voxels[box].astype(np.int32, order="C")

    def to_keep(self) -> list:
        """The foreground for a file, where it was found just now."""
        return self.foreground.to_lists() if self.is_measured else []


class LabelTransform:
    """What a list of transforms, the same each time, does to the label: for a reader, what VolumeTransform is to it.

    Args:
        transforms: PyMIC transform objects, in order.
        images: what they do to the image.
        check: raises ValueError where a foreground is not what the crops to come need.
        keep_image: given an image, the state of its files and its voxels, where these had to be made for the label.
    """

    of_crops = ()

    def __init__(
        self,
        transforms: Sequence[Transform],
        images: ImageTransform,
        check: Callable[[Foreground], None],
        keep_image: Callable[[Sequence[Path], State, np.ndarray], None],
    ) -> None:
        self.images, self.check, self.keep_image = images, check, keep_image
        self.of_volume = tuple(each for each in transforms if each not in images.of_crops or is_view(each))
        cut = max((transforms.index(each) + 1 for each in images.of_volume), default=0)
        self._with_image, self._after = transforms[:cut], transforms[cut:]

    def decode(self, files: Sequence[Path]) -> np.ndarray:
        """What is kept of the label in the first of `files`, whose image is in the others: [1, D, H, W].

        Raises:
            UnusableScanError: it cannot be read, has another size than its image, or values that are no whole numbers,
                or a transform fails.
        """
        label_file, *image_files = files
        label = _read_label(label_file)
        size = read_header(image_files[0]).size
        if label.shape[1:] != size:
            raise UnusableScanError(
                f"{label_file}: a label of {list(label.shape[1:])} voxels, where its image {image_files[0]} has "
                f"{list(size)}"
            )
        label = label.astype(np.int32)
        if self._with_image:
            state = scan_state(image_files)
            voxels, sample = self.images.transformed(image_files, self._with_image, label=label)
            label = sample["label"]
            if scan_state(image_files) == state:
                self.keep_image(image_files, state, voxels)
        with self.images.named(files):
            for transform in self._after:
                if is_view(transform):
                    label = View(label, seen_through(transform, all_of(label.shape[1:])))[(slice(None),) * 4]
                elif type(transform) in OF_LABELS:
                    label = transform({"label": label})["label"]
        return _smallest_type(label_file, label)

    def volume(self, files: Sequence[Path], voxels: np.ndarray, _ends: np.ndarray, known: Sequence = ()) -> LabelVolume:
        """A label whose crops are those of the transformed label, see :meth:`VolumeTransform.volume`.

        Raises:
            UnusableScanError: it has too many different values, or not the foreground that the crops need.
        """
        try:
            foreground = Foreground.from_lists(known) if known else Foreground.of(voxels[0])
            self.check(foreground)
        except ValueError as error:
            raise UnusableScanError(f"{files[0]}: {error}") from error
        return LabelVolume(voxels, foreground, is_measured=not known)


def _read_label(file: Path) -> np.ndarray:
    label = read_scan([file]).voxels
    if label.shape[0] != 1:
        raise UnusableScanError(f"{file}: a label has one channel, this has {label.shape[0]}")
    if label.dtype.kind == "f" and not (bad := label != np.rint(label)).any():
        return label
    if label.dtype.kind == "f":
        raise UnusableScanError(
            f"{file}: values of a label are whole numbers, {int(bad.sum())} voxels have others, such as "
            f"{label[bad][0]:g}"
        )
    return label


def _smallest_type(file: Path, label: np.ndarray) -> np.ndarray:
    low, high = label.min(), label.max()
    for dtype in LABEL_TYPES:
        if np.iinfo(dtype).min <= low and high <= np.iinfo(dtype).max:
            return np.ascontiguousarray(label, dtype)
    raise UnusableScanError(f"{file}: values from {low} to {high} are no classes")
