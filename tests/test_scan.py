from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
import SimpleITK as sitk

from pymic_vf.data.scan import UnusableScanError, read_scan

from conftest import REAL_DATA, write_volume

VOXELS = np.random.default_rng(0).integers(-1000, 1000, (7, 8, 9)).astype(np.int16)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".mha", ".nrrd"])
def test_every_format_gives_the_same(tmp_path: Path, suffix: str):
    scan = read_scan([write_volume(tmp_path / f"a{suffix}", VOXELS, (0.5, 1.0, 2.5))])
    assert scan.voxels.dtype == np.int16
    assert np.array_equal(scan.voxels, VOXELS[None])
    assert scan.spacing == (2.5, 1.0, 0.5)


def test_h5(tmp_path: Path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["image"] = VOXELS
    assert np.array_equal(read_scan([tmp_path / "a.h5"]).voxels, VOXELS[None])
    with h5py.File(tmp_path / "b.h5", "w") as file:
        file["data"] = VOXELS
    with pytest.raises(UnusableScanError, match=r"b\.h5: has no dataset 'image' \(it has \['data'\]\)"):
        read_scan([tmp_path / "b.h5"])


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".mha", ".nrrd"])
@pytest.mark.parametrize("kept", [0.3, 0.999])
def test_cut_off_file_is_named(tmp_path: Path, suffix: str, kept: float):
    path = write_volume(tmp_path / f"a{suffix}", np.tile(VOXELS, (4, 4, 4)))
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(UnusableScanError, match=rf"a{suffix}: "):
        read_scan([path])


def test_damaged_gzip_is_named(tmp_path: Path):
    path = write_volume(tmp_path / "a.nii.gz", np.tile(VOXELS, (4, 4, 4)))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(UnusableScanError, match=r"a\.nii\.gz: cannot be read"):
        read_scan([path])


def test_not_a_volume(tmp_path: Path):
    (tmp_path / "a.nii.gz").write_bytes(b"hello")
    (tmp_path / "a.txt").write_text("hello")
    with pytest.raises(UnusableScanError, match=r"a\.nii\.gz: cannot be read"):
        read_scan([tmp_path / "a.nii.gz"])
    with pytest.raises(UnusableScanError, match=r"a\.txt: not a volume that can be read \(\.nii, "):
        read_scan([tmp_path / "a.txt"])


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_not_finite(tmp_path: Path, value: float):
    voxels = VOXELS.astype(np.float32)
    voxels[1, 2, 3] = value
    with pytest.raises(UnusableScanError, match=r"a\.nii\.gz: 1 voxels are NaN or infinite"):
        read_scan([write_volume(tmp_path / "a.nii.gz", voxels)])


def test_channels(tmp_path: Path):
    vector = sitk.GetImageFromArray(np.stack([VOXELS, VOXELS + 1], axis=-1), isVector=True)
    sitk.WriteImage(vector, str(tmp_path / "two.nii.gz"))
    four = sitk.GetImageFromArray(np.stack([VOXELS, VOXELS + 1]), isVector=False)
    sitk.WriteImage(four, str(tmp_path / "four.nii.gz"))
    for name in ("two", "four"):
        scan = read_scan([tmp_path / f"{name}.nii.gz"], channels=2)
        assert np.array_equal(scan.voxels, [VOXELS, VOXELS + 1])
        with pytest.raises(UnusableScanError, match=rf"{name}\.nii\.gz: 2 channels, where \[network\] in_chns = 1"):
            read_scan([tmp_path / f"{name}.nii.gz"], channels=1)


def test_modalities_are_channels(tmp_path: Path):
    files = [write_volume(tmp_path / f"{i}.nii.gz", VOXELS + i) for i in range(2)]
    assert np.array_equal(read_scan(files, channels=2).voxels, [VOXELS, VOXELS + 1])
    files.append(write_volume(tmp_path / "small.nii.gz", VOXELS[1:]))
    with pytest.raises(UnusableScanError, match="its modalities differ in size"):
        read_scan(files)


@pytest.mark.real_data
def test_clinical_scans():
    scan = read_scan([REAL_DATA / "full_ct" / "lung_0.6x0.6x5.nii.gz"], channels=1)
    assert scan.voxels.shape == (1, 48, 512, 512)
    assert scan.spacing[0] > 4 > 1 > scan.spacing[1]
