"""How long the runs may take, from an iteration or two of each arm, before anything has run."""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from pymic_vf.cli import read_config
from pymic_vf.compare.checks import write_stand_in
from pymic_vf.compare.config_text import changed
from pymic_vf.compare.plan import Run
from pymic_vf.host.settings.checks import is_supervised, method_name_of

# what differs between runs that take equally long
OF_ONE_RUN = (("training", "ckpt_dir"), ("training", "ckpt_init_name"), ("training", "ckpt_init_mode"),
              ("training", "random_seed"), ("dataset", "train_csv"), ("testing", "output_dir"))  # fmt: skip


def time_trainings(runs: Sequence[Run], threads: int) -> dict[tuple[str, str], float]:
    """Seconds of the training of each kind of run and arm; PyMIC's own pretraining methods are left out.

    Args:
        runs: to time.
        threads: that each will have.

    Raises:
        UserError: what is wrong with the data or the settings, found only now.
    """
    torch.set_num_threads(threads)
    seconds: dict[str, float | None] = {}
    found = {}
    for run in {(run.kind, run.arm): run for run in runs}.values():
        alike = repr(changed(run.config, dict.fromkeys(OF_ONE_RUN)))
        if alike not in seconds:
            seconds[alike] = _seconds_of(run)
        if seconds[alike] is not None:
            found[run.kind, run.arm] = seconds[alike]
    return found


def _seconds_of(run: Run) -> float | None:
    from pymic_vf.host.survey.forecast import CACHED_SECONDS, try_a_batch

    with tempfile.TemporaryDirectory() as folder, _quietly():
        config = read_config(write_stand_in(run, Path(folder)))
        if not (method_name_of(config) or is_supervised(config)):
            return None
        batch = try_a_batch(config)
    dataset = config["dataset"]
    sample = min(batch.sample, CACHED_SECONDS) if dataset.get("cache_dir") else batch.sample
    workers = dataset.get("num_worker", 8)
    data = sample * dataset["train_batch_size"] / max(workers, 1)
    return config["training"]["iter_max"] * (max(batch.step, data) if workers else batch.step + data)


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Without the lines that PyMIC prints and logs while it makes agents."""
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(logging.NOTSET)
