"""Convolutions and their gradients in the form that a CPU computes fastest.

torch leaves a small or point-wise 3D convolution of a single volume to code that is several times slower than oneDNN's.
Slices that do not touch one another are convolved as a batch of images, and a point-wise convolution is a matrix
product: neither needs a copy where the volume is channels-last.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Layer = nn.Conv3d | nn.ConvTranspose3d
Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]


@dataclass(frozen=True)
class Convolution:
    """A convolution of [N, C, D, H, W] without its parameters."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    transposed: bool

    @classmethod
    def of(cls, layer: Layer) -> Convolution:
        return cls(layer.kernel_size, layer.stride, layer.padding, layer.transposed)

    @property
    def _pointwise(self) -> bool:
        return self.kernel == (1, 1, 1)

    @property
    def _flat(self) -> bool:
        return self.kernel[0] == 1

    def _geometry(self) -> tuple[Any, ...]:
        axes = slice(1, None) if self._flat else slice(None)
        ones = (1, 1, 1)[axes]
        return self.stride[axes], self.padding[axes], ones, self.transposed, (0, 0, 0)[axes], 1

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        if self._pointwise:
            return F.linear(x.permute(0, 2, 3, 4, 1), weight.flatten(1), bias).permute(0, 4, 1, 2, 3)
        if self._flat:
            images = torch.convolution(_images(x), weight.squeeze(2), bias, *self._geometry())
            return _volumes(images, len(x))
        return torch.convolution(x, weight, bias, *self._geometry())

    def backward(self, grad: Tensor, x: Tensor, weight: Tensor, wanted: list[bool]) -> Gradients:
        """Gradients of input, weight and bias, those that are wanted."""
        if self._pointwise:
            return _pointwise_backward(grad, x, weight, wanted)
        biases = [weight.shape[1 if self.transposed else 0]]
        if not self._flat:
            return torch.ops.aten.convolution_backward(grad, x, weight, biases, *self._geometry(), wanted)
        tensors = _images(grad), _images(x), weight.squeeze(2)
        of_x, of_weight, of_bias = torch.ops.aten.convolution_backward(*tensors, biases, *self._geometry(), wanted)
        of_x = _volumes(of_x, len(x)) if wanted[0] else None
        return of_x, of_weight.unsqueeze(2) if wanted[1] else None, of_bias


def best_on_cpu(x: Tensor) -> bool:
    """Whether what is made for a CPU may take `x`; autocast would have to be followed step by step."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling() and not torch.is_autocast_enabled("cpu")


def convolved(layer: Layer, x: Tensor) -> Tensor:
    """layer(x)."""
    if not best_on_cpu(x):
        return layer(x)
    return Convolution.of(layer).forward(x, layer.weight, layer.bias)


def _pointwise_backward(grad: Tensor, x: Tensor, weight: Tensor, wanted: list[bool]) -> Gradients:
    rows, matrix, voxels = grad.permute(0, 2, 3, 4, 1).flatten(0, 3), weight.flatten(1), x.permute(0, 2, 3, 4, 1)
    of_x = (rows @ matrix).view(voxels.shape).permute(0, 4, 1, 2, 3) if wanted[0] else None
    of_weight = (rows.T @ voxels.flatten(0, 3)).view(weight.shape) if wanted[1] else None
    return of_x, of_weight, rows.sum(0) if wanted[2] else None


def _images(x: Tensor) -> Tensor:
    """[N, C, D, H, W] as [N * D, C, H, W]."""
    return x.transpose(1, 2).flatten(0, 1)


def _volumes(images: Tensor, batch: int) -> Tensor:
    """[N * D, C, H, W] as [N, C, D, H, W]."""
    return images.unflatten(0, (batch, -1)).transpose(1, 2)
