"""Memory for results that live only until the next operation has read them.

Fresh memory costs a CPU several times what the arithmetic does: the system hands it out page by page, zeroed. Results
that nobody keeps are therefore all written into one buffer, piece by piece as they fit the cache.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

PIECE = 2**20  # elements worked on at a time

_current = threading.local()  # replicas and other networks run in threads of their own


class Scratch:
    """A buffer that grows to the largest volume asked for; each volume overwrites the one before."""

    def __init__(self) -> None:
        self._buffer: Tensor | None = None

    def take(self, like: Tensor, chns: int) -> Tensor:
        """[N, chns, D, H, W], channels-last, of the batch, size and type of `like` [N, C, D, H, W]."""
        batch, _, *size = like.shape
        needed = like.numel() // like.shape[1] * chns * like.element_size()
        if self._buffer is None or self._buffer.numel() < needed:
            self._buffer = None  # before the larger one is made
            self._buffer = torch.empty(needed, dtype=torch.uint8)
        return self._buffer[:needed].view(like.dtype).view(batch, *size, chns).permute(0, 4, 1, 2, 3)

    def release(self) -> None:
        """Give the memory back; it is taken again when it is needed."""
        self._buffer = None


@contextmanager
def scratch_memory() -> Iterator[None]:
    """Within it, in this thread, operations share one scratch."""
    outer, _current.scratch = getattr(_current, "scratch", None), Scratch()
    try:
        yield
    finally:
        _current.scratch.release()
        _current.scratch = outer


def shared_scratch() -> Scratch | None:
    """The scratch of this thread, inside of :func:`scratch_memory`."""
    return getattr(_current, "scratch", None)


def pieces(x: Tensor) -> list[Tensor]:
    """[1, C, d, H, W] slabs of [N, C, D, H, W] that fit the cache, and memory that the process already has."""
    depth = max(1, PIECE // x[0, :, 0].numel())
    return [slab for sample in x.split(1) for slab in sample.split(depth, dim=2)]
