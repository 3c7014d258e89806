"""What the cache keeps of a volume: integers, and how they become its float32 voxels again.

Medical scans are whole numbers (HU), and intensity windows and normalisations only give each of them another value.
So integers are what is stored, as small as the scan itself, in one of three forms:

- whole numbers up to 2^24, all that float32 has exactly: as they are, exact;
- values that follow from the scan's whole numbers, voxel by voxel (no resampling): the different values are counted,
  and what is stored is the number of each and their table, exact. What an intensity window makes equal is one number
  then, and compresses so much better. Where the table is that of a division and an addition, those are made instead, to
  the same last bit in a third of the time;
- anything else, such as resampled voxels: 65536 even levels from each channel's smallest to its largest value. The
  rounding is at most half a level, 1/131070 of the channel's range (0.03 HU for a CT), and float32's own.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np

# T a table, S a scale or - neither; rows and columns of the float32 numbers behind it
CODING = struct.Struct("<cII")
LEVELS = 65535  # the highest level
RANGES = {np.int16: (-(2**15), 2**15 - 1), np.uint16: (0, 2**16 - 1), np.int32: (-(2**24), 2**24)}
SLAB_VOXELS = 1 << 18  # worked on at a time, so that temporary arrays stay in the cache


@dataclass(frozen=True)
class Coding:
    """How stored integers become voxels: by a table, by a scale, or as they are where both are None.

    Args:
        table: float32 [C, n], the value of each stored number in each channel.
        scale: float32 [C, 2], the value of number 0, and what a number is divided by before that is added.
    """

    table: np.ndarray | None = None
    scale: np.ndarray | None = None

    def decode(self, stored: np.ndarray) -> np.ndarray:
        """float32 [C, d, h, w] of stored integers of that shape; an array of its own."""
        if self.table is not None:
            voxels = np.empty(stored.shape, np.float32)
            for channel, numbers in enumerate(stored):
                # mode: numpy checks the bounds one by one otherwise, and through a copy
                np.take(self.table[channel], numbers, mode="clip", out=voxels[channel])
            return voxels
        voxels = stored.astype(np.float32)
        if self.scale is not None:
            first, divisor = self.scale.T[:, :, None, None, None]
            voxels /= divisor
            voxels += first
        return voxels

    def to_bytes(self) -> bytes:
        """For a file."""
        for kind, array in ((b"T", self.table), (b"S", self.scale)):
            if array is not None:
                return CODING.pack(kind, *array.shape) + array.tobytes()
        return CODING.pack(b"-", 0, 0)

    @classmethod
    def from_bytes(cls, content: bytes) -> Coding:
        """What :meth:`to_bytes` was of."""
        kind, *shape = CODING.unpack_from(content)
        array = np.frombuffer(content, np.float32, offset=CODING.size).reshape(shape)
        return {b"T": cls(table=array), b"S": cls(scale=array)}.get(kind, cls())


@dataclass(frozen=True)
class StoredVoxels:
    """A volume as it is stored.

    Args:
        numbers: integers, [C, D, H, W].
        coding: how they become voxels.
    """

    numbers: np.ndarray
    coding: Coding

    def read(self, box: tuple[slice, ...]) -> np.ndarray:
        """The voxels of a box [C, d, h, w] of slices, float32, the caller's own."""
        return self.coding.decode(self.numbers[box])


def encode(voxels: np.ndarray, scan: np.ndarray) -> StoredVoxels:
    """Choose the smallest form of a volume.

    Args:
        voxels: [C, D, H, W], finite.
        scan: the voxels of the file it was made from, of any shape; `voxels` itself where nothing was done to them.
    """
    numbers = as_whole_numbers(voxels)
    if numbers is not None:
        return StoredVoxels(numbers, Coding())
    if scan.shape == voxels.shape:
        source = as_whole_numbers(scan)
        if source is not None and (stored := _by_table(voxels, source)) is not None:
            return stored
    return _by_levels(voxels)


def as_whole_numbers(voxels: np.ndarray) -> np.ndarray | None:
    """The same values as integers of 8, 16 or 32 bits; None where they are not whole or beyond 2^24."""
    if voxels.dtype.kind == "b":
        return voxels.view(np.uint8)
    if voxels.dtype.kind in "iu" and voxels.dtype.itemsize <= 2:
        return voxels
    lowest, highest = float(voxels.min()), float(voxels.max())
    fitting = [dtype for dtype, (first, last) in RANGES.items() if first <= lowest and highest <= last]
    if not fitting:
        return None
    numbers = np.empty(voxels.shape, fitting[0])
    whole = all(_kept(numbers[slab], voxels[slab]) for slab in _slabs(voxels.shape))
    return numbers if whole else None


def _kept(numbers: np.ndarray, voxels: np.ndarray) -> bool:
    """Fill in the integers; whether they are the same values."""
    numbers[...] = voxels.astype(numbers.dtype)
    return np.array_equal(numbers, voxels)


def encode_numbers(numbers: np.ndarray, lowest: int, table: np.ndarray) -> StoredVoxels:
    """Whole numbers [C, D, H, W], of which `lowest` is the smallest, with the value of each.

    Args:
        numbers: integers, no two of which differ by more than 65535.
        lowest: the number that the first column of the table is for.
        table: float32 [C, n].
    """
    rows = [np.unique(row, return_inverse=True) for row in table]
    values = np.stack([np.pad(row, (0, table.shape[1] - len(row)), mode="edge") for row, _ in rows])
    values = values[:, : max(len(row) for row, _ in rows)]
    places = np.stack([inverse for _, inverse in rows]).astype(np.uint16)
    counted = np.empty(numbers.shape, np.uint16)
    for slab in _slabs(numbers.shape):
        np.take(places[slab[0].start], _counted(numbers[slab], lowest), mode="clip", out=counted[slab])
    return StoredVoxels(counted, _shortest_coding(values))


def _counted(numbers: np.ndarray, lowest: int) -> np.ndarray:
    """How far each number is from the smallest, uint16; modulo 2^16, which less than 2^16 is not changed by."""
    return numbers.astype(np.uint16) - np.uint16(lowest % 2**16)


def _shortest_coding(table: np.ndarray) -> Coding:
    """A scale where it gives every value of the table, otherwise the table."""
    last = np.argmax(table, axis=1)  # the first place of the largest value; what follows is there for other channels
    with np.errstate(divide="ignore", invalid="ignore"):
        divisor = last / (table[np.arange(len(table)), last] - table[:, 0])
        divisor = np.where(last > 0, np.rint(2 * divisor) / 2, 1)  # intensity windows are of whole numbers
        scale = Coding(scale=np.stack([table[:, 0], divisor], axis=1).astype(np.float32))
        numbers = np.minimum(np.arange(table.shape[1]), last[:, None])
        values = scale.decode(numbers[:, None, None].astype(np.uint16))[:, 0, 0]
    return scale if np.array_equal(values, table) else Coding(table=table)


def _by_table(voxels: np.ndarray, source: np.ndarray) -> StoredVoxels | None:
    """The scan's numbers, counted from its smallest, and the value of each; None where one number has two values."""
    lowest, highest = int(source.min()), int(source.max())
    if highest - lowest > LEVELS:
        return None
    table = np.full((len(voxels), highest - lowest + 1), np.nan, np.float32)  # NaN: a number not met yet
    counted = np.empty(source.shape, np.uint16)
    for slab in _slabs(voxels.shape):
        counted[slab] = _counted(source[slab], lowest)
        if not _noted(table[slab[0].start], counted[slab], voxels[slab]):
            return None
    return StoredVoxels(counted, Coding(table=table))


def _noted(table: np.ndarray, numbers: np.ndarray, values: np.ndarray) -> bool:
    """Fill in the numbers that are new to a table; whether every number has the value that it has in the table."""
    differs = np.take(table, numbers, mode="clip") != values
    if not differs.any():
        return True
    new, wanted = numbers[differs], values[differs]
    if not np.isnan(table[new]).all():
        return False
    table[new] = wanted
    return np.array_equal(table[new], wanted)


def _by_levels(voxels: np.ndarray) -> StoredVoxels:
    axes = (1, 2, 3)
    lowest, highest = voxels.min(axis=axes).astype(float), voxels.max(axis=axes).astype(float)
    # a flat channel has no range; any step will do
    step = np.where(highest > lowest, (highest - lowest) / LEVELS, 1)
    numbers = np.empty(voxels.shape, np.uint16)
    for slab in _slabs(voxels.shape):
        channel = slab[0].start
        level = (voxels[slab] - lowest[channel]) / step[channel]
        numbers[slab] = np.clip(np.rint(level), 0, LEVELS)
    return StoredVoxels(numbers, Coding(scale=np.stack([lowest, 1 / step], axis=1).astype(np.float32)))


def _slabs(shape: tuple[int, ...]) -> list[tuple[slice, slice]]:
    """Pieces of one channel and some slices each, that make up a volume of `shape` [C, D, H, W]."""
    depth = max(1, SLAB_VOXELS // (shape[2] * shape[3]))
    return [
        (slice(channel, channel + 1), slice(first, first + depth))
        for channel in range(shape[0])
        for first in range(0, shape[1], depth)
    ]
