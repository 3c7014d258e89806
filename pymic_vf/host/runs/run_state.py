"""What a run must know to go on as if it had never been interrupted, and what made it: plain types and tensors alone.

Every checkpoint of a run of ours has the entry ``pymic_vf``, beside those of PyMIC: ``{"format": 1, "provenance":
{...}, "state": {...}}``. PyMIC without this package does not look at it.
"""

from __future__ import annotations

import hashlib
import platform
import random
from collections.abc import Mapping
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from pymic import TaskDict, TaskType
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from pymic_vf._version import __version__

ENTRY, FORMAT = "pymic_vf", 1
# of torch's schedulers, what changes in a run; the rest follows from the config
SCHEDULE = ("last_epoch", "_step_count", "_last_lr", "best", "num_bad_epochs", "cooldown_counter")


# Random numbers


def random_states(device: torch.device) -> dict[str, Any]:
    """Those of Python's, numpy's and torch's global generators, and of the CUDA device."""
    kind, words, *rest = np.random.get_state()
    states = {
        "python": plain(random.getstate()),
        "numpy": [kind, words.tolist(), *rest],
        "torch": torch.random.get_rng_state(),
    }
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def restore_random_states(states: Mapping[str, Any], device: torch.device) -> None:
    """Go on with the random numbers after those of :func:`random_states`."""
    kind, words, gauss = states["python"]
    random.setstate((kind, tuple(words), gauss))
    kind, words, *rest = states["numpy"]
    np.random.set_state((kind, np.array(words, np.uint32), *rest))
    torch.random.set_rng_state(states["torch"].cpu())
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"].cpu(), device)


# The learning rate


def schedule_state(scheduler: Any, optimizer: Optimizer) -> dict[str, Any]:
    """Where the scheduler is and what the rates are."""
    state = scheduler.state_dict()
    return {
        "scheduler": {name: plain(state[name]) for name in SCHEDULE if name in state},
        "rates": [float(group["lr"]) for group in optimizer.param_groups],
    }


def restore_schedule(state: Mapping[str, Any], scheduler: Any, optimizer: Optimizer) -> None:
    """Undo what the making of a scheduler did to the rates, and go on where the old one was."""
    scheduler.load_state_dict(state["scheduler"])
    for group, rate in zip(optimizer.param_groups, state["rates"], strict=True):
        group["lr"] = rate


# The batches


class WatchedLoader:
    """A loader that keeps the last batch, and that can come back to the one after it in another process.

    PyMIC's loader shuffles anew in each epoch and starts new workers, both by its generator: an epoch is repeated by
    its state at the beginning, and its position by making the batches before once more. Loaders of ours go on by the
    number of a sample and need none of this.

    Args:
        loader: PyMIC's, or one of ours.
    """

    def __init__(self, loader: Any) -> None:
        self.loader = loader
        self.batch: Mapping[str, Any] | None = None
        self._generator = loader.generator if isinstance(loader, DataLoader) else None
        self._epoch: torch.Tensor | None = None
        self._used = 0
        self._batches: Any = None
        self._resumed: Mapping[str, Any] | None = None

    def __iter__(self) -> WatchedLoader:
        state, self._resumed = self._resumed, None
        if state is not None:
            self._generator.set_state(state["epoch"].cpu())
        if self._generator is not None:
            self._epoch = self._generator.get_state()
        self._used = 0
        self._batches = iter(self.loader)
        for _ in range(state["used"] if state else 0):
            next(self)
        return self

    def __next__(self) -> Mapping[str, Any]:
        self.batch = next(self._batches)
        self._used += 1
        return self.batch

    def state(self) -> dict[str, Any] | None:
        """The epoch and how many of its batches were used; None for a loader that needs no such state."""
        return None if self._epoch is None else {"epoch": self._epoch, "used": self._used}

    def resume(self, state: Mapping[str, Any]) -> None:
        """Let the next iteration over the loader begin where :meth:`state` was taken."""
        if self._generator is not None:
            self._resumed = state

    def names(self) -> list[str]:
        """What the samples of the last batch are called."""
        if hasattr(self.loader, "names_of_batch"):
            return self.loader.names_of_batch(self._used - 1)
        names = self.batch.get("names")  # of PyMIC's data sets: for each file of a sample, the names in the batch
        return [f"sample {k} of the batch" for k in range(len(self.batch["image"]))] if not names else list(names[0])


# Provenance


def provenance(config: Mapping[str, Any], method: str | None) -> dict[str, Any]:
    """What makes the weights of a run: its config, versions and data.

    Args:
        config: PyMIC's parsed config.
        method: the pretraining method's name; None for a supervised training.
    """
    dataset = config.get("dataset", {})
    csv, root = dataset.get("train_csv"), dataset.get("train_dir")
    scans, fingerprint = data_fingerprint(csv, root) if csv is not None else (0, "")
    return {
        "config": {name: plain(section) for name, section in config.items() if isinstance(section, Mapping)},
        "versions": {
            "pymic_vf": __version__,
            "pymic": _version_of("PyMIC"),
            "torch": str(torch.__version__),
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
        "method": method,
        "data": {"train_csv": str(csv), "scans": scans, "fingerprint": fingerprint},
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def data_fingerprint(csv: str, root: str | None) -> tuple[int, str]:
    """The number of rows of a csv file, and the SHA-256 of its content and of the sizes of the files that it names."""
    content = Path(csv).read_bytes()
    digest = hashlib.sha256(content)
    table = pd.read_csv(csv, dtype=str)
    for name in table.to_numpy().ravel():
        file = Path(root or ".") / str(name)
        digest.update(f"{name} {file.stat().st_size if file.is_file() else None}\n".encode())
    return len(table), digest.hexdigest()


def plain(value: Any) -> Any:
    """`value` as numbers, texts, lists and dicts, which any version of torch loads as what they are."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value.item() if isinstance(value, np.generic) else value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, TaskType):
        return next(word for word, task in TaskDict.items() if task is value)
    if isinstance(value, Mapping):
        return {str(name): plain(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(each) for each in value]
    return str(value)


def _version_of(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"
