"""A config is checked when a command has read it: before a folder is made, a log begun, or a network built.

PyMIC's commands read sections and make folders before any agent could check them. What is found here is what
``pymic_vf check`` finds, by the same functions.
"""

from __future__ import annotations

import copy
import functools
import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from pymic_vf.errors import ConfigError, did_you_mean
from pymic_vf.host.processes import is_other_rank
from pymic_vf.host.settings.config_file import read_configs_plainly
from pymic_vf.networks import NETWORKS, network_of

log = logging.getLogger(__name__)
TRAIN, TEST = "train", "test"
SUPERVISE_TYPES = ("fully_sup", "semi_sup", "self_sup", "weak_sup", "noisy_label")
# What a command of PyMIC reads before any agent is there.
NEEDED = {
    TRAIN: (("training", "ckpt_dir", "the folder for checkpoints and logs"),),
    TEST: (("testing", "output_dir", "the folder for segmentations"),),
}
Config = dict[str, dict[str, Any]]


def check_before_training(host: ModuleType) -> None:
    """``pymic_train`` finds one mistake at a time, by traceback: all of them, before any work."""
    _check_first(host, TRAIN)


def check_before_testing(host: ModuleType) -> None:
    """The same for ``pymic_test``."""
    _check_first(host, TEST)


def _check_first(host: ModuleType, stage: str) -> None:
    read_configs_plainly(host)
    stock: Callable = host.synchronize_config

    @functools.wraps(stock)
    def synchronize_config(config: Config) -> Config:
        if is_other_rank():  # the messages of rank zero are enough
            return stock(config)
        synchronised, mistakes = find_mistakes(config, [stage], stock)
        if mistakes:
            raise ConfigError(mistakes)
        for line in _warnings(synchronised):
            log.warning("%s", line)
        return synchronised

    host.synchronize_config = synchronize_config


def _warnings(config: Config) -> list[str]:
    from pymic_vf.host.settings.checks import warnings_of_stock

    return warnings_of_stock(config)


def find_mistakes(
    config: Config, stages: Sequence[str], synchronize: Callable, is_next: bool = True
) -> tuple[Config, list[str]]:
    """What is wrong with a config as PyMIC parsed it, for one stage or both, and the config as PyMIC prepares it.

    Args:
        config: of ``parse_config``.
        stages: TRAIN, TEST or both.
        synchronize: PyMIC's ``synchronize_config``, which fails where the first mistakes are.
        is_next: whether the command comes now: then what others make for it has to be there.
    """
    mistakes = [mistake for stage in stages for mistake in _missing_for_commands(config, stage)]
    mistakes += [*_task_mistakes(config), *_choice_mistakes(config, stages), *_overridden(config)]
    if not mistakes:
        config = synchronize(config)
        with _quietly():
            return config, _mistakes_of_stages(config, stages, is_next)
    if "dataset" not in config or "network" not in config:
        return config, mistakes
    repaired = _synchronised_nevertheless(config, synchronize)
    with _quietly():
        return config, list(dict.fromkeys((*mistakes, *_mistakes_of_stages(repaired, stages, is_next))))


def _mistakes_of_stages(config: Config, stages: Sequence[str], is_next: bool) -> list[str]:
    from pymic_vf.host.settings.checks import check_config

    mistakes: list[str] = []
    for stage in stages:
        try:
            check_config(config, stage, is_next)
        except ConfigError as error:
            mistakes.extend(mistake for mistake in error.mistakes if mistake not in mistakes)
    return mistakes


def stages_of(config: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The stages that a config is for: what it has of [training] and [testing] tells."""
    dataset, training, testing = (config.get(name, {}) for name in ("dataset", "training", "testing"))
    learns = "train_csv" in dataset or "iter_max" in training or "optimizer" in training
    is_tested = "output_dir" in testing or "ckpt_mode" in testing or "test_csv" in dataset
    if dataset.get("supervise_type") == "self_sup":
        return [TRAIN]
    return [stage for stage, there in ((TRAIN, learns), (TEST, is_tested)) if there] or [TRAIN]


def _missing_for_commands(config: Mapping[str, Mapping[str, Any]], stage: str) -> list[str]:
    mistakes = [] if "training" in config else [f"there is no section [training]{did_you_mean('training', config)}"]
    for section, key, meaning in NEEDED[stage]:
        if section not in config:
            mistakes.append(f"there is no section [{section}]{did_you_mean(section, config)}")
        elif config[section].get(key) is None:
            mistakes.append(f"[{section}] {key} is missing: {meaning}")
        elif not isinstance(config[section][key], str):
            value = config[section][key]
            hint = f" (./{value} where that is its name)" if type(value) in (int, float) else ""
            mistakes.append(f"[{section}] {key} must be the name of a folder{hint}, got {value!r}")
    return mistakes


def _task_mistakes(config: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What ``synchronize_config`` fails on."""
    from pymic import TaskDict

    if "dataset" not in config:
        return [f"there is no section [dataset]{did_you_mean('dataset', config)}"]
    dataset, mistakes = config["dataset"], []
    task = dataset.get("task_type")
    if task is None:
        mistakes.append("[dataset] task_type is missing: seg, or rec for a reconstruction")
    elif not isinstance(task, str) or task not in TaskDict:
        hint = did_you_mean(task, TaskDict) if isinstance(task, str) else ""
        mistakes.append(f"[dataset] task_type must be one of {', '.join(TaskDict)}{hint}, got {task!r}")
    if "network" not in config:
        mistakes.append(f"there is no section [network]{did_you_mean('network', config)}")
    elif "class_num" not in config["network"]:
        mistakes.append("[network] class_num is missing: channels of each output")
    for stage in ("train", "valid", "test"):
        names = dataset.get(f"{stage}_transform")
        if names is not None and not isinstance(names, (list, str)):
            mistakes.append(f"[dataset] {stage}_transform must be a list of names, got {names!r}")
    size = dataset.get("patch_size")
    slides = config.get("testing", {}).get("sliding_window_enable")
    if size is not None and not isinstance(size, list):
        mistakes.append(f"[dataset] patch_size must be a list of whole numbers of at least 1, got {size!r}")
    elif (
        slides
        and size is not None
        and config["testing"].get("sliding_window_stride") is None
        and not all(isinstance(side, (int, float)) for side in size)
    ):  # whose halves are to be the stride
        mistakes.append(f"[dataset] patch_size must be a list of whole numbers of at least 1, got {size!r}")
    return mistakes


def _choice_mistakes(config: Mapping[str, Mapping[str, Any]], stages: Sequence[str]) -> list[str]:
    """The names that say which agent and network it is to be: PyMIC fails on unknown ones."""
    from pymic.net.net_dict_seg import SegNetDict
    from pymic.net_run.self_sup import SelfSupMethodDict

    dataset, network, mistakes = config.get("dataset", {}), config.get("network"), []
    if network is not None and dataset.get("task_type") in (None, "seg", "rec"):
        mistakes += _unknown("network", "net_type", network.get("net_type"), SegNetDict, "such as PCTNet")
    kind = dataset.get("supervise_type", "fully_sup")
    if TRAIN in stages:
        mistakes += _unknown("dataset", "supervise_type", kind, SUPERVISE_TYPES, ", ".join(SUPERVISE_TYPES))
    if TRAIN in stages and kind == "self_sup":
        section = "self_supervised_learning"
        name = config.get(section, {}).get("method_name")
        mistakes += _unknown(section, "method_name", name, SelfSupMethodDict, "the method of the pretraining")
    return mistakes


def _overridden(config: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What PyMIC replaces without a word in a config of ours: the number of classes of the one-hot label."""
    from pymic_vf.host.settings.checks import method_name_of

    key, network = "LabelToProbability_class_num", config.get("network", {})
    if network_of(network) is None and not method_name_of(config):
        return []
    given, wanted = config.get("dataset", {}).get(key.lower(), network.get("class_num")), network.get("class_num")
    if given == wanted and not isinstance(given, bool):
        return []
    return [f"[dataset] {key} must be [network] class_num = {wanted}, which PyMIC puts in its place, got {given!r}"]


def _unknown(section: str, key: str, value: Any, known: Collection[str], meaning: str) -> list[str]:
    if value is None:
        return [f"[{section}] {key} is missing: {meaning}"]
    if isinstance(value, list) and key == "net_type":  # several networks
        return [mistake for each in value for mistake in _unknown(section, key, str(each), known, meaning)]
    if isinstance(value, str) and value in known:
        return []
    if key == "net_type" and isinstance(value, str):
        return [f"[network] there is no net_type {value}{did_you_mean(value, known)}"]
    hint = did_you_mean(value, known) if isinstance(value, str) else ""
    return [f"[{section}] {key} must be one of {', '.join(known)}{hint}, got {value!r}"]


def _likely_choices(config: Config) -> None:
    """Where such a name is wrong, the one that was probably meant, so that the other mistakes are found too."""
    from pymic_vf.methods import METHODS

    dataset, network = config["dataset"], config["network"]
    if dataset.get("supervise_type", "fully_sup") not in SUPERVISE_TYPES:
        dataset["supervise_type"] = "self_sup" if "self_supervised_learning" in config else "fully_sup"
    net_type = network.get("net_type")
    is_name = isinstance(net_type, (str, list))
    for name in NETWORKS if is_name else ["PCTNet"]:
        if not is_name or name in did_you_mean(net_type, NETWORKS):
            network["net_type"] = name
    method = config.get("self_supervised_learning", {}).get("method_name")
    if isinstance(method, str):
        likely = [name for name in METHODS if name in did_you_mean(method, METHODS)]
        config["self_supervised_learning"]["method_name"] = likely[0] if likely else method


def _synchronised_nevertheless(config: Config, synchronize: Callable) -> Config:
    """A copy without what PyMIC cannot prepare, prepared, so that its other mistakes are found too."""
    from pymic import TaskDict

    config = copy.deepcopy(config)
    dataset = config["dataset"]
    _likely_choices(config)
    if dataset.get("task_type") not in list(TaskDict):
        dataset["task_type"] = "seg"
    for stage in ("train", "valid", "test"):
        if not isinstance(dataset.get(f"{stage}_transform", []), (list, str, type(None))):
            dataset[f"{stage}_transform"] = []
    size = dataset.get("patch_size")
    if size is not None and not (isinstance(size, list) and all(isinstance(side, (int, float)) for side in size)):
        del dataset["patch_size"]
    has_classes = "class_num" in config["network"]
    config["network"].setdefault("class_num", 1)
    config = synchronize(config)
    if not has_classes:
        del config["network"]["class_num"]
    return config


@contextmanager
def _quietly() -> Iterator[None]:
    """Without the log lines of the checks, which the agents write when they check again."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
