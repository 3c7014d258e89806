"""Volume Fusion: the sample generator of MIS-FM (section 3.1, eq. 1, Algorithm 1). Arrays and a generator, no files.

Random boxes of a foreground sub-volume are mixed into a background sub-volume of another scan, each with a coefficient
from {1/K, ..., 1}; the network then has to tell every voxel's coefficient, as a segmentation with K + 1 classes.
First all parameters of a sample are drawn (:func:`draw_patches`), then they are applied (:func:`fuse`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

Triple = tuple[int, int, int]


class Patch(NamedTuple):
    """One foreground patch: its first voxel (z, y, x), its size (d, h, w) and its class k, with coefficient k/K."""

    start: Triple
    size: Triple
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
    patch_size_min: Triple = (8, 8, 8)
    patch_size_max: Triple = (40, 80, 80)


def draw_patches(rng: np.random.Generator, shape: Sequence[int], settings: FusionSettings) -> list[Patch]:
    """Draw the patches of one sample, in the order in which they are placed (Algorithm 1, lines 7 to 10).

    Args:
        rng: where all randomness comes from.
        shape: the sub-volume's (D, H, W); no patch may be larger.
        settings: K and the ranges.

    Returns:
        M ~ U{m0..m1} patches; each size uniform in its range, each position uniform among those wholly inside, each
        label uniform in {1..K}.

    Raises:
        ValueError: the largest patch does not fit the sub-volume.
    """
    if any(largest > available for largest, available in zip(settings.patch_size_max, shape, strict=True)):
        raise ValueError(
            f"patches of up to {list(settings.patch_size_max)} voxels do not fit a sub-volume of {list(shape)}"
        )
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
