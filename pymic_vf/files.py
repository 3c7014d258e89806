"""Files that appear whole or not at all: written under a temporary name in the same folder, then renamed."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

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
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=".incomplete-", suffix="".join(target.suffixes[-2:]))
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())  # a rename may reach the disk before the data does
        temporary.chmod(0o666 & ~_UMASK)
        temporary.replace(target)
    finally:
        with suppress(FileNotFoundError):
            temporary.unlink()
