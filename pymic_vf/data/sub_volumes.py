"""Pairs of sub-volumes from two different scans, and the fused sample made of them (Algorithm 1, lines 5 to 15).

Sample k is a function of (seed, k): not of the process that makes it, nor of what was made before.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from pymic_vf.data.random_state import ORDER, SPARE, TRAIN, seeded
from pymic_vf.data.scan import UnusableScanError
from pymic_vf.data.set_aside import SetAside
from pymic_vf.data.volume_reader import VolumeReader
from pymic_vf.errors import UserError

Transform = Callable[[dict], dict]
ATTEMPTS = 3  # at a crop of a scan that is replaced meanwhile


@dataclass(frozen=True)
class SampleTransforms:
    """The transforms of a sample: `before` on each sub-volume, `fuse` on the pair, `after` on what it becomes."""

    before: Sequence[Transform]
    fuse: Transform
    after: Sequence[Transform]


class FusedSamples(Dataset):
    """Fused samples by number.

    Args:
        reader: of at least two different scans.
        crop_size: (D, H, W) of the sub-volumes, in voxels.
        transforms: see :class:`SampleTransforms`.
        seed: the run's ``random_seed``.
        stream: TRAIN or VALID, which have different samples of the same seed.
        count: the number of samples, for those who ask; any number >= 0 can be had.
        set_aside: the reader's scans that are not used; a sample that meets one is made of others, and has their
            reasons by index as ``set_aside``. None: a bad scan is an error.
    """

    def __init__(
        self,
        reader: VolumeReader,
        crop_size: Sequence[int],
        transforms: SampleTransforms,
        seed: int,
        stream: int = TRAIN,
        count: int = 1,
        set_aside: SetAside | None = None,
    ) -> None:
        self.reader, self.crop_size, self.transforms = reader, tuple(crop_size), transforms
        self.seed, self.stream, self.count, self.set_aside = seed, stream, count, set_aside

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int) -> dict[str, Any]:
        """Sample `number`: what the last transform leaves of ``image``, ``label`` and ``label_prob``.

        Raises:
            UserError: scans that cannot be used, or sub-volume transforms that change a sub-volume's size.
        """
        with seeded(self.stream, self.seed, number) as rng:
            crops, bad = self._crops(number, self.pair(number, rng), rng.random((2, 3)))
            pair = [self._sub_volume(crop) for crop in crops]
            sample = dict(pair[0], image_foreground=pair[1]["image"])
            for transform in (self.transforms.fuse, *self.transforms.after):
                sample = transform(sample)
        return {**sample, "set_aside": bad} if bad else sample

    def pair(self, number: int, rng: np.random.Generator) -> tuple[int, int]:
        """The scans of background and foreground: never the same one.

        Every scan is the background of one sample in len(reader) consecutive ones, in an order shuffled anew each
        time; the foreground is any of the others.
        """
        scans = len(self.reader)
        epoch, place = divmod(number, scans)
        background = int(_order(scans, self.seed, self.stream, epoch)[place])
        foreground = int(rng.integers(scans - 1))
        return background, foreground + (foreground >= background)

    def _crops(self, number: int, pair: tuple[int, int], places: np.ndarray) -> tuple[list[np.ndarray], dict[int, str]]:
        """A crop of each scan of the pair, and the bad scans met, whose place another one took.

        Who takes it is drawn for this sample alone, so that it does not matter which process knows what already.
        """
        chosen, crops = list(pair), []
        bad: dict[int, str] = {}
        spare = np.random.default_rng((SPARE, self.stream, self.seed, number))
        for side, place in enumerate(places):
            while len(crops) == side:
                index = chosen[side]
                try:
                    crops.append(self._crop(index, place))
                except UnusableScanError as error:
                    if self.set_aside is None:
                        raise
                    bad[index] = str(error)
                    self.set_aside.remember(index, bad[index])
                    while chosen[side] in bad or chosen[0] == chosen[1]:
                        chosen[side] = int(spare.integers(len(self.reader)))
        return crops, bad

    def _sub_volume(self, crop: np.ndarray) -> dict[str, Any]:
        sample: dict[str, Any] = {"image": crop}
        for transform in self.transforms.before:
            sample = transform(sample)
        if sample["image"].shape[1:] != self.crop_size:
            raise UserError(
                f"the transforms before VF must leave sub-volumes of VF_crop_size = {list(self.crop_size)}, "
                f"they leave {list(sample['image'].shape[1:])}"
            )
        return sample

    def _crop(self, index: int, place: np.ndarray) -> np.ndarray:
        """The crop at `place`, [C, D, H, W] float32; a volume smaller than the crop is padded by mirroring.

        Args:
            index: of the scan.
            place: three numbers in [0, 1), from the first possible place along each axis to the last.

        Mirrored anatomy looks like anatomy, in the pair's other scan as in this one. A constant would give the answer
        away: where the foreground is a known c, X = alpha c + (1 - alpha) I_b shows alpha without any context, and the
        border of the padding would show which scan is which.

        Raises:
            UnusableScanError: the scan cannot be used.
        """
        if self.set_aside is not None and index in self.set_aside.reasons:
            raise UnusableScanError(self.set_aside.reasons[index])
        for _ in range(ATTEMPTS):
            first, last, padding = _place(self.reader.shape(index)[1:], self.crop_size, place)
            size = tuple(b - a for a, b in zip(first, last, strict=True))
            voxels = self.reader.read(index, first, size)
            if voxels.shape[1:] == size:  # or it was replaced by a smaller one in between
                break
        else:
            raise UnusableScanError(f"scan {index + 1} of the list changes its size again and again while it is read")
        return np.pad(voxels, [(0, 0), *padding], mode="symmetric") if any(map(any, padding)) else voxels


def _place(
    size: Sequence[int], crop_size: Sequence[int], place: np.ndarray
) -> tuple[list[int], list[int], list[tuple[int, int]]]:
    """The first voxels of a crop, the ends of what the volume has of it, and what is missing before and after."""
    size, crop = np.asarray(size), np.asarray(crop_size)
    start = np.minimum(size - crop, 0) + (place * (np.abs(size - crop) + 1)).astype(int)
    first, last = np.maximum(start, 0), np.minimum(start + crop, size)
    missing = zip((first - start).tolist(), (start + crop - last).tolist(), strict=True)
    return first.tolist(), last.tolist(), list(missing)


@functools.lru_cache(maxsize=4)
def _order(scans: int, seed: int, stream: int, epoch: int) -> np.ndarray:
    return np.random.default_rng((ORDER, stream, seed, epoch)).permutation(scans)
