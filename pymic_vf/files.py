"""Files that appear whole or not at all: written under a temporary name in the same folder, then renamed."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None

PREFIX = ".incomplete-"
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
