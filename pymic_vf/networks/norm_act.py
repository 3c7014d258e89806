"""BatchNorm3d and PReLU in front of a convolution, and in inference on a CPU without new memory for their results."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pymic_vf.networks.scratch import pieces, shared_scratch


def norm_act(norm: nn.BatchNorm3d, act: nn.PReLU, *parts: Tensor) -> Tensor:
    """act(norm(parts concatenated along the channels)), to be read before the next call."""
    if not torch.compiler.is_compiling() and _may_use_scratch(norm, parts[0]):
        return _into_scratch(norm, act, parts)
    return act(norm(torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]))


def _may_use_scratch(norm: nn.BatchNorm3d, x: Tensor) -> bool:
    in_use = shared_scratch() is not None
    return in_use and not norm.training and not torch.is_grad_enabled() and x.device.type == "cpu"


def _into_scratch(norm: nn.BatchNorm3d, act: nn.PReLU, parts: tuple[Tensor, ...]) -> Tensor:
    out = shared_scratch().take(parts[0], sum(part.shape[1] for part in parts))
    slope, start = act.weight.item(), 0
    for part in parts:
        end = start + part.shape[1]
        mean, var, weight, bias = (t[start:end] for t in (norm.running_mean, norm.running_var, norm.weight, norm.bias))
        for piece, place in zip(pieces(part), pieces(out[:, start:end]), strict=True):
            normed = F.batch_norm(piece, mean, var, weight, bias, eps=norm.eps)
            torch.ops.aten.leaky_relu.out(normed, slope, out=place)  # PReLU with one parameter
        start = end
    return out
