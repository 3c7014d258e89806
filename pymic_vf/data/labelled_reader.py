"""Crops of images and of their labels, read from the cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pymic_vf.data.cache_folder import CacheFolder
from pymic_vf.data.cached_reader import CachedVolumeReader
from pymic_vf.data.foreground import Foreground
from pymic_vf.data.labelled_transform import ImageTransform, LabelTransform
from pymic_vf.data.scan import UnusableScanError
from pymic_vf.data.scan_list import ScanList
from pymic_vf.data.volume_reader import MEMORY_BYTES
from pymic_vf.sizes import Size


@dataclass(frozen=True)
class LabelledScans:
    """The rows of a csv file: images, and for each its label's file and its own."""

    images: ScanList
    labels: ScanList


class LabelledReader(CachedVolumeReader):
    """Reads crops of the images, as :class:`CachedVolumeReader`, and of their labels.

    Args:
        scans: the images and labels.
        transforms: what is done to every sample of a scan before anything random.
        images: what that does to the image.
        folder: where the entries lie.
        check: raises ValueError where a label's foreground is not what the crops to come need.
        memory_bytes: of images, and again of labels, that the folder's cap keeps out.
    """

    def __init__(
        self,
        scans: LabelledScans,
        transforms: Sequence[Callable[[dict], dict]],
        images: ImageTransform,
        folder: CacheFolder,
        check: Callable[[Foreground], None],
        memory_bytes: int = MEMORY_BYTES,
    ) -> None:
        super().__init__(scans.images, images, folder, memory_bytes)
        of_labels = LabelTransform(transforms, images, check, self.keep)
        self.labels = CachedVolumeReader(scans.labels, of_labels, folder, memory_bytes)

    def shape(self, index: int) -> tuple[int, int, int, int]:
        """(C, D, H, W) of image `index`; its label has the same size.

        Raises:
            UnusableScanError: image or label cannot be used, or not with each other.
        """
        label = self.labels.shape(index)  # first: where the label needs the image, both are made at once
        shape = super().shape(index)
        if shape[1:] != label[1:]:
            raise UnusableScanError(
                f"{self.labels.scans.files(index)[0]}: the transforms leave {list(label[1:])} voxels of the label and "
                f"{list(shape[1:])} of its image"
            )
        return shape

    def entry_bytes(self, index: int) -> int:
        """What image and label take in the cache; 0 where the cap keeps one of them out."""
        image, label = super().entry_bytes(index), self.labels.entry_bytes(index)
        return image + label if image and label else 0

    def read_pair(self, index: int, start: Size, size: Size) -> tuple[np.ndarray, np.ndarray]:
        """The same box of the image, float32 [C, D, H, W], and of its label, int32 [1, D, H, W]."""
        return self.read(index, start, size), self.labels.read(index, start, size)

    def foreground(self, index: int) -> Foreground:
        """Where the classes of label `index` are."""
        return self.labels.volume(index).foreground

    def voxel_of(self, index: int, value: Any, number: int) -> tuple[int, int, int]:
        """Where voxel `number` of a class is in label `index`, see :meth:`Foreground.voxel`."""
        _, _, height, width = self.labels.shape(index)

        def read_slice(z: int) -> np.ndarray:
            return self.labels.read(index, (z, 0, 0), (1, height, width))[0, 0]

        return self.foreground(index).voxel(value, number, read_slice)
