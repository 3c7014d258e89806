from __future__ import annotations

import pytest
import torch

from pymic_vf.host.memory_advice import is_advised, is_lack_of_memory, memory_advice


def config(batch: int = 1, **network) -> dict[str, dict]:
    return {"network": network, "dataset": {"train_batch_size": batch}, "testing": {"sliding_window_batch": batch}}


def test_memory_that_no_machine_has_is_recognised():
    with pytest.raises(RuntimeError) as raised:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_lack_of_memory(raised.value)
    assert is_lack_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB."))
    assert not is_lack_of_memory(RuntimeError("shapes differ"))


def test_advice_is_for_our_network_and_for_our_keys():
    assert is_advised({"network": {"net_type": "PCTNet"}})
    assert is_advised({"network": {"net_type": "UNet", "precision": "bf16"}})
    assert not is_advised({"network": {"net_type": "UNet"}})


def test_only_what_is_not_in_use_is_advised():
    plain = memory_advice(config(), learns=True)
    assert plain == (
        "Memory ran out. Of what is kept for the backward pass, [network] precision = bf16 saves about 25 %; "
        "[network] activation_checkpointing = True about 90 %, but a step takes about 1.4 times as long; "
        "half the crop in one axis about 50 %."
    )
    saving = config(4, precision="bf16", activation_checkpointing=True)
    assert memory_advice(saving, learns=True) == (
        "Memory ran out. Of what is kept for the backward pass, a batch of 2 instead of 4 about 50 % "
        "(train_batch_size); half the crop in one axis about 50 %."
    )


def test_inference_gets_advice_of_its_own():
    assert "precision = bf16 makes most of it half as large" in memory_advice(config(), learns=False)
    assert memory_advice(config(5, precision="bf16"), learns=False) == (
        "Memory ran out. Of what a call of the network takes, a batch of 2 instead of 5 about 60 % "
        "(sliding_window_batch); [testing] sliding_window_enable = True with a sliding_window_size of half a side "
        "about 50 %."
    )
