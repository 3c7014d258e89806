"""The loader of a whole run: one endless stream of samples, workers that live as long as the run."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from pymic_vf.data.samples import Samples
from pymic_vf.data.workers import killed_workers_explained, set_up_worker
from pymic_vf.errors import UserError

Batch = dict[str, Any]
TENSORS = ("image", "label", "label_prob", "pixel_weight")  # of a sample; what else it has stays in the worker


class SampleNumbers(Sampler):
    """The numbers of the stream from `start` on, without end; or `count` of them.

    Args:
        start: the first.
        count: None for a stream without end.
        share: (i, n, k) for the samples of process i of n that make k samples each of every batch of n * k.
    """

    def __init__(self, start: int = 0, count: int | None = None, share: tuple[int, int, int] = (0, 1, 1)) -> None:
        self.start, self.count, self.share = start, count, share

    def __iter__(self) -> Iterator[int]:
        process, processes, size = self.share
        numbers = itertools.count(self.start) if self.count is None else range(self.start, self.start + self.count)
        return (number for number in numbers if (number - self.start) // size % processes == process)

    def of_batch(self, index: int) -> list[int]:
        """The numbers of this process's batch `index`, counted from the first."""
        process, processes, size = self.share
        first = self.start + (index * processes + process) * size
        return list(range(first, first + size))


class SampleLoader:
    """Batches as PyMIC's agents expect them: a dict of tensors [B, C, D, H, W].

    ``image`` and, for a segmentation, ``label_prob``; for a reconstruction ``label`` and, where the method weights
    voxels, ``pixel_weight``; all float32.

    Args:
        samples: by sample number.
        numbers: which samples, in order; `numbers.start` may be changed until iteration begins.
        batch_size: samples a batch.
        workers: processes; 0 makes the samples in this one.
        classes: channels of ``label_prob``; None for a reconstruction.

    Set `device` before the iteration, and the batches lie there: copied while the network computes, since PyMIC's own
    copy waits. Labels of classes travel as they are, one byte a voxel, and become one-hot there.
    """

    def __init__(
        self, samples: Samples, numbers: SampleNumbers, batch_size: int, workers: int, classes: int | None
    ) -> None:
        self.samples, self.numbers, self.classes = samples, numbers, classes
        self.device = torch.device("cpu")
        self._loader = DataLoader(
            _ErrorsAsValues(samples),
            batch_size=batch_size,
            sampler=numbers,
            num_workers=workers,
            collate_fn=_batch,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=set_up_worker,
            generator=torch.Generator(),  # the workers' seeds, which nothing depends on, are not the training's draws
            persistent_workers=workers > 0,
        )

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        with killed_workers_explained():
            for batch in self._loader:
                if isinstance(batch, UserError):
                    raise batch
                if bad := batch.pop("bad_scans", None):
                    self.samples.bad_scans.report(bad)
                yield self._complete({key: value.to(self.device, non_blocking=True) for key, value in batch.items()})

    def names_of_batch(self, index: int) -> list[str]:
        """What the samples of batch `index` are made of, a text each."""
        describe = getattr(self.samples, "describe", lambda _number: "")
        return [f"sample {number}: {describe(number)}".rstrip(": ") for number in self.numbers.of_batch(index)]

    def _complete(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        if self.classes is not None and "label" in batch:
            batch["label_prob"] = one_hot(batch.pop("label"), self.classes)
        return batch


def one_hot(label: Tensor, classes: int) -> Tensor:
    """float32 [B, classes, D, H, W] of a label [B, 1, D, H, W], as PyMIC's LabelToProbability makes it."""
    probability = torch.empty((label.shape[0], classes, *label.shape[2:]), dtype=torch.float32, device=label.device)
    for k in range(classes):
        torch.eq(label[:, 0], k, out=probability[:, k])  # without a volume of bool in between
    return probability


class _ErrorsAsValues(Dataset):
    """Hands a user's mistake on as a value: raised in a worker, torch would bury it in the worker's traceback."""

    def __init__(self, samples: Dataset) -> None:
        self.samples = samples

    def __getitem__(self, number: int) -> Batch | UserError:
        try:
            return self.samples[number]
        except UserError as error:
            return error


def _batch(samples: list[Batch | UserError]) -> Batch | UserError:
    errors = [sample for sample in samples if isinstance(sample, UserError)]
    if errors:
        return errors[0]
    shapes = sorted({tuple(sample["image"].shape) for sample in samples})
    if len(shapes) > 1:
        return UserError(
            f"samples of one batch differ in size, {list(shapes[0])} and {list(shapes[1])} (channels, depth, height, "
            "width): a crop makes them equal, or batches of 1"
        )
    keys = [key for key in TENSORS if key in samples[0]]
    batch: Batch = {key: torch.stack([torch.as_tensor(sample[key]) for sample in samples]) for key in keys}
    bad = {index: reason for sample in samples for index, reason in sample.get("bad_scans", {}).items()}
    return {**batch, "bad_scans": bad} if bad else batch
