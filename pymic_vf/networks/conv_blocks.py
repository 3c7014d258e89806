"""The convolutional units of PCT-Net (MIS-FM, section 3.1.4): pre-activated, 2D or 3D.

Every convolution has a bias and is pre-activated: BatchNorm3d, PReLU with one parameter, convolution. "2D" is a 3D
convolution, pooling or upsampling that leaves the depth axis alone. Tensors are [N, C, D, H, W].
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pymic_vf.sizes import Size


def scale_factor(dim: int) -> Size:
    """Factor per axis (D, H, W) of pooling and upsampling in 2 or 3 dimensions."""
    return (1, 2, 2) if dim == 2 else (2, 2, 2)


def conv(in_chns: int, out_chns: int, dim: int) -> nn.Conv3d:
    """A convolution that keeps the size: kernel (1, 3, 3) for `dim` 2, (3, 3, 3) for 3."""
    kernel, padding = ((1, 3, 3), (0, 1, 1)) if dim == 2 else ((3, 3, 3), (1, 1, 1))
    return nn.Conv3d(in_chns, out_chns, kernel, padding=padding)


def pre_activated(chns: int, *layers: nn.Module) -> nn.Sequential:
    """`layers` on `chns` channels, with what precedes every convolution but the first of the network."""
    return nn.Sequential(nn.BatchNorm3d(chns), nn.PReLU(), *layers)


class ConvBlock(nn.Module):
    """Two pre-activated convolutions with dropout before the second; channels and size stay."""

    def __init__(self, chns: int, dim: int, dropout: float) -> None:
        super().__init__()
        self.conv_conv = nn.Sequential(
            *pre_activated(chns, conv(chns, chns, dim)),
            *pre_activated(chns, nn.Dropout(dropout), conv(chns, chns, dim)),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.conv_conv(x)


class DownBlock(nn.Module):
    """Max pooling in the dimensions of the level it leaves, then a convolution in those of the level it reaches."""

    def __init__(self, in_chns: int, out_chns: int, pool_dim: int, conv_dim: int) -> None:
        super().__init__()
        self.pool = nn.MaxPool3d(scale_factor(pool_dim))
        self.conv = pre_activated(in_chns, conv(in_chns, out_chns, conv_dim))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.pool(x))


class UpBlock(nn.Module):
    """Transposed convolution, concatenation behind the skip connection, convolution: all in `dim` dimensions."""

    def __init__(self, low_chns: int, high_chns: int, dim: int) -> None:
        super().__init__()
        factor = scale_factor(dim)
        self.up = pre_activated(high_chns, nn.ConvTranspose3d(high_chns, low_chns, factor, stride=factor))
        self.conv = pre_activated(2 * low_chns, conv(2 * low_chns, low_chns, dim))

    def forward(self, skip: Tensor, high: Tensor) -> Tensor:
        return self.conv(torch.cat([skip, self.up(high)], dim=1))


class OutConv(nn.Module):
    """The pre-activated point-wise convolution that predicts the classes."""

    def __init__(self, chns: int, class_num: int) -> None:
        super().__init__()
        self.conv = pre_activated(chns, nn.Conv3d(chns, class_num, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)
