"""Divergence: a loss or a gradient that is not finite names its samples, and its step is not taken.

Too many such steps in a row end the run, before the weights that led there replace good ones.
"""

from __future__ import annotations

import csv
import io
import logging
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from pymic_vf.errors import UserError
from pymic_vf.host.processes import Processes
from pymic_vf.host.runs.run_state import WatchedLoader

log = logging.getLogger(__name__)
FILE = "bad_steps.csv"
COLUMNS = ("iteration", "loss", "gradient", "sample", "voxels")
FINITE, NOT_FINITE = "finite", "not finite"


class StepGuard:
    """Watches the steps of one training.

    Args:
        net: the network that learns, as it is saved.
        optimizer: of its weights.
        processes: those that share each batch; a step is bad for all of them or for none.
        file: the csv file that bad steps are appended to.
        most_in_a_row: ``max_bad_steps``.
    """

    def __init__(
        self, net: nn.Module, optimizer: Optimizer, processes: Processes, file: Path, most_in_a_row: int
    ) -> None:
        self.net, self.processes, self.file, self.most_in_a_row = net, processes, file, most_in_a_row
        self.in_a_row = 0
        self._loss: Tensor | None = None
        self._finding: tuple[str, str] | None = None  # of the loss and the gradient, where the step is bad
        self._kept_buffers = [(buffer, buffer.clone()) for buffer in net.buffers()]
        self._handle = optimizer.register_step_pre_hook(self._drop_bad_gradients)

    def close(self) -> None:
        """Let the optimizer go on without being watched."""
        self._handle.remove()

    def watch_loss(self, loss_of: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """The function of a loss, whose last result this keeps."""

        def watched(*args: Any, **options: Any) -> Tensor:
            self._loss = loss_of(*args, **options)
            return self._loss

        return watched

    @contextmanager
    def step(self, iteration: int, loader: WatchedLoader) -> Iterator[list[str]]:
        """Watch one iteration; the list yielded is not empty afterwards where its step was not taken.

        Args:
            iteration: its number.
            loader: where it takes its batch from.

        Raises:
            UserError: it was the last of too many bad steps in a row.
        """
        for buffer, kept in self._kept_buffers:
            kept.copy_(buffer)
        self._finding = None
        bad: list[str] = []
        yield bad
        if self._finding is None:
            self.in_a_row = 0
            return
        bad += self._finding
        with torch.no_grad():
            for buffer, kept in self._kept_buffers:
                buffer.copy_(kept)
        self.in_a_row += 1
        self._report(iteration, _voxels(loader.batch), loader.names())

    @torch.no_grad()
    def _drop_bad_gradients(self, optimizer: Optimizer, _args: Any, _options: Any) -> None:
        """Before the optimizer's step: without gradients it does nothing."""
        learned = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        # the largest gradient; no limit, so that all of them are multiplied by one
        largest = nn.utils.clip_grad_norm_(learned, math.inf, norm_type=math.inf)
        values = torch.stack([self._loss.detach().float(), largest.float()])
        is_bad = (~values.isfinite()).any()[None].float()
        if dist.is_initialized():
            dist.all_reduce(is_bad, dist.ReduceOp.MAX)
        if is_bad.item():
            self._finding = tuple(f"{value:.6g}" for value in values.tolist())
            for parameter in learned:
                parameter.grad = None

    def _report(self, iteration: int, voxels: Sequence[str], names: Sequence[str]) -> None:
        """Log and write down the samples of all processes.

        Raises:
            UserError: too many in a row.
        """
        loss, gradient = self._finding
        rows = [(iteration, loss, gradient, *pair) for pair in zip(names, voxels, strict=False)]
        rows = [row for rows in self.processes.gather(rows) for row in rows]
        if self.processes.is_rank_zero:
            self._write(rows)
            samples = "".join(f"\n  - {row[3]}{'' if row[4] == FINITE else f' (voxels {row[4]})'}" for row in rows)
            log.warning(
                "iteration %d: the loss is %s, the largest gradient %s: the step is left out. Its samples, also in "
                "%s:%s", iteration, loss, gradient, self.file, samples,
            )  # fmt: skip
        if self.in_a_row >= self.most_in_a_row:
            raise UserError(
                f"the training diverged: at {self.in_a_row} iterations in a row, the last {iteration}, the loss "
                f"or its gradient was not a finite number (max_bad_steps = {self.most_in_a_row}). {self.file} names "
                "their samples. Where their voxels are not finite or of absurd size, mend the scans; otherwise start "
                "from a checkpoint before (resume = auto) with a smaller learning_rate, or with precision = fp32"
            )

    def _write(self, rows: Sequence[Sequence]) -> None:
        """Append whole lines, by one write, so that a kill leaves no half of one."""
        text = io.StringIO()
        is_new = not self.file.is_file() or self.file.stat().st_size == 0
        csv.writer(text, lineterminator="\n").writerows([COLUMNS, *rows] if is_new else rows)
        try:
            handle = os.open(self.file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
            try:
                os.write(handle, text.getvalue().encode())
            finally:
                os.close(handle)
        except OSError as error:  # the log has them too
            log.warning("%s: cannot be written (%s)", self.file, error.strerror)


def _voxels(batch: Mapping[str, Any]) -> list[str]:
    """Whether the voxels of each image of a batch are finite."""
    image = torch.as_tensor(batch["image"])
    return [FINITE if image[k].isfinite().all() else NOT_FINITE for k in range(len(image))]


def is_finite(weights: Mapping[str, Tensor]) -> bool:
    """Whether all weights of a state dict are finite."""
    return all(bool(w.isfinite().all()) for w in weights.values() if isinstance(w, Tensor) and w.is_floating_point())
