"""The convolutional units of PCT-Net (MIS-FM, section 3.1.4): pre-activated, 2D or 3D.

Every convolution has a bias and is pre-activated: BatchNorm3d, PReLU with one parameter, convolution. "2D" is a 3D
convolution, pooling or upsampling that leaves the depth axis alone. Tensors are [N, C, D, H, W].
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pymic_vf.networks.dropout import Dropout
from pymic_vf.networks.norm_act import norm_act
from pymic_vf.networks.pre_activated import may_fuse, pre_activated_convolution


def scale_factor(dim: int) -> tuple[int, int, int]:
    """Factor per axis (D, H, W) of pooling and upsampling in 2 or 3 dimensions."""
    return (1, 2, 2) if dim == 2 else (2, 2, 2)


class Conv3d(nn.Conv3d):
    """nn.Conv3d without a fault of oneDNN (seen in torch 2.15), which computes it on a CPU.

    For a volume of two slices, the bfloat16 gradient of a 3 x 3 x 3 weight reads memory that nobody has written. Such
    a volume is small: it is convolved in float32.
    """

    def forward(self, x: Tensor) -> Tensor:
        two_slices = x.shape[2] == 2 and self.kernel_size[0] == 3
        if two_slices and x.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
            with torch.autocast("cpu", enabled=False):
                return super().forward(x.float()).to(x.dtype)
        return super().forward(x)


def conv(in_chns: int, out_chns: int, dim: int) -> Conv3d:
    """A convolution that keeps the size: kernel (1, 3, 3) for `dim` 2, (3, 3, 3) for 3."""
    kernel, padding = ((1, 3, 3), (0, 1, 1)) if dim == 2 else ((3, 3, 3), (1, 1, 1))
    return Conv3d(in_chns, out_chns, kernel, padding=padding)


def pre_activated(layer: nn.Module, chns: int) -> list[nn.Module]:
    """`layer` with what precedes every convolution but the first of the network."""
    return [nn.BatchNorm3d(chns), nn.PReLU(), layer]


def run_pre_activated(layers: nn.Sequential, *parts: Tensor) -> Tensor:
    """The result of :func:`pre_activated` layers on `parts` side by side along the channels."""
    norm, act, layer = layers
    if may_fuse(norm, parts[0]):
        return pre_activated_convolution(norm, act, layer, *parts)
    return layer(norm_act(norm, act, *parts))


class ConvBlock(nn.Module):
    """Two pre-activated convolutions with dropout before the second; channels and size stay."""

    def __init__(self, chns: int, dim: int, dropout: float) -> None:
        super().__init__()
        self.conv_conv = nn.Sequential(
            *pre_activated(conv(chns, chns, dim), chns),
            *pre_activated(Dropout(dropout), chns),
            conv(chns, chns, dim),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = run_pre_activated(self.conv_conv[:3], x)
        norm, act, drop, last = self.conv_conv[3:]
        if may_fuse(norm, x):
            return pre_activated_convolution(norm, act, last, x, dropout=drop.p if drop.training else 0.0)
        return last(drop(norm_act(norm, act, x)))


class DownBlock(nn.Module):
    """Max pooling in the dimensions of the level it leaves, then a convolution in those of the level it reaches."""

    def __init__(self, in_chns: int, out_chns: int, pool_dim: int, conv_dim: int) -> None:
        super().__init__()
        self.pool = nn.MaxPool3d(scale_factor(pool_dim))
        self.conv = nn.Sequential(*pre_activated(conv(in_chns, out_chns, conv_dim), in_chns))

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):  # a CPU's would pool in float32, to the same values
            pooled = self.pool(x)
        return run_pre_activated(self.conv, pooled)


class UpBlock(nn.Module):
    """Transposed convolution, concatenation behind the skip connection, convolution: all in `dim` dimensions."""

    def __init__(self, low_chns: int, high_chns: int, dim: int) -> None:
        super().__init__()
        factor = scale_factor(dim)
        self.up = nn.Sequential(
            *pre_activated(nn.ConvTranspose3d(high_chns, low_chns, factor, stride=factor), high_chns)
        )
        self.conv = nn.Sequential(*pre_activated(conv(2 * low_chns, low_chns, dim), 2 * low_chns))

    def forward(self, skip: Tensor, high: Tensor) -> Tensor:
        return run_pre_activated(self.conv, skip, run_pre_activated(self.up, high))


class OutConv(nn.Module):
    """The pre-activated point-wise convolution that predicts the classes."""

    def __init__(self, chns: int, class_num: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(*pre_activated(nn.Conv3d(chns, class_num, 1), chns))

    def forward(self, x: Tensor) -> Tensor:
        return run_pre_activated(self.conv, x)
