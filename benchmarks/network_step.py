"""How fast PCT-Net is against its plain float32 form: a forward pass, a training step, and on CUDA peak memory.

    python benchmarks/network_step.py [--size 64 128 128 | --quickstart] [--batch 1] [--repeats 3] [--threads 2]
                                      [--no-train] [--cpu-time]

The network has the paper's widths; with --quickstart, which is the default for its crop of 16 32 32, those of
config_examples/quickstart and its batch of 2. The plain form (plain_pct_net.py): explicit softmax attention, contiguous
layout, everything made anew at each pass.
All sides of a row run in turn, repeat after repeat, so that whatever else the machine does affects them alike; the
figure is the median. On a machine that others use too, --cpu-time counts processor time instead, best with one thread.
"share of the convolutions' rate" is operations per second of the whole network over those of its convolutions run
alone, on tensors of the same shape and layout, in the same turns.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from machine import machine
from plain_pct_net import PlainPCTNet
from torch import Tensor, nn

from pymic_vf.host.execution import EXECUTION_KEYS, configure_execution
from pymic_vf.networks.pct_net import PCTNet

PAPER = {
    "in_chns": 1,
    "class_num": 5,
    "feature_chns": [24, 48, 128, 256, 512],
    "dropout": [0, 0, 0.2, 0.2, 0.2],
    "resolution_mode": 1,
    "multiscale_pred": True,
}
QUICKSTART = PAPER | {
    "feature_chns": [8, 16, 32, 64, 64],
    "dropout": [0, 0, 0, 0, 0],
    "num_heads": [2, 4, 4],
    "window_sizes": [4, 4, 4],
}
QUICKSTART_SIZE = [16, 32, 32]
FLOAT32, BF16 = {}, {"precision": "bf16"}
CHECKPOINTING, COMPILE = {"activation_checkpointing": True}, {"compile": True}


def main() -> None:
    args = _arguments()
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    params = (QUICKSTART if args.quickstart else PAPER) | {"input_size": args.size}
    print(machine())
    print(
        f"input {args.size}, feature_chns {params['feature_chns']}, resolution_mode 1, median of {args.repeats} turns"
    )
    print("processor time" if args.cpu_time else "wall-clock time")
    kept_memory()
    cpu_inference(params, args)
    if args.train:
        cpu_training(params, args)
    if torch.cuda.is_available():
        print(torch.cuda.get_device_name())
        cuda_training(params, args)
    else:
        print("no CUDA device: its rows are left out")


def run_as(net: nn.Module, ways: dict[str, Any]) -> nn.Module:
    """`net`, run as the keys of [network] in `ways` say."""
    configure_execution(net, **{key.name: ways.get(key.name, key.default) for key in EXECUTION_KEYS})
    return net


def cpu_inference(params: dict[str, Any], args: argparse.Namespace) -> None:
    """Rows of a forward pass in eval mode, stage test, without gradients."""
    nets = _same_weights(params, {"float32": FLOAT32, "bf16": BF16})
    for net in nets.values():
        net.eval().set_stage("test")
    x = torch.randn(args.batch, 1, *args.size)
    convolutions, conv_operations = convolutions_alone(nets["plain"], nets["float32"], x)
    sides = {name: lambda net=net: net(x) for name, net in nets.items()} | {"convolutions": convolutions}
    with torch.no_grad():
        seconds = in_turns(sides, args)
    print(f"\nCPU, forward, eval, batch {args.batch}")
    _rows(seconds)
    if not args.quickstart:
        # The attention and MLP share of 711 GFLOP scales as the convolutions do, but for padding to whole windows.
        rate = conv_operations * 711 / 584 / seconds["float32"]
        share = rate / (conv_operations / seconds["convolutions"])
        print(f"  share of the convolutions' rate {100 * share:4.0f} %   ({rate / 1e9:.0f} GFLOP/s)")


def kept_memory() -> None:
    """What a forward pass keeps for the backward pass: 32 x 64 x 64, batch 1, on the CPU; weights not counted."""
    params = PAPER | {"input_size": [32, 64, 64]}
    ways = {"float32": FLOAT32, "bf16": BF16, "float32 + checkpointing": CHECKPOINTING}
    ways["bf16 + checkpointing"] = BF16 | CHECKPOINTING
    x = torch.randn(1, 1, 32, 64, 64)
    plain = _kept(PlainPCTNet(params).train(), x)
    print(f"\nKept for the backward pass, 32 x 64 x 64, CPU\n  {'plain float32':26s}{plain / 2**20:8.0f} MiB")
    for name, way in ways.items():
        kept = _kept(run_as(PCTNet(params), way).train(), x)
        print(f"  {name:26s}{kept / 2**20:8.0f} MiB{100 * kept / plain:6.0f} %")


def _kept(net: PCTNet, x: Tensor) -> int:
    own = {tensor.untyped_storage().data_ptr() for tensor in (*net.parameters(), *net.buffers())}
    saved: dict[int, Tensor] = {}  # the tensors too, so that no memory is used and counted twice

    def note(tensor: Tensor) -> Tensor:
        saved.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        outputs = net(x)
    kept = sum(tensor.untyped_storage().nbytes() for pointer, tensor in saved.items() if pointer not in own)
    del outputs
    return kept


def cpu_training(params: dict[str, Any], args: argparse.Namespace) -> None:
    """Rows of a training step: forward, cross entropy at four scales, backward, Adam."""
    ways = {"float32": FLOAT32, "bf16": BF16, "float32 + checkpointing": CHECKPOINTING}
    nets = _same_weights(params, ways)
    seconds = in_turns({name: training_step(net, args.batch, args.size) for name, net in nets.items()}, args)
    print(f"\nCPU, training step, batch {args.batch}")
    _rows(seconds)


def cuda_training(params: dict[str, Any], args: argparse.Namespace) -> None:
    """Rows of a training step on CUDA: time and peak memory for each way to run it, at batch 4 and 2."""
    ways = {
        "plain": FLOAT32,
        "float32": FLOAT32,
        "bf16": BF16,
        "bf16 + compile": BF16 | COMPILE,
        "bf16 + checkpointing": BF16 | CHECKPOINTING,
        "bf16 + compile + checkpointing": BF16 | COMPILE | CHECKPOINTING,
    }
    for batch in (4, 2):
        print(f"\nCUDA, training step, batch {batch}: ms, peak GiB (share of the plain form's)")
        plain_time = plain_peak = None
        for name, way in ways.items():
            net = run_as((PlainPCTNet if name == "plain" else PCTNet)(params), way).cuda()
            milliseconds, peak = _time_and_peak(training_step(net, batch, args.size), max(args.repeats, 10))
            plain_time, plain_peak = plain_time or milliseconds, plain_peak or peak
            print(
                f"  {name:32s}{milliseconds:8.1f} ms ({plain_time / milliseconds:4.1f}x)"
                f"{peak:8.2f} GiB ({100 * peak / plain_peak:3.0f} %)"
            )
            del net
            gc.collect()
            torch.cuda.empty_cache()


def training_step(net: PCTNet, batch: int, size: list[int]) -> Callable[[], None]:
    """A function that does one step of `net` where it is, on the same random batch each time."""
    device = next(net.parameters()).device
    x = torch.randn(batch, 1, *size, device=device)
    net.train()
    with torch.no_grad():
        labels = [torch.randint(0, net.settings.class_num, (batch, *out.shape[2:]), device=device) for out in net(x)]
    optimizer = torch.optim.Adam(net.get_parameters_to_update(), 1e-3, weight_decay=1e-5)

    def step() -> None:
        optimizer.zero_grad()
        losses = [nn.functional.cross_entropy(out, label) for out, label in zip(net(x), labels, strict=True)]
        sum(losses).backward()
        optimizer.step()

    return step


def convolutions_alone(plain: PlainPCTNet, net: PCTNet, x: Tensor) -> tuple[Callable[[], None], float]:
    """A function that runs the convolutions of `net` on random inputs, and their number of operations.

    The plain form calls them one by one, so that their inputs' shapes can be noted.
    """
    names = {module: name for name, module in plain.named_modules()}
    calls: list[tuple[nn.Module, Tensor]] = []
    operations = 0.0

    def note(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal operations
        # One buffer for all inputs of a shape: that of the network is in the cache no more than this one.
        shapes = {tuple(seen.shape): seen for _, seen in calls}
        shape = tuple(inputs[0].shape)
        if shape not in shapes:
            shapes[shape] = torch.randn(shape).contiguous(memory_format=torch.channels_last_3d)
        calls.append((net.get_submodule(names[module]), shapes[shape]))
        kernels_at = inputs[0] if isinstance(module, nn.ConvTranspose3d) else output
        operations += 2.0 * module.weight.numel() * kernels_at[:, 0].numel()

    with _hooks(plain, (nn.Conv3d, nn.ConvTranspose3d), note), torch.no_grad():
        plain(x)

    def run() -> None:
        for module, tensor in calls:
            module(tensor)

    return run, operations


def in_turns(sides: dict[str, Callable[[], Any]], args: argparse.Namespace) -> dict[str, float]:
    """Median seconds of each side; one turn before the first that counts."""
    clock = time.process_time if args.cpu_time else time.perf_counter
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(args.repeats + 1):
        for name, run in sides.items():
            start = clock()
            run()
            if turn:
                seconds[name].append(clock() - start)
    return {name: statistics.median(times) for name, times in seconds.items()}


def _time_and_peak(step: Callable[[], None], repeats: int) -> tuple[float, float]:
    for _ in range(3):
        step()
    torch.cuda.reset_peak_memory_stats()
    times = []
    for _ in range(repeats):
        torch.cuda.synchronize()
        start = time.perf_counter()
        step()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return 1000 * statistics.median(times), torch.cuda.max_memory_allocated() / 2**30


@contextmanager
def _hooks(net: nn.Module, kinds: tuple[type, ...], hook: Callable) -> Iterator[None]:
    handles = [module.register_forward_hook(hook) for module in net.modules() if isinstance(module, kinds)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _same_weights(params: dict[str, Any], ways: dict[str, dict[str, Any]]) -> dict[str, PCTNet]:
    """The plain form, and a PCTNet for each way to run it."""
    nets = {"plain": PlainPCTNet(params)}
    for name, way in ways.items():
        nets[name] = PCTNet(params)
        nets[name].load_state_dict(nets["plain"].state_dict())
        run_as(nets[name], way)
    return nets


def _rows(seconds: dict[str, float]) -> None:
    for name, value in seconds.items():
        print(f"  {name:26s}{value:8.3f} s{seconds['plain'] / value:6.2f}x", flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--size", type=int, nargs=3)
    parser.add_argument("--quickstart", action="store_true")
    parser.add_argument("--batch", type=int)
    parser.add_argument("--no-train", dest="train", action="store_false")
    parser.add_argument("--cpu-time", action="store_true")
    args = parser.parse_args()
    args.quickstart = args.quickstart or args.size == QUICKSTART_SIZE
    args.size = args.size or (QUICKSTART_SIZE if args.quickstart else [64, 128, 128])
    args.batch = args.batch or (2 if args.quickstart else 1)
    return args


if __name__ == "__main__":
    main()
