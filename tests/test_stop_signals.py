from __future__ import annotations

import os
import signal
import threading
import time

import pytest
from torch.utils.data import DataLoader

from pymic_vf.data.workers import set_up_worker_of
from pymic_vf.host.runs.stop_signals import Stopped, StopSignals


def send(number: int) -> None:
    os.kill(os.getpid(), number)
    time.sleep(0)  # a handler of Python's runs between two of its instructions


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_is_noted_or_stops_at_once(number):
    signals = StopSignals()
    before = signal.getsignal(number)
    with signals.heard():
        with signals.deferred():
            send(number)
            assert signals.received == signal.Signals(number).name
        with pytest.raises(Stopped) as stopped:
            send(number)
        assert stopped.value.code == 75
    assert signal.getsignal(number) == before


def test_other_threads_hear_nothing():
    heard = []

    def listen() -> None:
        with StopSignals().heard():
            heard.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=listen)
    thread.start()
    thread.join()
    assert heard == [signal.getsignal(signal.SIGTERM)]


class Pids:
    def __len__(self) -> int:
        return 100

    def __getitem__(self, index: int) -> int:
        return os.getpid()


def test_a_worker_obeys_its_parent_alone():
    loader = DataLoader(Pids(), num_workers=1, worker_init_fn=lambda worker: set_up_worker_of(None, worker))
    batches = iter(loader)
    worker = next(batches).item()
    for number in (signal.SIGUSR1, signal.SIGINT):
        os.kill(worker, number)
    if os.fork() == 0:  # somebody else
        os.kill(worker, signal.SIGTERM)
        os._exit(0)
    os.wait()
    assert [batch.item() for batch in batches] == [worker] * 99
