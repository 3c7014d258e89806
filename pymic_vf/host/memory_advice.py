"""What to change in a config when memory runs out, instead of torch's traceback alone.

The shares are those that benchmarks/network_step.py printed for PCT-Net on a CPU. A batch and a crop count in
proportion.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from pymic_vf.host.execution import EXECUTION_KEYS
from pymic_vf.networks import network_of

CPU_ALLOCATOR = "DefaultCPUAllocator: can't allocate memory"

Config = Mapping[str, Mapping[str, Any]]


def is_advised(config: Config) -> bool:
    """Whether the network is one of ours, or is run as one of our keys says."""
    network = config.get("network", {})
    return network_of(network) is not None or any(key.name in network for key in EXECUTION_KEYS)


def is_lack_of_memory(error: Exception) -> bool:
    """On a CPU torch says it by a RuntimeError of its allocator."""
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and CPU_ALLOCATOR in str(error)
    )


def memory_advice(config: Config, learns: bool) -> str:
    """What to change in PyMIC's parsed config, with how much each change saves.

    Args:
        config: of the run whose memory ran out.
        learns: whether in a training step.
    """
    return _training_advice(config) if learns else _inference_advice(config)


def _training_advice(config: Config) -> str:
    network, batch = config.get("network", {}), config.get("dataset", {}).get("train_batch_size", 1)
    ways = []
    if network.get("precision") != "bf16":
        ways.append("[network] precision = bf16 saves about 25 %")
    if not network.get("activation_checkpointing"):
        ways.append("[network] activation_checkpointing = True about 90 %, but a step takes about 1.4 times as long")
    if batch > 1:
        ways.append(f"{_half_of(batch)} (train_batch_size)")
    ways.append("half the crop in one axis about 50 %")
    return f"Memory ran out. Of what is kept for the backward pass, {'; '.join(ways)}."


def _inference_advice(config: Config) -> str:
    network, batch = config.get("network", {}), config.get("testing", {}).get("sliding_window_batch", 1)
    ways = [f"{_half_of(batch)} (sliding_window_batch)"] if batch > 1 else []
    ways.append("[testing] sliding_window_enable = True with a sliding_window_size of half a side about 50 %")
    if network.get("precision") != "bf16":
        ways.append("[network] precision = bf16 makes most of it half as large")
    return f"Memory ran out. Of what a call of the network takes, {'; '.join(ways)}."


def _half_of(batch: int) -> str:
    return f"a batch of {batch // 2} instead of {batch} about {100 * (batch - batch // 2) // batch} %"
