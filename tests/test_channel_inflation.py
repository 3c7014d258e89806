from __future__ import annotations

import pytest
import torch
from pymic.net.net3d.unet3d import UNet3D

from pymic_vf.errors import ConfigError
from pymic_vf.host.weights.channel_inflation import inflate
from pymic_vf.host.weights.initial_weights import select_weights
from pymic_vf.networks.pct_net import PCTNet

from conftest import NETWORK

UNET = {"net_type": "UNet3D", "feature_chns": [2, 4, 8, 16, 16], "dropout": [0] * 5, "multiscale_pred": False,
        "class_num": 2, "trilinear": True}  # fmt: skip


def test_channels_are_repeated_in_order():
    given = {"first": torch.arange(2.0).reshape(1, 2, 1, 1, 1), "other": torch.ones(3)}
    wanted = {"first": torch.zeros(1, 4, 1, 1, 1), "other": torch.ones(3)}
    weights, names = inflate(given, wanted, 4)
    assert names == ["first"] and weights["first"].flatten().tolist() == [0, 0.5, 0, 0.5]
    assert weights["other"] is given["other"]
    for shape in ((1, 3, 1, 1, 1), (2, 4, 1, 1, 1), (1, 4, 3, 1, 1)):  # 2 does not divide 3, other filters, kernels
        assert not inflate(given, {"first": torch.zeros(shape)}, shape[1])[1]


@pytest.mark.parametrize(("before", "after"), [(1, 3), (2, 4)])
@pytest.mark.parametrize(
    ("make", "config"),
    [(PCTNet, {**NETWORK, "multiscale_pred": False, "resolution_mode": mode}) for mode in (0, 1, 2)] + [(UNet3D, UNET)],
    ids=["PCTNet0", "PCTNet1", "PCTNet2", "UNet3D"],
)
def test_the_same_image_in_every_channel_gives_the_same_output(make, config: dict, before: int, after: int):
    torch.manual_seed(0)
    narrow = make({**config, "in_chns": before}).eval()
    wide_config = {**config, "in_chns": after, "in_chns_inflate": True}
    wide = make(wide_config).eval()
    weights, report = select_weights(wide, narrow.state_dict(), wide_config)
    assert len(report.inflated) == 1 and not (report.mis_shaped or report.missing or report.unused)
    wide.load_state_dict(weights)
    image = torch.randn(1, before, 16, 32, 32)
    with torch.no_grad():
        one, many = narrow(image), wide(image.repeat(1, after // before, 1, 1, 1))
    torch.testing.assert_close(many, one, rtol=1e-4, atol=1e-5)


def test_without_the_key_the_table_gives_the_hint():
    wide = PCTNet({**NETWORK, "in_chns": 3})
    weights, report = select_weights(wide, PCTNet(NETWORK).state_dict(), {"in_chns": 3, "class_num": 5})
    assert "embeddings.1.proj.weight" not in weights and not report.inflated
    assert "[network] in_chns_inflate = True would repeat the file's" in report.table("Weights")
    with pytest.raises(ConfigError, match=r"in_chns_inflate must be True or False, got 'yes'"):
        select_weights(wide, {}, {"in_chns_inflate": "yes"})
