"""Damaged and odd csv files: each is read as it was meant, or named in one line; and what PyMIC would end with."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from pymic_vf.data.bad_scans import BadScans
from pymic_vf.data.scan import can_pymic_read
from pymic_vf.data.scan_list import ScanList, read_scan_list
from pymic_vf.errors import ConfigError, one_line

from conftest import finetuning, parsed, write_volume

PAIR = ["a.nii.gz", "b.nii.gz"]
GOOD: dict[str, bytes] = {
    "plain": b"image\na.nii.gz\nb.nii.gz\n",
    "byte order mark": b"\xef\xbb\xbfimage\na.nii.gz\nb.nii.gz\n",
    "returns": b"image\r\na.nii.gz\r\nb.nii.gz\r\n",
    "returns alone": b"image\ra.nii.gz\rb.nii.gz\r",
    "no end": b"image\na.nii.gz\nb.nii.gz",
    "blank lines": b"image\n\na.nii.gz\n\n\nb.nii.gz\n\n",
    "quotes": b'"image"\n"a.nii.gz"\n"b.nii.gz"\n',
    "column twice": b"image,image\na.nii.gz,x\nb.nii.gz,y\n",
    "column without name": b"image,\na.nii.gz,\nb.nii.gz,\n",
    "short lines": b"image,label\na.nii.gz\nb.nii.gz\n",
    "many columns": b"image" + b",x" * 20_000 + b"\na.nii.gz\nb.nii.gz\n",
    "long cell": b"image,x\na.nii.gz," + b"x" * 2_000_000 + b"\nb.nii.gz,\n",
}
BAD: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "cannot be read as csv (is empty"),
    "blank first lines": (b"\n\nimage\na.nii.gz\nb.nii.gz\n", "cannot be read as csv"),
    "semicolons": (b"image;label\na.nii.gz;x\n", "must have commas between its cells, not ';'"),
    "tabs": (b"image\tlabel\na.nii.gz\tx\n", "must have commas between its cells, not '\\t'"),
    "UTF-16": ("image\na.nii.gz\n".encode("utf-16"), "cannot be read as csv ('utf-8' codec"),
    "Latin-1": ("image\nä.nii.gz\n".encode("latin-1"), "cannot be read as csv ('utf-8' codec"),
    "picture": (b"\x89PNG\r\n\x1a\n" + bytes(range(256)), "cannot be read as csv"),
    "open quote": (b'image\n"a.nii.gz\nb.nii.gz\n', "cannot be read as csv"),
    "header missing": (b"a.nii.gz\nb.nii.gz\n", "has no column 'image'; its columns are ['a.nii.gz']"),
    "header alone": (b"image\n", "a sample needs 2 different scans, this file has 0"),
    "blank in the header": (b" image\na.nii.gz\nb.nii.gz\n", "has no column 'image' (did you mean"),
    "more cells than columns": (b"image\na.nii.gz,x\nb.nii.gz,y\n", "its lines have more cells than the first has"),
    "many more": (b"image\na.nii.gz,x,y,z\nb.nii.gz,y,z,w\n", "its lines have more cells"),
    "more in one line": (b"image\na.nii.gz\nb.nii.gz,x\n", "cannot be read as csv"),
    "empty cell": (b"image,x\na.nii.gz,1\n,2\nb.nii.gz,3\n", "has no file name: line 3"),
    "NaN": (b"image\na.nii.gz\nb.nii.gz\nnan\n", "names files that do not exist"),
    "NUL": (b"image\na.nii.gz\0\nb.nii.gz\n", "a.nii.gz\\x00 (line 2)"),
    "escape": (b"image\n\x1b[31ma.nii.gz\nb.nii.gz\n", "\\x1b[31ma.nii.gz (line 2)"),
    "line end in a name": (b'image\n"a\nb"\nb.nii.gz\n', "a\\nb (line 2)"),
    "folder with NUL": (b"image\nx\0y/a.nii.gz\nb.nii.gz\n", "x\\x00y/a.nii.gz (line 2)"),
    "long name": (b"image\n" + b"a" * 2_000_000 + b"\nb.nii.gz\n", "names files that do not exist"),
    "long folder": (b"image\n" + b"a" * 2_000_000 + b"/a\nb.nii.gz\n", "names files that do not exist"),
    "deep": (b"image\n" + b"a/" * 5000 + b"a\nb.nii.gz\n", "names files that do not exist"),
    "file as a folder": (b"image\na.nii.gz/x\nb.nii.gz\n", "a.nii.gz/x (line 2)"),
    "blanks around": (b"image\na.nii.gz \nb.nii.gz\n", "a.nii.gz  (line 2)"),
    "root": (b"image\n/\nb.nii.gz\n", "names files that do not exist"),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in PAIR:
        (tmp_path / name).touch()
    return tmp_path


def read(folder: Path, content: bytes) -> tuple[ScanList, list[str]]:
    mistakes: list[str] = []
    (folder / "list.csv").write_bytes(content)
    return read_scan_list(folder / "list.csv", folder, 1, mistakes, needed=2), mistakes


@pytest.mark.parametrize("what", GOOD)
def test_read_as_meant(folder: Path, what: str):
    scans, mistakes = read(folder, GOOD[what])
    assert not mistakes
    assert [scans.files(i) for i in range(len(scans))] == [[folder / name] for name in PAIR]


@pytest.mark.parametrize("what", BAD)
def test_named(folder: Path, what: str):
    content, reason = BAD[what]
    _, mistakes = read(folder, content)
    assert mistakes and any(reason in each for each in mistakes)
    assert all("list.csv" in each and each.isprintable() and len(each) < 2000 for each in mistakes)


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo, lambda path: path.symlink_to(path)])
def test_no_csv_file(tmp_path: Path, make):
    make(tmp_path / "list.csv")
    mistakes: list[str] = []
    read_scan_list(tmp_path / "list.csv", tmp_path, 1, mistakes)
    assert len(mistakes) == 1 and "list.csv: cannot be read as csv" in mistakes[0]


def test_one_line():
    assert one_line("a\nb\x1b\udc80ü") == "a\\nb\\x1b\\udc80ü"
    assert one_line("x" * 9, 8) == "xxxx ... xx"


def test_bad_scans_of_odd_names_are_written_down(tmp_path: Path):
    names = [b"a\nb.nii.gz", b"\xff.nii.gz", b'a"b,c.nii.gz', "ü.nii.gz".encode()]
    scans = ScanList(tmp_path, np.array(names)[:, None])
    for _ in range(2):  # a second run adds no second line
        BadScans(scans, 1.0, tmp_path / "bad.csv").report(dict.fromkeys(range(len(names)), "no scan"))
    table = pd.read_csv(tmp_path / "bad.csv", encoding_errors="surrogateescape")
    assert list(table.image) == [str(scans.files(i)[0]) for i in range(len(names))]


def supervised(folder: Path, name: str, **dataset: Any) -> Mapping[str, Any]:
    (folder / "volumes").mkdir()
    (folder / "labelled.csv").write_text(f"image,label\n{name},a.mha\n")
    write_volume(folder / "volumes" / "a.mha", np.ones((4, 4, 4), np.int16))
    return parsed(folder / "x.cfg", finetuning(folder, folder / "out", dataset=dataset))


@pytest.mark.parametrize("stage", ["train", "test"])
def test_formats_of_pymic(tmp_path: Path, stage: str):
    from pymic_vf.host.settings.checks import check_supervised

    config = supervised(tmp_path, "a.nrrd")
    write_volume(tmp_path / "volumes" / "a.nrrd", np.ones((4, 4, 4), np.int16))
    message = r"names files in a format that PyMIC cannot read or write: .*/a\.nrrd \(line 2\)$"
    with pytest.raises(ConfigError, match=message):
        check_supervised(config, stage)


def test_supervised_files_that_are_none(tmp_path: Path):
    from pymic_vf.host.settings.checks import check_supervised

    config = supervised(tmp_path, "a.nii.gz")
    os.mkfifo(tmp_path / "volumes" / "a.nii.gz")
    with pytest.raises(ConfigError, match=r"names what is no file: .*/a\.nii\.gz \(line 2\)$"):
        check_supervised(config, "train")


def test_supervised_nii_beside_a_nii_gz(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    from pymic_vf.host.settings.checks import check_supervised

    config = supervised(tmp_path, "a.nii.gz")
    config["dataset"]["train_batch_size"] = 1
    for name in ("a.nii.gz", "a.nii"):
        write_volume(tmp_path / "volumes" / name, np.ones((4, 4, 4), np.int16))
    check_supervised(config, "train")
    assert "a.nii.gz: SimpleITK reads the voxels of the .nii beside it in its stead" in caplog.text


def test_what_pymic_can_read():
    assert all(map(can_pymic_read, ["a.nii", "a.nii.gz", "a.mha", "a.h5", "a.PNG"]))
    assert not any(map(can_pymic_read, ["a.nrrd", "a.NII", "a.mhd", "a.nhdr", "a", "a.gz", "a.dcm"]))
