"""What a file holds, compared with what its header announces: before memory is taken, and to the last byte.

SimpleITK prints "Uncompress failed" and returns what it has, reads over the end of files that are cut off, and takes
the memory that a damaged header asks for. So the voxels are read here, and no more of them than are announced.
"""

from __future__ import annotations

import io
import stat
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

try:  # two to three times as fast as Python's, on the processors that it supports
    from isal import igzip as gzip
    from isal.isal_zlib import error as isal_error
except ImportError:
    import gzip

    isal_error = zlib.error

BLOCK = 1 << 20
PADDING = 512  # zeros that may lie behind the voxels, in bytes: some tools fill their last block
DEFLATE_RATIO = 1032  # the most that a byte of a deflate stream can stand for
LIBRARY_ERRORS = (OSError, EOFError, zlib.error, isal_error)


class DamagedScanError(Exception):
    """What is wrong with a scan, without the name of its file: who knows it adds it."""


@dataclass(frozen=True)
class Stored:
    """Where a file has its voxels, and how they are written.

    Args:
        file: that has the voxels: the scan's own, or one that its header names.
        codec: ``raw``, ``gzip``, ``zlib`` or ``other``, which only SimpleITK reads.
        start: the first byte of them, before decompression; -1: they are the last of the file.
        length: how many bytes they take compressed; None: all until the file ends.
        skip: bytes to leave out after decompression.
        order: ``<`` or ``>``, the order of the bytes of a voxel.
        dtype: of a voxel as it is stored, None where SimpleITK knows it.
        count: how many of them there are, None where SimpleITK knows it.
        is_plain: the bytes are the voxels, in the order of the axes.
    """

    file: Path
    codec: str = "raw"
    start: int = 0
    length: int | None = None
    skip: int = 0
    order: str = "<"
    dtype: np.dtype | None = None
    count: int | None = None
    is_plain: bool = True


def require_regular(file: Path) -> int:
    """The size of a file in bytes. What is no regular file is not opened: a FIFO or a device could block for ever.

    Raises:
        OSError: there is none.
        DamagedScanError: it is something else, or empty.
    """
    status = file.stat()
    if not stat.S_ISREG(status.st_mode):
        kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket"}
        raise DamagedScanError(f"is {kinds.get(stat.S_IFMT(status.st_mode), 'a device')} and not a file")
    if not status.st_size:
        raise DamagedScanError("is empty, it has 0 bytes")
    return status.st_size


def beside(file: Path, name: str) -> Path:
    """The file of voxels that a header names, which must lie in the header's folder.

    Raises:
        DamagedScanError: it is elsewhere, is several files, or is no file.
    """
    is_name = name.strip() and name.isprintable()
    if not is_name or Path(name).name != name or name.split()[0].upper() == "LIST" or "%" in name:
        raise DamagedScanError(f"its header names the data file {name!r}, where one file in its own folder can be read")
    try:
        require_regular(file.with_name(name))
    except OSError as error:
        raise DamagedScanError(f"its data file {name!r} cannot be read ({error.strerror})") from error
    except DamagedScanError as error:
        raise DamagedScanError(f"its data file {name!r} {error}") from error
    return file.with_name(name)


def stored_bytes(stored: Stored, count: int) -> np.ndarray:
    """The voxels' bytes, uint8 [count], when the file has these and no more.

    Args:
        stored: where they are.
        count: how many the header announces.

    Raises:
        DamagedScanError: the file has fewer, or more, or they do not fit into memory.
        LIBRARY_ERRORS: what is compressed is damaged.
    """
    size = require_regular(stored.file)
    start = stored.start if stored.start >= 0 else size - count - stored.skip
    length = size - start if stored.length is None else stored.length
    if start < 0 or start > size or length > size - start:
        raise DamagedScanError(f"cut off, it has {size} bytes where its header announces {max(start, 0) + length}")
    most = length * (1 if stored.codec == "raw" else DEFLATE_RATIO)
    if stored.skip + count > most:
        held = f"{most - stored.skip}" if stored.codec == "raw" else f"at most {most}"
        raise DamagedScanError(f"cut off, {held} bytes of voxels where its header announces {count}")
    require_memory(count)
    voxels = np.empty(count, np.uint8)
    with stored.file.open("rb") as file:
        file.seek(start)
        content = _decoded(file, stored.codec, length)
        _read_into(content, np.empty(stored.skip, np.uint8))
        filled = _read_into(content, voxels)
        if filled < count:
            raise DamagedScanError(f"cut off, {filled} bytes of voxels where its header announces {count}")
        _require_end(content, count)
        if stored.codec == "zlib":  # whose end need not be that of the file
            file.seek(start + length)
            _require_end(file, count)
    return voxels


def require_memory(count: int) -> None:
    """Raise a DamagedScanError where this machine has not `count` bytes of memory free."""
    free = free_memory()
    if free is not None and count > free:
        raise DamagedScanError(f"too large, its voxels take {count / 2**30:.4g} GiB where {free / 2**30:.4g} are free")


def free_memory() -> int | None:
    """The bytes of memory that this machine can give, None where the system does not tell."""
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        return int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return None


def _decoded(file: IO[bytes], codec: str, length: int) -> IO[bytes]:
    if codec == "zlib":
        return _Inflated(file, length)
    return gzip.open(file) if codec == "gzip" else file


def _read_into(content: IO[bytes], array: np.ndarray) -> int:
    """Fill an array of bytes, as far as the content goes; how many bytes that are."""
    view, filled = memoryview(array), 0
    while filled < len(view) and (got := content.readinto(view[filled : filled + BLOCK])):
        filled += got
    return filled


def _require_end(content: IO[bytes], count: int) -> None:
    """Read to the end, where gzip compares its checksum; a header that announces too little leaves voxels there."""
    rest = bytearray()
    while len(rest) <= PADDING and (block := content.read(PADDING + 1)):
        rest += block
    if len(rest) > PADDING or any(rest):
        raise DamagedScanError(f"has more data behind the {count} bytes of voxels that its header announces")


class _Inflated(io.RawIOBase):
    """The next `length` bytes of a file, a zlib or gzip stream, read like a file."""

    def __init__(self, content: IO[bytes], length: int) -> None:
        self._content, self._left, self._inflate = content, length, zlib.decompressobj(wbits=47)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:
        while not self._inflate.eof:
            block = self._inflate.unconsumed_tail
            if not block:
                block = self._content.read(min(BLOCK, self._left))
                self._left -= len(block)
            found = self._inflate.decompress(block, len(buffer))
            if found:
                buffer[: len(found)] = found
                return len(found)
            if not block:
                raise EOFError("compressed data end too early")
        return 0
