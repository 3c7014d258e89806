"""PyMIC's transforms that work voxel by voxel, each as a function of a voxel and two numbers of its channel.

The numbers are those of the config or, where it has none, those that PyMIC takes from the whole volume: extremes, mean
and standard deviation, or percentiles. Once they are known, a crop can be transformed without its volume.

The arithmetic is PyMIC's, in its order, in float32 and in place: the same bits. PyMIC's own objects would take the
numbers from the crop, and make masks and copies of it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pymic.transform.intensity import IntensityClip
from pymic.transform.normalize import NormalizeWithMeanStd, NormalizeWithMinMax, NormalizeWithPercentiles
from pymic.transform.threshold import ChannelWiseThreshold

Numbers = tuple[float, float]
Change = Callable[[np.ndarray, float, float], None]  # of float32 voxels in place, by two numbers
Whole = Callable[[], np.ndarray]  # what a transform would see of its channel, float32 [D, H, W]


@dataclass(frozen=True)
class Step:
    """A transform of one channel.

    Args:
        channel: which one.
        change: what it does to voxels.
        numbers: the two numbers for it; np.float32 where they were measured just now.
    """

    channel: int
    change: Change
    numbers: Numbers

    def apply(self, voxels: np.ndarray) -> None:
        """Change voxels of the channel in place: float32, of any shape."""
        self.change(voxels, *self.numbers)


def is_voxel_wise(transform: Any) -> bool:
    """Whether a transform can be made of steps. All that can keep or reverse the order of the voxels' values."""
    kind = type(transform)  # a class derived from one of these may do anything
    if kind is NormalizeWithMeanStd:
        return transform.mask_thrd is None or not transform.bg_random
    if kind is ChannelWiseThreshold:
        return transform.replace_lower is None and transform.replace_upper is None
    return kind in NUMBERS


def steps_of(
    transforms: Sequence[Any], voxels: np.ndarray, known: Sequence[Numbers] = (), before: Sequence[Step] = ()
) -> list[Step]:
    """Voxel-wise transforms as steps for one volume.

    Args:
        transforms: in order.
        voxels: of the volume, [C, D, H, W]; nothing is read of them where nothing is to be measured.
        known: the numbers of all steps, measured before.
        before: steps of earlier transforms, with which the list begins.

    Raises:
        TypeError, IndexError, ValueError: the parameters do not fit each other or the volume, as in PyMIC.
    """
    steps = list(before)
    for transform in transforms:
        for i, channel in enumerate(_channels(transform, voxels.shape[0])):
            whole = functools.cache(functools.partial(_transformed, voxels, channel, steps))
            numbers = known[len(steps)] if known else NUMBERS[type(transform)](transform, i, channel, whole)
            if any(isinstance(number, np.floating) for number in numbers):
                numbers = map(np.float32, numbers)  # what is measured makes float32 of the other one too
            steps.append(Step(channel, _change(transform), tuple(numbers)))
    return steps


def measured_numbers(steps: Sequence[Step]) -> list[Numbers]:
    """The numbers of all steps, for a file, if any of them was measured just now; otherwise none."""
    was_measured = any(isinstance(number, np.floating) for step in steps for number in step.numbers)
    return [(float(step.numbers[0]), float(step.numbers[1])) for step in steps] if was_measured else []


def _channels(transform: Any, count: int) -> list[int]:
    """The channels that a transform names, as numbers from 0; all of them where it names none."""
    names = vars(transform).get("chns", vars(transform).get("channels"))
    return [range(count)[name] for name in (range(count) if names is None else names)]


def _transformed(voxels: np.ndarray, channel: int, steps: Sequence[Step]) -> np.ndarray:
    """What the steps make of a whole channel: float32 [D, H, W]."""
    values = voxels[channel].astype(np.float32)
    for step in steps:
        if step.channel == channel:
            step.apply(values)
    return values


def _min_max(transform: NormalizeWithMinMax, i: int, _channel: int, whole: Whole) -> Numbers:
    low, high = _item(transform.thred_lower, i), _item(transform.thred_upper, i)
    return whole().min() if low is None else low, whole().max() if high is None else high


def _mean_std(transform: NormalizeWithMeanStd, i: int, _channel: int, whole: Whole) -> Numbers:
    if _item(transform.mean, i) is not None:
        return transform.mean[i], transform.std[i]
    voxels = whole() if transform.mask_thrd is None else whole()[whole() > transform.mask_thrd]
    return (voxels.mean(), voxels.std() + 1e-5) if voxels.size else (np.float32(0), np.float32(1))


def _percentiles(transform: NormalizeWithPercentiles, _i: int, _channel: int, whole: Whole) -> Numbers:
    return np.percentile(whole(), transform.percent_lower), np.percentile(whole(), transform.percent_upper)


def _intensity_clip(transform: IntensityClip, _i: int, channel: int, whole: Whole) -> Numbers:
    def bound(value: float | None, default: float) -> float:
        if value is None or transform.perct:
            return np.percentile(whole(), default if value is None else value)
        return value

    return bound(_item(transform.lower, channel), 0.05), bound(_item(transform.upper, channel), 99.95)


def _threshold(transform: ChannelWiseThreshold, i: int, _channel: int, _whole: Whole) -> Numbers:
    low, high = _item(transform.threshold_lower, i), _item(transform.threshold_upper, i)
    return -np.inf if low is None else low, np.inf if high is None else high


def _item(values: Sequence[float | None] | None, index: int) -> float | None:
    return None if values is None else values[index]


NUMBERS: dict[type, Callable[[Any, int, int, Whole], Numbers]] = {
    NormalizeWithMinMax: _min_max,
    NormalizeWithMeanStd: _mean_std,
    NormalizeWithPercentiles: _percentiles,
    IntensityClip: _intensity_clip,
    ChannelWiseThreshold: _threshold,
}


def _change(transform: Any) -> Change:
    if isinstance(transform, NormalizeWithMeanStd):
        return _standardize
    if isinstance(transform, NormalizeWithPercentiles) and transform.out_mode == 0:
        return _to_0_1
    return _clip if isinstance(transform, (IntensityClip, ChannelWiseThreshold)) else _to_minus_1_1


def _clip(voxels: np.ndarray, low: float, high: float) -> None:
    np.clip(voxels, low, high, out=voxels)


def _standardize(voxels: np.ndarray, mean: float, std: float) -> None:
    voxels -= mean
    voxels /= std


def _to_0_1(voxels: np.ndarray, low: float, high: float) -> None:
    _clip(voxels, low, high)
    voxels -= low
    voxels /= high - low  # PyMIC clips again, which changes nothing


def _to_minus_1_1(voxels: np.ndarray, low: float, high: float) -> None:
    _clip(voxels, low, high)
    voxels -= low
    voxels *= 2.0
    voxels /= high - low
    voxels -= 1.0
