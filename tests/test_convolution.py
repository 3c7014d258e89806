from __future__ import annotations

import pytest
import torch
from torch import nn

from pymic_vf.networks.convolution import Convolution, best_on_cpu, convolved

LAYERS = {
    "3D": nn.Conv3d(3, 4, 3, padding=1),
    "2D": nn.Conv3d(3, 4, (1, 3, 3), padding=(0, 1, 1)),
    "point-wise": nn.Conv3d(3, 4, 1),
    "transposed 2D": nn.ConvTranspose3d(3, 4, (1, 2, 2), stride=(1, 2, 2)),
    "transposed 3D": nn.ConvTranspose3d(3, 4, 2, stride=2),
}


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("kind", LAYERS)
def test_results_and_gradients_are_those_of_the_layer(kind, batch, channels_last):
    torch.manual_seed(0)
    layer = LAYERS[kind].double()
    x = torch.randn(batch, 3, 4, 6, 5, dtype=torch.float64)
    x = x.contiguous(memory_format=torch.channels_last_3d) if channels_last else x
    x.requires_grad_()
    expected = layer(x)
    torch.testing.assert_close(convolved(layer, x), expected)
    grad = torch.randn_like(expected)
    wanted = torch.autograd.grad(expected, (x, layer.weight, layer.bias), grad)
    with torch.no_grad():
        grads = Convolution.of(layer).backward(grad, x, layer.weight, [True, True, True])
        none = Convolution.of(layer).backward(grad, x, layer.weight, [False, False, False])
    for got, want in zip(grads, wanted, strict=True):
        torch.testing.assert_close(got, want)
    assert all(value is None for value in none)


def test_autocast_and_other_devices_are_left_to_torch():
    x = torch.zeros(1, 3, 2, 2, 2)
    assert best_on_cpu(x)
    assert not best_on_cpu(x.to("meta"))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not best_on_cpu(x)
        assert convolved(nn.Conv3d(3, 4, 1), x).dtype == torch.bfloat16
