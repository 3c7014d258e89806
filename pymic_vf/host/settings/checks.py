"""Everything that can be wrong with a config of ours, found and reported together before any work.

What is checked is what is ours: the pretraining methods of this package, and the supervised training and test of its
networks. Configs of PyMIC's other methods and networks are PyMIC's to judge.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pymic import TaskType
from pymic.transform.trans_dict import TransformDict

from pymic_vf.data.scan_list import ScanList
from pymic_vf.errors import ConfigError
from pymic_vf.host.execution import EXECUTION_KEYS, read_execution
from pymic_vf.host.processes import process_count
from pymic_vf.host.settings.cache_checks import cache_mistakes
from pymic_vf.host.settings.config_keys import (
    BY_NAME,
    DATASET_KEYS,
    METHOD_KEYS,
    NETWORK_KEYS,
    OTHER_TRAINING_KEYS,
    RUN_KEYS,
    SAMPLE_KEYS,
    SEED_AND_FOLDER,
)
from pymic_vf.host.settings.dataset_checks import (
    TransformNames,
    check_labelled_files,
    check_sample_transforms,
    check_scan_lists,
    check_supervised_data,
    check_task,
    check_transforms_of_stage,
    task_of,
    with_folders,
    written_name,
)
from pymic_vf.host.settings.inference_settings import INFERER, parse_inference
from pymic_vf.host.settings.known_keys import flat_network, log_other_methods, unread_keys
from pymic_vf.host.settings.network_checks import IMAGE_AXES, check_pretrained_network, check_settings, check_sizes
from pymic_vf.host.settings.testing_checks import check_testing
from pymic_vf.host.settings.training_checks import (
    check_batch,
    check_batches_of_windows,
    check_classes,
    check_deep_supervision,
    check_further_training,
    check_iterations,
    check_reconstruction,
    check_supervised_reconstruction,
    check_training,
)
from pymic_vf.host.settings.transform_keys import check_channels
from pymic_vf.host.weights.channel_inflation import INFLATION_KEY
from pymic_vf.keys import Section
from pymic_vf.methods import METHODS, method_class
from pymic_vf.methods.method import RECONSTRUCTION, SEGMENTATION, Method
from pymic_vf.networks import network_of
from pymic_vf.sizes import Size

log = logging.getLogger(__name__)
Config = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class PretrainingPlan:
    """A checked pretraining config.

    Args:
        method: makes the samples.
        dataset: the values of [dataset] by the names of their keys, defaults filled in.
        train: the transforms of the training samples.
        valid: those of the validation samples.
        train_scans: the scans of ``train_csv``.
        valid_scans: those of ``valid_csv``; None without one.
    """

    method: Method
    dataset: Mapping[str, Any]
    train: TransformNames
    valid: TransformNames
    train_scans: ScanList
    valid_scans: ScanList | None

    @property
    def crop_size(self) -> Size:
        return self.dataset["crop_size"]


def method_name_of(config: Config) -> str | None:
    """The method of ours that a config pretrains by, or None."""
    is_pretraining = config.get("dataset", {}).get("supervise_type") == "self_sup"
    name = config.get("self_supervised_learning", {}).get("method_name")
    return name if is_pretraining and name in METHODS else None


def is_supervised(config: Config) -> bool:
    """Whether a config is for PyMIC's fully supervised learning, whose images have labels."""
    return config.get("dataset", {}).get("supervise_type", "fully_sup") == "fully_sup"


def check_pretraining(config: Config, processes: int = 1) -> PretrainingPlan:
    """Check PyMIC's parsed config for a pretraining by a method of ours.

    Args:
        config: PyMIC's parsed config.
        processes: how many share each batch.

    Raises:
        ConfigError: with every mistake found.
    """
    mistakes: list[str] = []
    name = config["self_supervised_learning"]["method_name"]
    kind = method_class(name)
    dataset, network, training = _sections(config, mistakes)
    is_our_network = network_of(network.values) is not None
    _check_unread_keys(config, mistakes, is_our_network or "net_type" not in network)
    log_other_methods(config, name)
    values = dataset.read((*DATASET_KEYS, *SAMPLE_KEYS, *kind.keys))
    kind.check(values, values["crop_size"], dataset)
    method = kind(values)
    plan = PretrainingPlan(
        method,
        with_folders(dataset, values),
        *check_sample_transforms(dataset, values, name, method),
        *check_scan_lists(dataset, values, method),
    )
    if values["train_batch_size"] and values["train_batch_size"] % processes:
        dataset.wrong("train_batch_size", f"must be a multiple of the {processes} processes, which share each batch")
    check_batch(dataset)
    check_channels(dataset, (*values["volume_transform"], *plan.train.names, *plan.valid.names), network)
    Section(config["self_supervised_learning"], "self_supervised_learning", mistakes).read(METHOD_KEYS)
    check_task(dataset, method.task)
    settings = check_pretrained_network(network, method, values["modal_num"])
    check_sizes(settings, {written_name("crop_size", dataset): dataset})
    checked = check_training(training, "valid_csv" in dataset, method.task)
    check_further_training(training, network, checked, bool(checked["deep_supervise"]))
    read_execution(network, checked["gpus"])
    if method.task == RECONSTRUCTION:
        check_reconstruction(training, method)
    is_deep = checked["deep_supervise"] and method.task == SEGMENTATION
    check_deep_supervision(network, is_deep, may_be_ignored=False)
    check_iterations(training, checked)
    if "early_stop_patience" in training and "valid_csv" not in dataset:
        training.wrong("early_stop_patience", "needs [dataset] valid_csv: without it PyMIC stops after that long")
    parse_inference(config, "valid", mistakes, axes=IMAGE_AXES if is_our_network else None)
    if mistakes:
        raise ConfigError(mistakes)
    return plan


def check_config(config: Config, stage: str, is_next: bool = True) -> None:
    """Check a config for one of PyMIC's commands, as far as it is ours.

    Args:
        config: PyMIC's parsed config.
        stage: ``train`` or ``test``.
        is_next: whether that command comes now; else what another one makes for it need not be there yet.

    Raises:
        ConfigError: with every mistake found.
    """
    has_images = config["dataset"].get("task_type") in (TaskType.SEGMENTATION, TaskType.RECONSTRUCTION)
    is_ours = has_images and network_of(config.get("network", {})) is not None
    if stage == "train" and method_name_of(config):
        check_pretraining(config, process_count())
    elif is_ours and (stage == "test" or is_supervised(config)):
        check_supervised(config, stage, is_next)


def warnings_of_stock(config: Config) -> list[str]:
    """What a config of another network with keys of ours has that nobody reads; nothing for all other configs."""
    network, testing, dataset = (config.get(name, {}) for name in ("network", "testing", "dataset"))
    opted = any(key.name in network for key in EXECUTION_KEYS) or testing.get(INFERER.name) == "fast"
    opted = opted or any(name in dataset for name in ("cache_dir", "crop_min_foreground"))
    if not opted or method_name_of(config) or network_of(network) is not None:
        return []
    found, _of_network = unread_keys(config, TransformDict)
    problem = flat_network(network)
    return [*found, *([problem] if problem else [])]


def check_supervised(config: Config, stage: str, is_next: bool = False) -> None:
    """Check PyMIC's config for a supervised training or a test: what would crash there.

    Args:
        config: PyMIC's parsed config.
        stage: ``train`` or ``test``.
        is_next: whether this stage comes now: then the checkpoint to test has to be there.

    Raises:
        ConfigError: with every mistake found.
    """
    mistakes: list[str] = []
    dataset, network, training = _sections(config, mistakes)
    ours = network_of(network.values)
    axes = IMAGE_AXES if ours else None
    stages = ["test"] if stage == "test" else ["train"] + ["valid"] * ("valid_csv" in dataset)
    for each in stages:
        check_transforms_of_stage(dataset, each)
        check_labelled_files(dataset, each)
    network.read_key(INFLATION_KEY)
    if ours:
        _check_unread_keys(config, mistakes, is_our_network=True)
        network.read(NETWORK_KEYS)
        check_classes(network)
        testing = Section(config.get("testing", {}), "testing", mistakes)
        sizes = {"RandomCrop_output_size": dataset, "sliding_window_size": testing}
        check_sizes(check_settings(network, ours), sizes)
        check_supervised_data(dataset, network, stages)
        check_batches_of_windows(dataset, testing, stages)
    read_execution(network, config.get("training" if stage == "train" else "testing", {}).get("gpus"))
    if stage == "train":
        mistakes.extend(cache_mistakes(config))
        dataset.read([BY_NAME[f"{each}_batch_size"] for each in stages])
        task = task_of(dataset)
        checked = check_training(training, "valid" in stages, task)
        if ours:
            check_further_training(training, network, checked, bool(checked["deep_supervise"]))
            if task == RECONSTRUCTION:
                check_supervised_reconstruction(training, network)
        check_deep_supervision(network, checked["deep_supervise"], may_be_ignored=True)
        check_iterations(training, checked)
        # PyMIC's own inferer is there only where it validates, ours is made in any case
        parse_inference(config, "valid", mistakes, axes=axes, stock_too="valid" in stages)
    else:
        training.read(SEED_AND_FOLDER)
        training.read(OTHER_TRAINING_KEYS[:2])
        if ours:
            testing = Section(config.get("testing", {}), "testing", mistakes)
            check_testing(testing, training, is_next)
    # while training too, where a test of the same config is to come: it may be days later
    if stage == "test" or "output_dir" in config.get("testing", {}):
        parse_inference(config, "test", mistakes, axes=axes, stock_too=True)
    if mistakes:
        raise ConfigError(mistakes)


def check_run(config: Config) -> None:
    """Check what a run of any network needs so that it can be interrupted and ends with a checkpoint.

    Raises:
        ConfigError: with every mistake found.
    """
    training = Section(config["training"], "training", [])
    values = training.read((*RUN_KEYS, *(BY_NAME[name] for name in ("iter_max", "iter_valid", "iter_save"))))
    check_iterations(training, values)
    if training.mistakes:
        raise ConfigError(training.mistakes)


def check_network(config: Config) -> None:
    """Check the [network] keys of a network of ours, however it is trained.

    Raises:
        ConfigError: with every mistake found.
    """
    if ours := network_of(config.get("network", {})):
        ours.parse(config["network"])


def _sections(config: Config, mistakes: list[str]) -> list[Section]:
    return [Section(config.get(name, {}), name, mistakes) for name in ("dataset", "network", "training")]


def _check_unread_keys(config: Config, mistakes: list[str], is_our_network: bool) -> None:
    """Note what would be ignored. A network that is not ours may have keys that only it knows: a line for these."""
    found, of_network = unread_keys(config, TransformDict)
    mistakes.extend(found)
    if is_our_network:
        mistakes.extend(of_network)
    else:
        for message in of_network:
            log.warning("%s", message)
    for section, key in getattr(config, "empty", ()):
        mistakes.append(f"[{section}] {key} is empty: give it a value, or remove the line")
