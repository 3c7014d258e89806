from __future__ import annotations

import itertools
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from pymic_vf.networks.swin3d import (
    MASKED,
    SwinBlock,
    WindowAttention,
    relative_position_index,
    window_layout,
    window_partition,
    window_reverse,
)

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
from plain_pct_net import plain_window_attention  # the oracle is kept beside the benchmarks

CPU = torch.device("cpu")
SIZES = [(4, 4, 4), (6, 4, 8), (5, 7, 4), (3, 2, 9), (1, 1, 1)]


def all_groups(layout, tokens):
    """For each window its [T, T] mask, zero where it has none."""
    return [
        torch.zeros(tokens, tokens) if mask is None else mask for count, mask in layout.groups for _ in range(count)
    ]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("window", "shift"), [(2, 0), (2, 1), (3, 1), (4, 2)])
def test_the_layout_is_the_definition_voxel_by_voxel(size, window, shift):
    """Pad, roll by -shift, cut into windows, number the regions: by loops over the places, for a batch of two."""
    layout = window_layout(2, size, window, shift, CPU)
    padded = [-(-side // window) * window for side in size]
    expected = {}  # window as the set of its places -> (voxels, mask)
    for sample in range(2):
        for first in itertools.product(*(range(0, side, window) for side in padded)):
            voxels, regions = [], []
            for inside in itertools.product(range(window), repeat=3):
                rolled = [a + b for a, b in zip(first, inside, strict=True)]
                regions.append(tuple((r >= p - window) + (r >= p - shift) for r, p in zip(rolled, padded, strict=True)))
                z, y, x = ((r + shift) % p for r, p in zip(rolled, padded, strict=True))
                real = z < size[0] and y < size[1] and x < size[2]
                voxels.append(((sample * size[0] + z) * size[1] + y) * size[2] + x if real else -1)
            mask = [[MASKED if shift and a != b else 0.0 for b in regions] for a in regions]
            expected[tuple(voxels)] = [*expected.get(tuple(voxels), []), torch.tensor(mask)]
    voxel_count = 2 * size[0] * size[1] * size[2]
    windows = torch.full((layout.tokens,), -1)
    windows[layout.token_of_voxel] = torch.arange(voxel_count)
    windows = windows.view(-1, window**3)
    assert sum(map(len, expected.values())) == len(windows) == sum(count for count, _ in layout.groups)
    for voxels, mask in zip(windows.tolist(), all_groups(layout, window**3), strict=True):
        assert any(torch.equal(mask, wanted) for wanted in expected[tuple(voxels)])
    assert (windows >= 0).sum() == voxel_count


def test_few_masks_are_kept_and_layouts_are_made_once():
    layout = window_layout(1, (12, 12, 12), 3, 1, CPU)
    assert len(layout.groups) == 8
    assert [count for count, mask in layout.groups if mask is None] == [27]
    assert window_layout(1, (12, 12, 12), 3, 1, CPU) is layout


def test_windows_are_undone_exactly_and_padding_is_zero():
    layout = window_layout(2, (3, 2, 4), 2, 1, CPU)
    voxels = torch.randn(48, 2, dtype=torch.float64, requires_grad=True)
    tokens = window_partition(voxels, layout)
    assert torch.equal(window_reverse(tokens, layout), voxels)
    assert tokens.shape == (64, 2) and (tokens == 0).all(1).sum() == 64 - 48
    assert torch.autograd.gradcheck(lambda v: window_partition(v, layout) ** 2, (voxels,))
    assert torch.autograd.gradcheck(lambda t: window_reverse(t, layout) ** 2, (tokens.detach().requires_grad_(),))


@pytest.mark.parametrize("window", [1, 2, 3])
def test_every_offset_has_its_own_row_of_the_table(window):
    index = relative_position_index(window)
    places = list(itertools.product(range(window), repeat=3))
    rows = {}
    for i, query in enumerate(places):
        for j, key in enumerate(places):
            offset = tuple(a - b for a, b in zip(query, key, strict=True))
            assert rows.setdefault(offset, int(index[i, j])) == index[i, j]
    assert sorted(rows.values()) == list(range((2 * window - 1) ** 3))
    # Swin's order: the offset in z counts most, and the smallest comes first.
    assert rows[(1 - window,) * 3] == 0
    assert int(index[0, 0]) == ((2 * window - 1) ** 3 - 1) // 2


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("window", "shift"), [(2, 0), (3, 1), (4, 2)])
def test_attention_equals_the_plain_form_in_float64(size, window, shift):
    torch.manual_seed(0)
    attn = WindowAttention(8, 2, window, 0.0).double()
    nn.init.normal_(attn.relative_position_bias_table)
    x = torch.randn(2, *size, 8, dtype=torch.float64, requires_grad=True)
    out = attn(x.reshape(2, -1, 8), window_layout(2, size, window, shift, CPU)).view(x.shape)
    weights = torch.randn_like(out)
    names, parameters = zip(*attn.named_parameters(), strict=True)
    grads = torch.autograd.grad((out * weights).sum(), (x, *parameters))
    expected = plain_window_attention(attn, x, window, shift)
    torch.testing.assert_close(out, expected, rtol=1e-10, atol=1e-12)
    wanted = torch.autograd.grad((expected * weights).sum(), (x, *parameters))
    for name, grad, want in zip(("x", *names), grads, wanted, strict=True):
        torch.testing.assert_close(grad, want, rtol=1e-9, atol=1e-10, msg=name)


def test_dropout_on_the_attention_weights_has_its_rate():
    """With values of 1 the output is the sum of kept weights over 1 - p: its mean is 1 with and without dropout."""
    attn = WindowAttention(4, 1, 3, 0.5)
    nn.init.zeros_(attn.qkv.weight)
    with torch.no_grad():
        attn.qkv.bias.copy_(torch.cat([torch.zeros(8), torch.ones(4)]))
        attn.proj.weight.copy_(torch.eye(4))
        attn.proj.bias.zero_()
    attn.proj_drop.p = 0.0
    torch.manual_seed(0)
    out = attn(torch.zeros(1, 27 * 64, 4), window_layout(1, (12, 12, 12), 3, 0, CPU))
    # 1728 rows of 27 weights of about 1/27, each kept with p = 1/2: standard error of the mean 1 / sqrt(1728 * 27).
    assert abs(out.mean().item() - 1) < 5 / (1728 * 27) ** 0.5
    assert out[..., 0].std().item() > 0.1
    attn.eval()
    out = attn(torch.zeros(1, 27 * 64, 4), window_layout(1, (12, 12, 12), 3, 0, CPU))
    torch.testing.assert_close(out, torch.ones_like(out))


def test_drop_path_drops_whole_samples():
    torch.manual_seed(0)
    block = SwinBlock(4, 1, 2, 0.0).train()
    layout = window_layout(64, (2, 2, 2), 2, 0, CPU)
    x = torch.randn(64, 8, 4)
    changed = (block(x, layout) != x).view(64, -1)
    # A sample is untouched where both branches were dropped: 0.2^2 of 64 samples, 2.56 on average.
    untouched = int((~changed.any(1)).sum())
    assert 0 < untouched < 12
