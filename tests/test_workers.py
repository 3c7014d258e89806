"""Workers that are killed: by the system where memory runs out, or by hand."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from pymic_vf.data.loader import FusionLoader, SampleNumbers
from pymic_vf.data.prepare import look_at
from pymic_vf.errors import UserError


class Samples(Dataset):
    """Sample k is full of k; whoever makes one that is in `deadly` is killed, once if there is a file to note it."""

    def __init__(self, deadly: int | None = None, note: Path | None = None) -> None:
        self.deadly, self.note = deadly, note

    def __getitem__(self, number: int) -> dict:
        if number == self.deadly and not (self.note and self.note.exists()):
            if self.note:
                self.note.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return {"image": np.full((1, 2, 2, 2), number, np.float32), "label": np.zeros((1, 2, 2, 2), np.uint8)}


def loader(samples: Samples, workers: int = 2, count: int = 24) -> FusionLoader:
    return FusionLoader(samples, SampleNumbers(5, count), batch_size=2, workers=workers, classes=2)


def numbers(batches) -> list[int]:
    return [int(number) for batch in batches for number in batch["image"][:, 0, 0, 0, 0]]


def test_killed_workers_are_replaced_and_no_sample_is_lost(caplog):
    batches = loader(Samples())
    seen = []
    for batch in batches:
        seen.append(batch)
        if len(seen) in (2, 7):
            for worker in batches._loader._iterator._workers:
                worker.kill()
            # what the training computes meanwhile is not interrupted
            for _ in range(100):
                torch.ones(10).sum()
                time.sleep(0.001)
    assert numbers(seen) == list(range(5, 29))
    assert sum("a worker process was killed" in record.message for record in caplog.records) == 2
    # and again from the beginning, with workers that are there
    assert numbers(batches) == list(range(5, 29))


def test_a_sample_that_killed_its_worker_is_made_again(tmp_path):
    assert numbers(loader(Samples(5, tmp_path / "once"))) == list(range(5, 29))


def test_workers_that_die_for_ever_are_an_error():
    with pytest.raises(UserError, match=r"killed 3 times in a row.*\[dataset\] num_worker"):
        list(loader(Samples(9)))


def test_killed_while_idle():
    batches = loader(Samples())
    assert numbers(batches) == list(range(5, 29))
    for worker in batches._loader._iterator._workers:
        worker.kill()
        worker.join()
    assert numbers(batches) == list(range(5, 29))


class Reader:
    """Whose scan 3 kills the first who looks at it."""

    def __init__(self, note: Path) -> None:
        self.samples = Samples(3, note)

    def shape(self, index: int) -> tuple[int, ...]:
        return self.samples[index]["image"].shape


def test_looks_go_on_after_a_death(tmp_path):
    looks = list(look_at(Reader(tmp_path / "once"), 9, jobs=2, title="checking"))
    assert [look.index for look in looks] == list(range(9))
