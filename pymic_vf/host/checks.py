"""Everything that can be wrong with a pretraining config, found and reported together before any work."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pymic.net.net_dict_seg import SegNetDict
from pymic.transform.trans_dict import TransformDict

from pymic_vf.data.scan_list import ScanList, check_files, read_scan_list, read_table
from pymic_vf.errors import ConfigError, UserError, did_you_mean
from pymic_vf.host.config import (
    FUSE,
    ReadingSettings,
    SampleSettings,
    Section,
    check_vf_keys,
    parse_reading,
    parse_samples,
)
from pymic_vf.host.inference_settings import parse_inference
from pymic_vf.networks.pct_net_settings import parse_network_settings

IMAGE_AXES = 3  # of PCTNet's images
LARGEST_SEED = 2**32 - 1  # that numpy takes
TRAINING_KEYS = {
    "gpus": "the CUDA devices, such as [0]",
    "optimizer": "such as Adam",
    "learning_rate": "a number",
    "momentum": "a number, read by SGD and RMSprop",
    "weight_decay": "a number",
    "lr_scheduler": "PyMIC needs one; for a constant rate StepLR with lr_gamma = 1.0",
    "loss_type": "such as [DiceLoss, CrossEntropyLoss]",
    "ckpt_dir": "the folder for checkpoints and logs",
    "iter_max": "the number of iterations",
    "iter_valid": "iterations between two validations, log lines and steps of the scheduler",
}
SCHEDULER_KEYS = {
    "StepLR": ("lr_step", "lr_gamma"),
    "MultiStepLR": ("lr_milestones", "lr_gamma"),
    "PolynomialLR": ("lr_power",),
    "ReduceLROnPlateau": ("ReduceLROnPlateau_patience", "lr_gamma"),
}


@dataclass(frozen=True)
class PretrainingPlan:
    """A checked config: what to sample, and from which scans.

    Args:
        train: the settings of the training samples.
        valid: those of the validation samples; None without ``valid_csv``.
        valid_samples: how many of them.
        train_scans: the scans of ``train_csv``.
        valid_scans: those of ``valid_csv``, or None.
        reading: how they are read.
    """

    train: SampleSettings
    valid: SampleSettings | None
    valid_samples: int
    train_scans: ScanList
    valid_scans: ScanList | None
    reading: ReadingSettings


def check_pretraining(config: Mapping[str, Mapping[str, Any]], processes: int = 1) -> PretrainingPlan:
    """Check PyMIC's parsed config for Volume Fusion pretraining.

    Args:
        config: PyMIC's parsed config.
        processes: how many share each batch.

    Raises:
        ConfigError: with every mistake found.
    """
    mistakes: list[str] = []
    dataset, network, training = (Section(config.get(s, {}), s, mistakes) for s in ("dataset", "network", "training"))
    check_vf_keys(config, mistakes)
    plan = _check_dataset(dataset, processes)
    _check_network(network, plan.train.fusion.classes, dataset.integer("modal_num", 1, 1))
    _check_training(training, dataset)
    _check_iterations(training)
    _check_deep_supervision(training, network)
    if "early_stop_patience" in training and "valid_csv" not in dataset:
        training.wrong("early_stop_patience", "needs [dataset] valid_csv: without it PyMIC stops after that long")
    parse_inference(config, "valid", mistakes, axes=IMAGE_AXES if network.get("net_type") == "PCTNet" else None)
    if mistakes:
        raise ConfigError(mistakes)
    return plan


def _check_dataset(dataset: Section, processes: int) -> PretrainingPlan:
    dataset.require("tensor_type", "float (or double)")
    if dataset.integer("train_batch_size", 0, 1) % processes:
        dataset.wrong("train_batch_size", f"must be a multiple of the {processes} processes, which share each batch")
    _check_valid_batch_size(dataset)
    dataset.integer("num_worker", 8, 0)
    train = parse_samples(dataset)
    _check_transforms(dataset, "volume_transform", train.volume_transform)
    _check_transforms(dataset, "train_transform", (*train.before, *train.after))
    modalities = dataset.integer("modal_num", 1, 1)
    for key, why in (("train_dir", "the folder of the scans"), ("train_csv", "the list of the scans")):
        dataset.require(key, why)
    root, csv = dataset.path("train_dir", "a folder"), dataset.path("train_csv", "a csv file")
    train_scans = valid_scans = valid = None
    if root is not None and csv is not None:
        train_scans = read_scan_list(csv, root, modalities, dataset.mistakes)
    if "valid_csv" in dataset:
        valid = train
        if "valid_transform" in dataset:
            valid = parse_samples(dataset, "valid")
            _check_transforms(dataset, "valid_transform", (*valid.before, *valid.after))
        valid_root = dataset.path("valid_dir", "a folder") if "valid_dir" in dataset else root
        valid_csv = dataset.path("valid_csv", "a csv file")
        if valid_root is not None and valid_csv is not None:
            valid_scans = read_scan_list(valid_csv, valid_root, modalities, dataset.mistakes)
    valid_samples = dataset.integer("VF_valid_samples", 32, 1)
    return PretrainingPlan(train, valid, valid_samples, train_scans, valid_scans, parse_reading(dataset))


def _check_valid_batch_size(dataset: Section) -> None:
    dataset.integer("valid_batch_size", 1, 1, none_is_absent=False)


def _check_transforms(dataset: Section, key: str, names: Iterable[str]) -> None:
    for name in names:
        if name not in TransformDict:
            dataset.mistakes.append(f"[dataset] {key}: there is no transform {name}{did_you_mean(name, TransformDict)}")
            continue
        try:
            make_transform(name, dataset.values)
        except KeyError as error:
            dataset.mistakes.append(f"[dataset] {error.args[0]} is missing: the transform {name} needs it")
        except UserError as error:
            dataset.mistakes.append(f"[dataset] {key}: {error}")
        except Exception as error:
            dataset.mistakes.append(f"[dataset] {key}: {name} does not accept its keys ({error!r})")


def make_transform(name: str, dataset: Mapping[str, Any]) -> Any:
    """The PyMIC transform of that name, made as PyMIC makes it."""
    return TransformDict[name]({**dataset, "task": dataset.get("task_type")})


def check_supervised(config: Mapping[str, Mapping[str, Any]], stage: str) -> None:
    """Check PyMIC's config for the supervised training or the test of a network of ours: what would crash there.

    Args:
        config: PyMIC's parsed config.
        stage: ``train`` or ``test``.

    Raises:
        ConfigError: with every mistake found.
    """
    mistakes: list[str] = []
    dataset, network, training = (Section(config.get(s, {}), s, mistakes) for s in ("dataset", "network", "training"))
    stages = ["test"] if stage == "test" else ["train"] + ["valid"] * ("valid_csv" in dataset)
    for each in stages:
        key = f"{each}_transform"
        if key not in dataset.values and key.lower() not in dataset.values:
            dataset.require(key, f"the transforms of the images to {each}; None for none")
        _check_transforms(dataset, key, dataset.names(key))
        _check_labelled_files(dataset, each)
    _check_pct_net(network)
    if stage == "train":
        dataset.integer("train_batch_size", 0, 1)
        if "valid" in stages:
            _check_valid_batch_size(dataset)
        _check_training(training, dataset)
        _check_deep_supervision(training, network)
        # PyMIC's own inferer is there only where it validates, ours is made in any case
        parse_inference(config, "valid", mistakes, axes=IMAGE_AXES, stock_too="valid" in stages)
    else:
        _check_seed_and_folder(training)
    # while training too, where a test of the same config is to come: it may be days later
    if stage == "test" or "output_dir" in config.get("testing", {}):
        parse_inference(config, "test", mistakes, axes=IMAGE_AXES, stock_too=True)
    if mistakes:
        raise ConfigError(mistakes)


def _check_labelled_files(dataset: Section, stage: str) -> None:
    """The csv and the files of one stage, where PyMIC's own reader looks for them."""
    root_key = f"{stage}_dir" if f"{stage}_dir" in dataset or "train_dir" not in dataset else "train_dir"
    dataset.require(root_key, "the folder of the images")
    root = dataset.path(root_key, "a folder")
    if root is not None and not Path(root).is_dir():
        dataset.mistakes.append(f"[dataset] {root_key} = {root}: there is no such folder")
    if stage != "test":  # a test without csv takes every image of its folder
        dataset.require(f"{stage}_csv", "the list of the images and labels")
    csv = dataset.path(f"{stage}_csv", "a csv file")
    table = None if csv is None else read_table(Path(csv), dataset.mistakes)
    if table is None:
        return
    modalities = dataset.integer("modal_num", 1, 1)
    columns = list(table.columns[:modalities])
    label = dataset.get(f"{stage}_label_key", "label")
    h5 = bool(len(table)) and str(table.iloc[0, 0]).endswith(".h5")
    if stage != "test" and not h5:
        if label in table.columns:
            columns.append(label)
        else:
            dataset.mistakes.append(f"{csv}: has no column {label!r}; its columns are {list(table.columns)}")
    if not len(table):
        dataset.mistakes.append(f"{csv}: lists no image")
    if root is not None:
        check_files(Path(csv), Path(root), table[columns], dataset.mistakes)


def _check_network(network: Section, classes: int, modalities: int) -> None:
    net_type = network.require("net_type", "such as PCTNet")
    if isinstance(net_type, str) and net_type not in SegNetDict:
        network.mistakes.append(f"[network] there is no net_type {net_type}{did_you_mean(net_type, SegNetDict)}")
    if network.require("class_num", f"VF_foreground_classes + 1 = {classes + 1}") not in (None, classes + 1):
        network.wrong("class_num", f"must be VF_foreground_classes + 1 = {classes + 1}")
    if network.integer("in_chns", modalities, 1) < modalities:
        network.wrong("in_chns", f"must be at least [dataset] modal_num = {modalities}")
    if net_type == "PCTNet":
        _check_pct_net(network)


def _check_pct_net(network: Section) -> None:
    try:
        parse_network_settings(network.values)
    except ConfigError as error:
        network.mistakes.extend(m for m in error.mistakes if m not in network.mistakes)


def _check_training(training: Section, dataset: Section) -> None:
    for key, why in TRAINING_KEYS.items():
        training.require(key, why)
    _check_seed_and_folder(training)
    for key in ("learning_rate", "momentum", "weight_decay"):
        if key in training and not isinstance(training.get(key), (int, float)):
            training.wrong(key, "must be a number")
    if "gpus" in training and not _is_list_of_int(training.get("gpus")):
        training.wrong("gpus", "must be a list of device numbers, such as [0]")
    scheduler = str(training.get("lr_scheduler"))
    for name, keys in SCHEDULER_KEYS.items():
        if scheduler.lower() == name.lower():
            for key in keys:
                training.require(key, f"lr_scheduler = {name} needs it")
    if "valid_csv" not in dataset and scheduler.lower() == "reducelronplateau":
        training.wrong("lr_scheduler", "needs [dataset] valid_csv, whose Dice it watches")


def _check_seed_and_folder(training: Section) -> None:
    """What PyMIC reads of [training] in a test too."""
    training.integer("random_seed", 1, 0, LARGEST_SEED, none_is_absent=False)
    training.path("ckpt_dir", "a folder")


def _check_deep_supervision(training: Section, network: Section) -> None:
    ours_supervised = training.get("deep_supervise") is True and network.get("net_type") == "PCTNet"
    if ours_supervised and network.get("multiscale_pred") is not True:
        network.wrong("multiscale_pred", "must be True where [training] deep_supervise = True")


def _check_iterations(training: Section) -> None:
    """PyMIC saves only where ``iter_max`` and ``iter_save`` meet ``iter_valid``; a run that ends elsewhere is lost."""
    if "iter_max" not in training or "iter_valid" not in training:
        return
    block = training.integer("iter_valid", 1, 1)
    last = training.integer("iter_max", block, 1)
    if last % block:
        training.wrong("iter_max", f"must be a multiple of iter_valid = {block}, or PyMIC does not save the end")
    if "iter_save" not in training:
        return
    save = training.get("iter_save")
    if _is_list_of_int(save):
        bad = [at for at in save if at % block]
        if bad or last not in save:
            training.wrong("iter_save", f"must be multiples of iter_valid = {block} and have iter_max = {last}")
    elif training.integer("iter_save", last, 1) % block or last % training.integer("iter_save", last, 1):
        training.wrong("iter_save", f"must be a multiple of iter_valid = {block} that divides iter_max = {last}")


def _is_list_of_int(value: Any) -> bool:
    return isinstance(value, Sequence) and bool(value) and all(type(item) is int for item in value)


def fuse_transform(dataset: Mapping[str, Any]) -> Any:
    """The transform ``VF`` with the keys of [dataset]."""
    return make_transform(FUSE, dataset)
