"""How a network is run, not what it computes: precision, compilation, recomputed activations.

For every 3D network that PyMIC builds. Only the `forward` of the network object, and of its blocks, is wrapped: the
names in the state dict stay as they are.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pymic_vf.keys import Key, Section, flag, one_of

log = logging.getLogger(__name__)

EXECUTION_KEYS = (
    Key(
        "precision",
        one_of("fp32", "bf16"),
        "`bf16`: automatic mixed precision inside the network; its outputs stay float32",
        "fp32",
    ),
    Key(
        "compile",
        flag(),
        "`torch.compile` for sizes that come again; where it cannot compile, a line says so",
        False,
    ),
    Key("activation_checkpointing", flag(), "activations are computed again instead of kept: less memory", False),
)
FEWEST_BLOCKS = 4  # recomputing fewer, such as an encoder and a decoder, would save little
MOST_SHAPES = 3  # to compile: torch gives up on a function after 8, with a wall of text

Forward = Callable[..., Any]


def read_execution(network: Section, gpus: Any) -> dict[str, Any]:
    """The values of `EXECUTION_KEYS`; every mistake is noted in the section.

    Args:
        network: the section [network].
        gpus: the value of the key `gpus`: the CUDA devices that one process uses.
    """
    values = network.read(EXECUTION_KEYS)
    if isinstance(gpus, (list, tuple)) and len(gpus) > 1:
        for key in EXECUTION_KEYS:
            if values[key.name] != key.default:
                network.wrong(key.name, "needs one GPU a process, such as gpus = [0] (several GPUs: torchrun)")
    return values


def configure_execution(net: nn.Module, precision: str, compile: bool, activation_checkpointing: bool) -> None:
    """Let calls of `net` be run as the three keys say; a network that was configured before stays as it is.

    Copies by `copy.deepcopy` are run in the same way. `nn.DataParallel` cannot copy such a network.

    Args:
        net: any network whose first input is a tensor [N, C, D, H, W]; one that prepares its input by code that cannot
            be compiled names the method that can be in its attribute `compiled_method`.
        precision: "fp32", or "bf16" for automatic mixed precision with float32 outputs.
        compile: compile the network for input sizes that come again.
        activation_checkpointing: in the backward pass, compute the activations of each block again.
    """
    if hasattr(net, "execution"):
        return
    net.execution = (precision, compile, activation_checkpointing)
    if activation_checkpointing:
        for block in _blocks(net):
            block.forward = partial(_recomputed, block.forward)
    if compile:
        name = getattr(net, "compiled_method", "forward")
        setattr(net, name, CompiledMethod(getattr(net, name)))
    if precision == "bf16":
        for module in net.modules():
            if isinstance(module, nn.Conv3d):
                module.forward = partial(_without_fault_of_bf16, module.forward)
        net.forward = partial(_in_bf16, net.forward)


# Precision


def _in_bf16(forward: Forward, x: Tensor, *inputs: Any) -> Any:
    if x.device.type == "cuda" and not _cuda_has_bf16():
        return forward(x, *inputs)
    with torch.autocast(x.device.type, torch.bfloat16):
        return _as_float32(forward(x, *inputs))


@cache
def _cuda_has_bf16() -> bool:
    there = torch.cuda.is_bf16_supported(including_emulation=False)
    if not there:
        log.warning("[network] precision = bf16: this CUDA device has no bfloat16; float32 is used instead")
    return there


def _as_float32(outputs: Any) -> Any:
    if isinstance(outputs, (list, tuple)):
        return type(outputs)(_as_float32(output) for output in outputs)
    return outputs.float() if outputs.dtype == torch.bfloat16 else outputs


def _without_fault_of_bf16(forward: Forward, x: Tensor) -> Tensor:
    """A convolution by oneDNN, on a CPU, whose weight gradient in bfloat16 is wrong where a volume has fewer slices
    than the kernel (seen in torch 2.14: it reads memory that nobody has written). Such a volume is small."""
    kernel_depth = forward.__self__.kernel_size[0]
    if x.device.type == "cpu" and 1 < x.shape[2] < kernel_depth:
        with torch.autocast("cpu", enabled=False):
            return forward(x.float())
    return forward(x)


# Recomputed activations


def _blocks(net: nn.Module) -> list[nn.Module]:
    """The modules to recompute one by one: the outermost level of the network at which there are several."""
    blocks = [net]
    while len(blocks) < FEWEST_BLOCKS:
        inner = [block for outer in blocks for block in (_modules_in(outer) or [outer])]
        if inner == blocks:
            break
        blocks = inner
    return blocks


def _modules_in(outer: nn.Module) -> list[nn.Module]:
    """The modules right inside of another; no single layers, whose recomputation would save nothing."""
    modules = []
    for module in outer.children():
        if isinstance(module, (nn.ModuleList, nn.ModuleDict)):  # never called themselves
            modules += _modules_in(module)
        elif next(module.children(), None) is not None:
            modules.append(module)
    return modules


def _recomputed(forward: Forward, *inputs: Any, **named: Any) -> Any:
    """forward(...), whose activations are computed again in the backward pass instead of being kept.

    Dropout repeats its draws, and the running statistics of a normalisation count the batch once.
    """
    if not torch.is_grad_enabled():
        return forward(*inputs, **named)
    if torch.compiler.is_compiling():  # the compiled backward pass has no side effects to take care of
        return checkpoint(forward, *inputs, use_reentrant=False, **named)
    contexts = partial(_contexts, forward.__self__)
    return checkpoint(forward, *inputs, use_reentrant=False, context_fn=contexts, **named)


def _contexts(block: nn.Module) -> tuple[AbstractContextManager, AbstractContextManager]:
    """Those of the forward pass and of the recomputation."""
    return nullcontext(), _running_statistics_untouched(block)


@contextmanager
def _running_statistics_untouched(block: nn.Module) -> Iterator[None]:
    kept = [
        (module, name, buffer)
        for module in block.modules()
        if module.training and hasattr(module, "running_mean")
        for name, buffer in module.named_buffers(recurse=False)
    ]
    for module, name, buffer in kept:
        setattr(module, name, buffer.clone())
    try:
        yield
    finally:
        for module, name, buffer in kept:
            setattr(module, name, buffer)


# Compilation


class CompiledMethod:
    """A method of a network, compiled for the shapes of its first input that come again, at most `MOST_SHAPES`.

    Compiling takes minutes: a size that comes once, such as that of a whole scan, runs uncompiled. So does everything,
    after one line in the log, where nothing can be compiled. Copies and pickles compile anew.
    """

    def __init__(self, method: Forward) -> None:
        self.method = method
        self._forget()

    def _forget(self) -> None:
        self._compiled: Forward | None = None
        self._seen: set[tuple] = set()
        self._compiled_for: set[tuple] = set()
        self._left = MOST_SHAPES

    def __call__(self, x: Tensor, *inputs: Any) -> Any:
        shape = (x.shape, x.device, self.method.__self__.training, torch.is_grad_enabled())
        if shape in self._compiled_for:
            return self._compiled(x, *inputs)
        if shape in self._seen and self._left > 0:
            return self._compile(shape, x, *inputs)
        self._seen.add(shape)
        return self.method(x, *inputs)

    def _compile(self, shape: tuple, x: Tensor, *inputs: Any) -> Any:
        log.info("[network] compile = True: compiling for an input of %s, which takes minutes", list(x.shape))
        try:
            self._compiled = self._compiled or torch.compile(self.method, dynamic=False)
            outputs = self._compiled(x, *inputs)
        except Exception as error:
            outputs = self.method(x, *inputs)  # raises again what was no fault of the compiler
            self._left = 0
            reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
            log.warning("[network] compile = True: not possible here, the network runs uncompiled (%s)", reason)
            return outputs
        self._compiled_for.add(shape)
        self._left -= 1
        return outputs

    def __getstate__(self) -> dict[str, Any]:
        return {"method": self.method}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.method = state["method"]
        self._forget()
