from __future__ import annotations

import pytest
import torch
from test_pct_net import SMALL, relative_error
from torch import nn

from pymic_vf.networks import slabs
from pymic_vf.networks.pct_net import PCTNet
from pymic_vf.networks.slabs import by_slabs, slices_in_cache


@pytest.mark.parametrize("slices", [None, 1, 2, 5, 7, 9])
def test_a_volume_is_put_together_in_its_order(slices):
    x, y, seen = torch.randn(2, 3, 7, 4, 5), torch.randn(2, 1, 7, 4, 5), []

    def function(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        seen.append(a.shape[2])
        return (a * b)[:, :2, :, ::2]

    assert torch.equal(by_slabs(function, slices, x, y), function(x, y))
    assert sum(seen[:-1]) == 7
    assert max(seen[:-1]) == min(slices or 7, 7)


def test_only_inference_is_in_slabs():
    x, module = torch.zeros(1, 1, 8, 16, 16), nn.Identity()
    assert slices_in_cache(module.eval(), x, 1) is None
    with torch.no_grad():
        assert slices_in_cache(module, x, 4) == slabs.SLAB // (4 * 16 * 16)
        assert slices_in_cache(module, x, 10**9) == 1
        assert slices_in_cache(module.train(), x, 1) is None


@pytest.mark.parametrize("stage", ["train", "test"])
@pytest.mark.parametrize("mode", [0, 1, 2])
def test_inference_in_slabs_gives_what_the_whole_gives(mode, stage, monkeypatch):
    monkeypatch.setattr(slabs, "SLAB", 48 * 48 * 4 * 3)  # three slices of the head's four channels
    torch.manual_seed(0)
    net = PCTNet(SMALL | {"resolution_mode": mode}).double().eval()
    net.set_stage(stage)
    x = torch.randn(2, 1, 16, 48, 48, dtype=torch.float64)
    expected = net(x)
    with torch.no_grad():
        outputs = net(x)
    for out, wanted in zip(outputs, expected, strict=True):
        assert relative_error(out, wanted) < 1e-12
