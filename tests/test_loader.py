"""Batches of samples, by this process or by workers, and workers that are killed."""

from __future__ import annotations

import itertools
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from pymic_vf.data.loader import SampleLoader, SampleNumbers, one_hot
from pymic_vf.data.scan_check import check_each
from pymic_vf.data.workers import is_death_of_a_worker, killed_workers_explained
from pymic_vf.errors import UserError


class Numbered(Dataset):
    """Sample k is full of k; whoever makes the one that is `deadly` is killed."""

    def __init__(self, deadly: int | None = None, label: np.dtype = np.uint8) -> None:
        self.deadly, self.label = deadly, label

    def __getitem__(self, number: int) -> dict:
        if number == self.deadly:
            os.kill(os.getpid(), signal.SIGKILL)
        image = np.full((1, 2, 2, 2), number, np.float32)
        return {"image": image, "label": np.zeros((1, 2, 2, 2), self.label), "drawn": object}


def loader(samples: Dataset, workers: int, count: int = 24, classes: int | None = 2) -> SampleLoader:
    return SampleLoader(samples, SampleNumbers(5, count), batch_size=2, workers=workers, classes=classes)


def numbers(batches) -> list[int]:
    return [int(number) for batch in batches for number in batch["image"][:, 0, 0, 0, 0]]


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_batches_are_in_order_and_stay_as_they_are(workers):
    batches = loader(Numbered(), workers, count=25)
    for _again in range(2):
        kept = list(batches)
        assert numbers(kept) == list(range(5, 30))
        assert len(kept[-1]["image"]) == 1
        assert all(batch.keys() == {"image", "label_prob"} for batch in kept)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_reconstruction_keeps_its_target(workers):
    for batch in loader(Numbered(label=np.float32), workers, classes=None):
        assert batch.keys() == {"image", "label"} and batch["label"].dtype == torch.float32


def test_labels_become_one_hot():
    label = torch.randint(0, 5, (2, 1, 3, 4, 5), dtype=torch.uint8)
    probability = one_hot(label, 5)
    assert probability.dtype == torch.float32 and probability.shape == (2, 5, 3, 4, 5)
    assert torch.equal(probability.argmax(1, keepdim=True).to(torch.uint8), label)
    assert torch.equal(probability.sum(1), torch.ones(2, 3, 4, 5))


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_processes_share_the_stream(processes):
    size, start = 2, 6
    streams = [iter(SampleNumbers(start, share=(rank, processes, size))) for rank in range(processes)]
    batches = [[next(stream) for _ in range(size)] for _ in range(3) for stream in streams]
    assert list(itertools.chain(*batches)) == list(range(start, start + 3 * size * processes))
    assert list(SampleNumbers(4, count=3)) == [4, 5, 6]


def test_a_killed_worker_is_one_clear_message():
    message = r"a worker process was killed.*num_worker.*resume = auto"
    with pytest.raises(UserError, match=message), killed_workers_explained():
        list(loader(Numbered(deadly=9), workers=2))


class Reader:
    def __init__(self, deadly: int) -> None:
        self.samples = Numbered(deadly)

    def shape(self, index: int) -> tuple[int, ...]:
        return self.samples[index]["image"].shape


def test_a_killed_worker_while_scans_are_checked():
    with pytest.raises(UserError, match="a worker process was killed"):
        list(check_each(Reader(deadly=3), 9, jobs=2, title="checking"))


@pytest.mark.parametrize(
    "error", [ConnectionResetError(104, "Connection reset by peer"), EOFError(), FileNotFoundError(2, "No such file")]
)
def test_a_connection_that_breaks_in_the_middle_of_a_batch_is_a_death(error):
    assert is_death_of_a_worker(error)


@pytest.mark.parametrize(
    "error",
    [RuntimeError("shapes differ"), EOFError("Caught EOFError in DataLoader worker process 0."),
     FileNotFoundError(2, "No such file", "labels.csv")],
)  # fmt: skip
def test_other_errors_are_left_as_they_are(error):
    with pytest.raises(type(error)) as raised, killed_workers_explained():
        raise error
    assert raised.value is error


def test_a_mistake_in_a_worker_comes_without_its_traceback(tmp_path: Path):
    class Wrong(Numbered):
        def __getitem__(self, number: int) -> dict:
            raise UserError("the scan is gone")

    with pytest.raises(UserError, match=r"^the scan is gone$"):
        list(loader(Wrong(), workers=1))
