"""How PyMIC, which has no plug-in mechanism, learns our names.

PyMIC's commands import torch, and torch calls every entry point of the group ``torch.backends`` at the end of its own
import: ours is :func:`autoload`. It puts post-import hooks on a handful of PyMIC modules and returns; nothing of PyMIC
or of the rest of this package is imported before PyMIC itself is.

The import of torch may itself be caused by a hooked module, which then stands in ``sys.modules`` half made. So every
hook runs the whole table below, each row once, as soon as the row's module has what it needs, and the modules that use
the registries are hooked too.
"""

from __future__ import annotations

import functools
import importlib
import logging
import os
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from pymic_vf.methods import METHODS
from pymic_vf.networks import NETWORKS

log = logging.getLogger(__name__)
VERBOSE = "PYMIC_VF_VERBOSE"  # an environment variable: what PyMIC's commands print is left as it is


@dataclass(frozen=True)
class Registration:
    """One name in one of PyMIC's registries."""

    module: str
    registry: str
    name: str
    implementation: str  # "module:class", imported when PyMIC's registry is there
    is_lazy: bool = False  # or a function of that module, imported when it is called

    def apply(self, host: ModuleType) -> None:
        registry = getattr(host, self.registry)
        implementation = _imported_when_called(self.implementation) if self.is_lazy else _load(self.implementation)
        present = registry.setdefault(self.name, implementation)
        if present is not implementation:
            log.warning(
                "pymic_vf: %s.%s already has the name %s (%s); it is left as it is, and pymic_vf's %s is not available",
                self.module, self.registry, self.name, present, self.implementation,
            )  # fmt: skip

    def is_ready(self, host: ModuleType) -> bool:
        """Whether the registry is there, and our module not in the middle of its own import."""
        module, name = self.implementation.split(":")
        ours = sys.modules.get(module)
        return hasattr(host, self.registry) and (ours is None or hasattr(ours, name))


@dataclass(frozen=True)
class Repair:
    """One function that mends one gap of one PyMIC module, or offers there what is opt-in."""

    module: str
    attribute: str
    function: str  # of :mod:`pymic_vf.host.compat`, or "room.module:function" of another room of pymic_vf.host

    def is_ready(self, host: ModuleType) -> bool:
        """Whether the module has what is to be mended."""
        return hasattr(host, self.attribute)

    def apply(self, host: ModuleType) -> None:
        room, _, function = self.function.rpartition(":")
        _load(f"pymic_vf.host.{room or 'compat'}:{function}")(host)


REGISTRATIONS = (
    *(
        Registration("pymic.net.net_dict_seg", "SegNetDict", name, network.implementation)
        for name, network in NETWORKS.items()
    ),
    Registration("pymic.transform.trans_dict", "TransformDict", "VF", "pymic_vf.host.transforms:VolumeFusionTransform"),
    *(
        Registration(
            "pymic.net_run.self_sup", "SelfSupMethodDict", name, "pymic_vf.host.agents:pretraining_agent", is_lazy=True
        )
        for name in METHODS
    ),
)
# The agents that name "cuda:N" literally and load and save checkpoints, each with what its module defines last:
# a module that has it is complete.
AGENTS = (
    ("pymic.net_run.agent_seg", "SegmentationAgent"),
    ("pymic.net_run.agent_rec", "ReconstructionAgent"),
    ("pymic.net_run.agent_cls", "ClassificationAgent"),
    ("pymic.net_run.self_sup.self_vox2vec", "SelfSupVox2Vec"),
    ("pymic.net_run.noisy_label.nll_clslsr", "get_confidence_map"),
)
SEGMENTATION = AGENTS[0]
REPAIRS = (
    *(Repair(*agent, "use_available_device") for agent in AGENTS),
    *(Repair(*agent, "save_checkpoints_whole") for agent in AGENTS),
    *(Repair(*agent, "load_checkpoints_safely") for agent in AGENTS),
    Repair("pymic.util.model_operate", "get_average_model", "load_weights_alone"),
    Repair("pymic.net.transformer.swinunet", "SwinUNet", "load_weights_alone"),
    *(Repair(*agent, "runs.whole_outputs:survive_lost_events") for agent in AGENTS),
    Repair(*SEGMENTATION, "let_rank_zero_write"),
    Repair("pymic.net_run.agent_abstract", "NetRunAgent", "allow_no_validation_set"),
    Repair("pymic.net_run.agent_rec", "ReconstructionAgent", "allow_no_validation_of_reconstructions"),
    Repair("pymic.net_run.agent_abstract", "NetRunAgent", "explain_missing_checkpoint"),
    Repair("pymic.net_run.agent_abstract", "NetRunAgent", "weights.resumed_optimizer:explain_unfitting_optimizer"),
    *(Repair(*agent, "weights.initial_weights:report_loaded_weights") for agent in (AGENTS[0], AGENTS[2])),
    *(Repair(*agent, "weights.initial_weights:explain_unfitting_weights") for agent in (AGENTS[0], AGENTS[2])),
    Repair(*SEGMENTATION, "cached_finetuning:offer_cached_finetuning"),
    Repair(*SEGMENTATION, "check_configs_of_our_network"),
    Repair(*SEGMENTATION, "offer_fast_inference"),
    Repair(*SEGMENTATION, "run_networks_as_asked"),
    Repair(*SEGMENTATION, "runs.supervised:save_and_load_what_resuming_needs"),
    Repair(*SEGMENTATION, "runs.supervised:watch_supervised_training"),
    Repair(*SEGMENTATION, "explain_lack_of_memory"),
    Repair("pymic.net_run.agent_rec", "ReconstructionAgent", "explain_lack_of_memory"),
    Repair("pymic.net.transformer.unetr", "UNETR", "build_unetr_with_todays_monai"),
    Repair("pymic.util.parse_config", "parse_value_from_string", "parse_every_float"),
    # the commands are half made when torch, which they import, calls us
    Repair("pymic.net_run.train", "sys", "show_user_errors_plainly"),
    Repair("pymic.net_run.predict", "sys", "show_user_errors_plainly"),
    Repair("pymic.net_run.train", "wrtie_config", "runs.whole_outputs:explain_disk_at_start"),
    Repair("pymic.net_run.predict", "wrtie_config", "runs.whole_outputs:explain_disk_at_start"),
    Repair("pymic.net_run.train", "wrtie_config", "let_rank_zero_log"),
    Repair("pymic.net_run.train", "parse_config", "print_config_once"),
    Repair("pymic.net_run.predict", "parse_config", "print_config_once"),
    Repair("pymic.util.parse_config", "logging_config", "settings.config_file:read_configs_plainly"),
    Repair("pymic.net_run.train", "wrtie_config", "settings.commands:check_before_training"),
    Repair("pymic.net_run.predict", "wrtie_config", "settings.commands:check_before_testing"),
    Repair("pymic.io.image_read_write", "rotate_nifty_volume_to_LPS", "runs.whole_outputs:write_images_whole"),
    Repair("pymic.util.parse_config", "logging_config", "runs.whole_outputs:write_texts_whole"),
    Repair("pymic.util.evaluation_seg", "csv", "runs.whole_outputs:write_texts_whole"),  # half made, as above
)
# Hooked only because they use the registries, which they may have imported half made.
USERS = ("pymic.net_run.train", "pymic.net_run.predict", "pymic.net_run.preprocess", "pymic.net_run.agent_preprocess")

_applied: set[Registration | Repair] = set()
_hooked = False


def register() -> None:
    """Register with PyMIC now, for what is imported of it already, and at its import for the rest. Idempotent.

    Raises:
        ImportError: ``wrapt``, a declared dependency, is missing.
    """
    global _hooked
    if _hooked:
        return
    from wrapt import when_imported

    _hooked = True
    hosts = [row.module for row in (*REGISTRATIONS, *REPAIRS)]
    ours = [row.implementation.split(":")[0] for row in REGISTRATIONS]  # whose import may be what imports PyMIC
    for module in dict.fromkeys((*hosts, *USERS, *ours)):
        when_imported(module)(_apply_what_is_ready)
    when_imported("pymic.net_run.agent_abstract")(_apply_before_agents_are_made)
    when_imported("pymic")(_silence_timm)


def autoload() -> None:
    """The entry point that torch calls: :func:`register`, but never an exception into ``import torch``."""
    try:
        register()
    except Exception as error:
        warnings.warn(f"pymic_vf is installed but not registered with PyMIC: {error!r}", stacklevel=2)


def _apply_what_is_ready(_imported: ModuleType | None = None) -> None:
    """Every row whose module is there and made, once."""
    for row in (*REGISTRATIONS, *REPAIRS):
        host = sys.modules.get(row.module)
        if row in _applied or host is None or not row.is_ready(host):
            continue
        _applied.add(row)  # before it is applied: the implementations import PyMIC modules, which run this again
        try:
            row.apply(host)
        except Exception as error:
            warnings.warn(f"pymic_vf: {row} failed and is left out: {error!r}", stacklevel=2)


def _silence_timm(_pymic: ModuleType) -> None:
    """PyMIC imports timm's layers by their former name, which timm answers by a warning that no user can act on."""
    if not os.environ.get(VERBOSE):
        warnings.filterwarnings("ignore", "Importing from timm.models.layers is deprecated", FutureWarning)


def _apply_before_agents_are_made(host: ModuleType) -> None:
    """A script that begins with PyMIC's agents imports torch, and so the hooks, in the middle of their modules: what
    they lack is there before the first agent is made."""
    stock = getattr(host, "NetRunAgent", None)
    if stock is None:
        return
    make = stock.__init__

    @functools.wraps(make)
    def __init__(agent: Any, *args: Any, **options: Any) -> None:  # noqa: N807
        _apply_what_is_ready()
        make(agent, *args, **options)

    stock.__init__ = __init__


def _imported_when_called(implementation: str) -> Callable:
    """A function in whose stead the implementation is called: what only a pretraining needs costs others no time."""

    def call(*args: Any, **options: Any) -> Any:
        return _load(implementation)(*args, **options)

    return call


def _load(implementation: str) -> Callable:
    module, name = implementation.split(":")
    return getattr(importlib.import_module(module), name)
