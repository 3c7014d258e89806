"""One training spread over several processes, as `torchrun` starts them: on one machine or on several.

Rank zero checks, writes, validates and logs. What it finds out and what it learns of the others goes through the
key-value store of the start, in which a process may wait for as long as it takes; only the gradients, batch statistics
and sums of losses go through collectives.
"""

from __future__ import annotations

import logging
import os
import pickle
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from pymic_vf.errors import UserError

log = logging.getLogger(__name__)
ENVIRONMENT = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # what torchrun tells each process
# Where a process dies, torchrun ends the others: they need not give up waiting themselves.
PATIENCE = timedelta(days=1)
COLLECTIVE_PATIENCE = timedelta(hours=1)  # the slowest process may be decoding scans from a slow disk


def process_count() -> int:
    """How many processes this training was started with."""
    return int(os.environ["WORLD_SIZE"]) if all(name in os.environ for name in ENVIRONMENT) else 1


def is_other_rank() -> bool:
    """Whether this is another process than rank zero."""
    return process_count() > 1 and int(os.environ["RANK"]) > 0


@dataclass
class Processes:
    """The processes of a training, seen from one of them.

    Args:
        rank: the number of this one.
        count: how many there are.
        store: what they exchange; None where there is one.
    """

    rank: int = 0
    count: int = 1
    store: dist.Store | None = None
    _messages: int = field(default=0, init=False)  # equal in all of them, as all go through the same calls

    @classmethod
    def from_environment(cls) -> Processes:
        """The processes that the environment names; returns when all of them are there."""
        if process_count() == 1:
            return cls()
        store, rank, count = next(dist.rendezvous("env://", timeout=PATIENCE))
        return cls(rank, count, store)

    @property
    def is_rank_zero(self) -> bool:
        """Whether this is the one that checks, writes, validates and logs."""
        return self.rank == 0

    def device_number(self, gpus: Sequence[int]) -> int:
        """The CUDA device of this process: its number on its machine, or that entry of a list of several.

        Raises:
            UserError: the list is too short.
        """
        local_rank = int(os.environ.get("LOCAL_RANK", self.rank))
        if len(gpus) == 1:
            return local_rank
        if local_rank >= len(gpus):
            raise UserError(
                f"gpus = {list(gpus)}: process {local_rank} of this machine has no device; "
                "list as many as processes are started on it, or only [0] to number them"
            )
        return gpus[local_rank]

    def from_rank_zero(self, work: Callable[[], Any]) -> Any:
        """What `work` returns in rank zero; the others wait for it. It must be picklable."""
        if self.count == 1:
            return work()
        key = self._next_key()
        if self.is_rank_zero:
            result = work()
            self.store.set(key, pickle.dumps(result))
            return result
        return self._read(key)

    @contextmanager
    def rank_zero_first(self) -> Iterator[None]:
        """Run the block in rank zero, then in the others: a mistake that all would find is reported once."""
        if not self.is_rank_zero:
            self.from_rank_zero(lambda: None)
        yield
        if self.is_rank_zero:
            self.from_rank_zero(lambda: None)

    def gather(self, value: Any) -> list[Any]:
        """In rank zero, the values of all processes by rank; in the others, their own alone."""
        if self.count == 1:
            return [value]
        key = self._next_key()
        if not self.is_rank_zero:
            self.store.set(f"{key}/{self.rank}", pickle.dumps(value))
            return [value]
        return [value, *(self._read(f"{key}/{rank}") for rank in range(1, self.count))]

    def connect(self, device: torch.device) -> None:
        """Make collectives possible: NCCL between CUDA devices, otherwise Gloo."""
        if self.count == 1:
            return
        if device.type == "cuda":
            torch.cuda.set_device(device)
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(
            backend, store=self.store, rank=self.rank, world_size=self.count, timeout=COLLECTIVE_PATIENCE
        )
        log.info("%d processes train one network (%s)", self.count, backend)

    def disconnect(self) -> None:
        """The end of a training that went well."""
        if dist.is_initialized():
            dist.destroy_process_group()

    def _next_key(self) -> str:
        self._messages += 1
        return f"pymic_vf/{self._messages}"

    def _read(self, key: str) -> Any:
        self.store.wait([key], PATIENCE)
        return pickle.loads(self.store.get(key))
