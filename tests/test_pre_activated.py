from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from pymic_vf.networks import scratch
from pymic_vf.networks.dropout import keep_mask
from pymic_vf.networks.pre_activated import may_fuse, pre_activated_convolution
from pymic_vf.networks.scratch import scratch_memory

LAYERS = {
    "3D": nn.Conv3d(5, 4, 3, padding=1),
    "2D": nn.Conv3d(5, 4, (1, 3, 3), padding=(0, 1, 1)),
    "point-wise": nn.Conv3d(5, 4, 1),
    "transposed": nn.ConvTranspose3d(5, 4, (1, 2, 2), stride=(1, 2, 2)),
}


def units(layer: nn.Module, slope: float = -0.3) -> tuple[nn.Sequential, nn.Sequential]:
    """Norm, activation and convolution in float64, twice the same."""
    torch.manual_seed(0)
    norm, act = nn.BatchNorm3d(5), nn.PReLU(init=slope)
    for tensor in (norm.weight, norm.bias, norm.running_mean):
        nn.init.normal_(tensor)
    nn.init.uniform_(norm.running_var, 0.5, 2)
    unit = nn.Sequential(norm, act, copy.deepcopy(layer)).double()
    return unit, copy.deepcopy(unit)


@pytest.mark.parametrize("small_pieces", [False, True])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("widths", [(5,), (2, 3)], ids=["whole", "two parts"])
@pytest.mark.parametrize("kind", LAYERS)
def test_results_gradients_and_statistics_are_those_of_the_modules(kind, widths, training, small_pieces, monkeypatch):
    monkeypatch.setattr(scratch, "PIECE", 70 if small_pieces else 2**20)
    unit, plain = units(LAYERS[kind])
    parts = [torch.randn(2, width, 3, 4, 6, dtype=torch.float64, requires_grad=True) for width in widths]
    unit.train(training)
    plain.train(training)
    with scratch_memory():
        out = pre_activated_convolution(*unit, *parts)
        pre_activated_convolution(*copy.deepcopy(unit), *(torch.randn_like(part) for part in parts))  # reuses memory
    expected = plain(torch.cat(parts, dim=1))
    torch.testing.assert_close(out, expected)
    weights = torch.randn_like(out)
    grads = torch.autograd.grad((out * weights).sum(), [*parts, *unit.parameters()])
    wanted = torch.autograd.grad((expected * weights).sum(), [*parts, *plain.parameters()])
    for grad, want in zip(grads, wanted, strict=True):
        torch.testing.assert_close(grad, want)
    for buffer, want in zip(unit.buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(buffer, want)


def test_dropout_comes_after_the_activation_and_repeats_its_draws_backward():
    unit, plain = units(LAYERS["3D"])
    x = torch.randn(1, 5, 3, 4, 6, dtype=torch.float64, requires_grad=True)
    torch.manual_seed(3)
    out = pre_activated_convolution(*unit, x, dropout=0.4)
    torch.manual_seed(3)
    like = x.detach().contiguous(memory_format=torch.channels_last_3d)
    mask = keep_mask(like, 0.4, int(torch.empty((), dtype=torch.int64).random_()))
    expected = plain[2](plain[1](plain[0](x)) * mask)
    torch.testing.assert_close(out, expected)
    grads = [torch.autograd.grad(result.pow(2).sum(), x)[0] for result in (out, expected)]
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize("frozen", [(0, 1), (2,), (0, 1, 2)], ids=["norm and act", "convolution", "all"])
def test_parts_may_be_frozen(frozen):
    unit, plain = units(LAYERS["3D"])
    x = torch.randn(1, 5, 3, 4, 6, dtype=torch.float64, requires_grad=len(frozen) == 3)
    for i in frozen:
        unit[i].requires_grad_(False)
        plain[i].requires_grad_(False)
    pre_activated_convolution(*unit, x).pow(2).sum().backward()
    grad, x.grad = x.grad, None
    plain(x).pow(2).sum().backward()
    assert grad is x.grad is None or torch.allclose(grad, x.grad)
    for p, want in zip(unit.parameters(), plain.parameters(), strict=True):
        assert p.grad is want.grad is None or torch.allclose(p.grad, want.grad)


def test_only_what_comes_in_is_kept():
    unit, _ = units(LAYERS["3D"])
    x, kept = torch.randn(1, 5, 3, 4, 6, dtype=torch.float64), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        pre_activated_convolution(*unit, x)
    assert sum(tensor.numel() >= x.numel() for tensor in kept if tensor.dim() == 5 and len(tensor) == 1) == 1


def test_other_normalisations_and_autocast_are_left_to_torch():
    x = torch.zeros(1, 5, 2, 2, 2)
    assert may_fuse(nn.BatchNorm3d(5), x)
    assert not may_fuse(nn.SyncBatchNorm(5), x)
    assert not may_fuse(nn.BatchNorm3d(5), x.to("meta"))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not may_fuse(nn.BatchNorm3d(5), x)
