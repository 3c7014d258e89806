"""Each way to run a network, for PCT-Net and for PyMIC's UNet."""

from __future__ import annotations

import copy
import logging
import pickle
import shutil

import pytest
import torch
from pymic.net.net_dict_seg import SegNetDict
from pymic.net_run.agent_seg import SegmentationAgent
from test_pct_net import small_net, total_loss
from torch import nn

import pymic_vf
from pymic_vf.errors import ConfigError
from pymic_vf.host.execution import EXECUTION_KEYS, MOST_SHAPES, configure_execution, read_execution
from pymic_vf.keys import Section
from pymic_vf.networks.drop_path import DropPath

pymic_vf.register()
SIZE = (16, 48, 48)
UNET = {
    "dimension": 3,
    "in_chns": 1,
    "class_num": 3,
    "feature_chns": [4, 4, 8, 8, 8],
    "dropout": [0.0, 0.0, 0.2, 0.2, 0.2],
    "multiscale_pred": True,
}


def small_unet() -> nn.Module:
    torch.manual_seed(0)
    return SegNetDict["UNet"](dict(UNET))


NETWORKS = {"PCTNet": small_net, "UNet": small_unet}
each_network = pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS)


def configured(net: nn.Module, **changes) -> nn.Module:
    defaults = {key.name: key.default for key in EXECUTION_KEYS}
    configure_execution(net, **(defaults | changes))
    return net


def step(net: nn.Module, batch: int = 2) -> tuple[torch.Tensor, dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Loss, gradients and buffers of one training step, with random parts drawn alike."""
    x = torch.randn(batch, 1, *SIZE, generator=torch.Generator().manual_seed(2))
    torch.manual_seed(1)
    outputs = net.train()(x)
    loss = total_loss(outputs if isinstance(outputs, list) else [outputs])
    loss.backward()
    grads = {name: p.grad for name, p in net.named_parameters() if p.requires_grad}
    return loss.detach(), grads, dict(net.named_buffers())


# Activation checkpointing


@each_network
def test_recomputing_changes_nothing_with_dropout_and_batch_statistics(make):
    loss, grads, buffers = step(make())
    other_loss, other_grads, other_buffers = step(configured(make(), activation_checkpointing=True))
    assert torch.equal(loss, other_loss)
    for name, grad in grads.items():
        torch.testing.assert_close(grad, other_grads[name])
    assert list(buffers) == list(other_buffers)
    for name, value in buffers.items():  # running statistics count the batch once
        assert torch.equal(value, other_buffers[name]), name


@each_network
def test_recomputing_keeps_less(make):
    def kept(net: nn.Module) -> int:
        storages = {}

        def note(tensor: torch.Tensor) -> torch.Tensor:
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            outputs = net(torch.randn(1, 1, *SIZE))
        assert len(outputs) == 4
        return sum(storages.values())

    assert kept(configured(make(), activation_checkpointing=True)) < 0.5 * kept(make())


def test_single_layers_are_not_recomputed_and_lists_of_modules_are_opened():
    net = nn.Sequential(nn.ModuleList([nn.Sequential(nn.Conv3d(1, 1, 1)) for _ in range(4)]), nn.PReLU())
    configured(net, activation_checkpointing=True)
    assert all("forward" in vars(block) for block in net[0])
    assert not any("forward" in vars(module) for module in (net[0], net[0][0][0], net[1]))


# Precision


@each_network
def test_bf16_returns_float32_close_to_float32(make):
    x = torch.randn(1, 1, *SIZE)
    net, half = make().eval(), configured(make(), precision="bf16").eval()
    with torch.no_grad():
        for output, wanted in zip(half(x), net(x), strict=True):
            assert output.dtype == torch.float32
            # Eight bits of mantissa, some tens of layers.
            assert (output - wanted).norm() < 0.05 * wanted.norm()
            assert not torch.equal(output, wanted)


@each_network
def test_bf16_trains_as_float32_does(make):
    x = torch.randn(2, 1, 16, 16, 32, generator=torch.Generator().manual_seed(0))
    labels = (x[:, 0] > 0.5).long()
    losses = {}
    for precision in ("fp32", "bf16"):
        net = configured(make(), precision=precision).train()
        optimizer = torch.optim.Adam(net.parameters(), 1e-2)
        losses[precision] = []
        for _ in range(20):
            torch.manual_seed(0)
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(net(x)[0], labels)
            loss.backward()
            optimizer.step()
            losses[precision].append(loss.item())
    exact, half = torch.tensor(losses["fp32"]), torch.tensor(losses["bf16"])
    assert exact[-1] < 0.8 * exact[0]
    assert ((half - exact).abs() < 0.1 * exact[0]).all()


@each_network
def test_bf16_and_recomputing_combine(make):
    loss, grads, _ = step(configured(make(), precision="bf16"))
    other_loss, other_grads, _ = step(configured(make(), precision="bf16", activation_checkpointing=True))
    assert torch.equal(loss, other_loss)
    for name, grad in grads.items():
        torch.testing.assert_close(grad, other_grads[name], rtol=0.02, atol=1e-5)


def test_the_gradient_of_two_slices_in_bf16_is_a_number():
    """Memory that was used before, with numbers that would show."""
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Conv3d(16, 16, 3, padding=1)), torch.randn(2, 16, 2, 4, 4)
    expected = torch.autograd.grad(net(x).pow(2).sum(), net[0].weight)[0]
    junk = [torch.full((2**k,), 1e4) for k in range(4, 20) for _ in range(4)]
    del junk
    grad = torch.autograd.grad(configured(net, precision="bf16")(x).pow(2).sum(), net[0].weight)[0]
    assert (grad - expected).norm() < 0.02 * expected.norm()


# Compilation


def without_random_parts(net: nn.Module) -> nn.Module:
    """Compiled code draws otherwise."""
    for module in net.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if isinstance(module, DropPath):
            module.rate = 0.0
    return net


def assert_compiled_step_is_equal(net: nn.Module, caplog, **changes) -> None:
    loss, grads, _ = step(copy.deepcopy(net))
    configured(net, compile=True, **changes)
    with caplog.at_level(logging.INFO, logger="pymic_vf"):
        for _ in range(2):
            net.zero_grad()
            other_loss, other_grads, _ = step(net)
    size = [2, 1, *SIZE]
    assert [record.message for record in caplog.records if record.name.startswith("pymic_vf")] == [
        f"[network] compile = True: compiling for an input of {size}, which takes minutes"
    ]
    torch.testing.assert_close(other_loss, loss)
    for name, grad in grads.items():
        torch.testing.assert_close(other_grads[name], grad, rtol=1e-3, atol=1e-5)


@pytest.mark.skipif(shutil.which("g++") is None, reason="no compiler of C++")
def test_generated_code_gives_the_same_with_gradients(caplog):
    assert_compiled_step_is_equal(nn.Sequential(nn.PReLU(), nn.Conv3d(1, 3, 1)), caplog)


@pytest.mark.parametrize(
    ("make", "backend", "checkpointing"),
    [(small_net, "eager", False), (small_unet, "aot_eager", True)],
    ids=["PCTNet", "UNet, recomputed"],
)
def test_networks_are_traced_in_one_graph(make, backend, checkpointing, monkeypatch, caplog):
    """By torch.compile as it is, but for the generated code, which takes minutes."""
    compile = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, **o: compile(f, backend=backend, fullgraph=True, **o))
    assert_compiled_step_is_equal(without_random_parts(make()), caplog, activation_checkpointing=checkpointing)


@pytest.fixture
def compiled_shapes(monkeypatch) -> list[tuple[int, ...]]:
    """What is handed to generated code, which is here the method itself."""
    shapes = []

    def compiler(method, **_):
        def compiled(x):
            shapes.append(tuple(x.shape))
            return method(x)

        return compiled

    monkeypatch.setattr(torch, "compile", compiler)
    return shapes


def test_a_shape_is_compiled_when_it_comes_again_and_only_a_few_are(compiled_shapes):
    net = configured(nn.Sequential(nn.Identity()), compile=True)
    for _ in range(3):
        for size in range(1, 10):
            net(torch.zeros(size))
    assert set(compiled_shapes) == {(size,) for size in range(1, MOST_SHAPES + 1)}
    assert len(compiled_shapes) == 2 * MOST_SHAPES


def test_training_and_inference_are_compiled_each_for_itself(compiled_shapes):
    net = configured(nn.Sequential(nn.Identity()), compile=True)
    for mode in (True, False, True):
        with torch.set_grad_enabled(mode):
            net.train(mode)(torch.zeros(1))
    assert len(compiled_shapes) == 1


@pytest.mark.parametrize("when", ["at once", "at the first call"])
def test_what_cannot_be_compiled_runs_uncompiled_with_one_line(when, monkeypatch, caplog):
    def compiler(_method, **_):
        def fail(*_):
            raise RuntimeError("no compiler found\nand a long story")

        return fail("") if when == "at once" else fail

    monkeypatch.setattr(torch, "compile", compiler)
    net, x = configured(small_net(), compile=True).eval(), torch.randn(1, 1, 8, 16, 16)
    with caplog.at_level(logging.WARNING):
        outputs = [net(x)[0] for _ in range(4)]
    line = "[network] compile = True: not possible here, the network runs uncompiled (no compiler found)"
    assert caplog.messages == [line]
    assert torch.equal(outputs[0], outputs[3])


def test_without_a_compiler_of_c_the_network_runs_uncompiled(monkeypatch, caplog):
    from torch._inductor import config

    monkeypatch.setattr(config.cpp, "cxx", ("no-such-compiler",))
    torch.compiler.reset()
    net, x = configured(nn.Sequential(nn.PReLU()), compile=True).eval(), torch.randn(1, 2, 4, 4, 5)
    with caplog.at_level(logging.WARNING, logger="pymic_vf"):
        outputs = [net(x) for _ in range(3)]
    assert ["runs uncompiled" in message for message in caplog.messages] == [True]
    assert torch.equal(outputs[0], outputs[2])


def test_errors_of_the_network_are_not_the_compiler_s():
    net = configured(nn.Sequential(nn.Conv3d(1, 1, 1)), compile=True)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="expected input"):
            net(torch.zeros(1, 2, 3, 3, 3))


# All together


@each_network
def test_names_copies_and_pickles(make, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda method, **_: method)
    net = configured(make(), precision="bf16", compile=True, activation_checkpointing=True).eval()
    assert list(net.state_dict()) == list(make().state_dict())
    x = torch.randn(1, 1, *SIZE)
    expected = [net(x)[0] for _ in range(3)][-1]
    copies = copy.deepcopy(net), pickle.loads(pickle.dumps(net))
    with torch.no_grad():
        for p in net.parameters():
            p.zero_()
    for other in copies:  # run as the network was, with weights of their own
        assert torch.equal(other(x)[0], expected)
        assert not torch.equal(net(x)[0], expected)


def agent_for(network: dict, stage: str = "train", gpus: tuple[int, ...] = (0,)) -> SegmentationAgent:
    dataset = {"tensor_type": "float", "task_type": "seg"}
    sections = {"training": {"gpus": list(gpus)}, "testing": {"gpus": list(gpus)}}
    return SegmentationAgent({"dataset": dataset, "network": network, **sections}, stage)


@pytest.mark.parametrize("stage", ["train", "test"])
def test_agents_of_pymic_run_their_network_as_the_config_says(stage):
    agent = agent_for({**UNET, "net_type": "UNet", "precision": "bf16"}, stage)
    plain = agent_for({**UNET, "net_type": "UNet"}, stage)
    agent.create_network()
    plain.create_network()
    plain.net.load_state_dict(agent.net.state_dict())
    forward = agent.net.forward
    agent.create_network()  # the network is there already
    assert agent.net.forward is forward
    assert "forward" not in vars(plain.net)
    x = torch.randn(1, 1, *SIZE)
    with torch.no_grad():
        assert not torch.equal(agent.net.eval()(x)[0], plain.net.eval()(x)[0])


def test_mistakes_are_named_together():
    agent = agent_for({**UNET, "net_type": "UNet", "precision": "bf61", "compile": "yes"})
    with pytest.raises(ConfigError) as raised:
        agent.create_network()
    assert raised.value.mistakes == [
        "[network] precision must be one of fp32, bf16 (did you mean bf16?), got 'bf61'",
        "[network] compile must be True or False, got 'yes'",
    ]


def test_several_gpus_in_one_process_are_refused():
    section = Section({"precision": "bf16", "compile": False}, "network", [])
    assert read_execution(section, [0]) == {"precision": "bf16", "compile": False, "activation_checkpointing": False}
    assert not section.mistakes
    read_execution(section, [0, 1])
    needed = "needs one GPU a process, such as gpus = [0] (several GPUs: torchrun)"
    assert section.mistakes == [f"[network] precision {needed}, got 'bf16'"]


@pytest.mark.cuda
@each_network
def test_on_cuda(make):
    x = torch.randn(2, 1, *SIZE, device="cuda")
    net = configured(make().cuda(), precision="bf16", activation_checkpointing=True).train()
    total_loss(net(x)).backward()
    assert all(torch.isfinite(p.grad).all() for p in net.parameters() if p.requires_grad)
