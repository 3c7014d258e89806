"""The transformer branch of a PCT block, and the blocks of nnFormer: a 3D Swin Transformer on the voxels of a volume.

MIS-FM, section 3.1.4 (P-MSA and SP-MSA); Swin Transformer (Liu et al. 2021), section 3.2, with windows of three axes.
Tokens of the volume are [N, V, C] with V = D * H * W voxels: the memory of a channels-last [N, C, D, H, W] tensor as it
is. Tokens of the windows are [windows * T, C] with T tokens a window: window**3, or of windows that are no cubes the
product of their sides.

Padding a volume to whole windows, rolling it by the shift and cutting it into windows together give each voxel a token.
Which one is worked out once for each size, so that windows are made by one copy and undone by one gather. Of the
attention masks of shifted windows only few differ, because a border between regions cuts only the last window of an
axis. Windows are therefore ordered by mask, so that each group of them shares one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor, nn
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
    """Which voxel of a batch of volumes is which token of the attention windows.

    Attributes:
        token_of_voxel: [N * V] int64.
        tokens: of all windows; those that are no voxel's are padding.
        groups: the windows in order, grouped by mask.
    """

    token_of_voxel: Tensor
    tokens: int
    groups: tuple[WindowGroup, ...]


def sides_of(window: int | Size) -> Size:
    """The sides (D, H, W) of a cube or of another window."""
    return (window, window, window) if isinstance(window, int) else window


@lru_cache(maxsize=64)
def window_layout(batch: int, size: Size, window: int | Size, shift: int | Size, device: torch.device) -> WindowLayout:
    """The layout of a batch of volumes of `size` (D, H, W) in windows shifted by `shift`, each one number or a side
    and a shift for every axis.

    Padding is at the far end of each axis, before the shift. The last few results are kept, for all networks.
    """
    # Tensors made in inference mode could not be used for training later.
    with torch.inference_mode(False):
        window, shift = sides_of(window), sides_of(shift)
        counts = tuple(-(-side // w) for side, w in zip(size, window, strict=True))
        rolled = [
            (torch.arange(side) - s) % (count * w)
            for side, count, w, s in zip(size, counts, window, shift, strict=True)
        ]
        window_of_voxel = _numbered([axis // w for axis, w in zip(rolled, window, strict=True)], counts)
        token_in_window = _numbered([axis % w for axis, w in zip(rolled, window, strict=True)], window)
        # Only the last window of an axis has a border between regions: its kind says along which axes.
        is_last = [(torch.arange(count) == count - 1).long() * (s > 0) for count, s in zip(counts, shift, strict=True)]
        kind = _numbered(is_last, (2, 2, 2)).flatten()
        rank = torch.argsort(torch.argsort(kind, stable=True))  # of each window, when they are ordered by kind
        # The batch goes inside the axis of the windows, so that a group is one slice whatever the batch.
        sample = torch.arange(batch)[:, None, None, None]
        token_of_voxel = (rank[window_of_voxel] * batch + sample) * math.prod(window) + token_in_window
        groups = tuple(
            WindowGroup(count * batch, _mask(kind, window, shift, device))
            for kind, count in enumerate(torch.bincount(kind).tolist())
            if count
        )
        return WindowLayout(token_of_voxel.flatten().to(device), len(kind) * batch * math.prod(window), groups)


def _numbered(axes: Sequence[Tensor], sides: Size) -> Tensor:
    """[D, H, W]: coordinates (z, y, x) within `sides` as one number, from those of each axis."""
    z, y, x = torch.meshgrid(*axes, indexing="ij")
    return (z * sides[1] + y) * sides[2] + x


def _mask(kind: int, window: Size, shift: Size, device: torch.device) -> Tensor | None:
    """[T, T] for windows with a region border along the axes whose bits in `kind` are set."""
    if kind == 0:
        return None
    beyond = [(torch.arange(w) >= w - s).long() for w, s in zip(window, shift, strict=True)]
    region = _numbered([axis * (kind >> bit & 1) for axis, bit in zip(beyond, (2, 1, 0), strict=True)], (2, 2, 2))
    region = region.flatten()
    return MASKED * (region[:, None] != region[None, :]).float().to(device)


def window_partition(voxels: Tensor, layout: WindowLayout) -> Tensor:
    """[N * V, C] in the order of the volume, as [windows * T, C]; padding is zero.

    No voxel is copied twice, so that the gradient is a gather. That of a gather to windows with padding would be a sum
    over indices, slower and, on CUDA, by atomic additions.
    """
    return voxels.new_zeros(layout.tokens, voxels.shape[1]).index_copy_(0, layout.token_of_voxel, voxels)


def window_reverse(tokens: Tensor, layout: WindowLayout) -> Tensor:
    """[windows * T, C] back as [N * V, C] in the order of the volume, without the padding."""
    return tokens.index_select(0, layout.token_of_voxel)


def relative_position_index(window: int | Size) -> Tensor:
    """[T, T] int64: the row of the bias table for each (query, key), tokens in (z, y, x) order.

    Every offset has a row of its own. The released weights bring another index, in which some offsets share rows.
    """
    sides = sides_of(window)
    places = torch.meshgrid(*(torch.arange(side) for side in sides), indexing="ij")
    steps = [
        axis.flatten()[:, None] - axis.flatten()[None, :] + side - 1 for axis, side in zip(places, sides, strict=True)
    ]
    return (steps[0] * (2 * sides[1] - 1) + steps[1]) * (2 * sides[2] - 1) + steps[2]


class WindowAttention(nn.Module):
    """Multi-head self-attention within windows, with a learned bias for each relative position."""

    def __init__(self, chns: int, num_heads: int, window: int | Size, dropout: float) -> None:
        super().__init__()
        self.num_heads, self.tokens = num_heads, math.prod(sides_of(window))
        offsets = math.prod(2 * side - 1 for side in sides_of(window))
        self.relative_position_bias_table = nn.Parameter(torch.zeros(offsets, num_heads))
        self.register_buffer("relative_position_index", relative_position_index(window))
        self.qkv = nn.Linear(chns, 3 * chns)
        self.attn_drop = nn.Dropout(dropout)
        self.proj = nn.Linear(chns, chns)
        self.proj_drop = nn.Dropout(dropout)
        nn.init.trunc_normal_(self.relative_position_bias_table, std=TABLE_STD)

    def forward(self, x: Tensor, layout: WindowLayout) -> Tensor:
        """[N, V, C] to the same."""
        return self.attend_in_windows(self.qkv(window_partition(x.flatten(0, 1), layout)), layout).view(x.shape)

    def attend_in_windows(self, qkv: Tensor, layout: WindowLayout) -> Tensor:
        """[windows * T, 3 * C], the queries, keys and values of all windows, to [N * V, C]."""
        qkv = qkv.unflatten(0, (-1, self.tokens))
        groups = qkv.split([group.windows for group in layout.groups])
        bias = self.relative_position_bias()
        windows = torch.cat(
            [
                self.attend(group, bias if mask is None else bias + mask.to(bias.dtype))
                for group, (_, mask) in zip(groups, layout.groups, strict=True)
            ]
        )
        return self.proj_drop(self.proj(window_reverse(windows.flatten(0, 1), layout)))

    def attend(self, qkv: Tensor, bias: Tensor) -> Tensor:
        """[windows, T, 3 * C] to [windows, T, C]; `bias` [1, heads, T, T] is added to the scaled products."""
        q, k, v = qkv.unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        dropout = self.attn_drop.p if self.attn_drop.training else 0.0
        return scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=dropout).transpose(1, 2).flatten(2)

    def relative_position_bias(self) -> Tensor:
        """[1, heads, T, T]."""
        rows = self.relative_position_bias_table.index_select(0, self.relative_position_index.flatten())
        return rows.T.reshape(1, self.num_heads, self.tokens, self.tokens)


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

    def __init__(self, chns: int, num_heads: int, window: int | Size, dropout: float) -> None:
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

    def __init__(self, chns: int, depth: int, num_heads: int, window: int | Size, dropout: float) -> None:
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
