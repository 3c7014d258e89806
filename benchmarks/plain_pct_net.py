"""The plain float32 form of PCT-Net: the baseline of the benchmarks and the oracle of the tests.

Each operation as the paper and Swin Transformer write it: explicit softmax attention over materialised matrices,
contiguous layout, padding, roll, partition and masks made anew at each pass. Same weights and names as
:class:`pymic_vf.networks.pct_net.PCTNet`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pymic_vf.networks.pct_net import PCTNet


class PlainPCTNet(PCTNet):
    """PCT-Net without any of the measures that make it fast. Sizes must suit the poolings."""

    def __init__(self, params: Mapping[str, Any]) -> None:
        super().__init__(params)
        self.to(memory_format=torch.contiguous_format)

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        embedding, pyramid, head = self.embedding, self.pyramid_ct, self.head
        x0 = embedding.conv0.conv_conv(embedding.proj(x))
        x1 = embedding.conv1.conv_conv(_down(embedding.down1, x0))
        e2 = self._pct(pyramid.convtrans_e2, _down(embedding.down2, x1), 2)
        e3 = self._pct(pyramid.convtrans_e3, _down(pyramid.down3, e2), 3)
        e4 = self._pct(pyramid.convtrans_e4, _down(pyramid.down4, e3), 4)
        d3 = self._pct(pyramid.convtrans_d3, _up(pyramid.up4, e3, e4), 3)
        d2 = self._pct(pyramid.convtrans_d2, _up(pyramid.up3, e2, d3), 2)
        d1 = head.conv1.conv_conv(_up(head.up2, x1, d2))
        d0 = head.conv0.conv_conv(_up(head.up1, x0, d1))
        ends = ((head.out_conv0, d0), (head.out_conv1, d1), (pyramid.out_conv2, d2), (pyramid.out_conv3, d3))
        outputs = [end.conv(d) for end, d in ends]
        return outputs if self.settings.multiscale_pred and self.stage == "train" else outputs[0]

    def _pct(self, block: nn.Module, x: Tensor, level: int) -> Tensor:
        window, shift = self.settings.window(level)
        tokens = block.drop(x).permute(0, 2, 3, 4, 1).contiguous()
        for i, swin in enumerate(block.trans.blocks):
            attended = plain_window_attention(swin.attn, swin.norm1(tokens), window, shift if i % 2 else 0)
            tokens = tokens + swin.drop_path(attended)
            tokens = tokens + swin.drop_path(swin.mlp(swin.norm2(tokens)))
        return block.conv.conv_conv(x) + tokens.permute(0, 4, 1, 2, 3).contiguous()


def _down(block: nn.Module, x: Tensor) -> Tensor:
    return block.conv(block.pool(x))


def _up(block: nn.Module, skip: Tensor, high: Tensor) -> Tensor:
    return block.conv(torch.cat([skip, block.up(high)], dim=1))


def plain_window_attention(attn: nn.Module, x: Tensor, window: int, shift: int) -> Tensor:
    """[N, D, H, W, C] to the same: pad, roll, partition, attend, and all of it back."""
    batch, *size, chns = x.shape
    missing = [-side % window for side in size]
    x = F.pad(x, (0, 0, 0, missing[2], 0, missing[1], 0, missing[0]))
    padded = x.shape[1:4]
    mask = plain_mask(padded, window, shift).to(x) if shift else None
    x = torch.roll(x, (-shift,) * 3, (1, 2, 3)) if shift else x
    windows = plain_partition(x, window)
    windows = attn.proj_drop(attn.proj(plain_attention(attn, windows, mask)))
    blocks = windows.view(batch, *(side // window for side in padded), window, window, window, chns)
    x = blocks.permute(0, 1, 4, 2, 5, 3, 6, 7).reshape(batch, *padded, chns)
    x = torch.roll(x, (shift,) * 3, (1, 2, 3)) if shift else x
    return x[:, : size[0], : size[1], : size[2]].contiguous()


def plain_attention(attn: nn.Module, x: Tensor, mask: Tensor | None) -> Tensor:
    """[windows, T, C] to the same: softmax(q k^T / sqrt(d) + bias + mask) v for each head."""
    count, tokens, chns = x.shape
    heads = attn.num_heads
    q, k, v = attn.qkv(x).view(count, tokens, 3, heads, chns // heads).permute(2, 0, 3, 1, 4)
    scores = (q * (chns // heads) ** -0.5) @ k.transpose(-2, -1)
    table = attn.relative_position_bias_table[attn.relative_position_index.flatten()]
    scores = scores + table.view(tokens, tokens, heads).permute(2, 0, 1)
    if mask is not None:
        scores = scores.view(-1, len(mask), heads, tokens, tokens) + mask[None, :, None]
        scores = scores.view(count, heads, tokens, tokens)
    weights = attn.attn_drop(scores.softmax(-1))
    return (weights @ v).transpose(1, 2).reshape(count, tokens, chns)


def plain_partition(x: Tensor, window: int) -> Tensor:
    """[N, D, H, W, C] to [windows, window**3, C]."""
    batch, d, h, w, chns = x.shape
    x = x.view(batch, d // window, window, h // window, window, w // window, window, chns)
    return x.permute(0, 1, 3, 5, 2, 4, 6, 7).reshape(-1, window**3, chns)


def plain_mask(padded: tuple[int, ...], window: int, shift: int) -> Tensor:
    """[windows, T, T]: -100 between tokens of different regions of a shifted window."""
    regions = torch.zeros((1, *padded, 1))
    slices = (slice(0, -window), slice(-window, -shift), slice(-shift, None))
    number = 0
    for z in slices:
        for y in slices:
            for x in slices:
                regions[:, z, y, x] = number
                number += 1
    windows = plain_partition(regions, window).squeeze(-1)
    return torch.where(windows[:, :, None] == windows[:, None, :], 0.0, -100.0)
