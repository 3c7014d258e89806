"""Files that appear whole or not at all: written under a temporary name in the same folder, then renamed."""

from __future__ import annotations

import builtins
import errno
import gzip
import os
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from pymic_vf.errors import UserError

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None

PREFIX = ".incomplete-"
NIFTI_HEADER = 352  # bytes, the least that precedes the voxels
PIECE = 2**20
LEFTOVER_SECONDS = 3600  # where a writer cannot be asked whether it lives: none takes this long
# mkstemp makes files of mode 0600; those that a user finds shall have the mode of any other file of theirs
_UMASK = os.umask(0)
os.umask(_UMASK)


@contextmanager
def whole_file(path: str | os.PathLike) -> Iterator[Path]:
    """Give a temporary path beside `path`; rename it to `path` when the block ends well, remove it when it does not.

    The temporary name ends as `path` does, since many writers go by the suffix.

    Args:
        path: the file that shall appear; an existing one is replaced in one step.
    """
    target = Path(path)
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=PREFIX, suffix="".join(target.suffixes[-2:]))
    temporary = Path(name)
    try:
        _lock(handle)
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())  # a rename may reach the disk before the data does
        temporary.chmod(0o666 & ~_UMASK)
        temporary.replace(target)
    finally:
        with suppress(FileNotFoundError):
            temporary.unlink()
        os.close(handle)


def open_whole(file: Any, mode: str = "r", *args: Any, **options: Any) -> IO:
    """`open`, but what is opened for writing anew appears when it is closed."""
    if "w" not in mode:
        return builtins.open(file, mode, *args, **options)  # noqa: PTH123 (this stands in for it)
    writing = whole_file(file)
    stream = builtins.open(writing.__enter__(), mode, *args, **options)  # noqa: PTH123, SIM115
    close = stream.close

    def close_and_rename() -> None:
        if stream.closed:
            return
        try:
            close()
        except BaseException:
            writing.__exit__(*sys.exc_info())
            raise
        writing.__exit__(None, None, None)

    stream.close = close_and_rename
    return stream


@contextmanager
def written(path: str | os.PathLike) -> Iterator[None]:
    """Within the block, an error of the file system becomes a message that names `path`.

    Raises:
        UserError: instead of that error.
    """
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{path} cannot be written ({error.strerror or error}); what was written before is whole, and nothing is "
            "left of this file. Make room or choose another folder, and run again"
        ) from error


def check_volume(path: Path, voxel_bytes: int) -> None:
    """SimpleITK's writer of compressed volumes does not notice a full disk: look whether all voxels are there.

    Args:
        path: of the file.
        voxel_bytes: what its voxels take, uncompressed.

    Raises:
        OSError: some of it is missing.
    """
    if path.suffix == ".gz":
        size, least = _decompressed_size(path), NIFTI_HEADER + voxel_bytes
    elif path.suffix in (".nii", ".mha"):
        size, least = path.stat().st_size, voxel_bytes
    else:
        return  # Pillow raises the errors of its writes
    if size < least:
        raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)}, or another failure: the file is cut off")


def _decompressed_size(path: Path) -> int:
    """-1 for a file that is damaged or cut off."""
    size = 0
    try:
        with gzip.open(path) as file:
            while piece := file.read(PIECE):
                size += len(piece)
    except (EOFError, gzip.BadGzipFile, zlib.error):
        return -1
    return size


def remove_leftovers(folder: Path) -> list[Path]:
    """Remove the temporary files of writers that were killed; returns those removed.

    A writer holds a lock on its file. Where the file system knows no locks, an hour must have passed.
    """
    removed = []
    for path in folder.glob(f"{PREFIX}*"):
        with suppress(OSError):
            if _is_abandoned(path):
                path.unlink()
                removed.append(path)
    return removed


def _is_abandoned(path: Path) -> bool:
    handle = os.open(path, os.O_RDWR)
    try:
        return _lock(handle) or time.time() - path.stat().st_mtime > LEFTOVER_SECONDS
    except BlockingIOError:
        return False
    finally:
        os.close(handle)


def _lock(handle: int) -> bool:
    """Lock an open file; False where that is not possible here.

    Raises:
        BlockingIOError: another process holds the lock.
    """
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except (AttributeError, OSError):
        return False
    return True
