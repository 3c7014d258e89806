"""Training samples by number: crops of scans, handed to a pretraining method.

Sample k is a function of (seed, k): not of the process that makes it, nor of what was made before.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from torch.utils.data import Dataset

from pymic_vf.data.bad_scans import BadScans
from pymic_vf.data.body_map import TRIES, LeastBody, first_with, share_of_body
from pymic_vf.data.scan import UnusableScanError
from pymic_vf.data.seeds import ORDER, PLACE, SPARE, TRAIN, seeded
from pymic_vf.data.volume_reader import VolumeReader
from pymic_vf.errors import UserError
from pymic_vf.sizes import Size

Transform = Callable[[dict], dict]
ATTEMPTS = 3  # at a crop of a scan that is replaced meanwhile


class SampleMaker(Protocol):
    """What a pretraining method does for a sample, see :class:`pymic_vf.methods.method.Method`."""

    scans_per_sample: int

    def sample(self, crops: Sequence[np.ndarray], rng: np.random.Generator) -> Mapping[str, Any]: ...


@dataclass(frozen=True)
class SampleTransforms:
    """PyMIC transforms of a sample: `before` the method on each crop, `after` it on what it made."""

    before: Sequence[Transform] = ()
    after: Sequence[Transform] = ()


class Samples(Dataset):
    """The samples of a method by number.

    Args:
        reader: of at least as many scans as a sample takes.
        crop_size: (D, H, W) of the crops, in voxels.
        method: makes a sample of crops.
        transforms: before and after it.
        seed: the run's ``random_seed``.
        stream: TRAIN or VALID, which have different samples of the same seed.
        count: the number of samples, for those who ask; any number >= 0 can be had.
        bad_scans: the reader's scans that are not used; a sample that meets one is made of others, and has their
            reasons by index as ``bad_scans``. None: a bad scan is an error.
        least_body: what each crop must hold, see there; None takes every place alike.
    """

    def __init__(
        self,
        reader: VolumeReader,
        crop_size: Size,
        method: SampleMaker,
        transforms: SampleTransforms,
        seed: int,
        stream: int = TRAIN,
        count: int = 1,
        bad_scans: BadScans | None = None,
        least_body: LeastBody | None = None,
    ) -> None:
        self.reader, self.crop_size, self.method, self.transforms = reader, tuple(crop_size), method, transforms
        self.seed, self.stream, self.count, self.bad_scans = seed, stream, count, bad_scans
        self.least_body = least_body

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int) -> dict[str, Any]:
        """Sample `number`: what the method made and the transforms after it left.

        Raises:
            UserError: scans that cannot be used, or transforms that change a crop's size.
        """
        with seeded(self.stream, self.seed, number) as rng:
            sample = self._method_sample(number, rng)
            for transform in self.transforms.after:
                sample = transform(sample)
        return sample

    def method_sample(self, number: int) -> dict[str, Any]:
        """Sample `number` as the method made it, before the transforms after it."""
        with seeded(self.stream, self.seed, number) as rng:
            return self._method_sample(number, rng)

    def _method_sample(self, number: int, rng: np.random.Generator) -> dict[str, Any]:
        crops, bad = self._crops(number, rng)
        sample = dict(self.method.sample(crops, _new_generator()))
        return {**sample, "bad_scans": bad} if bad else sample

    def crops(self, number: int) -> list[np.ndarray]:
        """The crops that sample `number` is made of, each float32 [C, D, H, W]."""
        with seeded(self.stream, self.seed, number) as rng:
            return self._crops(number, rng)[0]

    def _crops(self, number: int, rng: np.random.Generator) -> tuple[list[np.ndarray], dict[int, str]]:
        scans = self.scans(number, rng)
        crops, bad = self._read(number, scans, rng.random((len(scans), 3)))
        return [self._transformed(crop) for crop in crops], bad

    def scans_of(self, number: int) -> list[int]:
        """The scans of sample `number` as they are drawn, whatever stands in for one that cannot be used."""
        with seeded(self.stream, self.seed, number) as rng:
            return self.scans(number, rng)

    def describe(self, number: int) -> str:
        """The scans of sample `number` and the first voxel (d, h, w) of each crop there, negative in its padding; as
        they are drawn, whatever stands in for a scan that cannot be used."""
        with seeded(self.stream, self.seed, number) as rng:
            scans = self.scans(number, rng)
            positions = rng.random((len(scans), 3))
        texts = []
        for index, position in zip(scans, positions, strict=True):
            name = f"scan {index + 1}" if self.bad_scans is None else str(self.bad_scans.scans.files(index)[0])
            try:
                size = np.asarray(self.reader.shape(index)[1:])
            except UserError:
                texts.append(name)
                continue
            texts.append(f"{name} at {_start(size, np.asarray(self.crop_size), position).tolist()}")
        return "; ".join(texts)

    def scans(self, number: int, rng: np.random.Generator) -> list[int]:
        """The scans of a sample, all different.

        Every scan is the first of one sample in len(reader) consecutive ones, in an order shuffled anew each time; the
        others are any.
        """
        epoch, turn = divmod(number, len(self.reader))
        chosen = [int(order_of_epoch(len(self.reader), self.seed, self.stream, epoch)[turn])]
        while len(chosen) < self.method.scans_per_sample:
            other = int(rng.integers(len(self.reader) - len(chosen)))
            for taken in sorted(chosen):
                other += other >= taken
            chosen.append(other)
        return chosen

    def _read(self, number: int, scans: list[int], positions: np.ndarray) -> tuple[list[np.ndarray], dict[int, str]]:
        """A crop of each scan, and the bad scans met, in whose stead others were used.

        Which ones is drawn for this sample alone, so that it does not matter what this process knows of other scans.
        """
        chosen, crops = list(scans), []
        bad: dict[int, str] = {}
        spare = np.random.default_rng((SPARE, self.stream, self.seed, number))
        for turn, position in enumerate(positions):
            while len(crops) == turn:
                index = chosen[turn]
                try:
                    crops.append(self._crop(index, position, (PLACE, self.stream, self.seed, number, turn)))
                except UnusableScanError as error:
                    if self.bad_scans is None:
                        raise
                    bad[index] = str(error)
                    self.bad_scans.add(index, bad[index], needed=self.method.scans_per_sample)
                    while chosen[turn] in bad or chosen.count(chosen[turn]) > 1:
                        chosen[turn] = int(spare.integers(len(self.reader)))
        return crops, bad

    def _transformed(self, crop: np.ndarray) -> np.ndarray:
        sample: dict[str, Any] = {"image": crop}
        for transform in self.transforms.before:
            sample = transform(sample)
        if sample["image"].shape[1:] != self.crop_size:
            raise UserError(
                f"the transforms before the method must leave crops of crop_size = {list(self.crop_size)}, "
                f"they leave {list(sample['image'].shape[1:])}"
            )
        return sample["image"]

    def _crop(self, index: int, position: np.ndarray, key: tuple[int, ...] = ()) -> np.ndarray:
        """A crop of scan `index`, [C, D, H, W] float32; a volume smaller than the crop is padded by mirroring.

        Args:
            index: of the scan.
            position: three numbers in [0, 1), from the first possible start along each axis to the last.
            key: of the generator for other positions, where this one does not hold enough body.

        Mirrored anatomy looks like anatomy. A constant would give Volume Fusion's answer away: where the foreground is
        a known c, X = alpha c + (1 - alpha) I_b shows alpha without any context, and the border of the padding would
        show which scan is which.

        Raises:
            UnusableScanError: the scan cannot be used.
        """
        if self.bad_scans is not None and index in self.bad_scans.reasons:
            raise UnusableScanError(self.bad_scans.reasons[index])
        for _ in range(ATTEMPTS):
            volume = self.reader.shape(index)[1:]
            if self.least_body is not None:
                position = self._with_body(index, volume, position, key)
            first, last, padding = _box(volume, self.crop_size, position)
            size = tuple(b - a for a, b in zip(first, last, strict=True))
            voxels = self.reader.read(index, first, size)
            if voxels.shape[1:] == size:  # or it was replaced by a smaller one in between
                break
        else:
            raise UnusableScanError(f"scan {index + 1} of the list changes its size again and again while it is read")
        return np.pad(voxels, [(0, 0), *padding], mode="symmetric") if any(map(any, padding)) else voxels

    def _with_body(self, index: int, volume: Size, position: np.ndarray, key: tuple[int, ...]) -> np.ndarray:
        """The position, or the first of others drawn uniformly that holds enough body."""
        body = self.reader.body(index, self.least_body)

        def share_at(place: np.ndarray) -> float:
            first, _, padding = _box(volume, self.crop_size, place)
            start = [inside - before for inside, (before, _) in zip(first, padding, strict=True)]
            return share_of_body(body, volume, start, self.crop_size)

        others = np.random.default_rng(key).random((TRIES - 1, 3))
        return first_with(self.least_body.share, (position, *others), share_at)


def _box(
    size: Sequence[int], crop_size: Sequence[int], position: np.ndarray
) -> tuple[list[int], list[int], list[tuple[int, int]]]:
    """The first voxels of a crop, the ends of what the volume has of it, and what is missing before and after."""
    size, crop = np.asarray(size), np.asarray(crop_size)
    start = _start(size, crop, position)
    first, last = np.maximum(start, 0), np.minimum(start + crop, size)
    missing = zip((first - start).tolist(), (start + crop - last).tolist(), strict=True)
    return first.tolist(), last.tolist(), list(missing)


def _start(size: np.ndarray, crop: np.ndarray, position: np.ndarray) -> np.ndarray:
    return np.minimum(size - crop, 0) + (position * (np.abs(size - crop) + 1)).astype(int)


def _new_generator() -> np.random.Generator:
    """A generator that follows from numpy's global one, which PyMIC's transforms draw from."""
    return np.random.default_rng(np.random.randint(0, 2**32, size=4, dtype=np.uint32))


@functools.lru_cache(maxsize=4)
def order_of_epoch(scans: int, seed: int, stream: int, epoch: int) -> np.ndarray:
    """The scans in the order of an epoch, a permutation of their indices."""
    return np.random.default_rng((ORDER, stream, seed, epoch)).permutation(scans)
