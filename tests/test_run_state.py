from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import torch
from pymic import TaskType
from torch.utils.data import DataLoader, Dataset

from pymic_vf.host.runs.run_state import (
    WatchedLoader,
    data_fingerprint,
    plain,
    provenance,
    random_states,
    restore_random_states,
    restore_schedule,
    schedule_state,
)

CPU = torch.device("cpu")


def draws() -> list[float]:
    return [random.gauss(0, 1), np.random.normal(), torch.randn(1).item(), np.random.randint(10**9)]


def test_random_states_go_through_a_file(tmp_path: Path):
    draws()  # an odd number of Gauss draws: the second of a pair is kept by the generators
    torch.save(random_states(CPU), tmp_path / "a.pt")
    expected = draws() + draws()
    restore_random_states(torch.load(tmp_path / "a.pt", weights_only=True), CPU)
    assert draws() + draws() == expected


class Drawn(Dataset):
    """Seven items, each its number and a draw of the process that makes it."""

    def __len__(self) -> int:
        return 7

    def __getitem__(self, index: int) -> tuple[int, int]:
        return index, random.randrange(10**9)


def loader(workers: int) -> WatchedLoader:
    generator = torch.Generator()
    generator.manual_seed(5)
    return WatchedLoader(DataLoader(Drawn(), 2, shuffle=True, drop_last=True, num_workers=workers, generator=generator))


def batches(watched: WatchedLoader, count: int, stream=None) -> list[list]:
    """As PyMIC takes them, epoch after epoch."""
    stream, taken = stream or iter(watched), []
    while len(taken) < count:
        try:
            taken.append([part.tolist() for part in next(stream)])
        except StopIteration:
            stream = iter(watched)
    return taken


def test_a_loader_comes_back_to_its_next_batch():
    for used in (0, 2, 3, 5):  # of epochs of three
        whole = batches(loader(1), 9)
        first = loader(1)
        assert batches(first, used) == whole[:used]
        again = loader(1)
        if state := first.state():
            again.resume(state)
        assert batches(again, 9 - used) == whole[used:]
    assert [batch[0] for batch in batches(loader(0), 9)] == [batch[0] for batch in whole]


def test_schedules():
    def made():
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], 1.0)
        return optimizer, torch.optim.lr_scheduler.MultiStepLR(optimizer, [2, 3], 0.5)

    optimizer, scheduler = made()
    rates = []
    for step in range(5):
        if step == 2:
            state = schedule_state(scheduler, optimizer)
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates == [1, 1, 0.5, 0.25, 0.25]
    optimizer, scheduler = made()
    restore_schedule(state, scheduler, optimizer)
    for rate in rates[2:]:
        assert optimizer.param_groups[0]["lr"] == rate
        optimizer.step()
        scheduler.step()


def test_provenance_is_plain_and_follows_the_data(scans: Path, tmp_path: Path):
    config = {
        "dataset": {"train_csv": str(scans / "labelled.csv"), "train_dir": str(scans / "volumes"),
                    "task_type": TaskType.SEGMENTATION, "size": (np.int64(1), 2.5, None)},
    }  # fmt: skip
    made = provenance(config, "VF")
    torch.save(made, tmp_path / "a.pt")
    assert torch.load(tmp_path / "a.pt", weights_only=True) == made
    assert made["config"]["dataset"]["task_type"] == "seg" and made["config"]["dataset"]["size"] == [1, 2.5, None]
    assert made["data"]["scans"] == 2 and made["method"] == "VF" and set(made["versions"]) >= {"pymic_vf", "torch"}
    (tmp_path / "scan_0.nii.gz").write_bytes(b"another")
    assert data_fingerprint(scans / "labelled.csv", str(tmp_path))[1] != made["data"]["fingerprint"]
    assert data_fingerprint(scans / "labelled.csv", str(scans / "volumes"))[1] == made["data"]["fingerprint"]


def test_plain():
    assert plain({1: np.float32(0.5), "a": Path("x")}) == {"1": 0.5, "a": "x"}
    assert type(plain(np.float64(0.5))) is float
