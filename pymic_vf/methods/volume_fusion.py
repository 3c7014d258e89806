"""Volume Fusion: the sample generator of MIS-FM (section 3.1, eq. 1, Algorithm 1). Arrays and a generator, no files.

Random boxes of a foreground crop are mixed into a background crop of another scan, each with a coefficient
from {1/K, ..., 1}; the network then has to name every voxel's coefficient, as a segmentation with K + 1 classes.
First all parameters of a sample are drawn (:func:`draw_patches`), then they are applied (:func:`fuse`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from pymic_vf.keys import Key, Section, list_of, whole
from pymic_vf.methods.method import SEGMENTATION, Method, Panel
from pymic_vf.sizes import AXES, Size


class Patch(NamedTuple):
    """One foreground patch: its first voxel (z, y, x), its size (d, h, w) and its class k, with coefficient k/K."""

    start: Size
    size: Size
    label: int


@dataclass(frozen=True)
class FusionSettings:
    """The parameters of Algorithm 1; the defaults are the paper's (section 4.2).

    Args:
        classes: K, the number of non-zero fusion coefficients; at most 255, since labels are bytes.
        patch_number: [m0, m1], both inclusive, of the number of patches M.
        patch_size_min: the smallest patch (d, h, w), in voxels.
        patch_size_max: the largest, inclusive.
    """

    classes: int = 4
    patch_number: tuple[int, int] = (10, 40)
    patch_size_min: Size = (8, 8, 8)
    patch_size_max: Size = (40, 80, 80)


def draw_patches(rng: np.random.Generator, shape: Sequence[int], settings: FusionSettings) -> list[Patch]:
    """Draw the patches of one sample, in the order in which they are placed (Algorithm 1, lines 7 to 10).

    Args:
        rng: where all randomness comes from.
        shape: the crop's (D, H, W); no patch may be larger.
        settings: K and the ranges.

    Returns:
        M ~ U{m0..m1} patches; each size uniform in its range, each position uniform among those wholly inside, each
        label uniform in {1..K}.

    Raises:
        ValueError: the largest patch does not fit the crop.
    """
    if any(largest > available for largest, available in zip(settings.patch_size_max, shape, strict=True)):
        raise ValueError(f"patches of up to {list(settings.patch_size_max)} voxels do not fit a crop of {list(shape)}")
    m0, m1 = settings.patch_number
    count = int(rng.integers(m0, m1, endpoint=True))
    sizes = rng.integers(settings.patch_size_min, settings.patch_size_max, size=(count, 3), endpoint=True)
    starts = rng.integers(0, np.asarray(shape) - sizes, endpoint=True)
    labels = rng.integers(1, settings.classes, size=count, endpoint=True)
    return [
        Patch(tuple(start), tuple(size), label)
        for start, size, label in zip(starts.tolist(), sizes.tolist(), labels.tolist(), strict=True)
    ]


def paint_labels(patches: Sequence[Patch], shape: Sequence[int]) -> np.ndarray:
    """The label map y = K * alpha (section 3.1.1): uint8 [D, H, W], 0 in no patch, a later patch over earlier ones."""
    label = np.zeros(tuple(shape), np.uint8)
    for (z, y, x), (d, h, w), k in patches:
        label[z : z + d, y : y + h, x : x + w] = k
    return label


def fuse(background: np.ndarray, foreground: np.ndarray, label: np.ndarray, classes: int) -> np.ndarray:
    """X = alpha * I_f + (1 - alpha) * I_b with alpha = y / K (eq. 1).

    Args:
        background: I_b, [C, D, H, W].
        foreground: I_f, of the same shape.
        label: y, integers 0..K, [D, H, W].
        classes: K.

    Returns:
        X, float32 [C, D, H, W]; exactly I_b where y = 0 and exactly I_f where y = K.

    Raises:
        ValueError: the shapes differ.
    """
    if background.shape != foreground.shape or background.shape[1:] != label.shape:
        raise ValueError(
            f"background {background.shape}, foreground {foreground.shape} and label {label.shape} must be of one size"
        )
    alpha = np.broadcast_to(label, background.shape).astype(np.float32)
    alpha /= np.float32(classes)
    # (1 - a) b + a f, not b + a (f - b): the latter rounds where a = 1
    fused = alpha * foreground.astype(np.float32, copy=False)
    np.subtract(1, alpha, out=alpha)
    alpha *= background.astype(np.float32, copy=False)  # in place: new memory costs more than the arithmetic
    fused += alpha
    return fused


class VolumeFusion(Method):
    """``method_name = VF``: the network segments the fusion coefficients."""

    title = "Volume Fusion"
    task = SEGMENTATION
    scans_per_sample = 2
    keys = (
        Key("VF_foreground_classes", whole(1, 255), "K; `[network] class_num` must be K + 1", 4),
        Key("VF_patch_number", list_of(whole(0), 2), "fewest and most patches", (10, 40)),
        Key("VF_patch_size_min", list_of(whole(1), 3), "smallest patch, in voxels", (8, 8, 8)),
        Key("VF_patch_size_max", list_of(whole(1), 3), "largest patch, in voxels", (40, 80, 80)),
    )

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.settings = FusionSettings(*(values[key.name] for key in self.keys))

    @classmethod
    def check(cls, values: Mapping[str, Any], crop_size: Size, dataset: Section) -> None:
        """The ranges of patches must be ranges, and the largest patch must fit the crop."""
        fewest, most = values["VF_patch_number"]
        smallest, largest = values["VF_patch_size_min"], values["VF_patch_size_max"]
        if fewest > most:
            dataset.wrong("VF_patch_number", "must be [fewest, most] with fewest <= most")
        if axes := _axes_above(smallest, largest):
            dataset.wrong("VF_patch_size_min", f"must not exceed VF_patch_size_max = {list(largest)} ({axes})")
        if axes := _axes_above(largest, crop_size):
            dataset.wrong("VF_patch_size_max", f"must not exceed crop_size = {list(crop_size)} ({axes})")

    def sample(self, crops: Sequence[np.ndarray], rng: np.random.Generator) -> dict[str, Any]:
        """X and Y of Algorithm 1 from the background and the foreground; ``patches`` is what was drawn."""
        background, foreground = crops
        shape = background.shape[1:]
        patches = draw_patches(rng, shape, self.settings)
        label = paint_labels(patches, shape)
        fused = fuse(background, foreground, label, self.settings.classes)
        return {"image": fused, "label": label[None], "patches": patches}

    def class_names(self, in_chns: int) -> list[str]:  # noqa: ARG002
        """The fusion coefficients 0/K to K/K."""
        return [f"{k}/{self.settings.classes}" for k in range(self.settings.classes + 1)]

    def panels(self, crops: Sequence[np.ndarray], sample: Mapping[str, Any]) -> list[Panel]:
        """Figure 2 of the paper."""
        image, label = sample["image"][0], sample["label"][0]
        return [
            Panel("background", "$I_b$", crops[0][0]),
            Panel("foreground", "$I_f$", crops[1][0]),
            Panel("fusion coefficients", r"$\alpha$", None, label),
            Panel("fused image", r"$X = \alpha I_f + (1 - \alpha) I_b$", image),
            Panel("label to predict", r"$Y = K \alpha$", image, label),
        ]


def _axes_above(sizes: Sequence[int], limits: Sequence[int]) -> str:
    return ", ".join(axis for axis, size, limit in zip(AXES, sizes, limits, strict=True) if size > limit)
