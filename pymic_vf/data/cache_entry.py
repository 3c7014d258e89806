"""A cache entry: one volume in one file, from which a box is read without the rest.

The file is a Blosc2 array (``.b2nd``, which other tools open too), the extremes of its channels, and a trailer. Blosc2
has no checksum, so the file's time of change is set to one that the trailer has, and whatever writes to the file later
changes it. If size and time are the same before a read, all is as it was written; where they differ, as after a copy,
or where Blosc2 fails, the trailer's checksum decides.

LZ4 with bit shuffle reads fastest. Where that takes more than the scan's own files, as for much air of exactly the same
value, it is Zstandard with byte shuffle. Blocks of 16x16x32 voxels fit a processor's first cache. The file is not
mapped: a mapped file that is cut off kills the process.
"""

from __future__ import annotations

import functools
import os
import struct
import time
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Any

import blosc2
import numpy as np

from pymic_vf.errors import UserError
from pymic_vf.files import whole_file

SUFFIX = ".b2nd"
CHUNK, BLOCK = (1, 64, 128, 128), (1, 16, 16, 32)
MAGIC = b"PyMIC_VF"
TRAILER = struct.Struct("<8s40sIQ")  # magic, key, CRC-32 of all before the trailer, time of change in ns


class DamagedEntryError(UserError):
    """An entry that is not as it was written; the message says what is wrong."""


def packed(key: str, voxels: np.ndarray, extremes: np.ndarray, budget: int) -> bytes:
    """The content of an entry's file, of at most `budget` bytes where that can be had.

    Args:
        key: the name of the file, 40 characters.
        voxels: [C, D, H, W], integers or float32, contiguous.
        extremes: the smallest and the largest of each channel, float32 [C, 1, 1, 2].
        budget: in bytes.
    """
    array = _compressed(voxels, blosc2.Codec.LZ4, blosc2.Filter.BITSHUFFLE)
    if len(array) > budget:
        array = _compressed(voxels, blosc2.Codec.ZSTD, blosc2.Filter.SHUFFLE)
    content = array + extremes.tobytes()
    stamp = int(time.time()) // 2 * 2 * 10**9  # whole even seconds: the coarsest time that a file system keeps
    return content + TRAILER.pack(MAGIC, key.encode(), zlib.crc32(content), stamp)


def _compressed(voxels: np.ndarray, codec: blosc2.Codec, shuffle: blosc2.Filter) -> bytes:
    array = blosc2.ndarray_from_cframe(_empty(voxels.dtype, codec, shuffle), copy=True)
    array.resize(voxels.shape)
    array[...] = voxels
    return array.to_cframe()


@functools.cache
def _empty(dtype: np.dtype, codec: blosc2.Codec, shuffle: blosc2.Filter) -> bytes:
    """An array of one voxel to start from: Blosc2 4.14 leaks with each that is made anew, 3 KiB a volume in all."""
    cparams = {"codec": codec, "clevel": 1, "filters": [shuffle], "filters_meta": [0]}
    return blosc2.empty((1, 1, 1, 1), dtype, chunks=CHUNK, blocks=BLOCK, cparams=cparams).to_cframe()


def write_entry(path: Path, content: bytes) -> None:
    """Write what :func:`packed` made, whole or not at all.

    Raises:
        OSError: the disk is full, or the folder cannot be written to.
    """
    *_, stamp = TRAILER.unpack(content[-TRAILER.size :])
    with whole_file(path) as temporary:
        temporary.write_bytes(content)
        os.utime(temporary, ns=(stamp, stamp))


class CacheEntry:
    """An entry on disk, read like an array [C, D, H, W]. It holds one file open, and of its voxels nothing.

    Args:
        path: of a file that :func:`write_entry` wrote.
        in_doubt: compare the checksum, whatever size and time say.

    Raises:
        FileNotFoundError: there is none.
        DamagedEntryError: it is not as it was written.
    """

    # of memory; more than it takes, so that a process keeps a hundred files open and not thousands
    nbytes = 4 * 2**20

    def __init__(self, path: Path, in_doubt: bool = False) -> None:
        self.path = path
        self._state = _verified(path, in_doubt)
        try:
            # a worker's share is one core
            self._array = blosc2.open(str(path), mode="r", dparams={"nthreads": 1})
        except Exception as error:  # Blosc2's, of many kinds: the bytes are as written, so another version's
            raise DamagedEntryError(f"Blosc2 cannot open it ({error})") from error
        self.shape: tuple[int, int, int, int] = self._array.shape
        count = 2 * self.shape[0]
        first = self._state[0] - TRAILER.size - 4 * count
        self.extremes = np.fromfile(path, np.float32, count, offset=first).reshape(-1, 1, 1, 2)

    def __getitem__(self, box: Any) -> np.ndarray:
        """The voxels of a box, as they were written.

        Raises:
            DamagedEntryError: the file was changed, cut off or removed since it was opened.
        """
        try:
            if _state(self.path) != self._state:
                raise DamagedEntryError("changed after it was opened")
            return self._array[box]
        except (OSError, RuntimeError) as error:
            raise DamagedEntryError(f"cannot be read ({error})") from error


def _state(path: Path) -> tuple[int, int]:
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns


def _verified(path: Path, in_doubt: bool) -> tuple[int, int]:
    """Size and time of change of an entry that is as it was written."""
    size, changed = _state(path)
    with path.open("rb") as file:
        file.seek(max(size - TRAILER.size, 0))
        trailer = file.read()
        if len(trailer) != TRAILER.size or not trailer.startswith(MAGIC):
            raise DamagedEntryError("cut off or overwritten")
        _, key, checksum, stamp = TRAILER.unpack(trailer)
        if key != path.name.removesuffix(SUFFIX).encode():
            raise DamagedEntryError("written under another name")
        if changed == stamp and not in_doubt:
            return size, changed
        file.seek(0)
        if zlib.crc32(file.read()[: -TRAILER.size]) != checksum:
            raise DamagedEntryError("wrong checksum")
    with suppress(OSError):  # a copy: spare the others the checksum, where that is allowed
        os.utime(path, ns=(stamp, stamp))
    return _state(path)
