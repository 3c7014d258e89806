"""The loader of a whole run: one endless stream of samples, workers that live as long as the run."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from pymic_vf.data.outbox import PREFETCH, Outbox, stacked
from pymic_vf.data.sub_volumes import FusedSamples
from pymic_vf.data.workers import outlive_workers, set_up_worker
from pymic_vf.errors import UserError

Batch = dict[str, Any]


class SampleNumbers(Sampler):
    """The numbers of the stream from `start` on, without end; or `count` of them.

    Args:
        start: the first.
        count: None for a stream without end.
        part: (i, n, k) for the samples of process i of n that make k samples each of every batch of n * k.

    `skip` of them are left out at the beginning of the next iteration.
    """

    def __init__(self, start: int = 0, count: int | None = None, part: tuple[int, int, int] = (0, 1, 1)) -> None:
        self.start, self.count, self.part, self.skip = start, count, part, 0

    def __iter__(self) -> Iterator[int]:
        process, processes, share = self.part
        numbers = itertools.count(self.start) if self.count is None else range(self.start, self.start + self.count)
        own = (number for number in numbers if (number - self.start) // share % processes == process)
        return itertools.islice(own, self.skip, None)


class FusionLoader:
    """Batches as PyMIC's agents expect them: a dict of ``image`` and ``label_prob``, [B, C, D, H, W] float32.

    Args:
        samples: by sample number; those that have a ``label`` and no ``label_prob`` get it here.
        numbers: which samples, in order; `numbers.start` may be changed until iteration begins.
        batch_size: samples a batch.
        workers: processes; 0 makes the samples in this one.
        classes: how many ``label_prob`` has.

    Set `device` before the iteration, and the batches lie there: copied while the network computes, since PyMIC's own
    copy waits. Labels travel as they are, one byte a voxel, and become one-hot there.
    """

    def __init__(
        self, samples: FusedSamples, numbers: SampleNumbers, batch_size: int, workers: int, classes: int
    ) -> None:
        self.samples, self.numbers, self.classes = samples, numbers, classes
        self.device = torch.device("cpu")
        self._loader = DataLoader(
            _Guarded(samples),
            batch_size=batch_size,
            sampler=numbers,
            num_workers=workers,
            collate_fn=_Collation(),
            prefetch_factor=PREFETCH if workers else None,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=set_up_worker,
            generator=torch.Generator(),  # the workers' seeds, which nothing depends on, are not the training's draws
            persistent_workers=workers > 0,
        )

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        for batch in outlive_workers(self._batches_from, self.close):
            if isinstance(batch, UserError):
                raise batch
            if bad := batch.pop("set_aside", None):
                self.samples.set_aside.tell(bad)
            yield self._complete({key: self._taken(value) for key, value in batch.items()})

    def _taken(self, value: torch.Tensor) -> torch.Tensor:
        # a worker uses its shared memory again; pinned memory is a copy already
        value = value.clone() if value.is_shared() else value
        return value.to(self.device, non_blocking=True)

    def _batches_from(self, done: int) -> Iterator[Batch | UserError]:
        self.numbers.skip = done * self._loader.batch_size
        return iter(self._loader)

    def close(self) -> None:
        """End the workers; a further iteration starts new ones."""
        if self._loader._iterator is not None:
            self._loader._iterator._shutdown_workers()
            self._loader._iterator = None

    def _complete(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        if "label" in batch:
            batch["label_prob"] = one_hot(batch.pop("label"), self.classes)
        return batch


def one_hot(label: torch.Tensor, classes: int) -> torch.Tensor:
    """float32 [B, classes, D, H, W] of a label [B, 1, D, H, W], as PyMIC's LabelToProbability makes it."""
    probability = torch.empty((label.shape[0], classes, *label.shape[2:]), dtype=torch.float32, device=label.device)
    for k in range(classes):
        torch.eq(label[:, 0], k, out=probability[:, k])  # without a volume of bool in between
    return probability


class _Guarded(Dataset):
    """Hands a user's mistake on as a value: raised in a worker, torch would bury it in the worker's traceback."""

    def __init__(self, samples: Dataset) -> None:
        self.samples = samples

    def __getitem__(self, number: int) -> Batch | UserError:
        try:
            return self.samples[number]
        except UserError as error:
            return error


class _Collation:
    """Samples into a batch; in a worker in the memory of its own outbox."""

    def __init__(self) -> None:
        self.outbox = Outbox()

    def __call__(self, samples: list[Batch | UserError]) -> Batch | UserError:
        errors = [sample for sample in samples if isinstance(sample, UserError)]
        if errors:
            return errors[0]
        keys = ("image", "label_prob" if "label_prob" in samples[0] else "label")
        tensors = [{key: torch.as_tensor(sample[key]) for key in keys} for sample in samples]
        try:
            batch = stacked(tensors) if get_worker_info() is None else self.outbox.stack(tensors)
        except RuntimeError as error:
            if "shared memory" not in str(error):
                raise
            return UserError(
                "the shared memory of this machine (/dev/shm; in a container docker's --shm-size) has no room for the "
                f"batches of {get_worker_info().num_workers} workers; fewer of them ([dataset] num_worker) need less "
                f"({error})"
            )
        bad = {index: reason for sample in samples for index, reason in sample.get("set_aside", {}).items()}
        return {**batch, "set_aside": bad} if bad else batch
