"""Two-dimensional levels slab by slab.

Nothing crosses the slices where convolution, pooling and upsampling are 2D. In inference on a CPU a chain of such steps
therefore runs on a few slices at a time: what is between the steps stays in the cache, and in memory in use already.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

SLAB = 2**21  # elements of the widest volume between two steps


def slices_in_cache(module: nn.Module, x: Tensor, chns: int) -> int | None:
    """How many slices of a volume of `chns` channels and the size of `x` at a time; None where all is best."""
    if module.training or torch.is_grad_enabled() or x.device.type != "cpu" or torch.compiler.is_compiling():
        return None
    return max(1, SLAB // (chns * x.shape[3] * x.shape[4]))


def by_slabs(function: Callable[..., Tensor], slices: int | None, *inputs: Tensor) -> Tensor:
    """function(*inputs), computed for so many slices of all inputs [N, C, D, H, W] at a time."""
    if slices is None or slices >= inputs[0].shape[2]:
        return function(*inputs)
    slabs = zip(*(x.split(slices, dim=2) for x in inputs), strict=True)
    first = function(*next(slabs))
    batch, chns, _, *size = first.shape
    shape = (batch, chns, inputs[0].shape[2], *size)
    whole = torch.empty(shape, dtype=first.dtype, memory_format=torch.channels_last_3d)
    places = iter(whole.split(slices, dim=2))
    next(places).copy_(first)
    for place, slab in zip(places, slabs, strict=True):
        place.copy_(function(*slab))
    return whole
