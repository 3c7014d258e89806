"""An optimizer's state that is not of this run is refused in one message, by the agents that PyMIC makes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pymic.net_run.agent_abstract import NetRunAgent
from torch import nn

import pymic_vf
from pymic_vf.errors import UserError
from pymic_vf.host.weights.checkpoint import Checkpoint

pymic_vf.register()


class Agent:
    """As much of an agent as creating an optimizer needs."""

    create_optimizer = NetRunAgent.create_optimizer

    def __init__(self) -> None:
        self.optimizer = self.scheduler = None
        self.net = nn.Linear(2, 3)
        self.config = {
            "training": {
                "optimizer": "Adam",
                "learning_rate": 1e-3,
                "weight_decay": 0,
                "momentum": 0,
                "lr_scheduler": "StepLR",
                "lr_step": 5,
                "lr_gamma": 0.5,
                "iter_valid": 1,
            }
        }


def state_of(net: nn.Module) -> dict[str, Any]:
    optimizer = torch.optim.Adam(net.parameters())
    net(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    optimizer.param_groups[0]["initial_lr"] = 1e-3  # which a scheduler puts there
    return optimizer.state_dict()


def resume(state: Any, iteration: Any = 4) -> Agent:
    agent = Agent()
    checkpoint = Checkpoint({"optimizer_state_dict": state, "iteration": iteration}, Path("a.pt"))
    agent.create_optimizer(agent.net.parameters(), checkpoint)
    return agent


def test_the_state_of_this_network_is_loaded():
    agent = resume(state_of(nn.Linear(2, 3)))
    assert agent.scheduler.last_epoch == 4 and len(agent.optimizer.state) == 2


def exploding() -> list:
    nested: list = [0, 0]
    for _ in range(60):
        nested = [nested, nested]
    return nested


@pytest.mark.parametrize(
    ("state", "why"),
    [
        (state_of(nn.Linear(2, 4)), "exp_avg is of another shape"),
        (state_of(nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 3))), "parameter group"),
        ({"state": {}}, "param_groups"),
        ({"state": 1, "param_groups": "text"}, "not of"),
        ({"state": {}, "param_groups": []}, "parameter groups"),
        ({"state": {0: exploding()}, "param_groups": []}, "millions of entries"),
        ({}, "not of"),
    ],
)
def test_another_state_is_refused(state: dict, why: str):
    with pytest.raises(UserError, match=r"optimizer = Adam and this network.*ckpt_init_mode = 0") as raised:
        resume(state)
    assert why in str(raised.value)


@pytest.mark.parametrize(("state", "iteration"), [([1], 4), ({}, "4"), ({}, None)])
def test_entries_of_other_types_are_named(state: Any, iteration: Any):
    with pytest.raises(UserError, match=r"a\.pt: its '(optimizer_state_dict|iteration)' must be a "):
        resume(state, iteration)
