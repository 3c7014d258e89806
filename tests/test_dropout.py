from __future__ import annotations

import pytest
import torch

from pymic_vf.networks.dropout import Dropout, draw_seed, keep_mask


@pytest.mark.parametrize("p", [0.1, 0.2, 0.5])
def test_the_rate_is_kept_and_the_mean_too(p):
    torch.manual_seed(0)
    mask = keep_mask(torch.empty(1000, 1000), p, draw_seed())
    kept = mask != 0
    # Standard error of the share of 10^6 draws: below 5e-4.
    assert abs(kept.float().mean().item() - (1 - p)) < 2.5e-3
    assert mask[kept].unique().numel() == 1
    torch.testing.assert_close(mask.max().item(), 1 / (1 - p), rtol=1e-4, atol=0)


def test_draws_are_independent_of_their_neighbours():
    """Four elements share a random number of 64 bits."""
    torch.manual_seed(0)
    kept = (keep_mask(torch.empty(250_000, 4), 0.5, draw_seed()) != 0).double()
    correlation = torch.corrcoef(kept.T) - torch.eye(4)
    assert correlation.abs().max() < 5 / 250_000**0.5


def test_the_same_seed_gives_the_same_in_any_layout():
    flat = keep_mask(torch.empty(2, 5, 3, 4, 7), 0.3, seed=5)
    assert torch.equal(flat, keep_mask(torch.empty(2, 5, 3, 4, 7), 0.3, seed=5))
    assert not torch.equal(flat, keep_mask(torch.empty(2, 5, 3, 4, 7), 0.3, seed=6))
    like = torch.empty(2, 5, 3, 4, 7).contiguous(memory_format=torch.channels_last_3d)
    last = keep_mask(like, 0.3, seed=5)
    assert last.stride() == like.stride()
    assert torch.equal(last.permute(0, 2, 3, 4, 1).flatten(), flat.flatten())


def test_only_training_drops_and_the_gradient_is_the_mask():
    drop, x = Dropout(0.4), torch.rand(100, 10).add_(1).requires_grad_()
    torch.manual_seed(0)
    out = drop(x)
    out.sum().backward()
    assert torch.equal(out == 0, x.grad == 0)
    torch.testing.assert_close(out, x * x.grad)
    assert 0 < (x.grad == 0).float().mean() < 1
    torch.manual_seed(0)
    assert torch.equal(drop(x), out)
    assert not torch.equal(drop(x), out)
    assert drop.eval()(x) is x or torch.equal(drop(x), x)
    assert torch.equal(Dropout(0.0)(x), x)
