from __future__ import annotations

import pytest
import torch
from torch import nn

from pymic_vf.networks.conv_blocks import ConvBlock, DownBlock, OutConv, UpBlock, conv


@pytest.mark.parametrize(("dim", "reach"), [(2, [1, 3, 3]), (3, [3, 3, 3])])
def test_a_convolution_sees_its_neighbours_and_keeps_the_size(dim, reach):
    layer = conv(1, 1, dim)
    nn.init.ones_(layer.weight)
    nn.init.zeros_(layer.bias)
    x = torch.zeros(1, 1, 5, 5, 5)
    x[0, 0, 2, 2, 2] = 1
    out = layer(x)[0, 0]
    assert out.shape == (5, 5, 5)
    seen = torch.nonzero(out)
    assert (seen.max(0).values - seen.min(0).values + 1).tolist() == reach
    assert layer.bias is not None


def test_a_block_is_pre_activated_with_dropout_before_its_second_convolution():
    kinds = [type(module) for module in ConvBlock(4, 3, 0.5).conv_conv]
    one = [nn.BatchNorm3d, nn.PReLU]
    assert kinds == [*one, nn.Conv3d, *one, nn.Dropout, nn.Conv3d]
    assert ConvBlock(4, 3, 0.5).conv_conv[1].weight.numel() == 1


@pytest.mark.parametrize(("pool_dim", "size"), [(2, (4, 4, 4)), (3, (2, 4, 4))])
def test_down_pools_in_the_dimensions_of_the_level_it_leaves(pool_dim, size):
    assert DownBlock(2, 3, pool_dim, conv_dim=3)(torch.randn(2, 2, 4, 8, 8)).shape == (2, 3, *size)


@pytest.mark.parametrize(("dim", "size"), [(2, (2, 8, 8)), (3, (4, 8, 8))])
def test_up_puts_the_skip_connection_first(dim, size):
    block = UpBlock(3, 5, dim).eval()
    skip, high = torch.randn(1, 3, *size), torch.randn(1, 5, 2, 4, 4)
    expected = block.conv(torch.cat([skip, block.up(high)], dim=1))
    assert expected.shape == (1, 3, *size)
    torch.testing.assert_close(block(skip, high), expected)


def test_the_output_layer_is_point_wise():
    layer = OutConv(4, 7).eval()
    x = torch.randn(1, 4, 2, 3, 5)
    assert layer(x).shape == (1, 7, 2, 3, 5)
    torch.testing.assert_close(layer(x)[..., :1, :1, :1], layer(x[..., :1, :1, :1]))
