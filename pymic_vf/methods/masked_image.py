"""Masked image modelling: blocks of a regular grid are hidden, and the network restores the image.

Z. Chen et al., Masked Image Modeling Advances 3D Medical Image Analysis (WACV 2023), with SimMIM's loss on the hidden
voxels. A hidden voxel is 0, the middle of a range from -1 to 1; the share of blocks is met exactly in every sample.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pymic_vf.keys import Key, Section, list_of, number, one_of, whole
from pymic_vf.methods.method import RECONSTRUCTION, Method, Panel
from pymic_vf.sizes import Size

# block size, share of the blocks that is hidden, voxels that the loss is of
PRESETS: dict[str, tuple[Size, float, str]] = {
    "original": ((16, 16, 16), 0.75, "hidden"),
    "pymic": ((8, 16, 16), 0.45, "all"),
}


def draw_hidden(rng: np.random.Generator, shape: Sequence[int], block_size: Size, ratio: float) -> np.ndarray:
    """Which voxels are hidden: bool [D, H, W].

    Args:
        rng: where the randomness comes from.
        shape: (D, H, W) of the crop; blocks at its far end may be cut.
        block_size: (d, h, w) of a block, in voxels.
        ratio: the share of the blocks to hide; their number is rounded to the nearest.
    """
    grid = _grid(shape, block_size)
    hidden = np.arange(math.prod(grid)) < round(ratio * math.prod(grid))
    mask = rng.permutation(hidden).reshape(grid)
    for axis, block in enumerate(block_size):
        mask = mask.repeat(block, axis)
    return mask[tuple(slice(side) for side in shape)]


def _grid(shape: Sequence[int], block_size: Size) -> list[int]:
    """Blocks along each axis."""
    return [-(-side // block) for side, block in zip(shape, block_size, strict=True)]


class MaskedImageModelling(Method):
    """``method_name = MIM``: the network restores hidden blocks."""

    title = "Masked image modelling"
    task = RECONSTRUCTION
    keys = (
        Key("MIM_preset", one_of(*PRESETS), "`original` (the paper's) or `pymic`: the defaults below", "original"),
        Key("MIM_block_size", list_of(whole(1), 3), "of a hidden block, in voxels: [16, 16, 16] or [8, 16, 16]"),
        Key("MIM_mask_ratio", number(0, 1), "share of the blocks that is hidden: 0.75 or 0.45"),
        Key("MIM_loss_voxels", one_of("hidden", "all"), "voxels that the loss is of: hidden or all"),
    )

    def __init__(self, values: Mapping[str, Any]) -> None:
        preset = dict(zip(("MIM_block_size", "MIM_mask_ratio", "MIM_loss_voxels"), PRESETS[values["MIM_preset"]],
                          strict=True))  # fmt: skip
        chosen = {name: default if values[name] is None else values[name] for name, default in preset.items()}
        self.block_size, self.mask_ratio, self.loss_voxels = chosen.values()

    @classmethod
    def check(cls, values: Mapping[str, Any], crop_size: Size, dataset: Section) -> None:
        """A sample must have a hidden block and one to be seen."""
        method = cls(values)
        blocks = math.prod(_grid(crop_size, method.block_size))
        if not 0 < round(method.mask_ratio * blocks) < blocks:
            dataset.mistakes.append(
                f"[dataset] crop_size = {list(crop_size)} has {blocks} blocks of {list(method.block_size)}, of which "
                f"MIM_mask_ratio = {method.mask_ratio} must hide at least one and leave one"
            )

    def sample(self, crops: Sequence[np.ndarray], rng: np.random.Generator) -> dict[str, Any]:
        """The crop with hidden blocks, and the crop; the weight of a voxel in the loss is 1 or 0."""
        (crop,) = crops
        hidden = draw_hidden(rng, crop.shape[1:], self.block_size, self.mask_ratio)
        sample = {"image": np.where(hidden, np.float32(0), crop), "label": crop}
        if self.weights_voxels:
            sample["pixel_weight"] = np.broadcast_to(hidden, crop.shape).astype(np.float32)
        return sample

    @property
    def weights_voxels(self) -> bool:
        """Where the loss is of the hidden voxels alone."""
        return self.loss_voxels == "hidden"

    def panels(self, crops: Sequence[np.ndarray], sample: Mapping[str, Any]) -> list[Panel]:
        """The crop, what the network sees, and what it has to restore."""
        panels = [Panel("crop", image=crops[0][0]), Panel("hidden blocks", image=sample["image"][0])]
        return [*panels, Panel("to restore", image=sample["label"][0])]
