"""Workers that are killed: by the system where memory runs out, or by hand."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from pymic_vf.data.loader import FusionLoader, SampleNumbers
from pymic_vf.data.outbox import Outbox
from pymic_vf.data.prepare import look_at
from pymic_vf.data.workers import outlive_workers
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


def test_another_loader_started_before_does_not_matter():
    # torch's handler of deaths is there after it
    assert len(list(DataLoader(Samples(), sampler=range(3), num_workers=1))) == 3
    test_killed_while_idle()


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


@pytest.mark.parametrize(
    "error", [ConnectionResetError(104, "Connection reset by peer"), EOFError(), FileNotFoundError(2, "No such file")]
)
def test_a_connection_that_breaks_in_the_middle_of_a_batch_is_a_death(error):
    starts = []

    def start(done: int):
        starts.append(done)
        for item in range(done, 4):
            if item == 2 and len(starts) == 1:
                raise error
            yield item

    assert list(outlive_workers(start, lambda: None)) == [0, 1, 2, 3]
    assert starts == [0, 2]


@pytest.mark.parametrize(
    "error",
    [RuntimeError("shapes differ"), EOFError("Caught EOFError in DataLoader worker process 0."),
     FileNotFoundError(2, "No such file", "labels.csv")],
)  # fmt: skip
def test_what_a_worker_raises_is_no_death(error):
    def start(_done: int):
        raise error
        yield

    with pytest.raises(type(error)) as raised:
        list(outlive_workers(start, lambda: None))
    assert raised.value is error


def test_shared_memory_that_is_full_is_explained(monkeypatch):
    def no_room(*_):
        raise RuntimeError("unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)")

    monkeypatch.setattr(Outbox, "stack", no_room)  # workers are forked, and have it so
    with pytest.raises(UserError, match=r"/dev/shm.* no room for the batches of 2 workers; fewer of them .*num_worker"):
        list(loader(Samples()))


class Reader:
    """Whose scan 3 kills the first who looks at it."""

    def __init__(self, note: Path) -> None:
        self.samples = Samples(3, note)

    def shape(self, index: int) -> tuple[int, ...]:
        return self.samples[index]["image"].shape


def test_looks_go_on_after_a_death(tmp_path):
    looks = list(look_at(Reader(tmp_path / "once"), 9, jobs=2, title="checking"))
    assert [look.index for look in looks] == list(range(9))
