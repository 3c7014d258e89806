"""One cached volume in one file, from which a box is read without the rest.

The file is a Blosc2 array (``.b2nd``, which other tools open as well), what its numbers mean, and some bytes that say
how it must be. The meaning is not among Blosc2's own metadata: version 4.14 leaks them at each reading. Measured
with 64x128x128 crops of 512x512 CT scans (a phantom of 200 slices, a lung of 48, a liver of 41) on one core, in CPU
time; the last column are 12 head-and-neck CTs of 2.5 to 5 mm, a third of them air that is exactly -1000:

=======================  ================  =================  =================  ===============
codec, filter            read / memmap     bytes / .nii.gz    write, 200 slices  bytes, 3 mm CTs
=======================  ================  =================  =================  ===============
LZ4, bit shuffle         2.4, 2.1, 2.2     0.83, 0.94, 0.86   0.14 s             1.59
LZ4-HC 1, bit shuffle    2.4, 2.2, 2.1     0.81, 0.90, 0.82   0.56 s             1.40
LZ4, byte shuffle        1.7, 1.7, 1.9     0.96, 1.11, 1.07   0.35 s             1.34
Zstd 1, bit shuffle      4.2, 4.2, 3.8     0.80, 0.85, 0.76   0.59 s             1.10
Zstd 1, byte shuffle     4.3, 4.0, 3.8     0.76, 0.85, 0.74   0.47 s             0.94
=======================  ================  =================  =================  ===============

So it is LZ4 with bit shuffle: the noise of a CT fills whole bit planes, which LZ4 copies while it compresses the
others. Where that is larger than the scan's own files, it is Zstandard with byte shuffle. Blocks of 16x16x32 voxels
(16 KiB, a processor's first cache) in chunks of 64x128x128 were the fastest of ten shapes, by a little. The file is not
mapped: that is no faster, while mapped pages count as a worker's memory, and a mapped file that is cut off kills the
process.

Blosc2 has no checksum: of 60 damaged files it noticed 13. So the file's time of change is set to one that is written
in it: whatever writes to the file afterwards changes that. One look at size and time before each read then tells that
it is as it was written; where they differ, as after a copy, or where Blosc2 cannot read it, a checksum over the whole
file decides. The key is written in it too: an entry that took another one's name is no entry.
"""

from __future__ import annotations

import functools
import os
import struct
import time
import zlib
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import blosc2
import numpy as np

from pymic_vf.data.stored_voxels import Coding, StoredVoxels
from pymic_vf.files import whole_file

SUFFIX = ".b2nd"
CHUNK, BLOCK = (64, 128, 128), (16, 16, 32)
SMALLEST = (1, 1, 1, 1)
# magic, key, bytes of the Blosc2 array, of the coding, the CRC-32 of both, the file's time of change in ns
TRAILER = struct.Struct("<8s40sQQQQ")
MAGIC = b"PyMIC_VF"
ONE_THREAD = {"nthreads": 1}  # a worker's share is one core, and threads do not survive its fork


class DamagedEntryError(Exception):
    """A cached volume that is not as it was written; the message says what is wrong."""


def write_entry(path: Path, frame: bytes, coding: bytes) -> None:
    """Write a cached volume, as :func:`compress` made it, whole or not at all.

    Raises:
        OSError: the disk is full, or the folder cannot be written to.
    """
    # whole even seconds: the coarsest time that a file system keeps
    stamp = int(time.time()) // 2 * 2 * 10**9
    with whole_file(path) as temporary:
        with temporary.open("wb") as file:
            file.write(frame)
            file.write(coding)
            checksum = zlib.crc32(coding, zlib.crc32(frame))
            file.write(TRAILER.pack(MAGIC, _key(path), len(frame), len(coding), checksum, stamp))
        os.utime(temporary, ns=(stamp, stamp))


def compress(stored: StoredVoxels, budget: int) -> tuple[bytes, bytes]:
    """A volume as a Blosc2 array, the one read fastest if it takes no more than `budget` bytes; and its coding."""
    numbers, coding = np.ascontiguousarray(stored.numbers), zlib.compress(stored.coding.to_bytes(), 1)
    frame = _frame(numbers, blosc2.Codec.LZ4, blosc2.Filter.BITSHUFFLE)
    if len(frame) + len(coding) > budget:
        frame = _frame(numbers, blosc2.Codec.ZSTD, blosc2.Filter.SHUFFLE)
    return frame, coding


def _frame(numbers: np.ndarray, codec: blosc2.Codec, shuffle: blosc2.Filter) -> bytes:
    size = numbers.shape[1:]
    block = tuple(min(b, n) for b, n in zip(BLOCK, size, strict=True))
    chunk = tuple(min(c, -(-n // b) * b) for c, n, b in zip(CHUNK, size, block, strict=True))
    array = _empty_array(numbers.dtype, chunk, block, codec, shuffle)
    array.resize(numbers.shape)
    array[...] = numbers
    frame = array.to_cframe()
    array.resize(SMALLEST)  # gives its memory back
    return frame


@functools.cache
def _empty_array(
    dtype: np.dtype, chunk: tuple[int, ...], block: tuple[int, ...], codec: blosc2.Codec, shuffle: blosc2.Filter
) -> blosc2.NDArray:
    """One of a kind, used again: Blosc2 4.14 leaks 200 bytes with each that is made, and between a volume's large
    arrays these make holes of them. A worker grew by 2 KiB a volume."""
    filters = [shuffle] + [blosc2.Filter.NOFILTER] * 5
    cparams = {"codec": codec, "clevel": 1, "filters": filters, "filters_meta": [0] * 6, **ONE_THREAD}
    return blosc2.empty(SMALLEST, dtype, chunks=(1, *chunk), blocks=(1, *block), cparams=cparams, dparams=ONE_THREAD)


class VolumeFile:
    """A cached volume on disk. It holds one file open, and of its voxels nothing.

    Args:
        path: of a file that :func:`write_entry` wrote.
        in_doubt: compare the checksum, whatever size and time say.

    Raises:
        FileNotFoundError: there is none.
        DamagedEntryError: it is not as it was written.
    """

    memory_bytes = 1 << 16  # about, with the places of its chunks

    def __init__(self, path: Path, in_doubt: bool = False) -> None:
        self.path = path
        self._state, coding = _verified(path, in_doubt)
        try:
            self._array = blosc2.open(str(path), mode="r", dparams=ONE_THREAD)
            self._coding = Coding.from_bytes(zlib.decompress(coding))
        except Exception as error:  # Blosc2's, of many kinds: the bytes are as written, so another version's
            raise DamagedEntryError(f"Blosc2 cannot open it ({error})") from error
        self.shape: tuple[int, int, int, int] = self._array.shape

    def read(self, box: tuple[slice, ...]) -> np.ndarray:
        """The voxels of a box [C, d, h, w] of slices, float32, the caller's own.

        Raises:
            DamagedEntryError: the file was changed, cut off or removed since it was opened.
        """
        try:
            if _state(self.path) != self._state:
                raise DamagedEntryError("changed after it was opened")
            return self._coding.decode(self._array[box])
        except (OSError, RuntimeError) as error:
            raise DamagedEntryError(f"cannot be read ({error})") from error


def _state(path: Path) -> tuple[int, int]:
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns


def _key(path: Path) -> bytes:
    return path.name.removesuffix(SUFFIX).encode()


def _verified(path: Path, in_doubt: bool) -> tuple[tuple[int, int], bytes]:
    """Size and time of change of an entry that is as it was written, and its coding."""
    size, changed = _state(path)
    with path.open("rb") as file:
        file.seek(max(size - TRAILER.size, 0))
        trailer = file.read()
        if len(trailer) != TRAILER.size or not trailer.startswith(MAGIC):
            raise DamagedEntryError("cut off or overwritten")
        _, key, length, coding_length, checksum, stamp = TRAILER.unpack(trailer)
        if key.rstrip(b"\0") != _key(path):
            raise DamagedEntryError("written under another name")
        written = length + coding_length + TRAILER.size
        if written != size:
            raise DamagedEntryError(f"{size} bytes, where {written} were written")
        file.seek(length)
        coding = file.read(coding_length)
        if changed == stamp and not in_doubt:
            return (size, changed), coding
        file.seek(0)
        if _checksum(file, length + coding_length) != checksum:
            raise DamagedEntryError("wrong checksum")
    with suppress(OSError):  # a copy: spare the others the checksum, where that is allowed
        os.utime(path, ns=(stamp, stamp))
    return _state(path), coding


def _checksum(file: BinaryIO, length: int) -> int:
    checksum = 0
    while length:
        block = file.read(min(length, 1 << 22))
        if not block:
            break
        checksum = zlib.crc32(block, checksum)
        length -= len(block)
    return checksum
