"""Weights on their way into PyMIC's agents, which are made and run in this process."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from pymic.net_run.agent_seg import SegmentationAgent
from safetensors.torch import save_file
from torch import nn

import pymic_vf
from pymic_vf.errors import UserError
from pymic_vf.host.weights.initial_weights import select_weights
from pymic_vf.networks.pct_net import PCTNet

from conftest import NETWORK, finetuning, parsed

pymic_vf.register()

UNET = {"net_type": "UNet", "dimension": 3, "in_chns": 1, "class_num": 2, "feature_chns": [2, 4, 8, 16, 16],
        "dropout": [0] * 5, "multiscale_pred": False}  # fmt: skip


def agent(scans: Path, out: Path, network: dict, stage: str = "train", **changes) -> SegmentationAgent:
    """Of a small fine-tuning, with its data and network made."""
    sections = finetuning(scans, out, network={**dict.fromkeys(NETWORK), **network}, **changes)
    sections["training"]["deep_supervise"] = network.get("multiscale_pred", False)
    sections["dataset"]["num_worker"] = 0
    made = SegmentationAgent(parsed(out / "a.cfg", sections), stage)
    made.create_dataset()
    made.create_network()
    return made


@pytest.mark.parametrize("network", [{**NETWORK, "class_num": 2}, UNET], ids=["PCTNet", "UNet"])
def test_heads_of_another_class_num_start_anew_and_pymic_is_quiet(scans: Path, tmp_path: Path, caplog, network):
    caplog.set_level(logging.INFO)
    (tmp_path / "finetune").mkdir()
    donor = agent(scans, tmp_path, {**network, "class_num": 5}).net
    torch.save(donor.state_dict(), tmp_path / "finetune" / "donor.pt")
    taker = agent(scans, tmp_path, network, training={"ckpt_init_name": "donor.pt"})
    before = {name: weight.clone() for name, weight in taker.net.state_dict().items()}
    taker.load_pretrained_weights(taker.net, donor.state_dict(), [0])
    kept = [name for name, weight in donor.state_dict().items() if weight.shape != before[name].shape]
    assert kept
    for name, weight in taker.net.state_dict().items():
        assert torch.equal(weight, before[name] if name in kept else donor.state_dict()[name])
    assert "class_num is 5 in the file and 2 here, new heads start from random weights" in caplog.text
    assert "Initializing the following" not in caplog.text
    logging.getLogger().info("and the log goes on")
    assert "and the log goes on" in caplog.text
    assert all(name in (tmp_path / "finetune" / "weights_loaded.txt").read_text() for name in before)


def test_whole_numbers_do_not_become_weights(scans: Path, tmp_path: Path):
    taker = agent(scans, tmp_path, UNET)
    numbers = {name: (100 * weight).to(torch.int8) for name, weight in taker.net.state_dict().items()}
    before = {name: weight.clone() for name, weight in taker.net.named_parameters()}
    taker.load_pretrained_weights(taker.net, numbers, [0])
    assert all(torch.equal(weight, before[name]) for name, weight in taker.net.named_parameters())


def test_outer_names_of_other_tools(caplog):
    caplog.set_level(logging.INFO)
    net = nn.Sequential(nn.Linear(2, 2))
    weights, report = select_weights(net, {f"model.net.{n}": w for n, w in net.state_dict().items()}, {})
    assert sorted(weights) == ["0.bias", "0.weight"] == sorted(report.loaded)
    assert "begin with 'model.net.', which is left out" in caplog.text
    for names in (["a.0.bias", "b.0.weight"], ["bias", "weight"], ["a.b.c", "a.b.d"]):  # nothing fits, nothing guessed
        report = select_weights(net, {name: torch.ones(2) for name in names}, {})[1]
        assert [misfit.name for misfit in report.unused] == names


def test_from_safetensors_to_training(scans: Path, tmp_path: Path, caplog):
    caplog.set_level(logging.INFO)
    network = {**NETWORK, "class_num": 2}
    weights = {name: weight.contiguous() for name, weight in PCTNet(network).state_dict().items()}
    save_file(weights, tmp_path / "a.safetensors")
    (tmp_path / "finetune").mkdir()
    training = {"ckpt_init_name": tmp_path / "a.safetensors", "iter_max": 1}
    agent(scans, tmp_path, network, training=training).run()
    assert f"loaded     {len(weights):>5}" in caplog.text.replace("  loaded", "loaded")
    assert (tmp_path / "finetune" / "finetune_1.pt").is_file()


@pytest.fixture(scope="module")
def trained(scans: Path, tmp_path_factory) -> Path:
    """A folder with a fine-tuned UNet, ``finetune_1.pt``, and one scan to test it with."""
    out = tmp_path_factory.mktemp("trained")
    (out / "finetune").mkdir()
    (out / "one.csv").write_text("image,label\nscan_0.nii.gz,scan_0_lab.nii.gz\n")
    agent(scans, out, UNET, training={"iter_max": 1}, dataset={"valid_csv": out / "one.csv"}).run()
    return out


def segmenting(scans: Path, out: Path, network: dict = UNET, **testing) -> SegmentationAgent:
    testing = {"output_dir": out / "result", "sliding_window_stride": [16, 32, 32], **testing}
    return agent(scans, out, network, "test", testing=testing, dataset={"test_csv": out / "one.csv"})


@pytest.mark.parametrize("mode", [0, 1, 2, 3])
def test_each_way_to_choose_a_checkpoint(scans: Path, trained: Path, mode: int):
    path = trained / "finetune" / "finetune_1.pt"
    made = segmenting(scans, trained, ckpt_mode=mode, ckpt_name=[path, path] if mode == 3 else path)
    made.run()
    assert (trained / "result" / "scan_0.nii.gz").is_file()
    assert "load_state_dict" not in vars(made.net)
    (trained / "result" / "scan_0.nii.gz").unlink()


@pytest.mark.parametrize(
    ("testing", "message"),
    [
        ({"ckpt_mode": None}, "ckpt_mode is missing"),
        ({"ckpt_mode": 2}, "ckpt_name must be the name of a file where ckpt_mode = 2, got None"),
        ({"ckpt_mode": 2, "ckpt_name": ["a.pt"]}, "must be the name of a file"),
        ({"ckpt_mode": 3, "ckpt_name": "a.pt"}, "must be a list of files where ckpt_mode = 3, got 'a.pt'"),
        ({"ckpt_mode": 3, "ckpt_name": ["gone.pt"]}, "no checkpoint gone.pt"),
        ({"ckpt_mode": 2, "ckpt_name": "gone.pt"}, "no checkpoint gone.pt"),
    ],
)
def test_choices_that_cannot_be(scans: Path, trained: Path, testing: dict, message: str):
    with pytest.raises(UserError, match=message):
        segmenting(scans, trained, **testing).run()


def test_a_test_with_outer_names_of_other_tools(scans: Path, trained: Path):
    weights = torch.load(trained / "finetune" / "finetune_1.pt", weights_only=False)["model_state_dict"]
    torch.save({"state_dict": {f"net.{name}": weight for name, weight in weights.items()}}, trained / "lightning.pt")
    segmenting(scans, trained, ckpt_mode=2, ckpt_name=trained / "lightning.pt").run()
    (trained / "result" / "scan_0.nii.gz").unlink()


class WithExtraState(nn.Linear):
    def get_extra_state(self) -> list[int]:
        return [1]

    def set_extra_state(self, state: list[int]) -> None:
        self.state = state


def test_extra_state_is_no_weight():
    net = WithExtraState(2, 2)
    weights, report = select_weights(net, net.state_dict(), {})
    assert sorted(weights) == sorted(report.loaded) == ["bias", "weight"] and not report.missing


def test_a_test_with_weights_of_another_network_is_explained(scans: Path, trained: Path):
    path = trained / "finetune" / "finetune_1.pt"
    wider = {**UNET, "feature_chns": [4, 4, 8, 16, 16]}
    with pytest.raises(UserError, match=r"not of this UNet.*\[network\] must be as in its training") as raised:
        segmenting(scans, trained, wider, ckpt_mode=2, ckpt_name=path).run()
    assert len(str(raised.value).splitlines()) <= 15
    assert not (trained / "result" / "scan_0.nii.gz").exists()
    numbers = {
        name: weight.to(torch.int8) for name, weight in torch.load(path, weights_only=False)["model_state_dict"].items()
    }
    torch.save(numbers, trained / "numbers.pt")
    with pytest.raises(UserError, match=r"int8 in the file, float32 in the network"):
        segmenting(scans, trained, ckpt_mode=2, ckpt_name=trained / "numbers.pt").run()
