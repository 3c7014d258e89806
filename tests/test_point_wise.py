from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pymic.transform.normalize import NormalizeWithMeanStd, NormalizeWithMinMax, NormalizeWithPercentiles

from pymic_vf.data.point_wise import are_point_wise, number_range, numbers_to_transform
from pymic_vf.data.scan import Scan, UnusableScanError
from pymic_vf.data.volume_reader import VolumeTransform
from pymic_vf.data.volume_store import stored_volume

FILES = [Path("scan.nii.gz")]
ALL = (slice(None),) * 4


def min_max(lower: list | None, upper: list | None) -> NormalizeWithMinMax:
    keys = {"channels": [0] if lower else None, "threshold_lower": lower, "threshold_upper": upper}
    return NormalizeWithMinMax({"task": None, **{f"normalizewithminmax_{key}": value for key, value in keys.items()}})


def mean_std(mean: list | None, std: list | None, **others: float) -> NormalizeWithMeanStd:
    keys = {"channels": [0], "mean": mean, "std": std, **others}
    return NormalizeWithMeanStd({"task": None, **{f"normalizewithmeanstd_{key}": value for key, value in keys.items()}})


class Derived(NormalizeWithMinMax):
    """May do anything."""

    def __init__(self, like: NormalizeWithMinMax) -> None:
        self.__dict__.update(like.__dict__)


def scan(dtype: type = np.int16, channels: int = 1) -> np.ndarray:
    voxels = np.random.default_rng(0).normal(40, 300, (channels, 9, 20, 30)).round()
    voxels *= np.arange(1, channels + 1)[:, None, None, None]  # each channel has extremes of its own
    return voxels.clip(np.iinfo(dtype).min, np.iinfo(dtype).max).astype(dtype)


@pytest.mark.parametrize(
    "transforms",
    [
        [min_max([-1000], [1000])],
        [min_max([-200], [300])],
        [min_max(None, None)],
        [min_max([None], [300])],
        [mean_std([40.0], [123.4])],
        [min_max([-200], [300]), mean_std([0.1], [0.3])],
    ],
    ids=["all", "window", "extremes", "one extreme", "mean and std", "two steps"],
)
@pytest.mark.parametrize(("dtype", "channels"), [(np.int16, 1), (np.uint8, 1), (np.int32, 1), (np.int16, 2)])
def test_the_same_bits_as_from_the_volume(transforms: list, dtype: type, channels: int):
    voxels = scan(dtype, channels)
    transform = VolumeTransform(transforms)
    assert are_point_wise(transforms)
    expected = transform.transformed(Scan(voxels), FILES)
    stored = stored_volume(transform, Scan(voxels), FILES)
    assert stored.numbers.dtype == np.uint16
    assert np.array_equal(stored.read(ALL), expected)
    assert not np.array_equal(expected, voxels)


@pytest.mark.parametrize(
    "transform",
    [
        mean_std(None, None),
        mean_std([None], [None]),
        mean_std([1.0], [2.0], mask_threshold=0.0),  # makes the background random
        NormalizeWithPercentiles({"task": None}),
        Derived(min_max([0], [1])),
    ],
)
def test_others_are_applied_to_the_volume(transform):
    assert not are_point_wise([transform])
    assert not are_point_wise([min_max([0], [1]), transform])


def test_nothing_is_to_be_done_without_transforms():
    assert not are_point_wise([])


@pytest.mark.parametrize(
    ("voxels", "limits"),
    [
        (np.array([-3, 7], np.int16), (-3, 7)),
        (np.array([-3.0, 7.0], np.float32), None),
        (np.array([0, 2**16], np.int32), None),
        (np.array([0, 2**16 - 1], np.int32), (0, 2**16 - 1)),
    ],
)
def test_range_of_numbers(voxels: np.ndarray, limits: tuple | None):
    assert number_range(voxels) == limits


def test_each_channel_has_its_own_extremes():
    voxels = np.array([[[[2, 4]]], [[[3, 6]]]], np.int16)
    assert numbers_to_transform(voxels, 2, 6)[:, 0, 0].tolist() == [[2, 3, 4, 4, 4], [3, 3, 4, 5, 6]]


def test_flat_small_and_undefined_volumes_are_found():
    air, small = np.full((1, 9, 9, 9), -1000, np.int16), scan()[:, :, :, :3]
    air[0, 0, 0, 0] = -900
    with pytest.raises(UnusableScanError, match=r"flat, every voxel is -1"):
        stored_volume(VolumeTransform([min_max([-200], [300])]), Scan(air), FILES)
    with pytest.raises(UnusableScanError, match=r"too small, \[9, 20, 3\] voxels"):
        stored_volume(VolumeTransform([min_max([-200], [300])], smallest=(1, 1, 4)), Scan(small), FILES)
    with np.errstate(invalid="ignore"), pytest.raises(UnusableScanError, match="NaN"):
        stored_volume(VolumeTransform([min_max(None, None)]), Scan(np.zeros((1, 9, 9, 9), np.int16)), FILES)
