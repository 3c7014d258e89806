"""How a worker hands batches on: in shared memory that it uses again.

torch's own collation takes new shared memory for each batch, which the system hands out page by page, zeroed: more than
half of what a sample costs beyond making it, with some thousands of page faults a batch in the worker and as many in
the training process.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

PREFETCH = 2  # batches that a worker makes ahead
# one that the training process is copying, and those that it has not asked for yet
SLOTS = PREFETCH + 1


class Outbox:
    """Stacks samples into batches, each in one of a few places in turn.

    What :meth:`stack` returns is to be copied before this worker's next batch is asked for. Made before the workers are
    forked, it is another one in each.
    """

    def __init__(self) -> None:
        self._slots: list[dict[str, Tensor]] = []
        self._turn = itertools.count()

    def stack(self, samples: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """A batch of samples that have the same keys, shapes and types."""
        if not self._slots:
            self._slots = [_shared(samples) for _ in range(SLOTS)]
        slot = self._slots[next(self._turn) % SLOTS]
        if not _fits(slot, samples):  # the last batch of a finite stream
            return stacked(samples)
        for key, batch in slot.items():
            torch.stack([sample[key] for sample in samples], out=batch)
        return slot


def stacked(samples: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """A batch in memory of its own."""
    return {key: torch.stack([sample[key] for sample in samples]) for key in samples[0]}


def _shared(samples: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    return {
        key: torch.empty((len(samples), *first.shape), dtype=first.dtype).share_memory_()
        for key, first in samples[0].items()
    }


def _fits(slot: Mapping[str, Tensor], samples: Sequence[Mapping[str, Tensor]]) -> bool:
    return slot.keys() == samples[0].keys() and all(
        len(samples) == len(batch) and batch.shape[1:] == sample[key].shape and batch.dtype == sample[key].dtype
        for key, batch in slot.items()
        for sample in samples
    )
