"""Samples of a supervised training and its validation by number: the ones that PyMIC makes, read from the cache.

Training sample k is a function of (seed, k): not of the process that makes it, nor of what was made before.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from pymic.transform.label_convert import LabelToProbability
from torch.utils.data import Dataset

from pymic_vf.data.bad_scans import BadScans
from pymic_vf.data.labelled_reader import LabelledReader
from pymic_vf.data.random_crop import is_random_crop, random_crop
from pymic_vf.data.samples import order_of_epoch
from pymic_vf.data.scan import UnusableScanError
from pymic_vf.data.seeds import SPARE, TRAIN, seeded
from pymic_vf.errors import UserError

Transform = Callable[[dict], dict]
OTHER = 255  # the byte for a label that is none of the classes


class LabelledSamples(Dataset):
    """Images and labels by number, each after all transforms.

    Args:
        reader: of images and labels, after the transforms that are the same for every sample.
        transforms: PyMIC transform objects from the first random one on.
        seed: the run's ``random_seed``.
        stream: TRAIN, where the numbers have no end and each epoch its own order, or VALID: scan k is sample k.
        bad_scans: the reader's scans that are not used; a training sample that meets one is made of another.
    """

    is_cached_finetuning = True

    def __init__(
        self, reader: LabelledReader, transforms: Sequence[Transform], seed: int, stream: int, bad_scans: BadScans
    ) -> None:
        self.reader, self.seed, self.stream, self.bad_scans = reader, seed, stream, bad_scans
        self.crop = transforms[0] if transforms and is_random_crop(transforms[0]) else None
        self.transforms = list(transforms[1:] if self.crop else transforms)
        self.classes: int | None = None  # where the loader makes the one-hot label, from a byte a voxel
        if self.transforms and _makes_one_hot(self.transforms[-1]):
            self.classes = self.transforms.pop().class_num

    @property
    def used(self) -> list[int]:
        """The scans that are not known to be bad."""
        return [index for index in range(len(self.reader)) if index not in self.bad_scans.reasons]

    def __len__(self) -> int:
        return len(self.used)

    def __getitem__(self, number: int) -> dict[str, Any]:
        """Sample `number`.

        Raises:
            UserError: scans that cannot be used.
        """
        if self.stream != TRAIN:
            return self._sample_of(number, self.used[number])
        epoch, turn = divmod(number, len(self.reader))
        index = int(order_of_epoch(len(self.reader), self.seed, self.stream, epoch)[turn])
        bad: dict[int, str] = {}
        spare = np.random.default_rng((SPARE, self.stream, self.seed, number))
        while True:
            try:
                if index in self.bad_scans.reasons:
                    raise UnusableScanError(self.bad_scans.reasons[index])
                sample = self._sample_of(number, index)
                return {**sample, "bad_scans": bad} if bad else sample
            except UnusableScanError as error:
                bad[index] = str(error)
                self.bad_scans.add(index, bad[index], needed=1)
                while index in bad:
                    index = int(spare.integers(len(self.reader)))

    def _sample_of(self, number: int, index: int) -> dict[str, Any]:
        self.reader.shape(index)  # before the block: reading a scan anew takes nothing from the sample's draws
        try:
            with seeded(self.stream, self.seed, number):
                sample = self.sample(index)
        except UserError:
            raise
        except Exception as error:  # in a worker torch would bury it in the worker's traceback
            names = ", ".join(type(each).__name__ for each in (self.crop, *self.transforms) if each)
            file = self.reader.scans.files(index)[0]
            raise UserError(f"{file}: the transforms {names} fail ({type(error).__name__}: {error})") from error
        if self.classes is not None:
            sample["label"] = _as_bytes(sample["label"])
        elif "label_prob" in sample:
            del sample["label"]
        return sample

    def sample(self, index: int) -> dict[str, Any]:
        """A sample of scan `index` by the state of the random generators: the one that PyMIC's dataset makes, but that
        LabelToProbability at the end of the list is left out.

        Returns:
            ``image``, float32 [C, D, H, W], ``label``, [1, D, H, W], ``names``, and what the transforms add.
        """
        if self.crop is None:
            image, label = self.reader.read_pair(index, (0, 0, 0), self.reader.shape(index)[1:])
        else:
            image, label = random_crop(self.crop, self.reader, index)
        names = [str(file) for file in self.reader.scans.files(index)]
        sample: dict[str, Any] = {"image": image, "label": label, "names": names}
        for transform in copy.deepcopy(self.transforms):  # some take the size of their first volume for all others'
            sample = transform(sample)
        return sample


def _makes_one_hot(transform: Any) -> bool:
    return type(transform) is LabelToProbability and transform.class_num <= OTHER


def _as_bytes(label: np.ndarray) -> np.ndarray:
    """A label as uint8, in which every value that a byte does not hold is one that no class has."""
    return np.where((label < 0) | (label > OTHER), OTHER, label).astype(np.uint8)
