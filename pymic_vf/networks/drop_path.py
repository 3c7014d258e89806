"""Stochastic depth (Huang et al. 2016), of Swin Transformer's blocks."""

from __future__ import annotations

import torch.distributed as dist
from torch import Tensor, nn


class DropPath(nn.Module):
    """While training, each sample of a batch becomes zero with probability `rate`; the others make up for it.

    Where processes share a batch, each draws for all of it and takes the draws of its own samples: seeded alike, they
    drop what one process would drop.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """[N, ...] to the same."""
        if not self.training:
            return x
        batch, (rank, processes) = len(x), _rank_and_processes()
        kept = x.new_empty(processes * batch, *[1] * (x.dim() - 1)).bernoulli_(1 - self.rate)
        return x * (kept[rank * batch :][:batch] / (1 - self.rate))


def _rank_and_processes() -> tuple[int, int]:
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1
