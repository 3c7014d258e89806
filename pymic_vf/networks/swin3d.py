"""The transformer branch of a PCT block: a 3D Swin Transformer on the voxels of a volume.

MIS-FM, section 3.1.4 (P-MSA and SP-MSA); Swin Transformer (Liu et al. 2021), section 3.2, with windows of three axes.
Tokens are [N, V, C] with V = D * H * W voxels in the order of the volume: the memory of a channels-last
[N, C, D, H, W] tensor as it is.

Padding a volume to whole windows, rolling it by the shift and cutting it into windows are, together, one permutation of
its voxels with some holes. The permutation is worked out once for each size and applied as one gather. Of the attention
masks of shifted windows only few differ, because a region border cuts a window along an axis only if the window is the
last one of that axis. Windows are therefore ordered by mask, so that each group of them shares one.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx
from torch.nn.functional import scaled_dot_product_attention

from pymic_vf.networks.drop_path import DropPath
from pymic_vf.sizes import Size

MASKED = -100.0  # added between tokens of different regions of a shifted window
MLP_RATIO = 4
DROP_PATH = 0.2
TABLE_STD = 0.02


class WindowGroup(NamedTuple):
    """Consecutive windows that share a mask: their number (batch included), and [T, T] float32 or None for no mask."""

    windows: int
    mask: Tensor | None


class WindowLayout(NamedTuple):
    """Which voxel of a batch of volumes is which token of its attention windows of T tokens.

    Attributes:
        voxel_of_token: [windows * T] int64; 0 where the token is padding.
        padding: [P] int64, the tokens that are padding.
        token_of_voxel: [N * V] int64.
        groups: the windows in order, grouped by mask.
    """

    voxel_of_token: Tensor
    padding: Tensor
    token_of_voxel: Tensor
    groups: tuple[WindowGroup, ...]


@lru_cache(maxsize=64)
def window_layout(batch: int, size: Size, window: int, shift: int, device: torch.device) -> WindowLayout:
    """The layout of a batch of volumes of `size` (D, H, W) in windows of `window`**3 voxels shifted by `shift`.

    Zero padding is at the far end of each axis, before the shift. The last few results are kept, for all networks.
    """
    # Tensors made in inference mode could not be used for training later.
    with torch.inference_mode(False), torch.no_grad():
        depth, height, width = size
        voxels = depth * height * width
        padded = tuple(-(-side // window) * window for side in size)
        volume = torch.full(padded, -1, dtype=torch.int64)
        volume[:depth, :height, :width] = torch.arange(voxels).view(size)
        order, group_sizes, masks = _group_by_mask(padded, window, shift)
        windows = _cut_into_windows(volume.roll((-shift, -shift, -shift), (0, 1, 2)), window)[order]
        # The batch goes inside the axis of the windows, so that a group is one slice whatever the batch.
        first_voxel = voxels * torch.arange(batch)[None, :, None]
        voxel_of_token = torch.where(windows[:, None] < 0, -1, windows[:, None] + first_voxel).flatten()
        filled = torch.nonzero(voxel_of_token >= 0).flatten()
        token_of_voxel = torch.empty(batch * voxels, dtype=torch.int64)
        token_of_voxel[voxel_of_token[filled]] = filled
        padding = torch.nonzero(voxel_of_token < 0).flatten()
        groups = tuple(
            WindowGroup(count * batch, None if mask is None else mask.to(device))
            for count, mask in zip(group_sizes, masks, strict=True)
        )
        return WindowLayout(
            voxel_of_token.clamp(min=0).to(device), padding.to(device), token_of_voxel.to(device), groups
        )


def _cut_into_windows(volume: Tensor, window: int) -> Tensor:
    """[D, H, W] with sides that are multiples of `window`, as [windows, window**3]."""
    d, h, w = (side // window for side in volume.shape)
    blocks = volume.reshape(d, window, h, window, w, window)
    return blocks.permute(0, 2, 4, 1, 3, 5).reshape(d * h * w, window**3)


def _group_by_mask(padded: Size, window: int, shift: int) -> tuple[Tensor, list[int], list[Tensor | None]]:
    """The order of the windows that brings equal masks together, the size of each group, and its mask."""
    if shift == 0:
        count = padded[0] * padded[1] * padded[2] // window**3
        return torch.arange(count), [count], [None]
    regions = _cut_into_windows(_regions(padded, window, shift), window)
    # The differences to a window's first token say which axes are cut, and nothing of where the window is.
    patterns, kind, sizes = torch.unique(regions - regions[:, :1], dim=0, return_inverse=True, return_counts=True)
    masks = []
    for pattern in patterns:
        apart = pattern[:, None] != pattern[None, :]
        masks.append(apart.float() * MASKED if apart.any() else None)
    return torch.argsort(kind, stable=True), sizes.tolist(), masks


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


class _Gather(torch.autograd.Function):
    """rows[index] with zeros at `holes`; `inverse` and `inverse_holes` undo it.

    No row is taken twice, so the gradient is a gather too. That of torch's own indexing adds row by row: several times
    slower on a CPU, and by atomic operations in any order on CUDA.
    """

    @staticmethod
    def forward(
        ctx: FunctionCtx, rows: Tensor, index: Tensor, holes: Tensor, inverse: Tensor, inverse_holes: Tensor
    ) -> Tensor:
        ctx.save_for_backward(index, holes, inverse, inverse_holes)
        gathered = rows.index_select(0, index)
        return gathered.index_fill_(0, holes, 0) if len(holes) else gathered

    @staticmethod
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        index, holes, inverse, inverse_holes = ctx.saved_tensors
        return _Gather.apply(grad, inverse, inverse_holes, index, holes), None, None, None, None


def window_partition(voxels: Tensor, layout: WindowLayout) -> Tensor:
    """[N * V, C] in the order of the volume, as [windows * T, C]; padding is zero."""
    no_holes = layout.padding[:0]
    return _Gather.apply(voxels, layout.voxel_of_token, layout.padding, layout.token_of_voxel, no_holes)


def window_reverse(tokens: Tensor, layout: WindowLayout) -> Tensor:
    """[windows * T, C] back as [N * V, C] in the order of the volume, without the padding."""
    no_holes = layout.padding[:0]
    return _Gather.apply(tokens, layout.token_of_voxel, no_holes, layout.voxel_of_token, layout.padding)


def relative_position_index(window: int) -> Tensor:
    """[T, T] int64 with T = window**3: the row of the bias table for each (query, key), tokens in (z, y, x) order.

    Every offset has a row of its own. The released weights bring another index, in which some offsets share rows.
    """
    axis = torch.arange(window)
    z, y, x = (axis.flatten() for axis in torch.meshgrid(axis, axis, axis, indexing="ij"))
    span = 2 * window - 1
    dz, dy, dx = (coordinate[:, None] - coordinate[None, :] + window - 1 for coordinate in (z, y, x))
    return (dz * span + dy) * span + dx


class WindowAttention(nn.Module):
    """Multi-head self-attention within windows, with a learned bias for each relative position."""

    def __init__(self, chns: int, num_heads: int, window: int, dropout: float) -> None:
        super().__init__()
        self.num_heads, self.window = num_heads, window
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 3, num_heads))
        self.register_buffer("relative_position_index", relative_position_index(window))
        self.qkv = nn.Linear(chns, 3 * chns)
        self.attn_drop = nn.Dropout(dropout)
        self.proj = nn.Linear(chns, chns)
        self.proj_drop = nn.Dropout(dropout)
        nn.init.trunc_normal_(self.relative_position_bias_table, std=TABLE_STD)

    def forward(self, x: Tensor, layout: WindowLayout) -> Tensor:
        """[N, V, C] to the same."""
        tokens = self.window**3
        q, k, v = (
            self.qkv(window_partition(x.flatten(0, 1), layout))
            .view(-1, tokens, 3, self.num_heads, x.shape[-1] // self.num_heads)
            .permute(2, 0, 3, 1, 4)
        )
        bias = self.relative_position_bias()
        dropout = self.attn_drop.p if self.attn_drop.training else 0.0
        counts = [group.windows for group in layout.groups]
        attended = [
            scaled_dot_product_attention(*qkv, bias if mask is None else bias + mask.to(bias.dtype), dropout)
            for (_, mask), *qkv in zip(layout.groups, q.split(counts), k.split(counts), v.split(counts), strict=True)
        ]
        windows = torch.cat([group.transpose(1, 2) for group in attended]).flatten(2).flatten(0, 1)
        return self.proj_drop(self.proj(window_reverse(windows, layout))).view(x.shape)

    def relative_position_bias(self) -> Tensor:
        """[1, heads, T, T], added to the scaled products of queries and keys."""
        tokens = self.window**3
        rows = self.relative_position_bias_table.index_select(0, self.relative_position_index.flatten())
        return rows.T.reshape(1, self.num_heads, tokens, tokens)


class Mlp(nn.Module):
    """Two layers with exact GELU, token by token."""

    def __init__(self, chns: int, dropout: float) -> None:
        super().__init__()
        self.fc1 = nn.Linear(chns, MLP_RATIO * chns)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(MLP_RATIO * chns, chns)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.fc2(self.drop(self.act(self.fc1(x)))))


class SwinBlock(nn.Module):
    """y = x + DropPath(attention(norm1(x))); y + DropPath(mlp(norm2(y)))."""

    def __init__(self, chns: int, num_heads: int, window: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(chns)
        self.attn = WindowAttention(chns, num_heads, window, dropout)
        self.drop_path = DropPath(DROP_PATH)
        self.norm2 = nn.LayerNorm(chns)
        self.mlp = Mlp(chns, dropout)

    def forward(self, x: Tensor, layout: WindowLayout) -> Tensor:
        """[N, V, C] to the same."""
        # Autocast normalises to float32: windows are gathered in half of that.
        x = x + self.drop_path(self.attn(self.norm1(x).to(x.dtype), layout))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class WindowTransformer(nn.Module):
    """`depth` Swin blocks on a volume, every second one shifted."""

    def __init__(self, chns: int, depth: int, num_heads: int, window: int, dropout: float) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(SwinBlock(chns, num_heads, window, dropout) for _ in range(depth))

    def forward(self, x: Tensor, layouts: tuple[WindowLayout, WindowLayout]) -> Tensor:
        """[N, C, D, H, W] to the same.

        Args:
            x: the volume; without a copy if it is channels-last.
            layouts: of the plain and of the shifted windows.
        """
        size = x.shape[2:]
        tokens = x.flatten(2).transpose(1, 2)
        for i, block in enumerate(self.blocks):
            tokens = block(tokens, layouts[i % 2])
        return tokens.transpose(1, 2).unflatten(2, size)
