"""Damaged scans of every format: each is named as bad with the reason, or read as it was written; none hangs, takes the
memory that it announces, or ends in a traceback."""

from __future__ import annotations

import bz2
import gzip
import os
import re
import resource
import signal
import socket
import struct
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pymic_vf.data.cache_key import scan_state
from pymic_vf.data.scan import FORMATS as FORMATS_OF
from pymic_vf.data.scan import UnusableScanError, read_scan
from pymic_vf.data.stored import LIBRARY_ERRORS, DamagedScanError, stored_bytes

VOXELS = np.random.default_rng(0).integers(-1000, 1000, (5, 6, 7)).astype(np.int16)
RAW = VOXELS.tobytes()
WRITTEN = {  # the name of a whole file, and whether SimpleITK compresses it
    "a.nii": False,
    "a.nii.gz": True,
    "a.mha": False,
    "z.mha": True,
    "a.nrrd": False,
    "z.nrrd": True,
}
FORMATS = (*WRITTEN, "a.h5", "z.h5")
COMPRESSED = ("a.nii.gz", "z.mha", "z.nrrd")
SECONDS = 20  # until a test that hangs is stopped


@pytest.fixture(autouse=True)
def _no_hang() -> Iterator[None]:
    def stop(*_args) -> None:
        raise TimeoutError(f"hangs for {SECONDS} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The bytes of a whole file of each format, all of the same voxels."""
    folder = tmp_path_factory.mktemp("whole")
    image = sitk.GetImageFromArray(VOXELS)
    image.SetSpacing((0.5, 1.0, 2.5))
    for name, compress in WRITTEN.items():
        sitk.WriteImage(image, str(folder / name), compress)
    for name, options in (("a.h5", {}), ("z.h5", {"compression": "gzip", "fletcher32": True, "chunks": (2, 6, 7)})):
        with h5py.File(folder / name, "w") as file:
            file.create_dataset("image", data=VOXELS, **options)
    return {name: (folder / name).read_bytes() for name in FORMATS}


def reason_of(path: Path) -> str:
    """Why a scan is bad: one line with its name. Any other exception than ours is this test's failure."""
    with pytest.raises(UnusableScanError) as caught:
        read_scan([path])
    message = str(caught.value)
    assert message.isprintable() and "Traceback" not in message and len(message) < 1000
    return message


def is_named(folder: Path, name: str, content: bytes, reason: str) -> None:
    path = folder / name
    path.write_bytes(content)
    message = reason_of(path)
    assert message.startswith(f"{path}: ") and reason in message


def is_right(folder: Path, name: str, content: bytes) -> None:
    (folder / name).write_bytes(content)
    scan = read_scan([folder / name])
    assert scan.voxels.dtype == VOXELS.dtype and np.array_equal(scan.voxels, VOXELS[None])


@pytest.mark.parametrize("name", FORMATS)
def test_whole(tmp_path: Path, whole: dict[str, bytes], name: str):
    is_right(tmp_path, name, whole[name])


@pytest.mark.parametrize("kept", [0.0, 0.05, 0.3, 0.7, 0.99])
@pytest.mark.parametrize("name", FORMATS)
def test_cut_off(tmp_path: Path, whole: dict[str, bytes], name: str, kept: float):
    is_named(tmp_path, name, whole[name][: int(kept * len(whole[name]))], "")


@pytest.mark.parametrize("missing", [1, 4, 8, 12])
@pytest.mark.parametrize("name", [*COMPRESSED, "a.nii", "a.mha", "a.nrrd"])
def test_last_bytes_are_missing(tmp_path: Path, whole: dict[str, bytes], name: str, missing: int):
    is_named(tmp_path, name, whole[name][:-missing], "")


@pytest.mark.parametrize("place", [-1, -5, -9, -60, -150, -300])
@pytest.mark.parametrize("name", COMPRESSED)
def test_bit_of_compressed_voxels(tmp_path: Path, whole: dict[str, bytes], name: str, place: int):
    content = bytearray(whole[name])
    content[place] ^= 0x10
    try:  # the last byte of a stream has bits that stand for nothing
        is_right(tmp_path, name, bytes(content))
        assert place in (-5, -9)
    except UnusableScanError as error:
        assert str(error).startswith(f"{tmp_path / name}: ")


@pytest.mark.parametrize("name", ["z.h5"])
def test_bit_of_voxels_with_checksum(tmp_path: Path, whole: dict[str, bytes], name: str):
    with h5py.File(tmp_path / name, "w") as file:
        file.create_dataset("image", data=VOXELS, chunks=(5, 6, 7), fletcher32=True)
        place = file["image"].id.get_chunk_info(0).byte_offset
    content = bytearray((tmp_path / name).read_bytes())
    content[place + 9] ^= 1
    is_named(tmp_path, name, bytes(content), "cannot be read")


@pytest.mark.parametrize("name", ["a.nii", "a.mha", "a.nrrd"])
def test_more_voxels_than_announced(tmp_path: Path, whole: dict[str, bytes], name: str):
    is_named(tmp_path, name, whole[name] + b"\1", "has more data behind the 420 bytes of voxels that its header")
    is_named(tmp_path, name, whole[name] + bytes(5000), "has more data behind")
    is_right(tmp_path, name, whole[name] + bytes(100))  # the zeros of a last block


@pytest.mark.parametrize("name", COMPRESSED)
def test_more_behind_what_is_compressed(tmp_path: Path, whole: dict[str, bytes], name: str):
    is_named(tmp_path, name, whole[name] + b"more", "")
    is_right(tmp_path, name, whole[name] + bytes(100))


NOT_SCANS = {
    "nothing": b"",
    "text": b"image,label\na.nii.gz,b.nii.gz\n",
    "zeros": bytes(2000),
    "page": b"<!DOCTYPE html><html><body>404 Not Found</body></html>" * 20,
    "no text": bytes(range(256)) * 8,
    "no line end": b"A" * 100_000,
    "pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 12345\n",
}


@pytest.mark.parametrize("what", NOT_SCANS)
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.mha", "a.nrrd", "a.h5"])
def test_no_scan(tmp_path: Path, name: str, what: str):
    is_named(tmp_path, name, NOT_SCANS[what], "is empty" if what == "nothing" else "")


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.mha", "a.nrrd", "a.h5"])
def test_other_formats_under_this_name(tmp_path: Path, whole: dict[str, bytes], name: str):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("a.nii", whole["a.nii"])
    sitk.WriteImage(sitk.GetImageFromArray(VOXELS[0]), str(tmp_path / "x.dcm"))
    for other in ("x.zip", "x.dcm"):
        is_named(tmp_path, name, (tmp_path / other).read_bytes(), "")
    for other in FORMATS:
        if other[1:] != name[1:]:
            is_named(tmp_path, name, whole[other], "")


def test_compressed_or_not_against_its_name(tmp_path: Path, whole: dict[str, bytes]):
    is_named(tmp_path, "a.nii", whole["a.nii.gz"], "(it is compressed by gzip, where its name says otherwise)")
    is_named(tmp_path, "a.nii.gz", whole["a.nii"], "(it is not compressed by gzip, where its name says otherwise)")
    is_named(tmp_path, "a.nii.gz", gzip.compress(whole["a.nii.gz"]), "sizeof_hdr")


NAN, INF = float("nan"), float("inf")
HEADERS = {  # what is damaged in a NIfTI header: the offset, the kind and value of the fields, and the reason
    "sizeof_hdr zero": (0, "i", (0,), "sizeof_hdr = 0 where a NIfTI-1 file has 348"),
    "sizeof_hdr 347": (0, "i", (347,), "sizeof_hdr = 347 where"),
    "sizeof_hdr negative": (0, "i", (-348,), "sizeof_hdr = -348 where"),
    "NIfTI-2": (0, "i", (540,), "is NIfTI-2"),
    "swapped": (0, "4s", (struct.pack(">i", 348),), "dim = "),
    "no axes": (40, "h", (0,), "dim = [0, 7, 6, 5"),
    "eight axes": (40, "h", (8,), "dim = [8, 7, 6, 5"),
    "negative axes": (40, "h", (-3,), "dim = [-3, 7, 6, 5"),
    "negative size": (42, "h", (-7,), "dim = [3, -7, 6, 5"),
    "zero size": (46, "h", (0,), "dim = [3, 7, 6, 0"),
    "larger size": (46, "h", (50,), "cut off"),
    "largest size": (42, "hhh", (32767,) * 3, "cut off"),
    "smaller size": (46, "h", (4,), "has more data behind the 336 bytes"),
    "two axes": (40, "h", (2,), "has more data behind"),
    "fourth axis of none": (40, "5h", (4, 7, 6, 5, 0), "dim = [4, 7, 6, 5, 0"),
    "fourth axis of nine": (40, "5h", (4, 7, 6, 5, 9), "cut off"),
    "type": (70, "h", (8,), "bitpix = 16 and datatype = 8 in its header, which is 32 bits"),
    "type of none": (70, "h", (0,), "datatype = 0 in its header, which is no type"),
    "type unknown": (70, "hh", (77, 16), "datatype = 77"),
    "type binary": (70, "hh", (1, 1), "datatype = 1"),
    "bits": (72, "h", (8,), "bitpix = 8 and datatype = 4"),
    "type and bits": (70, "hh", (64, 64), "cut off, 420 bytes of voxels where its header announces 1680"),
    "complex": (70, "hh", (32, 64), "cut off"),
    "spacing zero": (80, "f", (0,), "pixdim = ['0', '1', '2.5'] in its header"),
    "spacing negative": (88, "f", (-2.5,), "pixdim = ['0.5', '1', '-2.5']"),
    "spacing NaN": (84, "f", (NAN,), "pixdim = ['0.5', 'nan', '2.5']"),
    "spacing infinite": (84, "f", (INF,), "pixdim = ['0.5', 'inf', '2.5']"),
    "offset zero": (108, "f", (0,), "vox_offset = 0 in its header"),
    "offset in the header": (108, "f", (100,), "vox_offset = 100"),
    "offset behind the file": (108, "f", (1e6,), "cut off"),
    "offset huge": (108, "f", (1e30,), "vox_offset = 1e+30"),
    "offset between bytes": (108, "f", (352.5,), "vox_offset = 352.5"),
    "offset NaN": (108, "f", (NAN,), "vox_offset = nan"),
    "offset negative": (108, "f", (-352,), "vox_offset = -352"),
    "offset later": (108, "f", (360,), "cut off, 412 bytes of voxels where its header announces 420"),
    "slope NaN": (112, "f", (NAN,), "scl_slope = nan and scl_inter = 0"),
    "slope infinite": (112, "f", (INF,), "scl_slope = inf"),
    "intercept NaN": (112, "ff", (2, NAN), "scl_slope = 2 and scl_inter = nan"),
    "slope too large": (112, "ff", (3e38, 0), "NaN or infinite"),
    "magic of a pair": (344, "4s", (b"ni1\0",), r"magic = b'ni1\x00' in its header"),
    "magic missing": (344, "4s", (bytes(4),), r"magic = b'\x00\x00\x00\x00'"),
    "magic of NIfTI-2": (344, "4s", (b"n+2\0",), r"magic = b'n+2\x00'"),
}


@pytest.mark.parametrize("what", HEADERS)
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_nifti_header(tmp_path: Path, whole: dict[str, bytes], name: str, what: str):
    offset, kind, values, reason = HEADERS[what]
    content = bytearray(whole["a.nii"])
    struct.pack_into("<" + kind, content, offset, *values)
    is_named(tmp_path, name, gzip.compress(content) if name.endswith(".gz") else bytes(content), reason)


@pytest.mark.parametrize(
    ("offset", "kind", "values"),
    [(112, "ff", (0, 0)), (112, "ff", (0, 7)), (148, "10s", (b"\xff" * 10,)), (348, "4B", (1, 0, 0, 0))],
    ids=["slope zero", "slope zero with intercept", "description", "extension without one"],
)
def test_nifti_header_that_is_odd_and_right(tmp_path: Path, whole: dict[str, bytes], offset, kind, values):
    content = bytearray(whole["a.nii"])
    struct.pack_into("<" + kind, content, offset, *values)
    is_right(tmp_path, "a.nii", bytes(content))
    is_right(tmp_path, "a.nii.gz", gzip.compress(content))


def test_a_nii_beside_a_nii_gz_is_another_scan(tmp_path: Path, whole: dict[str, bytes]):
    """SimpleITK takes the voxels of the one that is not compressed for both."""
    other = bytearray(whole["a.nii"])
    other[352:] = bytes(len(RAW))
    (tmp_path / "a.nii").write_bytes(other)
    is_right(tmp_path, "a.nii.gz", whole["a.nii.gz"])
    scaled = bytearray(whole["a.nii"])
    struct.pack_into("<ff", scaled, 112, 2, -5)
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(scaled))
    assert np.array_equal(read_scan([tmp_path / "a.nii.gz"]).voxels[0], 2 * VOXELS - 5)


MHA = """ObjectType = Image
NDims = 3
BinaryData = True
BinaryDataByteOrderMSB = False
CompressedData = False
DimSize = 7 6 5
ElementType = MET_SHORT
ElementDataFile = LOCAL
"""
SMALL = zlib.compress(RAW)
MHA_DAMAGE: dict[str, tuple[dict[str, str], bytes, str]] = {  # what is replaced, the voxels, and the reason
    "larger": ({"7 6 5": "7 6 50"}, RAW, "cut off, 420 bytes of voxels where its header announces 4200"),
    "smaller": ({"7 6 5": "7 6 4"}, RAW, "has more data behind the 336 bytes"),
    "huge": ({"7 6 5": "99999 99999 99999"}, RAW, "cut off"),
    "negative": ({"7 6 5": "7 -6 5"}, RAW, ""),
    "zero": ({"7 6 5": "7 0 5"}, RAW, ""),
    "axes missing": ({"7 6 5": "7 6"}, RAW, ""),
    "no axes": ({"NDims = 3": "NDims = 0"}, RAW, ""),
    "many axes": ({"NDims = 3": "NDims = 999999999"}, RAW, "NDims = 999999999 in its header"),
    "two axes": ({"NDims = 3": "NDims = 2", "7 6 5": "42 5"}, RAW, "a volume has 3 axes"),
    "type": ({"MET_SHORT": "MET_FLOAT"}, RAW, "cut off"),
    "type unknown": ({"MET_SHORT": "MET_POTATO"}, RAW, ""),
    "channels": ({"NDims = 3": "ElementNumberOfChannels = 2\nNDims = 3"}, RAW, "cut off"),
    "twice": ({"NDims = 3": "DimSize = 7 6 4\nNDims = 3"}, RAW, "its header has DimSize twice"),
    "spacing": ({"NDims = 3": "NDims = 3\nElementSpacing = 0 1 1"}, RAW, ""),
    "spacing negative": ({"NDims = 3": "NDims = 3\nElementSpacing = -1 1 1"}, RAW, "spacing is (-1.0, 1.0, 1.0) mm"),
    "spacing NaN": ({"NDims = 3": "NDims = 3\nElementSpacing = nan 1 1"}, RAW, ""),
    "text": ({"BinaryData = True": "BinaryData = False"}, b"1 2 3", ""),
    "flag": ({"CompressedData = False": "CompressedData = maybe"}, RAW, "CompressedData = maybe must be True or"),
    "said to be compressed": ({"CompressedData = False": "CompressedData = True"}, RAW, "cannot be read"),
    "not said to be": ({}, SMALL, "cut off"),
    "compressed size too small": (
        {"CompressedData = False": "CompressedData = True\nCompressedDataSize = 99"}, SMALL, "end too early",
    ),
    "compressed size too large": (
        {"CompressedData = False": "CompressedData = True\nCompressedDataSize = 9999"}, SMALL, "cut off",
    ),
    "compressed size no number": (
        {"CompressedData = False": "CompressedData = True\nCompressedDataSize = x"}, SMALL, "must be a whole number",
    ),
    "compressed size negative": (
        {"CompressedData = False": "CompressedData = True\nCompressedDataSize = -9"}, SMALL, "must not be negative",
    ),
    "more compressed": ({"CompressedData = False": "CompressedData = True"}, zlib.compress(RAW + b"x"), "more data"),
    "less compressed": ({"CompressedData = False": "CompressedData = True"}, zlib.compress(RAW[:-1]), "cut off"),
    "header size": ({"NDims": "HeaderSize = 9\nNDims"}, RAW, "HeaderSize = 9 where the voxels follow the header"),
    "header size negative": ({"NDims": "HeaderSize = -2\nNDims"}, RAW, "HeaderSize = -2"),
    "other folder": ({"LOCAL": "/etc/passwd"}, b"", "names the data file '/etc/passwd', where one file in its own"),
    "folder above": ({"LOCAL": "../x.raw"}, b"", "names the data file '../x.raw'"),
    "folder below": ({"LOCAL": "sub/x.raw"}, b"", "names the data file 'sub/x.raw'"),
    "dots": ({"LOCAL": ".."}, b"", "its data file '..' is a folder"),
    "list": ({"LOCAL": "LIST"}, b"x.raw\n", "names the data file 'LIST'"),
    "pattern": ({"LOCAL": "x%03d.raw 1 5 1"}, b"", "names the data file 'x%03d.raw 1 5 1'"),
    "no data file": ({"LOCAL": "gone.raw"}, b"", "its data file 'gone.raw' cannot be read (No such file"),
    "FIFO": ({"LOCAL": "fifo"}, b"", "its data file 'fifo' is a FIFO"),
    "no name": ({"LOCAL": ""}, b"", "ElementDataFile is empty"),
    "NUL": ({"LOCAL": "a\0b"}, b"", "names the data file"),
    "data file too short": ({"LOCAL": "short.raw"}, b"", "cut off, 419 bytes of voxels where its header announces 420"),
    "header ends": ({"ElementDataFile = LOCAL": ""}, b"", "is no MetaImage"),
}  # fmt: skip
MHA_RIGHT: dict[str, tuple[dict[str, str], bytes]] = {
    "as it is": ({}, RAW),
    "lower case": ({"LOCAL": "Local"}, RAW),
    "comment": ({"NDims": "Comment = hello = you\nNDims"}, RAW),
    "big endian": ({"MSB = False": "MSB = True"}, VOXELS.astype(">i2").tobytes()),
    "compressed without a size": ({"CompressedData = False": "CompressedData = True"}, SMALL),
    "gzip": ({"CompressedData = False": "CompressedData = True"}, gzip.compress(RAW)),
    "data file": ({"LOCAL": "x.raw"}, b""),
    "compressed data file": ({"LOCAL": "x.zraw", "CompressedData = False": "CompressedData = True"}, b""),
    "at the end": ({"NDims": "HeaderSize = -1\nNDims"}, b"junk" + RAW),
    "returns": ({"\n": "\r\n"}, RAW),
}


def beside(folder: Path) -> Path:
    """What headers name."""
    (folder / "x.raw").write_bytes(RAW)
    (folder / "x.zraw").write_bytes(SMALL)
    (folder / "x.gz").write_bytes(gzip.compress(RAW))
    (folder / "short.raw").write_bytes(RAW[:-1])
    (folder / "sub").mkdir()
    (folder / "sub" / "x.raw").write_bytes(RAW)
    os.mkfifo(folder / "fifo")
    return folder


def replaced(text: str, changes: dict[str, str]) -> bytes:
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    return text.encode()


@pytest.mark.parametrize("what", MHA_DAMAGE)
def test_metaimage(tmp_path: Path, what: str):
    changes, voxels, reason = MHA_DAMAGE[what]
    is_named(beside(tmp_path), "a.mha", replaced(MHA, changes) + voxels, reason)


@pytest.mark.parametrize("what", MHA_RIGHT)
def test_metaimage_that_is_odd_and_right(tmp_path: Path, what: str):
    changes, voxels = MHA_RIGHT[what]
    is_right(beside(tmp_path), "a.mha", replaced(MHA, changes) + voxels)


NRRD = """NRRD0004
type: short
dimension: 3
space: left-posterior-superior
sizes: 7 6 5
space directions: (0.5,0,0) (0,1,0) (0,0,2.5)
kinds: domain domain domain
endian: little
encoding: raw

"""
PACKED = gzip.compress(RAW)
NRRD_DAMAGE: dict[str, tuple[dict[str, str], bytes, str]] = {
    "larger": ({"7 6 5": "7 6 50"}, RAW, "cut off, 420 bytes of voxels where its header announces 4200"),
    "smaller": ({"7 6 5": "7 6 4"}, RAW, "has more data behind the 336 bytes"),
    "huge": ({"7 6 5": "99999 99999 99999"}, RAW, ""),
    "negative": ({"7 6 5": "7 -6 5"}, RAW, ""),
    "zero": ({"7 6 5": "7 0 5"}, RAW, ""),
    "axes missing": ({"7 6 5": "7 6"}, RAW, ""),
    "many axes": ({"dimension: 3": "dimension: 17"}, RAW, ""),
    "type": ({"type: short": "type: double"}, RAW, "cut off"),
    "type unknown": ({"type: short": "type: potato"}, RAW, ""),
    "twice": ({"endian: little": "endian: little\nSizes: 7 6 4"}, RAW, "its header has 'sizes' twice"),
    "spacing": ({"(0,1,0)": "(0,0,0)"}, RAW, ""),
    "spacing NaN": ({"(0,1,0)": "(0,nan,0)"}, RAW, ""),
    "encoding": ({"encoding: raw": "encoding: zip"}, RAW, ""),
    "bzip2": ({"encoding: raw": "encoding: bzip2"}, bz2.compress(RAW), "cannot be read"),
    "no encoding": ({"encoding: raw\n": ""}, RAW, ""),
    "said to be compressed": ({"encoding: raw": "encoding: gzip"}, RAW, "cannot be read"),
    "zlib": ({"encoding: raw": "encoding: gzip"}, SMALL, "cannot be read"),
    "not said to be": ({}, PACKED, "cut off"),
    "more compressed": ({"encoding: raw": "encoding: gz"}, gzip.compress(RAW + b"x"), "has more data behind"),
    "less compressed": ({"encoding: raw": "encoding: gz"}, gzip.compress(RAW[:-1]), "cut off, 419 bytes of voxels"),
    "checksum": ({"encoding: raw": "encoding: gz"}, PACKED[:-8] + b"1234" + PACKED[-4:], "CRC check failed"),
    "text too short": ({"encoding: raw": "encoding: text"}, b"1 2 3", ""),
    "text huge": ({"encoding: raw": "encoding: text", "7 6 5": "9999 9999 99"}, b"1 2 3", "cut off, its header"),
    "hex too short": ({"encoding: raw": "encoding: hex"}, RAW.hex()[:-2].encode(), ""),
    "skip": ({"endian": "byte skip: 3\nendian"}, RAW, "cut off, 417 bytes of voxels"),
    "skip no number": ({"endian": "byte skip: x\nendian"}, RAW, "byte skip: x must be a whole number"),
    "skip negative": ({"endian": "byte skip: -2\nendian"}, RAW, "byte skip = -2"),
    "skip huge": ({"endian": "byte skip: 99999999999\nendian"}, RAW, "cut off"),
    "lines": ({"endian": "line skip: 99\nendian"}, RAW, "cut off"),
    "other folder": ({"endian": "data file: /etc/passwd\nendian"}, b"", "names the data file '/etc/passwd'"),
    "folder above": ({"endian": "datafile: ../x.raw\nendian"}, b"", "names the data file '../x.raw'"),
    "folder below": ({"endian": "data file: sub/x.raw\nendian"}, b"", "names the data file 'sub/x.raw'"),
    "list": ({"encoding: raw\n": "encoding: raw\ndata file: LIST\nx.raw\n"}, b"", "names the data file 'LIST'"),
    "pattern": ({"endian": "data file: x%d.raw 1 5 1\nendian"}, b"", "names the data file 'x%d.raw 1 5 1'"),
    "no data file": ({"endian": "data file: gone.raw\nendian"}, b"", "its data file 'gone.raw' cannot be read"),
    "FIFO": ({"endian": "data file: fifo\nendian"}, b"", "its data file 'fifo' is a FIFO"),
    "data file too short": ({"endian": "data file: short.raw\nendian"}, b"", "cut off, 419 bytes"),
    "magic": ({"NRRD0004": "NRRX0004"}, RAW, "is no NRRD file"),
}
NRRD_RIGHT: dict[str, tuple[dict[str, str], bytes]] = {
    "as it is": ({}, RAW),
    "big endian": ({"little": "big"}, VOXELS.astype(">i2").tobytes()),
    "gzip": ({"encoding: raw": "encoding: GZIP"}, PACKED),
    "gzip of two parts": ({"encoding: raw": "encoding: gz"}, gzip.compress(RAW[:100]) + gzip.compress(RAW[100:])),
    "text": ({"encoding: raw": "encoding: ascii"}, " ".join(map(str, VOXELS.ravel())).encode()),
    "hex": ({"encoding: raw": "encoding: hex"}, RAW.hex().encode()),
    "skip": ({"endian": "byte skip: 3\nendian"}, b"abc" + RAW),
    "skip of compressed": ({"encoding: raw": "byteskip: 3\nencoding: gz"}, gzip.compress(b"abc" + RAW)),
    "last": ({"endian": "byte skip: -1\nendian"}, b"abc" + RAW),
    "lines": ({"endian": "line skip: 1\nendian"}, b"abc\n" + RAW),
    "data file": ({"endian": "data file: x.raw\nendian"}, b""),
    "compressed data file": ({"encoding: raw": "data file: x.gz\nencoding: gz"}, b""),
    "comment and key": ({"endian": "# a: comment\nkey:=va: lue\nendian"}, RAW),
}


@pytest.mark.parametrize("what", NRRD_DAMAGE)
def test_nrrd(tmp_path: Path, what: str):
    changes, voxels, reason = NRRD_DAMAGE[what]
    is_named(beside(tmp_path), "a.nrrd", replaced(NRRD, changes) + voxels, reason)


@pytest.mark.parametrize("what", NRRD_RIGHT)
def test_nrrd_that_is_odd_and_right(tmp_path: Path, what: str):
    changes, voxels = NRRD_RIGHT[what]
    is_right(beside(tmp_path), "a.nrrd", replaced(NRRD, changes) + voxels)


@pytest.mark.parametrize("axis", range(4))
def test_nrrd_with_channels_along_any_axis(tmp_path: Path, axis: int):
    channels = np.stack([VOXELS, VOXELS + 1, VOXELS + 2])
    sizes, kinds, directions = ["7", "6", "5"], ["domain"] * 3, ["(0.5,0,0)", "(0,1,0)", "(0,0,2.5)"]
    for words, word in ((sizes, "3"), (kinds, "vector"), (directions, "none")):
        words.insert(axis, word)
    header = NRRD.replace("dimension: 3", "dimension: 4").replace("7 6 5", " ".join(sizes))
    header = header.replace("domain domain domain", " ".join(kinds))
    header = header.replace("(0.5,0,0) (0,1,0) (0,0,2.5)", " ".join(directions))
    voxels = np.moveaxis(channels, 0, 3 - axis).tobytes()
    (tmp_path / "a.nrrd").write_bytes(header.encode() + voxels)
    assert np.array_equal(read_scan([tmp_path / "a.nrrd"]).voxels, channels)
    is_named(tmp_path, "a.nrrd", header.encode() + voxels[:-1], "cut off, 1259 bytes of voxels")


def _virtual(file: h5py.File) -> None:
    layout = h5py.VirtualLayout((5, 6, 7), "i2")
    layout[:] = h5py.VirtualSource("other.h5", "image", (5, 6, 7))
    file.create_virtual_dataset("image", layout)


def _unwritten(file: h5py.File) -> None:
    file.create_dataset("image", (8, 6, 7), "i2", chunks=(2, 6, 7))[:6] = 1


H5: dict[str, tuple[Callable[[h5py.File], object], str]] = {
    "group": (lambda f: f.create_group("image"), "'image' is a group and not a dataset"),
    "type": (lambda f: f.__setitem__("image", np.dtype("i2")), "'image' is a datatype and not a dataset"),
    "nothing": (lambda f: f.create_group("x"), "has no dataset 'image' (it has ['x'])"),
    "text": (lambda f: f.__setitem__("image", "hello"), "'image' has the shape ()"),
    "texts": (lambda f: f.__setitem__("image", np.full((2, 2, 2), b"x")), "voxels of type |S1"),
    "number": (lambda f: f.__setitem__("image", 7), "'image' has the shape ()"),
    "null": (lambda f: f.__setitem__("image", h5py.Empty("i2")), "'image' has the shape None"),
    "empty": (lambda f: f.__setitem__("image", np.empty((0, 3, 3))), "'image' has the shape (0, 3, 3)"),
    "one axis": (lambda f: f.__setitem__("image", np.ones(9)), "'image' has the shape (9,)"),
    "two axes": (lambda f: f.__setitem__("image", np.ones((9, 9))), "'image' has the shape (9, 9)"),
    "five axes": (lambda f: f.__setitem__("image", np.ones((1, 1, 3, 3, 3))), "'image' has the shape (1, 1, 3, 3, 3)"),
    "compound": (
        lambda f: f.__setitem__("image", np.zeros((2, 2, 2), [("a", "i2"), ("b", "f4")])), "are not intensities",
    ),
    "complex": (lambda f: f.__setitem__("image", np.zeros((2, 2, 2), "c8")), "are not intensities"),
    "references": (lambda f: f.create_dataset("image", (2, 2, 2), h5py.ref_dtype), "are not intensities"),
    "huge and unwritten": (lambda f: f.create_dataset("image", (10**5,) * 3, "i2"), "cut off, 0 bytes of voxels"),
    "huge chunks": (
        lambda f: f.create_dataset("image", (10**5,) * 3, "i2", chunks=(100, 100, 100)), "cut off, 0 chunks of voxels",
    ),
    "chunks unwritten": (_unwritten, "cut off, 3 chunks of voxels where 'image' announces 4"),
    "virtual": (_virtual, "has its voxels in other files"),
    "external data": (
        lambda f: f.create_dataset("image", (5, 6, 7), "i2", external=[("x.raw", 0, 420)]), "voxels in other files",
    ),
    "external link": (lambda f: f.__setitem__("image", h5py.ExternalLink("other.h5", "image")), "link to other.h5"),
    "external FIFO": (lambda f: f.__setitem__("image", h5py.ExternalLink("fifo", "image")), "is a link to fifo"),
    "link to nothing": (lambda f: f.__setitem__("image", h5py.SoftLink("/x")), "'image' is a link to /x"),
    "NaN": (lambda f: f.__setitem__("image", np.full((2, 2, 2), np.nan)), "8 voxels are NaN or infinite"),
    "beyond float32": (lambda f: f.__setitem__("image", np.full((2, 2, 2), 1e300)), "where float32 ends at 3.4"),
}  # fmt: skip


@pytest.mark.parametrize("what", H5)
def test_h5(tmp_path: Path, whole: dict[str, bytes], what: str):
    beside(tmp_path)
    (tmp_path / "other.h5").write_bytes(whole["a.h5"])
    make, reason = H5[what]
    with h5py.File(tmp_path / "a.h5", "w") as file:
        make(file)
    assert reason in reason_of(tmp_path / "a.h5")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e39, -1.7e308])
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.mha", "z.mha", "a.nrrd", "z.nrrd"])
def test_not_finite_in_training(tmp_path: Path, name: str, value: float):
    voxels = VOXELS.astype(np.float64)
    voxels[1, 2, 3] = value
    sitk.WriteImage(sitk.GetImageFromArray(voxels), str(tmp_path / name), name[0] == "z")
    expected = "where float32 ends at" if np.isfinite(value) else "1 voxels are NaN or infinite"
    assert expected in reason_of(tmp_path / name)
    voxels[1, 2, 3] = 3e38
    sitk.WriteImage(sitk.GetImageFromArray(voxels), str(tmp_path / name), name[0] == "z")
    assert np.array_equal(read_scan([tmp_path / name]).voxels[0], voxels)


def make_fifo(path: Path) -> None:
    os.mkfifo(path)


def make_socket(path: Path) -> None:
    os.chdir(path.parent)  # a socket's path must be short
    with socket.socket(socket.AF_UNIX) as end:
        end.bind(path.name)


KINDS = {
    "FIFO": (make_fifo, "is a FIFO and not a file"),
    "socket": (make_socket, "is a socket and not a file"),
    "folder": (Path.mkdir, "is a folder and not a file"),
    "device": (lambda path: path.symlink_to("/dev/zero"), "is a device and not a file"),
    "loop": (lambda path: path.symlink_to(path), "cannot be read (Too many levels of symbolic links"),
    "link to nothing": (lambda path: path.symlink_to("gone"), "cannot be read (No such file"),
    "nothing": (lambda _: None, "cannot be read (No such file"),
}


@pytest.mark.parametrize("what", KINDS)
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.mha", "a.nrrd", "a.h5"])
def test_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, what: str):
    monkeypatch.chdir(tmp_path)
    make, reason = KINDS[what]
    make(tmp_path / name)
    assert reason in reason_of(tmp_path / name)


@pytest.mark.parametrize("suffix", [".mhd", ".nhdr", ".hdr", ".img", ".dcm", ".NPY", "", ".gz"])
def test_other_suffixes(tmp_path: Path, whole: dict[str, bytes], suffix: str):
    is_named(tmp_path, f"a{suffix}", whole["a.mha"], "not a volume that can be read (.nii, .nii.gz, .mha, .nrrd, .h5)")


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.mha", "z.mha", "z.nrrd"])
def test_file_that_changes_after_its_header_was_read(tmp_path: Path, whole: dict[str, bytes], name: str):
    path = tmp_path / name
    path.write_bytes(whole[name])
    _, locate = FORMATS_OF[".nii.gz" if name.endswith(".gz") else path.suffix]
    stored = locate(path)
    os.truncate(path, len(whole[name]) - 30)
    with pytest.raises((DamagedScanError, *LIBRARY_ERRORS)):
        stored_bytes(stored, len(RAW))
    path.unlink()
    with pytest.raises(FileNotFoundError):
        stored_bytes(stored, len(RAW))


@pytest.mark.parametrize("name", ["a.mha", "a.nrrd"])
def test_voxels_in_another_file_count_for_the_cache(tmp_path: Path, name: str):
    header = MHA.replace("LOCAL", "x.raw") if name == "a.mha" else NRRD.replace("endian", "data file: x.raw\nendian")
    (tmp_path / name).write_text(header)
    with pytest.raises(UnusableScanError, match=r"x\.raw' cannot be read"):
        read_scan([tmp_path / name])
    (tmp_path / "x.raw").write_bytes(RAW)
    before = scan_state([tmp_path / name])
    os.utime(tmp_path / "x.raw", ns=(0, 0))
    assert len(before) == 2 and scan_state([tmp_path / name]) != before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_no_permission(tmp_path: Path, whole: dict[str, bytes]):
    path = tmp_path / "a.nii.gz"
    path.write_bytes(whole["a.nii.gz"])
    path.chmod(0)
    assert "cannot be read (Permission denied" in reason_of(path)


ODD_NAMES = [
    "a b",
    "ü\u202e",
    "100%",
    "%s%d%n",
    "[1]",
    "{x}",
    "a'\"b",
    "-x",
    "a\nb",
    "a\tb",
    "a\\b",
    "~",
    "*",
    "x" * 240,
]


@pytest.mark.parametrize("stem", ODD_NAMES)
def test_odd_names(tmp_path: Path, whole: dict[str, bytes], stem: str):
    for name, content in whole.items():
        is_right(tmp_path, f"{stem}{name[1:]}", content)
    (tmp_path / f"{stem}.nii.gz").write_bytes(b"no scan")
    assert "cannot be read" in reason_of(tmp_path / f"{stem}.nii.gz")


def test_name_that_is_no_unicode(tmp_path: Path, whole: dict[str, bytes]):
    for name, content in whole.items():
        path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xfe" + name.encode()))
        path.write_bytes(content)
        try:
            assert np.array_equal(read_scan([path]).voxels[0], VOXELS)
        except UnusableScanError as error:
            assert str(error).isprintable()


GIANT = 1 << 32  # bytes


def giant_nifti(whole: bytes, voxels: int, announced: bool) -> bytes:
    """A .nii.gz with that many bytes of zeros as voxels, or behind them; as many are announced."""
    content = bytearray(whole)
    if announced:
        struct.pack_into("<3h", content, 42, 2048, 1024, 1024)
        content = content[:352]
    pack = zlib.compressobj(9, wbits=31)
    packed = pack.compress(bytes(content))
    block = bytes(1 << 20)
    for _ in range(voxels >> 20):
        packed += pack.compress(block)
    return packed + pack.flush()


def memory_and_reason(path: Path, limit: int = 0) -> tuple[int, str]:
    """What a process of its own takes beyond its imports, in bytes, and the reason it gives."""
    code = (
        "import resource, sys; from pathlib import Path; from pymic_vf.data.scan import *\n"
        f"resource.setrlimit(resource.RLIMIT_AS, ({limit}, {limit})) if {limit} else None\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024\n"
        "before = peak()\n"
        "try: read_scan([Path(sys.argv[1])])\n"
        "except UnusableScanError as error: print(peak() - before, error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    taken, _, reason = done.stdout.strip().partition(" ")
    return int(taken), reason


def test_memory_that_a_header_announces_is_not_taken(tmp_path: Path, whole: dict[str, bytes]):
    """4 GiB announced: by 400 bytes; 64 MiB of it there; 64 MiB behind a small volume."""
    for name, voxels, announced in (("a", 0, True), ("b", 1 << 26, True), ("c", 1 << 26, False)):
        (tmp_path / f"{name}.nii.gz").write_bytes(giant_nifti(whole["a.nii"], voxels, announced))
    assert resource.getpagesize()  # taken in pages
    for name, reason in (("a", "cut off"), ("b", "cut off"), ("c", "has more data behind the 420 bytes")):
        taken, found = memory_and_reason(tmp_path / f"{name}.nii.gz")
        assert reason in found and taken < 2e7, (name, taken, found)


def test_too_large_for_memory(tmp_path: Path):
    """600 MB of voxels, whole, where the process may take 400 MB more than it has."""
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("image", (30, 3200, 3200), "i2", chunks=(30, 3200, 3200), compression="gzip")
        file["image"].id.write_direct_chunk((0, 0, 0), zlib.compress(bytes(30 * 3200 * 3200 * 2), 1))
    _, reason = memory_and_reason(tmp_path / "a.h5", limit=1 << 29)
    assert "a.h5: " in reason and ("too large" in reason or "cannot be read" in reason)


def damaged(content: bytes, places: list[tuple[float, int]], cut: float) -> bytes:
    damage = bytearray(content)
    for place, value in places:
        damage[int(place * len(damage))] = value
    return bytes(damage[: max(int(cut * len(damage)), 1)])


PLACES = st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=6)
CUT = st.one_of(st.just(1.0), st.floats(0, 1))


def read_damaged(folder: Path, name: str, content: bytes, original: bytes) -> None:
    """Either ours is raised, or what is read is what a header could have asked for: never more than the file holds."""
    (folder / name).write_bytes(content)
    try:
        scan = read_scan([folder / name])
    except UnusableScanError as error:
        assert str(error).isprintable()
        return
    assert scan.voxels.ndim == 4 and scan.voxels.size and np.isfinite(scan.spacing).all() and min(scan.spacing) > 0
    assert scan.voxels.nbytes <= 8 * (len(original) + 1032 * len(content))
    # the CRC-32 of gzip covers header and voxels, zlib's checksum the voxels: what is read is what was written
    if name.endswith(".nii.gz"):
        assert np.array_equal(scan.voxels, VOXELS[None])
    elif name in COMPRESSED and scan.voxels.shape == (1, *VOXELS.shape) and scan.voxels.dtype == VOXELS.dtype:
        assert np.array_equal(scan.voxels, VOXELS[None]) or b"endian: little" not in content.lower()
    elif name in ("a.nii", "a.mha", "a.nrrd"):
        assert scan.voxels.size <= len(content)


@pytest.mark.parametrize("name", WRITTEN)
def test_random_damage(tmp_path_factory: pytest.TempPathFactory, whole: dict[str, bytes], name: str, request):
    signal.alarm(600)
    folder, examples = tmp_path_factory.mktemp("random"), 5000 if request.config.getoption("--long") else 100

    @settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(PLACES, CUT)
    def run(places: list[tuple[float, int]], cut: float) -> None:
        read_damaged(folder, name, damaged(whole[name], places, cut), whole[name])

    run()


NUMBERS = st.sampled_from(
    ["0", "-1", "1", "2", "3", "255", "65536", "4294967296", "-9e18", "1e308", "nan", "x", "", "9" * 40]
)


@pytest.mark.parametrize("name", ["a.mha", "z.mha", "a.nrrd", "z.nrrd"])
def test_random_numbers_in_headers(tmp_path_factory: pytest.TempPathFactory, whole, name: str, request):
    signal.alarm(600)
    folder, examples = tmp_path_factory.mktemp("numbers"), 3000 if request.config.getoption("--long") else 60
    end = b"LOCAL\n" if name.endswith(".mha") else b"\n\n"
    header, _, voxels = whole[name].partition(end)
    words = re.split(rb"(-?\d+(?:\.\d+)?|True|False|MET_SHORT|short|little)", header)

    @settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(st.lists(st.tuples(st.integers(0, len(words) // 2 - 1), NUMBERS), min_size=1, max_size=3))
    def run(changes: list[tuple[int, str]]) -> None:
        changed = list(words)
        for place, number in changes:
            changed[2 * place + 1] = number.encode()
        read_damaged(folder, name, b"".join(changed) + end + voxels, whole[name])

    run()
