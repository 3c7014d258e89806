from __future__ import annotations

import copy
import logging
import pickle
import shutil

import pytest
import torch
from test_pct_net import small_net, total_loss
from torch import nn

from pymic_vf.networks.conv_blocks import OutConv, UpBlock
from pymic_vf.networks.execution import (
    MOST_SHAPES,
    Compiled,
    has_bf16,
    inference_memory_advice,
    training_memory_advice,
    warn_of_slow_convolution,
    with_memory_advice,
)
from pymic_vf.networks.norm_act import norm_act
from pymic_vf.networks.pct_net import PCTNet
from pymic_vf.networks.scratch import scratch_memory
from pymic_vf.networks.settings import parse_network_settings
from pymic_vf.networks.window_attention import SwinBlock
from pymic_vf.networks.windows import window_layout

needs_bf16 = pytest.mark.skipif(not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="no bfloat16 here")


def one_step(net: PCTNet, x: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor], dict[str, torch.Tensor]]:
    torch.manual_seed(1)
    loss = total_loss(net.train()(x))
    loss.backward()
    grads = [p.grad for p in net.parameters() if p.requires_grad]
    return loss.detach(), grads, dict(net.named_buffers())


def test_recomputing_activations_changes_nothing_with_dropout_and_batch_statistics():
    x = torch.randn(2, 1, 16, 48, 48)
    loss, grads, buffers = one_step(small_net(), x)
    other_loss, other_grads, other_buffers = one_step(small_net(activation_checkpointing=True), x)
    assert torch.equal(loss, other_loss)
    for grad, other in zip(grads, other_grads, strict=True):
        torch.testing.assert_close(grad, other)
    for name, value in buffers.items():  # running statistics are updated once
        assert torch.equal(value, other_buffers[name]), name


def test_recomputing_keeps_less():
    def kept(net: PCTNet) -> int:
        storages = {}

        def note(tensor: torch.Tensor) -> torch.Tensor:
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            outputs = net(x)
        assert len(outputs) == 4
        return sum(storages.values())

    x = torch.randn(1, 1, 16, 48, 48)
    assert kept(small_net(activation_checkpointing=True)) < 0.6 * kept(small_net())


@needs_bf16
def test_bf16_returns_float32_close_to_float32():
    x = torch.randn(1, 1, 16, 48, 48)
    net, half = small_net().eval(), small_net(precision="bf16").eval()
    with torch.no_grad():
        for output, wanted in zip(half(x), net(x), strict=True):
            assert output.dtype == torch.float32
            # Eight bits of mantissa, some tens of layers.
            assert (output - wanted).norm() < 0.05 * wanted.norm()
            assert not torch.equal(output, wanted)


@needs_bf16
def test_bf16_trains_as_float32_does_over_50_steps():
    torch.manual_seed(0)
    x = torch.randn(2, 1, 8, 16, 32)
    labels = (x[:, 0] > 0.5).long()
    losses = {}
    for precision in ("fp32", "bf16"):
        net = small_net(precision=precision, multiscale_pred=False, input_size=[8, 16, 32], depths=[1, 1, 1]).train()
        optimizer = torch.optim.Adam(net.get_parameters_to_update(), 1e-2)
        torch.manual_seed(0)
        losses[precision] = []
        for _ in range(50):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(net(x), labels)
            loss.backward()
            optimizer.step()
            losses[precision].append(loss.item())
    exact, half = torch.tensor(losses["fp32"]), torch.tensor(losses["bf16"])
    assert exact[-1] < 0.5 * exact[0]
    assert ((half - exact).abs() < 0.1 * exact[0]).all()


@needs_bf16
def test_bf16_and_recomputation_combine():
    x = torch.randn(2, 1, 8, 32, 32)
    loss, grads, _ = one_step(small_net(precision="bf16"), x)
    other_loss, other_grads, _ = one_step(small_net(precision="bf16", activation_checkpointing=True), x)
    assert torch.equal(loss, other_loss)
    for grad, other in zip(grads, other_grads, strict=True):
        torch.testing.assert_close(grad, other, rtol=0.02, atol=1e-5)


def test_a_device_without_bf16_is_said_once(monkeypatch, caplog):
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False, raising=False)
    has_bf16.cache_clear()
    x = torch.randn(1, 1, 8, 16, 16)
    with caplog.at_level(logging.WARNING):
        net = small_net(precision="bf16").eval()
        outputs = [net(x), net(x)]
    has_bf16.cache_clear()
    assert caplog.messages == ["[network] precision = bf16: this cpu has no bfloat16; float32 is used instead"]
    assert torch.equal(outputs[0][0], small_net().eval()(x)[0])


@pytest.mark.parametrize(("version", "lines"), [("2.9.1+cu128", 1), ("2.8.0", 0), ("2.15.0", 0), ("2.10.0", 0)])
def test_slow_versions_of_torch_are_named(version, lines, caplog):
    warn_of_slow_convolution.cache_clear()
    with caplog.at_level(logging.WARNING):
        warn_of_slow_convolution(version)
    assert len(caplog.messages) == lines


def test_scratch_memory_gives_what_the_modules_give():
    norm, act = nn.BatchNorm3d(8).eval(), nn.PReLU(init=-0.3)
    for tensor in (norm.weight, norm.bias, norm.running_mean):
        nn.init.normal_(tensor)
    nn.init.uniform_(norm.running_var, 0.5, 2)
    first, second = torch.randn(2, 3, 5, 6, 7), torch.randn(2, 5, 5, 6, 7)
    second = second.contiguous(memory_format=torch.channels_last_3d)
    with torch.no_grad():
        expected = act(norm(torch.cat([first, second], dim=1)))
        with scratch_memory():
            torch.testing.assert_close(norm_act(norm, act, first, second), expected)
            assert norm_act(norm, act, expected).data_ptr() == norm_act(norm, act, expected).data_ptr()
    with scratch_memory():  # a gradient needs every result for itself
        results = [norm_act(norm, act, expected), norm_act(norm, act, expected)]
    assert results[0].data_ptr() != results[1].data_ptr()


@pytest.mark.parametrize("mode", [0, 1, 2])
def test_inference_without_gradients_gives_the_same(mode):
    net = small_net(resolution_mode=mode).eval()
    x = torch.randn(2, 1, 16, 48, 48)
    with torch.no_grad():
        fast = net(x)
    for output, wanted in zip(fast, net(x), strict=True):
        torch.testing.assert_close(output, wanted, rtol=1e-4, atol=1e-6)


# Compiling


def test_compiling_leaves_names_copies_and_pickles_alone(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    net, x = small_net(compile=True).eval(), torch.randn(1, 1, 8, 16, 16)
    assert list(net.state_dict()) == list(small_net().state_dict())
    expected = net(x)
    for other in (net, copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert torch.equal(other(x)[0], expected[0])


@pytest.fixture
def compiled_shapes(monkeypatch) -> list[tuple[int, ...]]:
    """What is handed to generated code, which is here the function itself."""
    shapes = []

    def compiler(function, **_):
        def compiled(*args):
            shapes.append(tuple(args[1].shape))
            return function(*args)

        return compiled

    monkeypatch.setattr(torch, "compile", compiler)
    return shapes


def sizes_run(run: Compiled, network: nn.Module, *sizes: int) -> None:
    for size in sizes:
        run(network, torch.zeros(size))


def test_in_inference_a_shape_is_compiled_when_it_comes_again(compiled_shapes, caplog):
    run, network = Compiled(lambda network, x: network(x)), nn.Identity().eval()
    with caplog.at_level(logging.INFO, logger="pymic_vf"):
        sizes_run(run, network, 2, 3, 2, 2, 4)
    assert compiled_shapes == [(2,), (2,)]
    assert caplog.messages == ["[network] compile = True: compiling for an input of [2], which takes minutes"]


def test_crops_of_a_training_are_compiled_at_once(compiled_shapes):
    run, network = Compiled(lambda network, x: network(x)), nn.Identity().train()
    sizes_run(run, network, 2, 3)
    with torch.no_grad():
        sizes_run(run, network, 5)  # no step of a training
    assert compiled_shapes == [(2,), (3,)]


@pytest.mark.parametrize("training", [True, False])
def test_scans_of_many_sizes_are_not_all_compiled(compiled_shapes, training):
    run, network = Compiled(lambda network, x: network(x)), nn.Identity().train(training)
    for _ in range(3):
        sizes_run(run, network, *range(1, 20))
    assert set(compiled_shapes) == {(size,) for size in range(1, MOST_SHAPES + 1)}
    sizes_run(run, nn.Identity().train(not training), 1, 1)  # the other kind has its own
    assert compiled_shapes.count((1,)) == (3 if training else 2) + (1 if training else 2)


@pytest.mark.parametrize("when", ["at once", "at the first call"])
def test_what_cannot_be_compiled_runs_uncompiled_with_one_line(when, monkeypatch, caplog):
    from torch._dynamo.exc import TorchDynamoException

    def compiler(function, **_):
        if when == "at once":
            raise RuntimeError("torch.compile is not supported on this Python")

        def fail(*_args):
            raise TorchDynamoException("no compiler found\nand a long story")

        return fail

    monkeypatch.setattr(torch, "compile", compiler)
    net, x = small_net(compile=True).eval(), torch.randn(1, 1, 8, 16, 16)
    with caplog.at_level(logging.WARNING):
        outputs = [net(x)[0] for _ in range(3)]
    assert len(caplog.messages) == 1
    assert "compile = True: not possible here, the network runs uncompiled (" in caplog.messages[0]
    assert "long story" not in caplog.messages[0]
    assert torch.equal(outputs[0], outputs[2])


def test_the_parts_compile_without_a_break():
    """Traced as a whole by torch.compile; the generated code itself is torch's."""
    torch.manual_seed(0)
    layout = window_layout(1, (4, 4, 4), 2, 1, torch.device("cpu"))
    block, tokens = SwinBlock(4, 2, 2, 0.0).eval(), torch.randn(64, 4)
    compiled = torch.compile(block, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(tokens, 1, layout), block(tokens, 1, layout))
    up, skip, high = UpBlock(2, 4, 3), torch.randn(1, 2, 4, 4, 4), torch.randn(1, 4, 2, 2, 2)
    compiled = torch.compile(copy.deepcopy(up), backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(skip, high), up(skip, high))


@pytest.mark.skipif(shutil.which("g++") is None, reason="no compiler of C++")
def test_generated_code_gives_the_same_with_gradients(caplog):
    torch.manual_seed(0)
    block, x = OutConv(2, 3).train(), torch.randn(1, 2, 4, 4, 4, requires_grad=True)
    expected = copy.deepcopy(block)(x)
    run = Compiled(lambda network, tensor: network(tensor))
    with caplog.at_level(logging.WARNING, logger="pymic_vf"):
        outputs = [run(block, x) for _ in range(2)]
    assert not [record for record in caplog.records if record.name.startswith("pymic_vf")]  # torch says this and that
    for output in outputs:
        torch.testing.assert_close(output, expected)
    wanted, *grads = (torch.autograd.grad(out.pow(2).sum(), x)[0] for out in (expected, *outputs))
    for grad in grads:
        torch.testing.assert_close(grad, wanted)


def test_without_a_compiler_of_its_own_the_network_runs_uncompiled(monkeypatch, caplog):
    from torch._inductor import config

    monkeypatch.setattr(config.cpp, "cxx", ("no-such-compiler",))
    torch.compiler.reset()
    block, x = OutConv(2, 3).eval(), torch.randn(1, 2, 4, 4, 5)
    run = Compiled(lambda network, tensor: network(tensor))
    with caplog.at_level(logging.WARNING, logger="pymic_vf"):
        outputs = [run(block, x) for _ in range(3)]
    assert ["runs uncompiled" in message for message in caplog.messages] == [True]
    assert torch.equal(outputs[0], outputs[2])


# Memory


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB."),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: Tried to allocate"),
    ],
    ids=["CUDA", "CPU"],
)
def test_running_out_of_memory_says_what_helps(error, monkeypatch):
    def no_memory(*_args):
        raise error

    net = small_net()
    monkeypatch.setattr(net, "_run", no_memory)
    with pytest.raises(
        torch.OutOfMemoryError, match=r"precision = bf16 .*a batch of 2 instead of 4 .*Tried to"
    ) as raised:
        net(torch.zeros(4, 1, 8, 16, 16))
    again = with_memory_advice(raised.value, net.settings, batch=4, learns=True)
    assert str(again) == str(raised.value)  # it says so already


def test_memory_that_no_cpu_has_is_recognised():
    with pytest.raises(RuntimeError) as raised:
        torch.empty(2**60, dtype=torch.uint8)
    assert with_memory_advice(raised.value, small_net().settings, batch=1, learns=True) is not None


def test_other_errors_are_left_as_they_are(monkeypatch):
    def fail(*_args):
        raise RuntimeError("shapes differ")

    net = small_net()
    monkeypatch.setattr(net, "_run", fail)
    with pytest.raises(RuntimeError, match=r"^shapes differ$"):
        net(torch.zeros(1, 1, 8, 16, 16))


def test_only_what_is_not_in_use_is_advised():
    params = {"in_chns": 1, "class_num": 2, "input_size": [64, 128, 128]}
    plain = training_memory_advice(parse_network_settings(params), batch=1)
    assert "precision = bf16" in plain
    assert "activation_checkpointing" in plain
    assert "batch" not in plain
    saving = parse_network_settings(params | {"precision": "bf16", "activation_checkpointing": True})
    assert "precision" not in training_memory_advice(saving, batch=4)
    assert training_memory_advice(saving, batch=4).endswith("half the crop in one axis about 50 %.")
    assert "precision" not in inference_memory_advice(saving, batch=1)
    assert "batch of 2 instead of 4 about 50 % (sliding_window_batch)" in inference_memory_advice(saving, batch=4)


def test_inference_that_runs_out_of_memory_gets_advice_of_its_own(monkeypatch):
    def no_memory(*_args):
        raise torch.OutOfMemoryError("CUDA out of memory")

    net = small_net().eval()
    monkeypatch.setattr(net, "_run", no_memory)
    with torch.no_grad(), pytest.raises(torch.OutOfMemoryError, match="sliding_window_size") as raised:
        net(torch.zeros(1, 1, 8, 16, 16))
    assert "backward" not in str(raised.value)
