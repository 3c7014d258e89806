from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from pymic_vf.data.scan import UnusableScanError, read_scan

from conftest import write_volume

VOXELS = np.random.default_rng(0).integers(0, 100, (5, 6, 7))


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.float32, np.float64])
def test_same_as_simpleitk(tmp_path: Path, dtype: type):
    path = write_volume(tmp_path / "a.nii.gz", VOXELS.astype(dtype), (0.5, 1.0, 2.5))
    image = sitk.ReadImage(str(path))
    scan = read_scan([path])
    assert scan.voxels.dtype == dtype and np.array_equal(scan.voxels[0], sitk.GetArrayFromImage(image))
    assert np.array_equal(scan.voxels[0], VOXELS)
    assert (scan.spacing, scan.origin, scan.direction) == (
        image.GetSpacing()[::-1], image.GetOrigin(), image.GetDirection()
    )  # fmt: skip


def rewritten(path: Path, **fields: tuple[int, np.ndarray]) -> Path:
    """The file with other header fields, each an offset in bytes and a value."""
    content = bytearray(gzip.decompress(path.read_bytes()))
    for offset, value in fields.values():
        content[offset : offset + value.nbytes] = value.tobytes()
    path.write_bytes(gzip.compress(bytes(content)))
    return path


def test_scaled_values(tmp_path: Path):
    path = write_volume(tmp_path / "a.nii.gz", VOXELS.astype(np.int16))
    rewritten(path, slope=(112, np.float32(2)), inter=(116, np.float32(-5)))
    assert np.array_equal(read_scan([path]).voxels[0], 2 * VOXELS - 5)


def test_other_byte_order(tmp_path: Path):
    path = write_volume(tmp_path / "a.nii.gz", VOXELS.astype(np.int16))
    content = bytearray(gzip.decompress(path.read_bytes()))
    # every field that tells what there is, in big endian: sizes are int16, offset and spacing float32
    swapped = [
        (0, "i4", 1),
        (40, "i2", 8),
        (70, "i2", 2),
        (76, "f4", 9),
        (112, "f4", 2),
        (252, "i2", 2),
        (256, "f4", 18),
    ]
    for offset, kind, count in swapped:
        values = np.frombuffer(bytes(content), "<" + kind, count, offset).astype(">" + kind)
        content[offset : offset + values.nbytes] = values.tobytes()
    content[352:] = VOXELS.astype(">i2").tobytes()
    path.write_bytes(gzip.compress(bytes(content)))
    voxels = read_scan([path]).voxels[0]
    assert np.array_equal(voxels, VOXELS) and voxels.dtype.isnative
    assert np.array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(path))), VOXELS)


def test_shorter_than_its_header_says(tmp_path: Path):
    path = write_volume(tmp_path / "a.nii.gz", VOXELS.astype(np.int16))
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes())[:-10]))  # whole for gzip
    with pytest.raises(UnusableScanError, match=r"a\.nii\.gz: .*cut off, 410 bytes of voxels .* announces 420"):
        read_scan([path])
