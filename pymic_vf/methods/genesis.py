"""Model Genesis: four corruptions, one after the other, and the network restores the crop.

Zhou et al., Models Genesis (Medical Image Analysis 2021): a non-linear map of the intensities, local shuffling of
voxels, then in-painting or out-painting, each with its probability. Written from the paper's description; departures
from it: a crop may have any range of intensities (the paper's is 0 to 1), which ``Genesis_range`` names, and every box
that out-painting keeps has sides from 4/7 of the crop's up to it, which the paper says of the first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from pymic_vf.keys import Key, Section, list_of, number, one_of, whole
from pymic_vf.methods.method import RECONSTRUCTION, Method, Panel
from pymic_vf.sizes import Size

Range = tuple[float, float]
CURVE_POINTS = 1000  # at which the Bezier curve is sampled
MOST_BOXES, FURTHER_BOX = 5, 0.95  # of in- and out-painting; the probability of each box after the first
INNER_SIDES, OUTER_SIDES = (1 / 6, 1 / 3), (4 / 7, 1)  # shares of the crop's sides


@dataclass(frozen=True)
class GenesisSettings:
    """The probabilities of the corruptions, and the windows of the shuffling.

    Args:
        flip: of a flip along each axis, of the crop and with it of the target.
        map: of the non-linear map.
        shuffle: of the local shuffling.
        paint: of in- or out-painting.
        inner: of in-painting among these two.
        windows: fewest and most shuffled windows.
        window_size: (d, h, w) of each; None: each side uniform from 1 to a tenth of the crop's.
    """

    flip: float
    map: float
    shuffle: float
    paint: float
    inner: float
    windows: tuple[int, int]
    window_size: Size | None


PRESETS = {
    "original": GenesisSettings(0.4, 0.9, 0.5, 0.9, 0.2, (10_000, 10_000), None),
    "pymic": GenesisSettings(0.0, 0.8, 1.0, 0.9, 0.8, (32, 64), (8, 16, 16)),
}


def flip(image: np.ndarray, probability: float, rng: np.random.Generator) -> np.ndarray:
    """Flip an image [C, D, H, W] along each axis with a probability."""
    axes = [axis for axis in (1, 2, 3) if rng.random() < probability]
    return np.ascontiguousarray(np.flip(image, axes)) if axes else image


def draw_curve(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A monotonic map of [0, 1] onto itself, as the sampled points (from, to) of a cubic Bezier curve.

    Its ends are (0, 0) and (1, 1), its two inner control points uniform in the unit square; its samples are sorted, for
    a map that decreases in one of two cases the other way round.
    """
    control = rng.random((2, 2))
    t = np.linspace(0, 1, CURVE_POINTS)
    # 3 t (1 - t)^2 p1 + 3 t^2 (1 - t) p2 + t^3
    first, second = np.sort(
        3 * t * (1 - t) ** 2 * control[0][:, None] + 3 * t**2 * (1 - t) * control[1][:, None] + t**3
    )
    return first, second if rng.random() < 0.5 else second[::-1]


def map_intensities(image: np.ndarray, limits: Range, rng: np.random.Generator) -> np.ndarray:
    """All voxels through one curve from :func:`draw_curve`, stretched from [0, 1] to `limits`."""
    low, high = limits
    points, values = draw_curve(rng)
    return np.interp(image, low + (high - low) * points, low + (high - low) * values).astype(np.float32)


def shuffle_windows(image: np.ndarray, settings: GenesisSettings, rng: np.random.Generator) -> np.ndarray:
    """A copy of an image [C, D, H, W] in which the voxels inside of small windows are permuted."""
    image, shape = image.copy(), image.shape[1:]
    count = int(rng.integers(*settings.windows, endpoint=True))
    if settings.window_size is None:
        sizes = rng.integers(1, np.maximum(np.asarray(shape) // 10, 1), size=(count, 3), endpoint=True)
    else:
        sizes = np.broadcast_to(settings.window_size, (count, 3))
    for (z, y, x), (d, h, w) in zip(
        rng.integers(0, shape - sizes, endpoint=True).tolist(), sizes.tolist(), strict=True
    ):
        window = image[:, z : z + d, y : y + h, x : x + w]
        voxels = window.reshape(len(image), -1)
        image[:, z : z + d, y : y + h, x : x + w] = voxels[:, rng.permutation(d * h * w)].reshape(window.shape)
    return image


def draw_boxes(rng: np.random.Generator, shape: Sequence[int], sides: Range) -> np.ndarray:
    """Where one to five boxes are, bool [D, H, W]; their sides are uniform in shares of the shape's."""
    inside = np.zeros(shape, bool)
    for box in range(MOST_BOXES):
        if box and rng.random() >= FURTHER_BOX:
            break
        least, most = (np.maximum(np.asarray(shape) * share, 1).astype(int) for share in sides)
        size = rng.integers(least, most, endpoint=True)
        start = rng.integers(0, shape - size, endpoint=True)
        inside[tuple(slice(s, s + n) for s, n in zip(start, size, strict=True))] = True
    return inside


def paint(image: np.ndarray, is_inner: bool, limits: Range, rng: np.random.Generator) -> np.ndarray:
    """A copy with noise, uniform in `limits`, inside of some boxes, or everywhere but inside of some boxes."""
    image, (low, high) = image.copy(), limits
    painted = draw_boxes(rng, image.shape[1:], INNER_SIDES if is_inner else OUTER_SIDES) == is_inner
    noise = rng.random((len(image), np.count_nonzero(painted)), np.float32)
    image[:, painted] = np.float32(low) + np.float32(high - low) * noise
    return image


class ModelGenesis(Method):
    """``method_name = Genesis``: the network restores a crop that was corrupted in up to four ways."""

    title = "Model Genesis"
    task = RECONSTRUCTION
    keys = (
        Key("Genesis_preset", one_of(*PRESETS), "`original` (the paper's) or `pymic`: the defaults below", "original"),
        Key("Genesis_range", list_of(number(), 2), "lowest and highest intensity of the crops", (-1.0, 1.0)),
        Key("Genesis_flip", number(0, 1), "probability of a flip along each axis: 0.4 or 0"),
        Key("Genesis_map", number(0, 1), "probability of the non-linear map: 0.9 or 0.8"),
        Key("Genesis_shuffle", number(0, 1), "probability of local shuffling: 0.5 or 1"),
        Key("Genesis_paint", number(0, 1), "probability of in- or out-painting: 0.9"),
        Key("Genesis_inner", number(0, 1), "share of in-painting among these: 0.2 or 0.8"),
        Key("Genesis_windows", list_of(whole(1), 2), "fewest and most windows of a shuffling: 10,000 or 32 to 64"),
        Key("Genesis_window_size", list_of(whole(1), 3), "of a window, in voxels: up to a tenth of the crop's sides, "
            "or [8, 16, 16]"),
    )  # fmt: skip

    def __init__(self, values: Mapping[str, Any]) -> None:
        preset = PRESETS[values["Genesis_preset"]]
        given = {field.name: values[f"Genesis_{field.name}"] for field in fields(preset)}
        chosen = {name: getattr(preset, name) if value is None else value for name, value in given.items()}
        self.settings, self.limits = GenesisSettings(**chosen), values["Genesis_range"]

    @classmethod
    def check(cls, values: Mapping[str, Any], crop_size: Size, dataset: Section) -> None:
        """Ranges must be ranges, and a window must fit the crop."""
        if values["Genesis_range"][0] >= values["Genesis_range"][1]:
            dataset.wrong("Genesis_range", "must be [lowest, highest] with lowest < highest")
        if values["Genesis_windows"] and values["Genesis_windows"][0] > values["Genesis_windows"][1]:
            dataset.wrong("Genesis_windows", "must be [fewest, most] with fewest <= most")
        size = cls(values).settings.window_size
        if size and any(n > side for n, side in zip(size, crop_size, strict=True)):
            dataset.mistakes.append(
                f"[dataset] Genesis_window_size must not exceed crop_size = {list(crop_size)}, it is {list(size)}"
            )

    def sample(self, crops: Sequence[np.ndarray], rng: np.random.Generator) -> dict[str, Any]:
        """The corrupted crop, and the crop."""
        settings = self.settings
        image = target = flip(crops[0], settings.flip, rng)
        if rng.random() < settings.map:
            image = map_intensities(image, self.limits, rng)
        if rng.random() < settings.shuffle:
            image = shuffle_windows(image, settings, rng)
        if rng.random() < settings.paint:
            image = paint(image, bool(rng.random() < settings.inner), self.limits, rng)
        return {"image": image, "label": target}

    def panels(self, crops: Sequence[np.ndarray], sample: Mapping[str, Any]) -> list[Panel]:
        """The crop, what the network sees, and what it has to restore."""
        panels = [Panel("crop", image=crops[0][0]), Panel("corrupted", image=sample["image"][0])]
        return [*panels, Panel("to restore", image=sample["label"][0])]
