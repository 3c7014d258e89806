"""nnFormer: interleaved convolution and volume-based attention (Zhou et al., arXiv 2109.03201, section 3, figure 1).

A convolutional embedding; two encoder stages of attention in local windows; global attention at the bottom, on two
levels; a decoder whose stages begin with skip attention, where its tokens ask and those of the encoder answer; a
transposed convolution back to voxels. Between levels convolutions halve and double the resolution.

Written from the text. Where that leaves a choice: windows are fitted to `input_size` axis by axis, so that no token of
the bottom is padding; the residual path of a skip attention is the decoder's; every change of resolution normalises
its input; stochastic depth is that of PCT-Net's blocks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pymic_vf.errors import UserError
from pymic_vf.networks.drop_path import DropPath
from pymic_vf.networks.nnformer_settings import NNFormerSettings, parse_nnformer_settings
from pymic_vf.networks.swin3d import (
    DROP_PATH,
    Mlp,
    WindowAttention,
    WindowLayout,
    WindowTransformer,
    window_layout,
    window_partition,
)
from pymic_vf.sizes import Size

STAGES = ("train", "test")
BOTTOM = 3
Layouts = tuple[WindowLayout, WindowLayout]
"""Of the plain and of the shifted windows of a level."""


class ChannelNorm(nn.LayerNorm):
    """Layer normalisation of each voxel's channels, [N, C, D, H, W] to the same."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class Embedding(nn.Module):
    """Voxels to the tokens of level 0 by four small convolutions, instead of one of the size of the patch."""

    def __init__(self, s: NNFormerSettings) -> None:
        super().__init__()
        half, chns = s.embed_dim // 2, s.embed_dim
        first = tuple(2 if side == 4 else 1 for side in s.patch_size)
        second = tuple(2 if side > 1 else 1 for side in s.patch_size)
        self.layers = nn.Sequential(
            *(nn.Conv3d(s.in_chns, half, 3, first, padding=1), nn.GELU(), ChannelNorm(half)),
            *(nn.Conv3d(half, half, 3, padding=1), nn.GELU(), ChannelNorm(half)),
            *(nn.Conv3d(half, chns, 3, second, padding=1), nn.GELU(), ChannelNorm(chns)),
            nn.Conv3d(chns, chns, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class Down(nn.Module):
    """Half the resolution and twice the channels, by a strided convolution."""

    def __init__(self, chns: int) -> None:
        super().__init__()
        self.norm = ChannelNorm(chns)
        self.conv = nn.Conv3d(chns, 2 * chns, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.norm(x))


class Up(nn.Module):
    """`factor` times the resolution, by a transposed convolution."""

    def __init__(self, chns: int, out_chns: int, factor: Size) -> None:
        super().__init__()
        self.norm = ChannelNorm(chns)
        self.conv = nn.ConvTranspose3d(chns, out_chns, factor, stride=factor)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.norm(x))


class SkipAttention(WindowAttention):
    """Attention of the decoder's tokens to those of the encoder in the same window."""

    def forward(self, x: Tensor, skip: Tensor, layout: WindowLayout) -> Tensor:
        """[N, V, C] of the decoder and [N, V, C] of the encoder to [N, V, C]."""
        asks = slice(None, x.shape[2])
        answers = slice(x.shape[2], None)
        weight, bias = self.qkv.weight, self.qkv.bias
        queries = F.linear(window_partition(x.flatten(0, 1), layout), weight[asks], bias[asks])
        keys_values = F.linear(window_partition(skip.flatten(0, 1), layout), weight[answers], bias[answers])
        return self.attend_in_windows(torch.cat([queries, keys_values], dim=1), layout).view(x.shape)


class SkipBlock(nn.Module):
    """y = x + DropPath(attention(norm1(x), norm_skip(skip))); y + DropPath(mlp(norm2(y)))."""

    def __init__(self, chns: int, num_heads: int, window: Size) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(chns)
        self.norm_skip = nn.LayerNorm(chns)
        self.attn = SkipAttention(chns, num_heads, window, dropout=0.0)
        self.drop_path = DropPath(DROP_PATH)
        self.norm2 = nn.LayerNorm(chns)
        self.mlp = Mlp(chns, dropout=0.0)

    def forward(self, x: Tensor, skip: Tensor, layout: WindowLayout) -> Tensor:
        """[N, V, C] of the decoder and [N, V, C] of the encoder to [N, V, C]."""
        # As in SwinBlock: autocast normalises to float32.
        asked = self.attn(self.norm1(x).to(x.dtype), self.norm_skip(skip).to(x.dtype), layout)
        x = x + self.drop_path(asked)
        return x + self.drop_path(self.mlp(self.norm2(x)))


class DecoderStage(nn.Module):
    """A block of skip attention in plain windows, then blocks of self-attention, the first of them shifted."""

    def __init__(self, s: NNFormerSettings, level: int) -> None:
        super().__init__()
        chns, heads, window = s.chns[level], s.num_heads[level], s.window(level)[0]
        self.skip_block = SkipBlock(chns, heads, window)
        self.trans = WindowTransformer(chns, s.depths[level] - 1, heads, window, dropout=0.0)

    def forward(self, x: Tensor, skip: Tensor, layouts: Layouts) -> Tensor:
        """[N, C, D, H, W] of the decoder and of the encoder to the same."""
        plain, shifted = layouts
        tokens = self.skip_block(_tokens(x), _tokens(skip), plain)
        return self.trans(tokens.transpose(1, 2).unflatten(2, x.shape[2:]), (shifted, plain))


class NNFormer(nn.Module):
    """nnFormer as PyMIC builds its networks.

    Args:
        params: PyMIC's ``config["network"]``; see :data:`pymic_vf.networks.nnformer_settings.NNFORMER_KEYS`.

    Raises:
        ConfigError: with every mistake in `params`.
    """

    # What [network] compile = True compiles: layouts, which follow the input's size, are made outside.
    compiled_method = "forward_in_windows"

    def __init__(self, params: Mapping[str, Any]) -> None:
        super().__init__()
        self.settings = s = parse_nnformer_settings(params)
        self.stage = "train"
        self.embedding = Embedding(s)
        self.encoder = nn.ModuleList(
            WindowTransformer(s.chns[level], s.depths[level], s.num_heads[level], s.window(level)[0], dropout=0.0)
            for level in range(BOTTOM + 1)
        )
        self.downs = nn.ModuleList(Down(s.chns[level]) for level in range(BOTTOM))
        self.ups = nn.ModuleList(Up(2 * s.chns[level], s.chns[level], (2, 2, 2)) for level in range(BOTTOM))
        self.decoder = nn.ModuleList(DecoderStage(s, level) for level in range(BOTTOM))
        levels_with_output = range(BOTTOM if s.multiscale_pred else 1)
        self.heads = nn.ModuleList(Up(s.chns[level], s.class_num, s.patch_size) for level in levels_with_output)
        # Convolutions are faster so, and the tokens need no transposition.
        self.to(memory_format=torch.channels_last_3d)

    def set_stage(self, stage: str) -> None:
        """PyMIC's word for what the network is used for: "train" (validation included) or "test"."""
        if stage not in STAGES:
            raise UserError(f"stage must be one of {', '.join(STAGES)}, got {stage!r}")
        self.stage = stage

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """[N, in_chns, D, H, W], multiples of 8 * patch_size, to [N, class_num, D, H, W]; not soft-maxed.

        At the stage "train" with `multiscale_pred`: the list of three, finest first, each half as large as the one
        before.

        Raises:
            UserError: for an input of another rank, number of channels or size.
        """
        s = self.settings
        if x.dim() != 5 or x.shape[1] != s.in_chns:
            raise UserError(f"nnFormer takes [N, {s.in_chns}, D, H, W] (in_chns = {s.in_chns}), got {list(x.shape)}")
        if wrong := s.ill_sized_axes(x.shape[2:]):
            raise UserError(
                f"nnFormer takes sizes that are multiples of 8 * patch_size = {list(s.strides[BOTTOM])}, "
                f"got {list(x.shape[2:])}: {'; '.join(wrong)}"
            )
        outputs = self.forward_in_windows(x.contiguous(memory_format=torch.channels_last_3d), self._layouts(x))
        return outputs if self._multiscale() else outputs[0]

    def forward_in_windows(self, x: Tensor, layouts: tuple[Layouts, ...]) -> list[Tensor]:
        """All of the network.

        Args:
            x: [N, in_chns, D, H, W].
            layouts: of the windows of levels 0 to 3.
        """
        x = self.embedding(x)
        skips = []
        for level in range(BOTTOM):
            x = self.encoder[level](x, layouts[level])
            skips.append(x)
            x = self.downs[level](x)
        x = self.encoder[BOTTOM](x, layouts[BOTTOM])
        outputs = []
        for level in reversed(range(BOTTOM)):
            x = self.decoder[level](self.ups[level](x), skips[level], layouts[level])
            if level == 0 or self._multiscale():
                outputs.insert(0, self.heads[level](x))
        return outputs

    def _multiscale(self) -> bool:
        return self.settings.multiscale_pred and self.stage == "train"

    def _layouts(self, x: Tensor) -> tuple[Layouts, ...]:
        """Those of levels 0 to 3: windows as built, for the size of `x`."""
        layouts = []
        for level, stride in enumerate(self.settings.strides):
            size = tuple(side // step for side, step in zip(x.shape[2:], stride, strict=True))
            window, shift = self.settings.window(level)
            layouts.append(tuple(window_layout(len(x), size, window, s, x.device) for s in ((0, 0, 0), shift)))
        return tuple(layouts)

    def explain_mismatch(self, name: str) -> str | None:
        """Why weights of another shape may not fit the entry `name`: the keys that decide its shape, or None."""
        s = self.settings
        if "relative_position_" in name:
            level = int(name.split(".")[1])
            return f"the attention windows of level {level} are {list(s.window(level)[0])} for the input_size here"
        if name.startswith("heads."):
            return f"class_num is {s.class_num} and patch_size {list(s.patch_size)} here"
        if name == "embedding.layers.0.weight":
            return f"in_chns is {s.in_chns} here"
        return None


def _tokens(x: Tensor) -> Tensor:
    """[N, C, D, H, W] as [N, V, C]."""
    return x.flatten(2).transpose(1, 2)
