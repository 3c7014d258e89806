"""Dropout whose draws are cheap on a CPU.

torch draws a double for each element, which there takes longer than all other element-wise work of the network. Sixteen
bits an element do: a rate is rounded to a multiple of 2**-16 (0.2 to 0.200005), and the scale of what is kept is that
of the rounded rate.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LEVELS = 2**16


def draw_seed() -> int:
    """A seed for :func:`keep_mask` from torch's generator, so that what repeats its draws repeats the mask."""
    return int(torch.empty((), dtype=torch.int64).random_())


def keep_mask(like: Tensor, p: float, seed: int) -> Tensor:
    """A factor for each element: 0 with probability `p`, else 1 / (1 - p), in the layout of `like`, dense on a CPU."""
    dropped = round(p * LEVELS)
    mask = torch.empty_like(like)
    words = torch.empty(-(-mask.numel() // 4), dtype=torch.int64)
    words.random_(-(2**63), None, generator=torch.Generator().manual_seed(seed))
    draws = words.view(torch.int16)[: mask.numel()].as_strided(mask.shape, mask.stride())
    torch.ge(draws, dropped - LEVELS // 2, out=mask)
    return mask.mul_(LEVELS / (LEVELS - dropped))


def dropout(x: Tensor, p: float, training: bool) -> Tensor:
    """As torch's, by cheap draws where they are."""
    if training and p > 0 and x.device.type == "cpu" and not torch.compiler.is_compiling():
        return x * keep_mask(x, p, draw_seed())
    return F.dropout(x, p, training)


class Dropout(nn.Dropout):
    """nn.Dropout by :func:`dropout`."""

    def forward(self, x: Tensor) -> Tensor:
        return dropout(x, self.p, self.training)
