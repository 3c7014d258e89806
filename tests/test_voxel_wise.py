from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from pymic.transform.intensity import HistEqual, IntensityClip
from pymic.transform.normalize import NormalizeWithMeanStd, NormalizeWithMinMax, NormalizeWithPercentiles
from pymic.transform.threshold import ChannelWiseThreshold

from pymic_vf.data.voxel_wise import is_voxel_wise, measured_numbers, steps_of

CHANNELS, DRAWS = 3, 60
BOX = np.s_[:, 2:5, 3:9, :7]
CLASSES = (NormalizeWithMinMax, NormalizeWithMeanStd, NormalizeWithPercentiles, IntensityClip, ChannelWiseThreshold)


def made(kind: type, **keys: Any) -> Any:
    return kind({"task": None, **{f"{kind.__name__.lower()}_{name}": value for name, value in keys.items()}})


def volume(rng: np.random.Generator) -> np.ndarray:
    """Channels of different extremes, whole numbers in half of the draws."""
    voxels = rng.normal(40, 300, (CHANNELS, 7, 12, 15)) * rng.uniform(0.1, 10, (CHANNELS, 1, 1, 1))
    return voxels.round().astype(np.int16) if rng.random() < 0.5 else voxels.astype(np.float32)


def drawn(kind: type, rng: np.random.Generator) -> Any:
    """One with random parameters: fractions and whole numbers, some or all of them missing."""

    def number(low: float, high: float) -> float:
        value = float(rng.uniform(low, high))
        return round(value) if rng.random() < 0.3 else value

    def some(low: float, high: float, count: int) -> list | None:
        return None if rng.random() < 0.2 else [None if rng.random() < 0.3 else number(low, high) for _ in range(count)]

    count = int(rng.integers(1, CHANNELS + 1))
    chosen = rng.permutation(CHANNELS)[:count].tolist()
    if rng.random() < 0.3:
        chosen, count = None, CHANNELS
    if kind is NormalizeWithMinMax:
        return made(kind, channels=chosen, threshold_lower=some(-900, 0, count), threshold_upper=some(0.1, 900, count))
    if kind is NormalizeWithMeanStd:
        mean = some(-50, 50, count)
        std = None if mean is None else [None if m is None else number(1, 300) for m in mean]
        masked = {"mask_threshold": number(-100, 100), "set_background_to_random": False}
        return made(kind, channels=chosen, mean=mean, std=std, **(masked if rng.random() < 0.5 else {}))
    if kind is NormalizeWithPercentiles:
        percents = {"percentile_lower": number(0, 40), "percentile_upper": number(60, 100)}
        return made(kind, channels=chosen, output_mode=int(rng.integers(2)), **percents)
    if kind is IntensityClip:
        low, high, percents = ((0, 40), (60, 100), True) if rng.random() < 0.5 else ((-900, 0), (0, 900), False)
        bounds = {"lower": some(*low, CHANNELS), "upper": some(*high, CHANNELS)}
        return made(kind, channels=list(range(CHANNELS)), percentile_mode=percents, **bounds)
    none = {"replace_lower": None, "replace_upper": None}
    bounds = {"threshold_lower": some(-900, 100, count), "threshold_upper": some(-100, 900, count)}
    return made(kind, channels=chosen, **bounds, **none)


def by_pymic(transforms: list, voxels: np.ndarray) -> np.ndarray:
    sample = {"image": voxels.astype(np.float32)}
    for transform in transforms:
        sample = transform(sample)
    return sample["image"]


@pytest.mark.parametrize("kinds", [*[(kind,) for kind in CLASSES], (None, None), (None, None, None)])
def test_a_crop_has_the_bits_of_the_volume_that_pymic_transforms(kinds: tuple):
    rng = np.random.default_rng(len(kinds))
    for _ in range(DRAWS):
        transforms = [drawn(kind or CLASSES[rng.integers(len(CLASSES))], rng) for kind in kinds]
        assert all(map(is_voxel_wise, transforms))
        voxels = volume(rng)
        with np.errstate(all="ignore"):
            steps = steps_of(transforms, voxels)
            kept = json.loads(json.dumps(measured_numbers(steps)))
            again = steps_of(transforms, np.zeros_like(voxels), kept) if kept else steps  # nothing is measured there
            expected = by_pymic(transforms, voxels)[BOX]  # afterwards, since PyMIC's objects remember
            for each in (steps, again):
                crop = voxels[BOX].astype(np.float32)
                for step in each:
                    step.apply(crop[step.channel])
                assert np.array_equal(crop, expected, equal_nan=True), [vars(t) for t in transforms]
        assert expected.dtype == np.float32 and (not kept or not measured_numbers(again))


class Derived(NormalizeWithMinMax):
    """May do anything."""


BOUNDS = {"channels": [0], "threshold_lower": [0], "threshold_upper": [1]}


@pytest.mark.parametrize(
    "transform",
    [
        made(NormalizeWithMeanStd, mask_threshold=0.0),  # makes the background random
        made(ChannelWiseThreshold, **BOUNDS, replace_lower=[9], replace_upper=None),  # the order of values is lost
        Derived({"task": None, **{f"normalizewithminmax_{name}": value for name, value in BOUNDS.items()}}),
        made(HistEqual),
    ],
    ids=lambda transform: type(transform).__name__,
)
def test_what_is_not_voxel_wise(transform: Any):
    assert not is_voxel_wise(transform)
