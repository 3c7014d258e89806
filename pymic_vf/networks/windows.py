"""Where each voxel of a volume sits among shifted 3D attention windows.

The shifted windows of Swin Transformer (Liu et al. 2021, section 3.2) in 3D. Padding the volume to whole windows,
rolling it by the shift and cutting it into windows are, together, one permutation of the voxels with some holes: it is
worked out here once for each size, and applied as one gather.

Of the attention masks of shifted windows only few differ: a window is cut by a region border along an axis only if it
is the last one of that axis. Windows are therefore ordered by mask, so that each group of them shares one.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

Size = tuple[int, int, int]
MASKED = -100.0  # added between tokens of different regions


class WindowGroup(NamedTuple):
    """Consecutive windows that share a mask: their number (batch included), and [T, T] float32 or None for no mask."""

    windows: int
    mask: Tensor | None


class WindowLayout(NamedTuple):
    """How N * D * H * W voxel tokens, in the order of a [N, D, H, W] volume, are spread over windows of T tokens.

    Attributes:
        source: [windows * T] int64, the voxel of each place in the windows; 0 where the place is padding.
        padding: [P] int64, the places that are padding.
        place: [N * D * H * W] int64, the place of each voxel.
        groups: windows in order, grouped by mask.
    """

    source: Tensor
    padding: Tensor
    place: Tensor
    groups: tuple[WindowGroup, ...]


def relative_position_index(window: int) -> Tensor:
    """[T, T] int64 with T = window**3: the row of the bias table for each (query, key), tokens in (z, y, x) order.

    Every offset has a row of its own. The released weights bring another index, in which some offsets share rows.
    """
    axis = torch.arange(window)
    z, y, x = (axis.flatten() for axis in torch.meshgrid(axis, axis, axis, indexing="ij"))
    span = 2 * window - 1
    dz, dy, dx = (coordinate[:, None] - coordinate[None, :] + window - 1 for coordinate in (z, y, x))
    return (dz * span + dy) * span + dx


def partition(volume: Tensor, window: int) -> Tensor:
    """[D, H, W] with sides that are multiples of `window`, as [windows, window**3]."""
    d, h, w = (side // window for side in volume.shape)
    blocks = volume.reshape(d, window, h, window, w, window)
    return blocks.permute(0, 2, 4, 1, 3, 5).reshape(d * h * w, window**3)


def _regions(padded: Size, window: int, shift: int) -> Tensor:
    """[D, H, W] int64: the number of the region of each voxel, after the roll; three slices per axis."""
    axes = []
    for side in padded:
        axis = torch.zeros(side, dtype=torch.int64)
        axis[side - window :] = 1
        axis[side - shift :] = 2
        axes.append(axis)
    z, y, x = torch.meshgrid(*axes, indexing="ij")
    return z * 9 + y * 3 + x


def _group_by_mask(padded: Size, window: int, shift: int) -> tuple[Tensor, list[int], list[Tensor | None]]:
    """The order of the windows that brings equal masks together, the size of each group, and its mask."""
    count = padded[0] * padded[1] * padded[2] // window**3
    if shift == 0:
        return torch.arange(count), [count], [None]
    regions = partition(_regions(padded, window, shift), window)
    # The differences to a window's first token say which axes are cut, and nothing of where the window is.
    patterns, kind, sizes = torch.unique(
        regions - regions[:, :1], dim=0, sorted=True, return_inverse=True, return_counts=True
    )
    masks = []
    for pattern in patterns:
        apart = pattern[:, None] != pattern[None, :]
        masks.append(apart.float() * MASKED if apart.any() else None)
    return torch.argsort(kind, stable=True), sizes.tolist(), masks


@lru_cache(maxsize=64)
def window_layout(batch: int, size: Size, window: int, shift: int, device: torch.device) -> WindowLayout:
    """The layout of a batch of volumes of `size` (D, H, W) in windows of `window`**3 voxels shifted by `shift`.

    Zero padding is at the far end of each axis, before the shift. The last few results are kept, for all networks.
    """
    # Tensors made in inference mode could not be used for training later.
    with torch.inference_mode(False), torch.no_grad():
        padded = tuple(-(-side // window) * window for side in size)
        voxels = size[0] * size[1] * size[2]
        volume = torch.full(padded, -1, dtype=torch.int64)
        volume[: size[0], : size[1], : size[2]] = torch.arange(voxels).reshape(size)
        rolled = torch.roll(volume, (-shift, -shift, -shift), (0, 1, 2))
        order, sizes, masks = _group_by_mask(padded, window, shift)
        windows = partition(rolled, window)[order]
        # The batch goes inside the windows' axis, so that a group is one slice whatever the batch.
        first = (torch.arange(batch) * voxels)[None, :, None]
        source = torch.where(windows[:, None] < 0, -1, windows[:, None] + first).flatten()
        padding = torch.nonzero(source < 0).flatten()
        filled = torch.nonzero(source >= 0).flatten()
        place = torch.empty(batch * voxels, dtype=torch.int64)
        place[source[filled]] = filled
        groups = tuple(
            WindowGroup(count * batch, mask if mask is None else mask.to(device))
            for count, mask in zip(sizes, masks, strict=True)
        )
        return WindowLayout(source.clamp(min=0).to(device), padding.to(device), place.to(device), groups)


class _ToWindows(torch.autograd.Function):
    """One gather each way: as a permutation, its transpose is a gather too, and no sums over indices are needed."""

    @staticmethod
    def forward(ctx: FunctionCtx, tokens: Tensor, source: Tensor, padding: Tensor, place: Tensor) -> Tensor:
        ctx.save_for_backward(place)
        return _gather(tokens, source, padding)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        (place,) = ctx.saved_tensors
        return grad.index_select(0, place), None, None, None


class _FromWindows(torch.autograd.Function):
    """The transpose of :class:`_ToWindows`."""

    @staticmethod
    def forward(ctx: FunctionCtx, windows: Tensor, source: Tensor, padding: Tensor, place: Tensor) -> Tensor:
        ctx.save_for_backward(source, padding)
        return windows.index_select(0, place)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        return _gather(grad, *ctx.saved_tensors), None, None, None


def _gather(tokens: Tensor, source: Tensor, padding: Tensor) -> Tensor:
    windows = tokens.index_select(0, source)
    return windows.index_fill_(0, padding, 0) if len(padding) else windows


def to_windows(tokens: Tensor, layout: WindowLayout) -> Tensor:
    """[voxels, C] tokens in the order of the volume, as [windows * T, C], a new tensor; padding is zero."""
    return _ToWindows.apply(tokens, layout.source, layout.padding, layout.place)


def from_windows(windows: Tensor, layout: WindowLayout) -> Tensor:
    """[windows * T, C] back as [voxels, C] in the order of the volume, without the padding."""
    return _FromWindows.apply(windows, layout.source, layout.padding, layout.place)
