"""The loader of a whole run: one endless stream of samples, workers that live as long as the run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from pymic_vf.errors import UserError

BATCH_KEYS = ("image", "label_prob")


class SampleNumbers(Sampler):
    """The numbers of the stream from `start` on, without end; or `count` of them."""

    def __init__(self, start: int = 0, count: int | None = None) -> None:
        self.start, self.count = start, count

    def __iter__(self) -> Iterator[int]:
        number = self.start
        while self.count is None or number < self.start + self.count:
            yield number
            number += 1


class FusionLoader:
    """Batches as PyMIC's agents expect them: a dict of ``image`` and ``label_prob``, [B, C, D, H, W] float32.

    Args:
        samples: a dataset by sample number.
        numbers: which samples, in order; `numbers.start` may be changed until iteration begins.
        batch_size: samples a batch.
        workers: processes; 0 makes the samples in this one.
    """

    def __init__(self, samples: Dataset, numbers: SampleNumbers, batch_size: int, workers: int) -> None:
        self.numbers = numbers
        self._loader = DataLoader(
            _Guarded(samples),
            batch_size=batch_size,
            sampler=numbers,
            num_workers=workers,
            collate_fn=_collate,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=_one_thread,
            persistent_workers=workers > 0,
        )

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        for batch in self._loader:
            if isinstance(batch, UserError):
                raise batch
            yield batch


class _Guarded(Dataset):
    """Hands a user's mistake on as a value: raised in a worker, torch would bury it in the worker's traceback."""

    def __init__(self, samples: Dataset) -> None:
        self.samples = samples

    def __getitem__(self, number: int) -> dict[str, Any] | UserError:
        try:
            return self.samples[number]
        except UserError as error:
            return error


def _collate(samples: list) -> dict[str, torch.Tensor] | UserError:
    errors = [sample for sample in samples if isinstance(sample, UserError)]
    if errors:
        return errors[0]
    return default_collate([{key: sample[key] for key in BATCH_KEYS} for sample in samples])


def _one_thread(_worker: int) -> None:
    """A worker's share is one core: numpy's and ITK's own threads would only fight with the other workers'."""
    import SimpleITK as sitk

    torch.set_num_threads(1)
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
