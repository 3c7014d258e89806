"""Patch swapping, or context restoration: pairs of patches change places, and the network restores the crop.

L. Chen et al., Self-supervised learning for medical image analysis using image context restoration (Medical Image
Analysis 2019). The paper gives neither the number of swaps nor the patches' size; the defaults are those of PyMIC's
authors. Its loss is L2 (``loss_type = MSELoss``), theirs L1 (``MAELoss``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pymic_vf.keys import Key, Section, list_of, whole
from pymic_vf.methods.method import RECONSTRUCTION, Method, Panel
from pymic_vf.sizes import AXES, Size


def draw_pair(rng: np.random.Generator, shape: Sequence[int], size: Size) -> np.ndarray:
    """The first voxels of two patches of `size` that do not overlap: [2, 3], in voxels.

    Args:
        rng: where the randomness comes from.
        shape: (D, H, W) of the crop, at least twice `size` along one axis.
        size: (d, h, w) of both patches.
    """
    while True:  # a pair drawn again whenever it overlaps is uniform among those that do not
        starts = rng.integers(0, np.asarray(shape) - size, size=(2, 3), endpoint=True)
        if (np.abs(starts[0] - starts[1]) >= size).any():
            return starts


def swap(image: np.ndarray, starts: np.ndarray, size: Size) -> None:
    """Exchange two patches of an image [C, D, H, W] in place."""
    first, second = (
        (slice(None), *(slice(s, s + n) for s, n in zip(start, size, strict=True))) for start in starts.tolist()
    )
    kept = image[first].copy()
    image[first] = image[second]
    image[second] = kept


class PatchSwap(Method):
    """``method_name = PatchSwap``: the network restores a crop whose patches were swapped."""

    title = "Patch swapping"
    task = RECONSTRUCTION
    keys = (
        Key("PatchSwap_number", list_of(whole(1), 2), "fewest and most swaps", (20, 40)),
        Key("PatchSwap_size", list_of(whole(1), 3), "of a patch, in voxels", (8, 16, 16)),
    )

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.number, self.size = (values[key.name] for key in self.keys)

    @classmethod
    def check(cls, values: Mapping[str, Any], crop_size: Size, dataset: Section) -> None:
        """The range must be one, and two patches must fit the crop beside each other."""
        number, size = values["PatchSwap_number"], values["PatchSwap_size"]
        if number[0] > number[1]:
            dataset.wrong("PatchSwap_number", "must be [fewest, most] with fewest <= most")
        above = [axis for axis, n, side in zip(AXES, size, crop_size, strict=True) if n > side]
        if above:
            dataset.wrong("PatchSwap_size", f"must not exceed crop_size = {list(crop_size)} ({', '.join(above)})")
        elif all(2 * n > side for n, side in zip(size, crop_size, strict=True)):
            dataset.wrong("PatchSwap_size", f"must fit twice along an axis of crop_size = {list(crop_size)}")

    def sample(self, crops: Sequence[np.ndarray], rng: np.random.Generator) -> dict[str, Any]:
        """The crop after its swaps, and the crop; ``swaps`` are the first voxels of each pair."""
        (crop,) = crops
        count = int(rng.integers(*self.number, endpoint=True))
        swaps = [draw_pair(rng, crop.shape[1:], self.size) for _ in range(count)]
        image = crop.copy()
        for starts in swaps:
            swap(image, starts, self.size)
        return {"image": image, "label": crop, "swaps": swaps}

    def panels(self, crops: Sequence[np.ndarray], sample: Mapping[str, Any]) -> list[Panel]:
        """The crop, what the network sees, and what it has to restore."""
        panels = [Panel("crop", image=crops[0][0]), Panel("patches swapped", image=sample["image"][0])]
        return [*panels, Panel("to restore", image=sample["label"][0])]
