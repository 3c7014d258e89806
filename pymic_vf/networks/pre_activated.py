"""BatchNorm3d, PReLU, dropout and convolution as one operation on a CPU.

torch keeps the results of all four for the backward pass; here only what comes in is kept, and what the convolution
reads is made again from it. Normalisation and activation run slab by slab, in the cache, into memory in use already,
forward and backward, where one after the other they would each read and write a volume of their own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable

from pymic_vf.networks.convolution import Convolution, Layer, best_on_cpu
from pymic_vf.networks.dropout import draw_seed, keep_mask
from pymic_vf.networks.scratch import Scratch, pieces, shared_scratch

CHANNELS_LAST = torch.channels_last_3d


def may_fuse(norm: nn.Module, x: Tensor) -> bool:
    """Whether :func:`pre_activated_convolution` takes `x`; SyncBatchNorm, for one, has other statistics."""
    return best_on_cpu(x) and type(norm) is nn.BatchNorm3d


def pre_activated_convolution(
    norm: nn.BatchNorm3d, act: nn.PReLU, layer: Layer, *parts: Tensor, dropout: float = 0.0
) -> Tensor:
    """layer(dropout(act(norm(parts side by side along the channels)))), with the rate of dropout as it is to be now."""
    parts = tuple(part.contiguous(memory_format=CHANNELS_LAST) for part in parts)
    with torch.no_grad():
        affine = _affine_parts(norm, parts)
    unit = _Unit(affine, norm.training, Convolution.of(layer), dropout, draw_seed() if dropout else 0, shared_scratch())
    return _PreActivated.apply(unit, norm.weight, norm.bias, act.weight, layer.weight, layer.bias, *parts)


class _Affine(NamedTuple):
    """The statistics that a part is normalised by, and its channels in the concatenation."""

    channels: slice
    mean: Tensor
    var: Tensor
    eps: float


def _affine_parts(norm: nn.BatchNorm3d, parts: tuple[Tensor, ...]) -> list[_Affine]:
    if norm.training:
        norm.num_batches_tracked.add_(1)
    affine, start = [], 0
    for part in parts:
        channels = slice(start, start + part.shape[1])
        mean, var = norm.running_mean[channels], norm.running_var[channels]
        if norm.training:
            mean, var = torch.batch_norm_update_stats(part, mean, var, norm.momentum)
        affine.append(_Affine(channels, mean, var, norm.eps))
        start = channels.stop
    return affine


@dataclass(frozen=True)
class _Unit:
    """What one operation needs beside tensors that have gradients."""

    parts: list[_Affine]
    batch_statistics: bool
    conv: Convolution
    dropout: float
    seed: int
    scratch: Scratch | None

    def input_of_convolution(self, weight: Tensor, bias: Tensor, slope: float, parts: tuple[Tensor, ...]) -> Tensor:
        """Made in the scratch."""
        out = (self.scratch or Scratch()).take(parts[0], len(weight))
        for affine, part in zip(self.parts, parts, strict=True):
            of = affine.channels
            for piece, place in zip(pieces(part), pieces(out[:, of]), strict=True):
                normed = place if len(parts) == 1 else torch.empty_like(piece)
                _normalise(piece, affine, weight[of], bias[of], normed)
                torch.ops.aten.leaky_relu.out(normed, slope, out=place)  # PReLU with one parameter
        return out.mul_(keep_mask(out, self.dropout, self.seed)) if self.dropout else out


def _normalise(x: Tensor, affine: _Affine, weight: Tensor | None, bias: Tensor | None, out: Tensor) -> Tensor:
    unused = x.new_empty(0), x.new_empty(0)
    torch.ops.aten.native_batch_norm.out(
        x, weight, bias, affine.mean, affine.var, False, 0.0, affine.eps,
        out=out, save_mean=unused[0], save_invstd=unused[1],
    )  # fmt: skip
    return out


class _PreActivated(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx,
        unit: _Unit,
        weight: Tensor,
        bias: Tensor,
        slope: Tensor,
        conv_weight: Tensor,
        conv_bias: Tensor,
        *parts: Tensor,
    ) -> Tensor:
        ctx.unit = unit
        ctx.save_for_backward(weight, bias, slope, conv_weight, *parts)
        x = unit.input_of_convolution(weight, bias, slope.item(), parts)
        return unit.conv.forward(x, conv_weight, conv_bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        unit: _Unit = ctx.unit
        weight, bias, slope, conv_weight, *parts = ctx.saved_tensors
        of_norm, of_conv, of_parts = any(ctx.needs_input_grad[1:4]), ctx.needs_input_grad[4:6], ctx.needs_input_grad[6:]
        x = unit.input_of_convolution(weight, bias, slope.item(), tuple(parts))
        grad = grad.contiguous(memory_format=CHANNELS_LAST)
        before = of_norm or any(of_parts)
        grad_x, *grads_conv = unit.conv.backward(grad, x, conv_weight, [before, *of_conv])
        if not before:
            return None, None, None, None, *grads_conv, *(None for _ in parts)
        grad_x = grad_x.contiguous(memory_format=CHANNELS_LAST)  # the layout of the mask
        if unit.dropout:
            grad_x.mul_(keep_mask(grad_x, unit.dropout, unit.seed))
        grads = [
            _backward_of_part(grad_x[:, affine.channels], part, affine, weight, bias, slope.item(), unit)
            for affine, part in zip(unit.parts, parts, strict=True)
        ]
        slopes, weights, biases, inputs = zip(*grads, strict=True)
        return None, torch.cat(weights), torch.cat(biases), sum(slopes).view_as(slope), *grads_conv, *inputs


def _backward_of_part(
    grad: Tensor, x: Tensor, affine: _Affine, weight: Tensor, bias: Tensor, slope: float, unit: _Unit
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of slope, weight, bias and `x`, the latter in the memory of `grad` where that is dense."""
    weight, bias = weight[affine.channels], bias[affine.channels]
    grad = grad.contiguous(memory_format=CHANNELS_LAST)
    grad_slope, grad_weight, grad_bias = x.new_zeros(()), torch.zeros_like(weight), torch.zeros_like(weight)
    for piece, out in zip(pieces(x), pieces(grad), strict=True):
        normed = _normalise(piece, affine, None, None, torch.empty_like(piece))
        before = _normalise(piece, affine, weight, bias, torch.empty_like(piece))  # to the sign that forward had
        grad_slope += torch.dot(_flat(out), _flat(before.clamp(max=0)))
        torch.ops.aten.leaky_relu_backward.grad_input(out, before, slope, False, grad_input=out)
        grad_bias += _sums(out)
        grad_weight += _sums(torch.mul(out, normed, out=before))
    scale = (affine.var + affine.eps).rsqrt()
    factor = weight * scale
    if not unit.batch_statistics:
        return grad_slope, grad_weight, grad_bias, grad.mul_(_by_channel(factor))
    count = x.numel() // x.shape[1]
    of_x = -factor * scale * grad_weight / count
    constant = -factor * grad_bias / count - of_x * affine.mean
    for piece, out in zip(pieces(x), pieces(grad), strict=True):
        out.mul_(_by_channel(factor)).addcmul_(piece, _by_channel(of_x)).add_(_by_channel(constant))
    return grad_slope, grad_weight, grad_bias, grad


def _by_channel(values: Tensor) -> Tensor:
    return values.view(1, -1, 1, 1, 1)


def _flat(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 4, 1).reshape(-1)


def _sums(x: Tensor) -> Tensor:
    return x.sum((0, 2, 3, 4))
