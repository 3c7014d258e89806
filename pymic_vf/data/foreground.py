"""Where the classes of a label are: so much of it that a voxel of a class is found without the whole label."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

MOST_VALUES = 2**16  # between the smallest and the largest value of a label


@dataclass(frozen=True)
class Foreground:
    """The classes of a label and how many voxels each has in each slice.

    Args:
        classes: the values of the label, ascending: int64 [K].
        counts: voxels of each class in each slice: int64 [K, D].
    """

    classes: np.ndarray
    counts: np.ndarray

    @classmethod
    def of(cls, label: np.ndarray) -> Foreground:
        """Find it in a label [D, H, W] of whole numbers.

        Raises:
            ValueError: the values are too many to be classes.
        """
        low, span = int(label.min()), int(label.max()) - int(label.min()) + 1
        if span > MOST_VALUES:
            raise ValueError(f"values from {low} to {low + span - 1} are no classes")
        slices = (each.ravel() - low if low else each.ravel() for each in label)
        counts = np.stack([np.bincount(each, minlength=span) for each in slices], axis=1)
        present = counts.any(axis=1)
        return cls(low + np.flatnonzero(present), counts[present])

    @classmethod
    def from_lists(cls, lists: Sequence) -> Foreground:
        """What :meth:`to_lists` made."""
        classes, counts = lists
        return cls(np.array(classes, np.int64), np.array(counts, np.int64))

    def to_lists(self) -> list:
        """For a JSON file."""
        return [self.classes.tolist(), self.counts.tolist()]

    @property
    def total(self) -> int:
        """The sum of the label's values, by which PyMIC decides whether it has a foreground."""
        return int(self.classes @ self.counts.sum(axis=1))

    def count(self, value: int) -> int:
        """The voxels of a value."""
        return int(self._by_slice(value).sum())

    def voxel(self, value: int, number: int, read_slice: Callable[[int], np.ndarray]) -> tuple[int, int, int]:
        """Where the voxel `number` of a value is: (z, y, x), counted in the order of ``np.where``.

        Args:
            value: of the label.
            number: from 0 to below :meth:`count`.
            read_slice: gives the slice [H, W] at z.
        """
        ends = np.cumsum(self._by_slice(value))
        z = int(np.searchsorted(ends, number, side="right"))
        plane = read_slice(z)
        place = np.flatnonzero(plane.ravel() == value)[number - (int(ends[z - 1]) if z else 0)]
        y, x = divmod(int(place), plane.shape[1])
        return z, y, x

    def _by_slice(self, value: int) -> np.ndarray:
        found = np.flatnonzero(self.classes == value)
        return self.counts[found[0]] if found.size else np.zeros(self.counts.shape[1], np.int64)
