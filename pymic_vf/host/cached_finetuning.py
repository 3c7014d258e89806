"""Opt-in, ``[dataset] cache_dir`` in a supervised config: PyMIC's agent trains and validates on samples from the cache.

The samples are those that PyMIC makes, see :mod:`pymic_vf.data.labelled_samples`; the loop, the loss and the
checkpoints are PyMIC's. Without the key nothing changes.
"""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable
from types import ModuleType
from typing import Any

from pymic_vf.networks import network_of

log = logging.getLogger(__name__)
# of [dataset], with their former names
KEYS = ("cache_dir", "cache_max_gib", "vf_cache_dir", "vf_cache_max_gib")


def offer_cached_finetuning(host: ModuleType) -> None:
    """PyMIC decodes, transforms and searches whole volumes for each crop: give its agent a loader of cached samples."""
    kind = host.SegmentationAgent
    kind.create_dataset = _with_cache(kind.create_dataset, kind)
    kind.create_optimizer = _resuming_the_stream(kind.create_optimizer)
    kind.training = _timed(kind.training)
    kind.write_scalars = _telling_of_waiting(kind.write_scalars)


def _with_cache(stock: Callable, kind: type) -> Callable:
    @functools.wraps(stock)
    def create_dataset(agent: Any) -> None:
        asks = any(name in agent.config["dataset"] for name in KEYS)
        is_ours = network_of(agent.config.get("network", {})) is not None
        # for others nothing more is even imported
        if agent.stage != "train" or _is_pretraining(agent) or not (asks or is_ours):
            stock(agent)
            return
        from pymic_vf.host import cached_sets  # needs PyMIC's registries, complete by now
        from pymic_vf.host.settings.cache_checks import is_asked
        from pymic_vf.host.settings.checks import is_supervised

        # PyMIC's agents of other kinds of learning derive from this one
        is_served = type(agent) is kind and is_supervised(agent.config) and agent.train_set is agent.valid_set is None
        if is_served and is_asked(agent.config):
            cached_sets.create_loaders(agent)
            return
        if is_served:
            cached_sets.tell_of_savings(agent.config)
        elif asks:
            log.warning(
                "[dataset] cache_dir: PyMIC's %s with supervise_type = %s reads its own way, without a cache",
                type(agent).__name__, agent.config["dataset"].get("supervise_type", "fully_sup"),
            )  # fmt: skip
        stock(agent)

    return create_dataset


def _is_pretraining(agent: Any) -> bool:
    """Whether the agent is of ours, which make data sets of their own."""
    return type(agent).__module__.startswith("pymic_vf.")


def _resuming_the_stream(stock: Callable) -> Callable:
    @functools.wraps(stock)
    def create_optimizer(agent: Any, params: Any, checkpoint: dict[str, Any] | None = None) -> None:
        if checkpoint is not None and _is_cached(agent):
            batch = agent.config["dataset"]["train_batch_size"]
            agent.train_loader.numbers.start = checkpoint["iteration"] * batch
        stock(agent, params, checkpoint)

    return create_optimizer


def _timed(stock: Callable) -> Callable:
    @functools.wraps(stock)
    def training(agent: Any) -> dict[str, Any]:
        start = time.monotonic()
        scalars = stock(agent)
        if _is_cached(agent):
            scalars.setdefault("block_time", time.monotonic() - start)
        return scalars

    return training


def _telling_of_waiting(stock: Callable) -> Callable:
    @functools.wraps(stock)
    def write_scalars(agent: Any, train_scalars: dict[str, Any], *args: Any) -> None:
        stock(agent, train_scalars, *args)
        if _is_cached(agent):
            share = train_scalars["data_time"] / max(train_scalars["block_time"], 1e-9)
            log.info("waited for data %.1f %% of the time", 100 * share)

    return write_scalars


def _is_cached(agent: Any) -> bool:
    return getattr(agent.train_set, "is_cached_finetuning", False)
