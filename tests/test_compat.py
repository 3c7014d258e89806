"""Each repair by what shows its gap; those that take a whole training are in test_chain.py."""

from __future__ import annotations

import pymic.net.transformer.unetr as unetr
import pymic.net_run.agent_abstract
import pymic.net_run.agent_rec as agent_rec
import pymic.net_run.agent_seg as agent_seg
import pytest
import torch
from pymic.net.net_dict_seg import SegNetDict
from pymic.util.parse_config import parse_value_from_string

import pymic_vf
from pymic_vf.errors import UserError
from pymic_vf.host import compat

from conftest import finetuning, write_cfg

pymic_vf.register()


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1.5e-3", 1.5e-3),
        ("1E-3", 1e-3),
        (".5", 0.5),
        ("[.5, 2.5E+1]", [0.5, 25.0]),
        # as before
        ("1e-3", 1e-3),
        ("0.9", 0.9),
        ("3", 3),
        ("-3", -3),
        ("True", True),
        ("None", None),
        ("StepLR", "StepLR"),
        ("../model/a_1.5.pt", "../model/a_1.5.pt"),
        ("1.2.3", "1.2.3"),
        (".nii.gz", ".nii.gz"),
        ("[VF, LabelToProbability]", ["VF", "LabelToProbability"]),
    ],
)
def test_floats(text, value):
    parsed = parse_value_from_string(text)
    assert parsed == value and type(parsed) is type(value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a machine with CUDA has no such gap")
def test_cpu_where_cuda_is_missing(caplog):
    compat._say_once.cache_clear()
    assert agent_seg.torch.device("cuda:0") == torch.device("cpu")
    assert agent_seg.torch.device("cuda:1") == torch.device("cpu")
    assert [r.message for r in caplog.records].count(
        "\n*** No CUDA device: running on the CPU, which is very much slower. ***\n"
    ) == 1


@pytest.mark.cuda
def test_cuda_where_it_is():
    assert agent_seg.torch.device("cuda:0") == torch.device("cuda:0")
    with pytest.raises(UserError, match=r"gpus = \[99\]: this machine has \d+ CUDA device"):
        agent_seg.torch.device("cuda:99")


def test_torch_is_otherwise_torch():
    assert agent_seg.torch.argmax is torch.argmax
    assert agent_seg.torch.no_grad is torch.no_grad


def test_text_files_of_checkpoints_appear_when_closed(tmp_path):
    path = tmp_path / "a_best.txt"
    file = agent_seg.open(str(path), "wt")
    file.write("12")
    assert not path.exists()
    file.close()
    assert path.read_text() == "12"
    with agent_seg.open(path) as file:
        assert file.read() == "12"


def test_no_validation_set():
    assert pymic.net_run.agent_abstract.NetRunAgent.valid_loader is None


class LacksMemory:
    """An agent whose loss or backward pass, outside of the network, runs out of memory."""

    def __init__(self, error: Exception, **network) -> None:
        self.error = error
        self.config = {"dataset": {"train_batch_size": 4}, "network": network}

    def run(self) -> None:
        raise self.error


def test_lack_of_memory_is_explained():
    agent = LacksMemory(torch.OutOfMemoryError("CUDA out of memory. Tried to"), net_type="PCTNet")
    with pytest.raises(UserError, match=r"^Memory ran out.* a batch of 2 instead of 4 .*Tried to"):
        compat._memory_explained(LacksMemory.run, learns=True)(agent)
    with pytest.raises(UserError, match=r"^Memory ran out.* sliding_window_size"):
        compat._memory_explained(LacksMemory.run, learns=False)(agent)
    for method in (agent_seg.SegmentationAgent.training, agent_rec.ReconstructionAgent.training):
        assert method.__wrapped__.__module__.startswith("pymic.net_run.agent_")
    assert "infer" not in vars(agent_rec.ReconstructionAgent)


@pytest.mark.parametrize(
    ("net_type", "error"),
    [("UNet", torch.OutOfMemoryError("CUDA out of memory")), ("PCTNet", RuntimeError("shapes differ"))],
)
def test_other_networks_and_errors_are_left_alone(net_type, error):
    with pytest.raises(type(error)) as raised:
        compat._memory_explained(LacksMemory.run, learns=True)(LacksMemory(error, net_type=net_type))
    assert raised.value is error


def test_commands_print_the_config_once(run, scans, tmp_path):
    cfg = write_cfg(
        tmp_path / "one.cfg",
        finetuning(scans, tmp_path, network={"net_type": "UNet", "dimension": 3}, training={"loss_type": "NoSuchLoss"}),
    )
    done = run("pymic_train", cfg, status=1)
    assert done.stdout.count("loss_type") == 1  # in the log
    assert "FutureWarning" not in done.stderr


def test_unetr_is_built_and_learns():
    """At the smallest size that its four halvings leave more than one voxel of."""
    with pytest.raises(TypeError, match="pos_embed"):  # the gap
        unetr.ViT.__wrapped__(in_channels=1, img_size=(32, 32, 32), patch_size=(16, 16, 16), pos_embed="perceptron")
    torch.manual_seed(0)
    net = SegNetDict["UNETR"]({"in_chns": 1, "class_num": 3, "img_size": [32, 32, 32]})
    assert type(net.vit.patch_embedding.patch_embeddings).__name__ == "Sequential"  # the perceptron, not a convolution
    outputs = net(torch.randn(1, 1, 32, 32, 32))
    assert outputs.shape == (1, 3, 32, 32, 32)
    (outputs**2).mean().backward()
    without = [name for name, p in net.named_parameters() if p.grad is None or not torch.isfinite(p.grad).all()]
    # in MONAI's blocks for attention to other tokens, which a ViT has none of
    assert all("cross_attn" in name for name in without)
