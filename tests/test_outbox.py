from __future__ import annotations

import pytest
import torch
from test_workers import Samples, loader, numbers

from pymic_vf.data.outbox import SLOTS, Outbox


def samples(*values: int) -> list[dict[str, torch.Tensor]]:
    return [{"image": torch.full((1, 2, 3, 4), float(value))} for value in values]


def test_memory_is_used_again_but_not_before_it_is_copied():
    outbox = Outbox()
    batches = [outbox.stack(samples(10 * k, 10 * k + 1))["image"] for k in range(SLOTS)]
    assert [batch[:, 0, 0, 0, 0].tolist() for batch in batches] == [[10 * k, 10 * k + 1] for k in range(SLOTS)]
    assert all(batch.is_shared() for batch in batches)
    again = outbox.stack(samples(7, 8))["image"]
    assert again.data_ptr() == batches[0].data_ptr()
    assert again[1].eq(8).all()


OTHERS = {
    "fewer": samples(1),
    "more": samples(1, 2, 3),
    "shape": [{"image": torch.ones(1, 2, 3, 5)}] * 2,
    "type": [{"image": torch.ones(1, 2, 3, 4, dtype=torch.int32)}] * 2,
}


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS)
def test_other_batches_are_whole_too(other):
    outbox = Outbox()
    outbox.stack(samples(1, 2))
    batch = outbox.stack(other)["image"]
    assert (
        torch.equal(batch, torch.stack([sample["image"] for sample in other]))
        and batch.dtype == other[0]["image"].dtype
    )


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_batches_stay_as_they_are(workers):
    # 25 samples in batches of 2: the last is another size; all are kept while more are made
    batches = list(loader(Samples(), workers, count=25))
    assert numbers(batches) == list(range(5, 30))
    assert len(batches[-1]["image"]) == 1
    assert not any(batch["image"].is_shared() for batch in batches)
