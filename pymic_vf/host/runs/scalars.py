"""What PyMIC's ``training()`` says of its iterations: the mean of a block, and what of it a checkpoint can hold."""

from __future__ import annotations

import functools
import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

Scalars = dict[str, Any]


def mean_scalars(steps: Sequence[tuple[Scalars, bool]]) -> Scalars:
    """What PyMIC's ``training()`` makes of the iterations of a block, by the same sums in the same order.

    Args:
        steps: PyMIC's scalars of each iteration, and whether its step was left out: such count for nothing, unless
            there are no others.
    """
    each = [scalars for scalars, is_bad in steps if not is_bad] or [scalars for scalars, _ in steps]
    mean = {name: functools.reduce(operator.add, (scalars[name] for scalars in each), 0) for name in each[0]}
    mean["loss"] /= len(each)
    if "class_dice" in mean:
        mean["class_dice"] = np.asarray([scalars["class_dice"] for scalars in each]).mean(axis=0)
        mean["avg_fg_dice"] = mean["class_dice"][1:].mean()
    return mean


def to_plain(scalars: Scalars) -> Scalars:
    """Arrays as tensors, the rest as numbers."""
    return {k: torch.from_numpy(v) if isinstance(v, np.ndarray) else float(v) for k, v in scalars.items()}


def from_plain(scalars: Scalars) -> Scalars:
    return {k: v.numpy() if isinstance(v, torch.Tensor) else v for k, v in scalars.items()}
