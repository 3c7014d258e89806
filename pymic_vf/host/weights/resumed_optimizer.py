"""``ckpt_init_mode = 1``: an optimizer's state from a checkpoint, which must be of this optimizer and network."""

from __future__ import annotations

import functools
import traceback
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from pymic_vf.errors import UserError

MOST_ENTRIES = 10**6  # of an optimizer's state; a network of a thousand weights has some thousand
MOMENTS = ("exp_avg", "exp_avg_sq", "momentum_buffer")  # which are of the weight's shape


def explain_unfitting_optimizer(host: ModuleType) -> None:
    """A resume (``ckpt_init_mode = 1``) with another optimizer or network ends in torch's traceback, at once or at the
    first step: say so."""
    stock: Callable = host.NetRunAgent.create_optimizer

    @functools.wraps(stock)
    def create_optimizer(agent: Any, params: Any, checkpoint: Any = None) -> None:
        if checkpoint is None:
            stock(agent, params)
            return
        state = checkpoint["optimizer_state_dict"]
        checkpoint["iteration"]  # said before any work where it is not there
        why = "it has millions of entries" if _has_more_than(MOST_ENTRIES, state) else ""
        if not why:
            try:
                stock(agent, params, checkpoint)
                why = _wrong_moments(agent.optimizer)
            except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
                if isinstance(error, UserError) or not _is_of_loading(error):
                    raise
                why = str(error) or type(error).__name__
        if why:
            raise UserError(
                "ckpt_init_name: its optimizer_state_dict is not of [training] optimizer = "
                f"{agent.config['training']['optimizer']} and this network ({why}); ckpt_init_mode = 0 takes its "
                "weights alone"
            )

    host.NetRunAgent.create_optimizer = create_optimizer


def _is_of_loading(error: Exception) -> bool:
    """Whether an error came from torch's reading of the state, or from what a scheduler looks for in it."""
    return "initial_lr" in str(error) or any(
        frame.name == "load_state_dict" for frame in traceback.extract_tb(error.__traceback__)
    )


def _wrong_moments(optimizer: torch.optim.Optimizer) -> str:
    for parameter, state in optimizer.state.items():
        for name in MOMENTS:
            moment = state.get(name)
            if moment is not None and (not isinstance(moment, Tensor) or moment.shape != parameter.shape):
                return f"its {name} is of another shape than the weight"
    return ""


def _has_more_than(count: int, value: Any) -> bool:
    """Whether a nested value has more than so many entries, an entry that is there twice counted twice."""
    waiting, seen = [value], 0
    while waiting and seen <= count:
        value = waiting.pop()
        seen += 1
        if isinstance(value, Mapping):
            waiting.extend(value.values())
        elif isinstance(value, (list, tuple, set)):
            waiting.extend(value)
    return seen > count
