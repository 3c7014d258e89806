"""BatchNorm3d and PReLU in front of a convolution, and on a CPU without new memory for their results.

What they return lives until the convolution behind them has read it. Fresh memory costs a CPU several times what the
arithmetic does (the system hands it out page by page, zeroed), so in inference they all write into one scratch buffer.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

PIECE = 2**20  # elements worked on at a time

_scratch = threading.local()  # replicas and other networks run in threads of their own


@contextmanager
def scratch_memory() -> Iterator[None]:
    """Within it, in this thread, :func:`norm_act` may return memory that its next call overwrites."""
    _scratch.buffer = torch.empty(0, dtype=torch.uint8)
    try:
        yield
    finally:
        _scratch.buffer = None


def norm_act(norm: nn.BatchNorm3d, act: nn.PReLU, *parts: Tensor) -> Tensor:
    """act(norm(parts concatenated along the channels)), to be read before the next call."""
    if not torch.compiler.is_compiling() and _may_use_scratch(norm, parts[0]):
        return _into_scratch(norm, act, parts)
    return act(norm(torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]))


def _may_use_scratch(norm: nn.BatchNorm3d, x: Tensor) -> bool:
    in_use = getattr(_scratch, "buffer", None) is not None
    return in_use and not norm.training and not torch.is_grad_enabled() and x.device.type == "cpu"


def _into_scratch(norm: nn.BatchNorm3d, act: nn.PReLU, parts: tuple[Tensor, ...]) -> Tensor:
    out, slope, start = _take(parts), act.weight.item(), 0
    for part in parts:
        end = start + part.shape[1]
        mean, var, weight, bias = (t[start:end] for t in (norm.running_mean, norm.running_var, norm.weight, norm.bias))
        for piece, place in zip(_pieces(part), _pieces(out[:, start:end]), strict=True):
            normed = F.batch_norm(piece, mean, var, weight, bias, eps=norm.eps)
            place.copy_(F.leaky_relu_(normed, slope))  # PReLU with one parameter
        start = end
    return out


def _pieces(x: Tensor) -> list[Tensor]:
    """[1, C, d, H, W] slabs that fit the cache, and memory that the process already has."""
    depth = max(1, PIECE // x[0, :, 0].numel())
    return [slab for sample in x.split(1) for slab in sample.split(depth, dim=2)]


def _take(parts: tuple[Tensor, ...]) -> Tensor:
    """[N, C, D, H, W] scratch for the parts side by side, channels-last."""
    batch, _, *size = parts[0].shape
    chns = sum(part.shape[1] for part in parts)
    numel = parts[0].numel() // parts[0].shape[1] * chns
    needed = numel * parts[0].element_size()
    if _scratch.buffer.numel() < needed:
        _scratch.buffer = torch.empty(needed, dtype=torch.uint8)
    flat = _scratch.buffer[:needed].view(parts[0].dtype)
    return flat.view(batch, *size, chns).permute(0, 4, 1, 2, 3)
