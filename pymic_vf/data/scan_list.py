"""The scans of a csv file, checked before any work and held in as little memory as their names take."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from pymic_vf.data.stored import DamagedScanError, require_regular
from pymic_vf.errors import did_you_mean, one_line

log = logging.getLogger(__name__)
SHOWN = 5  # rows named in a message before it says how many more there are


class ScanList:
    """The distinct scans of a csv file, in its order.

    Args:
        root: the folder that the names are relative to.
        names: bytes array [scans, modalities] of file names. One numpy array and not a list of str: the workers of a
            loader are forked, and reading a Python object writes its reference count, which copies its memory page.
    """

    def __init__(self, root: Path, names: np.ndarray) -> None:
        self.root, self._names = root, names

    def __len__(self) -> int:
        return len(self._names)

    def files(self, index: int) -> list[Path]:
        """The files of scan `index`, one a modality."""
        return [self.root / os.fsdecode(name) for name in self._names[index]]


def read_scan_list(
    csv: str | os.PathLike, root: str | os.PathLike, modalities: int, mistakes: list[str], needed: int = 1
) -> ScanList:
    """Read the csv of a pretraining set: the column ``image``, or the first `modalities` columns.

    Args:
        csv: its first line names the columns; further ones, such as ``label``, are not needed and not read.
        root: [dataset] train_dir, the folder that the names are relative to.
        modalities: [dataset] modal_num, the number of image files of a scan.
        mistakes: filled with what is wrong: no such csv or folder, no column ``image``, an empty cell, a missing file
            (with its line), fewer than `needed` scans. The list returned is then not for use.
        needed: how many different scans a sample takes.
    """
    csv, root = Path(csv), Path(root)
    nothing = ScanList(root, np.empty((0, modalities), "S1"))
    table = read_table(csv, mistakes)
    if not root.is_dir():
        mistakes.append(f"[dataset] train_dir = {root}: there is no such folder")
    if table is None:
        return nothing
    columns = list(table.columns)
    wrong = _wrong_columns(columns, modalities)
    if wrong:
        mistakes.append(f"{csv}: {wrong}; its columns are {one_line(columns)}")
        return nothing
    table = table[["image"] if modalities == 1 else columns[:modalities]]
    complete = table.dropna()
    scans = complete[~_full_paths(complete, root).duplicated()]
    if len(scans) < len(complete):
        log.warning("%s: %d rows repeat a scan and count once", csv, len(complete) - len(scans))
    if len(complete) == len(table) and len(scans) < needed:
        mistakes.append(f"{csv}: a sample needs {needed} different scans, this file has {len(scans)}")
    known = len(mistakes)
    check_files(csv, root, table, mistakes)
    if len(mistakes) > known:  # what is named there is no name of a file, and may be as long as one likes
        return nothing
    return ScanList(root, np.array([[os.fsencode(name) for name in row] for row in scans.to_numpy()], ndmin=2))


def read_table(csv: Path, mistakes: list[str]) -> pd.DataFrame | None:
    """A csv of file names as text, its index the line numbers that an editor shows; None and a mistake without one."""
    try:
        require_regular(csv)
        # a scan may be named NA or null: an empty cell alone is no name
        table = pd.read_csv(csv, dtype=str, skip_blank_lines=False, keep_default_na=False, na_values=[""])
    except FileNotFoundError:
        mistakes.append(f"{csv}: there is no such csv file")
        return None
    except (OSError, ValueError, DamagedScanError) as error:  # pandas' parsing errors are ValueErrors
        mistakes.append(f"{csv}: cannot be read as csv ({one_line(error)})")
        return None
    if not isinstance(table.index, pd.RangeIndex):  # pandas takes what is too much for names of the rows
        mistakes.append(f"{csv}: its lines have more cells than the first has columns, {len(table.columns)}")
        return None
    table.index += 2  # line 1 is the header
    return table.dropna(how="all")


def _full_paths(names: pd.DataFrame, root: Path) -> pd.DataFrame:
    """The files, each written in one way: a name may be ./a or a, or absolute."""
    folder = root.absolute()
    return names.apply(lambda column: column.map(lambda name: os.path.normpath(folder / name)))


def check_files(
    csv: Path, root: Path, table: pd.DataFrame, mistakes: list[str], readable: Callable[[str], bool] | None = None
) -> None:
    """Note the empty cells of a table of file names, and the files that are not there.

    One listing a folder: a hundred thousand stats take minutes on a file server.

    Args:
        csv: that the table was read from.
        root: the folder that the names are relative to.
        table: of names only.
        mistakes: filled with what is wrong.
        readable: where PyMIC reads the files, which sets none aside: whether it can, by the name. Other names are then
            mistakes too, and so is what is no file; reading a FIFO would block for ever.
    """
    empty = table.index[table.isna().any(axis=1)]
    mistakes.extend(_listed(csv, "has no file name", [f"line {line}" for line in empty]))
    if not root.is_dir():
        return
    listed: dict[str, dict[str, bool]] = {}
    missing, unreadable, no_files = [], [], []
    for line, *names in table.dropna().itertuples():
        for name in names:
            folder, file = os.path.split(os.path.normpath(root / name))
            if folder not in listed:
                listed[folder] = _entries(folder)
            if readable is not None and file.endswith(".nii.gz") and file.removesuffix(".gz") in listed[folder]:
                log.warning("%s: SimpleITK reads the voxels of the .nii beside it in its stead", one_line(root / name))
            if file not in listed[folder]:
                wrong = missing
            elif readable is not None and not listed[folder][file]:
                wrong = no_files
            elif readable is not None and not readable(name):
                wrong = unreadable
            else:
                continue
            wrong.append(f"{one_line(root / name)} (line {line})")
    mistakes.extend(_listed(csv, "names files that do not exist", missing))
    mistakes.extend(_listed(csv, "names what is no file", no_files))
    mistakes.extend(_listed(csv, "names files in a format that PyMIC cannot read or write", unreadable))


def _wrong_columns(columns: list[str], modalities: int) -> str:
    separators = [sign for sign in (";", "\t") if len(columns) == 1 and sign in columns[0]]
    if separators:
        return f"must have commas between its cells, not {separators[0]!r}"
    if modalities == 1 and "image" not in columns:
        return f"has no column 'image'{did_you_mean('image', columns)}"
    if len(columns) < modalities:
        return f"has {len(columns)} columns, where [dataset] modal_num = {modalities}"
    return ""


def _entries(folder: str) -> dict[str, bool]:
    """What a folder has, and whether that is a file; nothing where it cannot be listed."""
    try:
        with os.scandir(folder) as entries:
            return {entry.name: entry.is_file() for entry in entries}
    except (OSError, ValueError):
        return {}


def _listed(csv: Path, what: str, items: list[str]) -> list[str]:
    if not items:
        return []
    more = f" and {len(items) - SHOWN} more" if len(items) > SHOWN else ""
    return [f"{csv} {what}: {', '.join(items[:SHOWN])}{more}"]
