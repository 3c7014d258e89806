"""The hooks by which PyMIC's supervised trainings become runs that are watched, saved and stopped."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

from pymic_vf.data.workers import killed_workers_explained
from pymic_vf.host.processes import Processes, is_other_rank
from pymic_vf.host.runs.scalars import Scalars
from pymic_vf.host.runs.stop_signals import StopSignals
from pymic_vf.host.runs.training_steps import TrainingRun, active_run
from pymic_vf.networks import network_of

OPT_IN = ("resume", "checkpoint_minutes", "max_bad_steps")


def save_and_load_what_resuming_needs(host: ModuleType) -> None:
    """Within a run of ours, the checkpoints that PyMIC saves and loads have what resuming needs."""
    save, load = host.torch.save, host.torch.load

    def save_completed(content: Mapping[str, Any], path: str, *args: Any, **options: Any) -> None:
        run = active_run()
        save(content if run is None else run.completed(content, path), path, *args, **options)

    def load_for_run(path: str, *args: Any, **options: Any) -> Mapping[str, Any]:
        run = active_run()
        return load(path, *args, **options) if run is None else run.load(path, *args, **options)

    host.torch.save, host.torch.load = save_completed, load_for_run


def watch_supervised_training(host: ModuleType) -> None:
    """Opt-in for any network, ``[training] resume``, ``checkpoint_minutes`` or ``max_bad_steps``; always for ours."""
    agent_class = host.SegmentationAgent

    def hooked(name: str, hook: Callable[..., Any]) -> None:
        stock = getattr(agent_class, name)

        @functools.wraps(stock)
        def method(agent: Any, *args: Any, **options: Any) -> Any:
            if type(agent) is not agent_class:
                return stock(agent, *args, **options)
            return hook(functools.partial(stock, agent), agent, *args, **options)

        setattr(agent_class, name, method)

    hooked("run", _run)
    hooked("train_valid", _train_valid)
    hooked("create_optimizer", _create_optimizer)
    hooked("training", _training)
    hooked("validation", _validation)


def _run(stock: Callable, agent: Any) -> None:
    if not is_watched(agent):
        stock()
        return
    from pymic_vf.host.settings.checks import check_run  # needs PyMIC's registries, complete by now

    if network_of(agent.config["network"]) is None:  # those of ours are checked with all other keys
        check_run(agent.config)
    agent.stop_signals = StopSignals()
    with agent.stop_signals.heard():
        stock()


def _train_valid(stock: Callable, agent: Any) -> None:
    if not is_watched(agent):
        stock()
        return
    agent.training_run = TrainingRun(
        agent, Processes(rank=int(is_other_rank())), None, getattr(agent, "stop_signals", StopSignals())
    )
    try:
        with killed_workers_explained():
            agent.training_run.train(stock)
    finally:
        del agent.training_run


def _create_optimizer(stock: Callable, agent: Any, params: Any, checkpoint: Any = None) -> None:
    stock(params, checkpoint)
    if hasattr(agent, "training_run"):
        agent.training_run.begin(checkpoint)


def _training(stock: Callable, agent: Any) -> Scalars:
    return agent.training_run.block(stock) if hasattr(agent, "training_run") else stock()


def _validation(stock: Callable, agent: Any) -> Scalars | None:
    return agent.training_run.validated(stock) if hasattr(agent, "training_run") else stock()


def is_watched(agent: Any) -> bool:
    """Whether a supervised training is of a network of ours, or has one of the keys that ask for it."""
    from pymic_vf.host.settings.checks import is_supervised  # needs PyMIC's registries, complete by now

    if agent.stage != "train" or not is_supervised(agent.config):
        return False
    training = agent.config["training"]
    return network_of(agent.config["network"]) is not None or any(training.get(name) is not None for name in OPT_IN)
