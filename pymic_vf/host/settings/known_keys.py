"""Which keys somebody reads, section by section: a key that nobody reads would be ignored without a word.

PyMIC takes what it knows from a config and never looks at the rest, so that a misspelt ``volume_transfrom`` trains on
raw HU. Names compare in lower case, as PyMIC hands them on.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from pymic_vf.errors import did_you_mean
from pymic_vf.host.execution import EXECUTION_KEYS
from pymic_vf.host.settings.config_keys import (
    DATASET_KEYS,
    LOSS_KEYS,
    METHOD_KEYS,
    NETWORK_KEYS,
    OTHER_DATASET_KEYS,
    OTHER_TRAINING_KEYS,
    SAMPLE_KEYS,
    SCHEDULER_KEYS,
    TESTING_KEYS,
    TRAINING_KEYS,
)
from pymic_vf.host.settings.inference_settings import INFERENCE_KEYS
from pymic_vf.host.settings.transform_keys import OTHER_TRANSFORMS, TRANSFORM_KEYS
from pymic_vf.keys import Key
from pymic_vf.methods import METHODS, method_class
from pymic_vf.networks import NETWORKS
from pymic_vf.networks.pct_net_settings import READ_BY_OTHERS

log = logging.getLogger(__name__)
Config = Mapping[str, Mapping[str, Any]]

# Sections whose keys are not ours to judge: of PyMIC's other ways of learning, and what pymic_eval_seg reads.
OTHER_SECTIONS = ("evaluation", "semi_supervised_learning", "weakly_supervised_learning", "noisy_label_learning")
# Networks of PyMIC whose key `dimension` is 2 by default.
FLAT_BY_DEFAULT = ("UNet", "UNetpp")
# What PyMIC writes into a config while it runs.
MADE = {"dataset": ("task",), "training": ("last_iter",), "testing": ("class_num",)}
# What PyMIC reads in the same sections for other ways of learning and other commands, or read in earlier versions.
OTHERS = {
    "dataset": (
        "root_dir", "data_dir", "data_csv", "data_csv_unlab", "batch_operation", "batch_size", "data_shuffle",
        "train_csv_unlab", "train_csv_noise", "train_batch_size_unlab", "train_batch_size_noise",
        "train_transform_unlab", "transform",
        "selfvolumefusion_cls_num", "selfvolumefusion_fuse_ratio", "selfvolumefusion_size_min",
        "selfvolumefusion_size_max", "volumefusion_block_range", "volumefusion_size_min", "volumefusion_size_max",
        "augmentedvolumefusion_size_min", "augmentedvolumefusion_size_max", "nonlinearvolumefusion_block_range",
        "nonlinearvolumefusion_size_min", "nonlinearvolumefusion_size_max",
    ),
    "training": ("iter_start", "evaluation_metric", "loss_softmax", "mumfordshahloss_penalty",
                 "mumfordshahloss_lambda", *(f"gatedcrfloss_{name}" for name in ("w0", "xy0", "rgb", "w1", "xy1",
                 "radius"))),
    "testing": ("output_csv", "dmsps_test_mode", "dmsps_uncertainty_threshold"),
    "self_supervised_learning": ("project_dim", "hidden_dim"),
    # of PyMIC's 3D networks
    "network": (
        "net_type", "acti_func", "attention_mode", "bridge", "conv_dims", "deep_supervise", "depth", "dimension",
        "drop_rate", "att_drop_rate", "path_drop_rate", "dropout_rate", "feature_size", "finetune_mode", "hidden_size",
        "img_size", "init_type", "initialization", "is_batchnorm", "is_deconv", "mlp_dim", "n_blocks_per_stage",
        "norm_name", "norm_type", "num_filters", "output_mode", "padding_size", "patch_size", "pos_embed", "pretrain",
        "res_mode", "up_mode", "dilation", "dilation_rates", "dims", "trilinear", "bilinear", "vit_name",
    ),
}  # fmt: skip


def names_of(keys: Iterable[Key]) -> list[str]:
    """The names of rows, former ones too, as the documentation writes them."""
    return [name for key in keys for name in (key.name, key.former) if name]


def known_names(section: str) -> dict[str, str]:
    """The names that a run of ours reads in a section, whatever the method: lower case to as they are written."""
    rows = {
        "dataset": (
            *DATASET_KEYS, *SAMPLE_KEYS, *OTHER_DATASET_KEYS,
            *(key for name in METHODS for key in method_class(name).keys),
            *(key for keys in TRANSFORM_KEYS.values() for key in keys),
        ),
        "training": (
            *TRAINING_KEYS, *OTHER_TRAINING_KEYS,
            *(key for keys in (*SCHEDULER_KEYS.values(), *LOSS_KEYS.values()) for key in keys),
        ),
        "testing": (*TESTING_KEYS, *INFERENCE_KEYS),
        "network": (*NETWORK_KEYS, *EXECUTION_KEYS, *(key for row in NETWORKS.values() for key in row.keys)),
        "self_supervised_learning": METHOD_KEYS,
    }.get(section, ())  # fmt: skip
    extra = READ_BY_OTHERS if section == "network" else ("valid_transform",) if section == "dataset" else ()
    return {name.lower(): name for name in (*names_of(rows), *extra)}


SECTIONS = ("dataset", "network", "training", "testing", "self_supervised_learning")


def unread_keys(config: Config, transforms: Collection[str]) -> tuple[list[str], list[str]]:
    """What is in a config and would be ignored: messages about keys and sections, and about keys of [network].

    The latter are apart since every network has keys of its own.

    Args:
        config: PyMIC's parsed config.
        transforms: the names of all transforms that there are; those registered by others have keys of their own.
    """
    known = {section: known_names(section) for section in SECTIONS}
    own = tuple(f"{name.lower()}_" for name in (*transforms, *OTHER_TRANSFORMS) if name not in TRANSFORM_KEYS)
    own = tuple(prefix for prefix in own if prefix[:-1] not in {name.lower() for name in METHODS})
    found, of_network = [], []
    for section, values in config.items():
        if section in OTHER_SECTIONS or not isinstance(values, Mapping):
            continue
        if section not in SECTIONS:
            hint = did_you_mean(section, (*SECTIONS, *OTHER_SECTIONS))
            found.append(f"there is no section [{section}]{hint}; it would be ignored")
            continue
        for name, value in values.items():
            if name in known[section] or name in (*MADE.get(section, ()), *OTHERS.get(section, ())):
                continue
            if section == "dataset" and name.startswith(own):
                continue
            message = _unread(section, name, value, known, config)
            (of_network if section == "network" else found).extend([message] if message else [])
    return found, of_network


def _unread(section: str, name: str, value: Any, known: Mapping[str, Mapping[str, str]], config: Config) -> str:
    """What to say of a key that nobody reads in its section; nothing where its owner has it with the same value, as
    keys of the section [DEFAULT] are in all."""
    owners = [other for other in SECTIONS if name in known[other]]
    if any(name in config.get(other, {}) and config[other][name] == value for other in owners):
        return ""
    if owners:
        written = known[owners[0]][name]
        where = " or ".join(f"[{other}]" for other in owners)
        return f"[{section}] {written} belongs in {where} and would be ignored here, got {value!r}"
    closest = did_you_mean(name, known[section].values())
    return f"[{section}] {name}: there is no such key{closest}; it would be ignored, got {value!r}"


def flat_network(network: Mapping[str, Any]) -> str:
    """What to say of a network that is 2D where its key ``dimension`` is not there; nothing of others."""
    name = network.get("net_type")
    if name not in FLAT_BY_DEFAULT or network.get("dimension") is not None:
        return ""
    what = f"3; without it PyMIC's {name} is a 2D network, slice by slice (2 if you mean it)"
    return f"[network] dimension is missing: {what}"


def log_other_methods(config: Config, method: str) -> None:
    """Say which keys of another method than the config's there are, which one config for several may have."""
    dataset, ours = config["dataset"], {key.name for key in method_class(method).keys}
    others = [key.name for name in METHODS for key in method_class(name).keys if key.name not in ours]
    if unread := sorted(name for name in others if dataset.get(name.lower()) is not None):
        title = method_class(method).title
        log.info("[dataset] %s: of another method than %s, not read", ", ".join(unread), title)
