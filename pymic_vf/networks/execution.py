"""How a network is run, not what it computes: precision, recomputation of activations, memory."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import lru_cache, partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from pymic_vf.networks.settings import PCTNetSettings

log = logging.getLogger(__name__)

MOST_SHAPES = 3  # of training and of inference each: torch gives up on a function after 8, with a wall of text
RAN_OUT = "Memory ran out."
CPU_ALLOCATOR = "DefaultCPUAllocator: can't allocate memory"


@lru_cache
def has_bf16(device_type: str) -> bool:
    """Whether devices of this type compute in bfloat16 themselves; says so once where they do not."""
    if device_type == "cuda":
        there = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        there = device_type == "cpu" and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    if not there:
        log.warning("[network] precision = bf16: this %s has no bfloat16; float32 is used instead", device_type)
    return there


@lru_cache
def warn_of_slow_convolution(version: str) -> None:
    """torch 2.9 runs 3D convolutions under autocast about four times slower than 2.8 and 2.10 do."""
    if version.startswith("2.9."):
        log.warning(
            "[network] precision = bf16: torch %s runs 3D convolutions under autocast about four times slower than "
            "other versions do; install another one, or use precision = fp32",
            version,
        )


def autocast(precision: str, device: torch.device) -> AbstractContextManager:
    """Automatic mixed precision where `precision` is "bf16" and the device has it; otherwise nothing."""
    if precision == "bf16" and has_bf16(device.type):
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return nullcontext()


def recomputed(module: nn.Module, *inputs: Any) -> Tensor:
    """module(*inputs), whose activations are computed again in the backward pass instead of being kept.

    Dropout repeats its draws, and batch normalisation counts the batch once.
    """
    if torch.compiler.is_compiling():  # the compiled backward pass has no side effects to take care of
        return checkpoint(module, *inputs, use_reentrant=False)
    return checkpoint(module, *inputs, use_reentrant=False, context_fn=partial(_contexts, module))


def _contexts(module: nn.Module) -> tuple[AbstractContextManager, AbstractContextManager]:
    return nullcontext(), _running_statistics_untouched(module)


@contextmanager
def _running_statistics_untouched(module: nn.Module) -> Iterator[None]:
    norms = [m for m in module.modules() if isinstance(m, _BatchNorm) and m.training]
    kept = [(norm, dict(norm._buffers)) for norm in norms]
    for norm, buffers in kept:
        norm._buffers.update({name: value if value is None else value.clone() for name, value in buffers.items()})
    try:
        yield
    finally:
        for norm, buffers in kept:
            norm._buffers.update(buffers)


class Compiled:
    """A function of a network and tensors, compiled for the shapes of its second argument that come again and again.

    These are the crops of a training, compiled at once, and in inference windows that come a second time; of each at
    most `MOST_SHAPES`. A size that comes once runs uncompiled, as do whole scans of many sizes, since compiling takes
    minutes. So does everything, after one line in the log, where nothing can be compiled. Copies and pickles compile
    anew.
    """

    def __init__(self, function: Callable) -> None:
        self.function = function
        self._compiled: Callable | None = None
        self._kinds: dict[bool, dict[tuple, bool]] = {True: {}, False: {}}  # of training or not: whether compiled

    def __call__(self, network: nn.Module, x: Tensor, *args: Any) -> Any:
        if not self._is_for(network, x):
            return self.function(network, x, *args)
        if self._compiled is None:
            self._compiled = self._compile()
        try:
            return self._compiled(network, x, *args)
        except _compiler_errors() as error:
            self._compiled = self._give_up(error)
        return self.function(network, x, *args)

    def _is_for(self, network: nn.Module, x: Tensor) -> bool:
        learns = network.training and torch.is_grad_enabled()
        kinds, kind = self._kinds[learns], (x.shape, x.device, network.training, torch.is_grad_enabled())
        if kinds.get(kind):
            return True
        if sum(kinds.values()) == MOST_SHAPES:
            return False
        kinds[kind] = learns or kind in kinds
        if kinds[kind] and self._compiled != self.function:
            log.info("[network] compile = True: compiling for an input of %s, which takes minutes", list(x.shape))
        return kinds[kind]

    def _compile(self) -> Callable:
        # Where a part cannot be compiled, nothing of it has been run in vain; but the collectives of a batch that
        # processes share may be worth a break.
        whole = not (dist.is_available() and dist.is_initialized())
        try:
            return torch.compile(self.function, dynamic=False, fullgraph=whole)
        except RuntimeError as error:  # a Python or a system that torch.compile does not support
            return self._give_up(error)

    def _give_up(self, error: Exception) -> Callable:
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        log.warning("[network] compile = True: not possible here, the network runs uncompiled (%s)", reason)
        return self.function

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_compiled": None}


def _compiler_errors() -> tuple[type[Exception], ...]:
    from torch._dynamo import exc  # which torch itself does not load

    return exc.TorchDynamoException, getattr(exc, "FailOnRecompileLimitHit", exc.TorchDynamoException)


def with_memory_advice(error: Exception, s: PCTNetSettings, batch: int, learns: bool) -> torch.OutOfMemoryError | None:
    """An error that says what to change, or None where `error` is no lack of memory.

    On a CPU torch says it by a RuntimeError of its allocator.

    Args:
        error: what was raised.
        s: of the network that ran.
        batch: how many crops or windows it was given.
        learns: whether for a training.
    """
    lacking = isinstance(error, torch.OutOfMemoryError)
    lacking = lacking or (isinstance(error, RuntimeError) and CPU_ALLOCATOR in str(error))
    if not lacking:
        return None
    if str(error).startswith(RAN_OUT):  # it says so already
        return torch.OutOfMemoryError(str(error))
    advice = training_memory_advice(s, batch) if learns else inference_memory_advice(s, batch)
    return torch.OutOfMemoryError(f"{RAN_OUT} {advice} {error}")


def training_memory_advice(s: PCTNetSettings, batch: int) -> str:
    """What to change in a training, with how much each change saves of what the backward pass needs kept.

    The shares are those of torch's operations one by one, as on CUDA; a CPU keeps less from the start in float32. A
    batch and a crop count in proportion.
    """
    ways = []
    if s.precision != "bf16":
        ways.append("[network] precision = bf16 saves about 35 %")
    if not s.activation_checkpointing:
        ways.append("[network] activation_checkpointing = True about 85 %, but a step takes about a third longer")
    if batch > 1:
        ways.append(f"{_half_of(batch)} (train_batch_size)")
    ways.append("half the crop in one axis about 50 %")
    return f"Of what is kept for the backward pass, {'; '.join(ways)}."


def inference_memory_advice(s: PCTNetSettings, batch: int) -> str:
    """What to change in an inference, whose memory goes with the voxels of a call."""
    ways = [f"{_half_of(batch)} (sliding_window_batch)"] if batch > 1 else []
    ways.append("[testing] sliding_window_enable = True with a sliding_window_size of half a side about 50 %")
    if s.precision != "bf16":
        ways.append("[network] precision = bf16 makes most of it half as large")
    return f"Of what a call of the network takes, {'; '.join(ways)}."


def _half_of(batch: int) -> str:
    return f"a batch of {batch // 2} instead of {batch} about {100 * (batch - batch // 2) // batch} %"
