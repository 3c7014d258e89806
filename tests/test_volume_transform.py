from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import SimpleITK as sitk
from pymic.transform.trans_dict import TransformDict

from pymic_vf.data.scan import UnusableScanError
from pymic_vf.data.volume_transform import Volume, VolumeTransform, extremes

from conftest import make_scan, write_volume

SIZE = (12, 20, 24)


def pymics(name: str, **keys: Any) -> Callable:
    return TransformDict[name]({"task": None, **{f"{name.lower()}_{key}": value for key, value in keys.items()}})


def bounds(low: float, high: float) -> dict[str, list[float]]:
    return {"threshold_lower": [low], "threshold_upper": [high]}


WINDOW = {"channels": [0], **bounds(-40, 60.5)}
RESCALE = {"output_size": [9, 21, 30]}
CROP = {"output_size": [8, 10, 12]}


def names(transforms: tuple) -> list[str]:
    return [type(transform).__name__ for transform in transforms]


def volume_of(transform: VolumeTransform, file: Path) -> Volume:
    voxels = transform.decode([file])
    return transform.volume([file], voxels, extremes(voxels))


def test_the_longest_voxel_wise_end_is_left_for_crops():
    window, clip = pymics("NormalizeWithMinMax", **WINDOW), pymics("IntensityClip", channels=[0])
    split = VolumeTransform([window, pymics("Rescale", **RESCALE), clip, window])
    assert names(split.of_volume) == ["NormalizeWithMinMax", "Rescale"]
    assert names(split.of_crops) == ["IntensityClip", "NormalizeWithMinMax"]
    assert VolumeTransform([window]).of_volume == VolumeTransform([]).of_crops == ()


@pytest.mark.parametrize(
    ("chain", "dtype", "kept"),
    [
        ([], np.int16, np.int16),
        ([], np.uint8, np.uint8),
        ([], np.float64, np.float32),
        ([("NormalizeWithMinMax", WINDOW)], np.int16, np.int16),
        ([("CenterCrop", CROP), ("NormalizeWithMeanStd", {})], np.int16, np.int16),
        ([("Rescale", RESCALE), ("NormalizeWithPercentiles", {})], np.int16, np.float32),
        ([("NormalizeWithMeanStd", {}), ("CenterCrop", CROP)], np.int16, np.float32),
    ],
)
def test_crops_are_those_of_the_volume_that_pymic_transforms(tmp_path: Path, chain: list, dtype: type, kept: type):
    voxels = make_scan(3, SIZE)[0].clip(0 if dtype is np.uint8 else None, 255).astype(dtype)
    file = write_volume(tmp_path / "scan.nii.gz", voxels + (0.3 if dtype is np.float64 else dtype(0)))
    voxels = volume_of(VolumeTransform([]), file).read((0, 0, 0), SIZE)
    expected = {"image": voxels.copy()}
    for name, keys in chain:
        expected = pymics(name, **keys)(expected)
    expected = expected["image"]
    volume = volume_of(VolumeTransform([pymics(name, **keys) for name, keys in chain]), file)
    assert volume.voxels.dtype == kept and volume.voxels.shape == expected.shape
    crop = volume.read((2, 3, 4), (5, 6, 7))
    assert crop.dtype == np.float32 and crop.flags.c_contiguous
    assert np.array_equal(crop, expected[:, 2:7, 3:9, 4:11])
    assert np.array_equal(crop, volume.read((2, 3, 4), (5, 6, 7)))  # not in place


def test_voxels_are_kept_as_the_cache_wants_them(tmp_path: Path):
    both = np.stack([make_scan(0, SIZE)[0], make_scan(1, SIZE)[0]], axis=-1)  # two values a voxel
    sitk.WriteImage(sitk.GetImageFromArray(both, isVector=True), str(tmp_path / "scan.mha"))
    with h5py.File(tmp_path / "scan.h5", "w") as file:
        file["image"] = np.moveaxis(both, -1, 0).astype(">i2")
    for name in ("scan.mha", "scan.h5"):
        voxels = VolumeTransform([]).decode([tmp_path / name])
        assert voxels.dtype == np.int16 and voxels.dtype.isnative and voxels.flags.c_contiguous
        assert np.array_equal(voxels, np.moveaxis(both, -1, 0))


def test_random_transforms_give_a_volume_the_same_voxels_at_every_decoding(tmp_path: Path):
    files = [write_volume(tmp_path / f"{i}.nii.gz", make_scan(0, SIZE)[0]) for i in range(2)]
    transform = VolumeTransform([pymics("RandomCrop", output_size=[6, 6, 6])])
    crops = [volume_of(transform, file).read((0, 0, 0), (6, 6, 6)) for file in (files[0], files[1], files[0])]
    assert np.array_equal(crops[0], crops[2]) and not np.array_equal(crops[0], crops[1])


@pytest.mark.parametrize(
    ("chain", "reason"),
    [
        ([("NormalizeWithMinMax", {**WINDOW, **bounds(900, 999)})], "flat, every voxel is -1"),
        ([("NormalizeWithMinMax", {**WINDOW, **bounds(5, 5)})], "volume_transform leaves NaN"),
        ([("NormalizeWithMeanStd", {"mean": [0], "std": [0]})], "volume_transform leaves NaN or infinite"),
        ([("NormalizeWithMinMax", {**WINDOW, "channels": [1]})], r"volume_transform failed \(IndexError"),
        ([("NormalizeWithPercentiles", {"percentile_upper": 101})], r"volume_transform failed \(ValueError: Percent"),
        ([("CenterCrop", {"output_size": [1, 2]})], r"volume_transform failed \("),
        ([("CenterCrop", {"output_size": [3, 9, 9]})], r"too small, \[3, 9, 9\] voxels where \[4, 4, 4\] are"),
    ],
)
def test_scans_of_no_use_are_found(tmp_path: Path, chain: list, reason: str):
    file = write_volume(tmp_path / "scan.nii.gz", make_scan(0, SIZE)[0])
    transform = VolumeTransform([pymics(name, **keys) for name, keys in chain], 1, (4, 4, 4))
    with pytest.raises(UnusableScanError, match=rf"scan\.nii\.gz: {reason}"):
        volume_of(transform, file)
