from __future__ import annotations

import itertools
import logging
import re
from pathlib import Path

import pytest
import torch
from pymic.net_run.agent_seg import SegmentationAgent
from torch import nn
from torch.nn.functional import linear

import pymic_vf
from pymic_vf.errors import ConfigError, UserError
from pymic_vf.host.agents import pretraining_agent
from pymic_vf.host.execution import configure_execution
from pymic_vf.networks.nnformer import NNFormer, SkipAttention
from pymic_vf.networks.nnformer_settings import parse_nnformer_settings
from pymic_vf.networks.swin3d import WindowAttention, relative_position_index, window_layout

from conftest import NETWORK, finetuning, merged, parsed, pretraining

pymic_vf.register()

PUBLISHED = {"in_chns": 1, "class_num": 9, "input_size": [64, 128, 128], "patch_size": [2, 4, 4]}
SMALL = {"net_type": "nnFormer", "in_chns": 1, "class_num": 3, "input_size": [16, 32, 32], "patch_size": [2, 4, 4],
         "embed_dim": 8, "num_heads": [1, 2, 2, 4], "window_sizes": [4, 2, 2, 2], "multiscale_pred": True}  # fmt: skip


def small_net(**changes) -> NNFormer:
    torch.manual_seed(0)
    return NNFormer(SMALL | changes)


def total_loss(outputs: list[torch.Tensor]) -> torch.Tensor:
    return sum((output**2).mean() for output in outputs)


def test_parameters_are_nearly_as_many_as_published():
    """150.5 million for Synapse, as comparisons of networks print it; a forgotten part would be over 1 %."""
    with torch.device("meta"):
        net = NNFormer(PUBLISHED)
    assert sum(p.numel() for p in net.parameters()) == pytest.approx(150.5e6, rel=0.01)


@pytest.mark.parametrize(
    ("patch", "shapes"),
    [
        ([2, 4, 4], [(192, 32, 32, 32), (384, 16, 16, 16), (768, 8, 8, 8), (1536, 4, 4, 4)]),
        ([4, 4, 4], [(192, 16, 32, 32), (384, 8, 16, 16), (768, 4, 8, 8), (1536, 2, 4, 4)]),
    ],
)
def test_shapes_at_each_level(patch, shapes):
    with torch.device("meta"):
        net = NNFormer(PUBLISHED | {"patch_size": patch, "multiscale_pred": True})
        seen = {}
        for name in ("embedding", *(f"{part}.{i}" for part, n in (("encoder", 4), ("decoder", 3)) for i in range(n))):
            module = net.get_submodule(name)
            module.register_forward_hook(lambda _m, _i, out, name=name: seen.update({name: tuple(out.shape[1:])}))
    outputs = net(torch.zeros(1, 1, 64, 128, 128, device="meta"))
    assert seen["embedding"] == shapes[0]
    assert [seen[f"encoder.{level}"] for level in range(4)] == shapes
    assert [seen[f"decoder.{level}"] for level in range(3)] == shapes[:3]
    assert [tuple(out.shape) for out in outputs] == [(1, 9, 64 // n, 128 // n, 128 // n) for n in (1, 2, 4)]


def test_attention_at_the_bottom_is_global_and_local_above():
    settings = parse_nnformer_settings(PUBLISHED)
    assert settings.window(0) == settings.window(1) == ((4, 4, 4), (2, 2, 2))
    assert settings.window(2) == ((8, 8, 8), (0, 0, 0)) and settings.window(3) == ((4, 4, 4), (0, 0, 0))
    isotropic = parse_nnformer_settings(PUBLISHED | {"patch_size": [4, 4, 4]})
    assert isotropic.window(1) == ((4, 4, 4), (2, 2, 2))
    assert isotropic.window(2) == ((4, 8, 8), (0, 0, 0)) and isotropic.window(3) == ((2, 4, 4), (0, 0, 0))


def test_published_settings_are_the_defaults():
    settings = parse_nnformer_settings({"in_chns": 1, "class_num": 2, "input_size": [64, 128, 128]})
    assert (settings.embed_dim, settings.patch_size, settings.depths) == (192, (4, 4, 4), (2, 2, 2, 2))
    assert (settings.num_heads, settings.window_sizes) == ((6, 12, 24, 48), (4, 4, 8, 4))
    assert not settings.multiscale_pred


@pytest.mark.parametrize("window", [(1, 2, 3), (2, 3, 2)])
def test_windows_need_not_be_cubes(window):
    """Every offset has a row of its own, and attention is that of the plain form window by window."""
    index = relative_position_index(window)
    places = list(itertools.product(*map(range, window)))
    rows = {}
    for i, query in enumerate(places):
        for j, key in enumerate(places):
            offset = tuple(a - b for a, b in zip(query, key, strict=True))
            assert rows.setdefault(offset, int(index[i, j])) == index[i, j]
    spans = [2 * side - 1 for side in window]
    assert sorted(rows.values()) == list(range(spans[0] * spans[1] * spans[2]))
    torch.manual_seed(0)
    attn = WindowAttention(4, 2, window, 0.0).double()
    nn.init.normal_(attn.relative_position_bias_table)
    size = tuple(2 * side for side in window)
    x = torch.randn(2, size[0] * size[1] * size[2], 4, dtype=torch.float64)
    out = attn(x, window_layout(2, size, window, 0, torch.device("cpu"))).view(2, *size, 4)
    torch.testing.assert_close(out, plain_attention(attn, x.view(2, *size, 4), x.view(2, *size, 4), window))


def plain_attention(attn: WindowAttention, asks: torch.Tensor, answers: torch.Tensor, window) -> torch.Tensor:
    """By a loop over the windows of [N, D, H, W, C], which they fill."""
    out = torch.zeros_like(asks)
    chns = asks.shape[-1]
    corners = itertools.product(*(range(0, n, side) for n, side in zip(asks.shape[1:4], window, strict=True)))
    bias = attn.relative_position_bias()[0]
    for corner in corners:
        cut = (slice(None), *(slice(c, c + side) for c, side in zip(corner, window, strict=True)))
        weight, offset = attn.qkv.weight.split(chns), attn.qkv.bias.split(chns)
        tokens = [asks[cut].flatten(1, 3), *[answers[cut].flatten(1, 3)] * 2]
        q, k, v = (
            linear(t, w, b).unflatten(2, (attn.num_heads, -1)).transpose(1, 2)
            for t, w, b in zip(tokens, weight, offset, strict=True)
        )
        attended = torch.softmax(q @ k.transpose(2, 3) / q.shape[-1] ** 0.5 + bias, dim=-1) @ v
        out[cut] = attn.proj(attended.transpose(1, 2).flatten(2)).view(out[cut].shape)
    return out


def test_a_shift_of_one_axis_alone_masks_along_that_axis():
    layout = window_layout(1, (4, 4, 4), (4, 2, 4), (0, 1, 0), torch.device("cpu"))
    assert [count for count, _ in layout.groups] == [1, 1]
    (_, free), (_, mask) = layout.groups
    assert free is None
    row = torch.arange(32).view(4, 2, 4)  # tokens of a window, (z, y, x)
    assert (mask[row[:, 0].flatten()][:, row[:, 1].flatten()] < 0).all()
    assert (mask[row[:, 0].flatten()][:, row[:, 0].flatten()] == 0).all()


def test_in_skip_attention_the_decoder_asks_and_the_encoder_answers():
    torch.manual_seed(0)
    attn = SkipAttention(4, 2, (2, 2, 2), 0.0).double()
    nn.init.normal_(attn.relative_position_bias_table)
    x, skip = torch.randn(2, 1, 4, 4, 2, 4, dtype=torch.float64)
    layout = window_layout(1, (4, 4, 2), 2, 0, torch.device("cpu"))
    out = attn(x.view(1, 32, 4), skip.view(1, 32, 4), layout).view(x.shape)
    torch.testing.assert_close(out, plain_attention(attn, x, skip, (2, 2, 2)))
    nn.init.zeros_(attn.qkv.weight[4:8])  # keys that are all alike
    nn.init.zeros_(attn.relative_position_bias_table)
    same = attn(x.view(1, 32, 4), skip.view(1, 32, 4), layout)
    other = attn(-x.view(1, 32, 4), skip.view(1, 32, 4), layout)
    torch.testing.assert_close(same, other)  # then nothing of the decoder is left: no value is its own


@pytest.mark.parametrize("size", [(16, 32, 32), (32, 32, 64), (48, 96, 32)])
def test_multiples_of_the_strides_keep_their_size(size):
    outputs = small_net()(torch.randn(2, 1, *size))
    assert [out.shape[2:] for out in outputs] == [tuple(side // n for side in size) for n in (1, 2, 4)]
    assert all(torch.isfinite(out).all() for out in outputs)


def test_every_parameter_learns():
    # without stochastic depth; and a window of one token would have nothing to choose
    net = small_net(input_size=[32, 64, 64]).eval()
    total_loss(net(torch.randn(2, 1, 32, 64, 64))).backward()
    for name, p in net.named_parameters():
        assert p.grad is not None and torch.isfinite(p.grad).all() and p.grad.abs().sum() > 0, name


def test_a_network_of_one_output_has_one_head_and_every_parameter_learns():
    net = small_net(multiscale_pred=False).train()
    out = net(torch.randn(1, 1, 16, 32, 32))
    assert out.shape == (1, 3, 16, 32, 32) and len(net.heads) == 1
    (out**2).mean().backward()
    assert all(p.grad is not None for p in net.parameters())
    multiscale = small_net().state_dict()
    report = net.load_state_dict(multiscale, strict=False)
    assert not report.missing_keys and all(name.startswith("heads.") for name in report.unexpected_keys)


def test_stages():
    net = small_net().eval()
    x = torch.randn(1, 1, 16, 32, 32)
    three = net(x)
    net.set_stage("test")
    torch.testing.assert_close(net(x), three[0])
    with pytest.raises(UserError, match="stage must be one of train, test, got 'valid'"):
        net.set_stage("valid")


def test_wrong_inputs_are_named():
    net = small_net()
    with pytest.raises(
        UserError, match=r"multiples of 8 \* patch_size = \[16, 32, 32\], got \[16, 33, 32\]: axis H is"
    ):
        net(torch.zeros(1, 1, 16, 33, 32))
    with pytest.raises(UserError, match=r"in_chns = 1\), got \[1, 2, 16, 32, 32\]"):
        net(torch.zeros(1, 2, 16, 32, 32))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"input_size": [16, 32, 40]}, "input_size must be multiples of [16, 32, 32]: axis W is 40, no multiple of 32"),
        ({"patch_size": [3, 4, 4]}, "patch_size must be a list of 3 numbers, each 1, 2 or 4 (D, H, W), got [3, 4, 4]"),
        ({"num_heads": [3, 2, 2, 4]}, "num_heads must divide the channels: 3 heads do not divide 8 at level 0"),
        (
            {"depths": [2, 2, 2]},
            "depths must be a list of 4 whole numbers of at least 1 (levels 0 to 3), got [2, 2, 2]",
        ),
        ({"class_num": None}, "class_num is missing"),
    ],
)
def test_mistakes_are_named(changes, message):
    with pytest.raises(ConfigError) as caught:
        NNFormer(SMALL | changes)
    assert len(caught.value.mistakes) == 1 and message in caught.value.mistakes[0]


def test_keys_that_nothing_reads_are_logged(caplog):
    parse_nnformer_settings(SMALL | {"window_size": 4, "precision": "bf16"})
    assert caplog.messages == ["[network] window_size = 4 is not read by nnFormer (did you mean window_sizes?)"]


def test_activation_checkpointing_changes_nothing_and_bf16_little():
    x = torch.randn(1, 1, 16, 32, 32)
    plain = small_net().eval()
    total_loss(plain(x)).backward()
    recomputed = small_net().eval()
    configure_execution(recomputed, "fp32", compile=False, activation_checkpointing=True)
    total_loss(recomputed(x)).backward()
    for (name, p), q in zip(plain.named_parameters(), recomputed.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, msg=name)
    half = small_net().eval()
    configure_execution(half, "bf16", compile=False, activation_checkpointing=False)
    for out, wanted in zip(half(x), plain(x), strict=True):
        assert out.dtype == torch.float32
        assert float(((out - wanted).norm() / wanted.norm()).detach()) < 0.05


@pytest.mark.parametrize("method", ["VF", "MIM"])
def test_pretraining_and_fine_tuning(scans: Path, tmp_path: Path, caplog, method: str):
    caplog.set_level(logging.INFO)
    is_vf = method == "VF"
    network = {**dict.fromkeys(NETWORK), **SMALL, "class_num": 5 if is_vf else 1, "multiscale_pred": is_vf}
    changes = {
        "dataset": {"num_worker": 0, "train_transform": None, "MIM_block_size": [4, 8, 8],
                    "task_type": "seg" if is_vf else "rec"},
        "self_supervised_learning": {"method_name": method},
        "network": network,
        "training": {} if is_vf else {"loss_type": "MAELoss", "loss_weight": None, "deep_supervise": False},
    }  # fmt: skip
    pretraining_agent(parsed(tmp_path / "a.cfg", merged(pretraining(scans, tmp_path), changes))).run()
    caplog.clear()
    tuned = finetuning(scans, tmp_path, network={**network, "class_num": 2}, dataset={"num_worker": 0},
                       training={"ckpt_init_name": "../pretrain/latest", "deep_supervise": is_vf})  # fmt: skip
    (tmp_path / "finetune").mkdir()  # as pymic_train does
    SegmentationAgent(parsed(tmp_path / "b.cfg", tuned)).run()
    rows = {row: int(n) for row, n in re.findall(r"^  (loaded|mis-shaped|missing|unused) +(\d+)$", caplog.text, re.M)}
    assert rows["missing"] == rows["unused"] == 0
    assert rows["mis-shaped"] == 2 * (3 if is_vf else 1) < rows["loaded"]


def test_its_keys_are_checked_where_labels_are_learnt_from(scans: Path, tmp_path: Path):
    bad = finetuning(scans, tmp_path, network={**dict.fromkeys(NETWORK), **SMALL, "class_num": 2, "depths": 2,
                                               "multiscale_pred": False})  # fmt: skip
    with pytest.raises(ConfigError) as caught:
        SegmentationAgent(parsed(tmp_path / "a.cfg", bad)).run()
    assert any("depths must be" in mistake for mistake in caught.value.mistakes)
    assert any("multiscale_pred must be True" in mistake for mistake in caught.value.mistakes)
