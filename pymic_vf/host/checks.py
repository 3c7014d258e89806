"""Everything that can be wrong with a config of ours, found and reported together before any work.

What is checked is what is ours: the pretraining methods of this package, and the supervised training and test of its
networks. Configs of PyMIC's other methods and networks are PyMIC's to judge.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pymic.loss.loss_dict_seg import SegLossDict
from pymic.net.net_dict_seg import SegNetDict
from pymic.net_run.agent_rec import ReconstructionLossDict
from pymic.transform.trans_dict import TransformDict

from pymic_vf.data.scan_list import ScanList, check_files, read_scan_list, read_table
from pymic_vf.data.volume_transform import VolumeTransform
from pymic_vf.data.voxel_wise import is_voxel_wise
from pymic_vf.errors import ConfigError, UserError, did_you_mean
from pymic_vf.host.config_keys import (
    BY_NAME,
    DATASET_KEYS,
    NETWORK_KEYS,
    SAMPLE_KEYS,
    SCHEDULER_KEYS,
    SEED_AND_FOLDER,
    TRAINING_KEYS,
)
from pymic_vf.host.execution import read_execution
from pymic_vf.host.inference_settings import parse_inference
from pymic_vf.keys import Key, Section, misspelt, names, path
from pymic_vf.methods import METHODS, method_class
from pymic_vf.methods.method import RECONSTRUCTION, SEGMENTATION, Method
from pymic_vf.networks.pct_net_settings import parse_network_settings
from pymic_vf.sizes import Size

log = logging.getLogger(__name__)
IMAGE_AXES = 3  # of PCTNet's images
ONE_HOT = "LabelToProbability"
Config = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class TransformNames:
    """The transforms of a sample before and after the method."""

    before: tuple[str, ...]
    after: tuple[str, ...]


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
    _check_unread_keys(config, kind, mistakes)
    values = dataset.read((*DATASET_KEYS, *SAMPLE_KEYS, *kind.keys))
    kind.check(values, values["crop_size"], dataset)
    method = kind(values)
    plan = PretrainingPlan(
        method,
        _with_folders(dataset, values),
        *_check_sample_transforms(dataset, values, name, method),
        *_check_scan_lists(dataset, values, method),
    )
    if values["train_batch_size"] and values["train_batch_size"] % processes:
        dataset.wrong("train_batch_size", f"must be a multiple of the {processes} processes, which share each batch")
    _check_network(network, method, values["modal_num"])
    checked = _check_training(training, "valid_csv" in dataset, method.task)
    read_execution(network, checked["gpus"])
    if method.task == RECONSTRUCTION:
        _check_reconstruction(training, method)
    is_deep = checked["deep_supervise"] and method.task == SEGMENTATION
    _check_deep_supervision(network, is_deep, may_be_ignored=False)
    _check_iterations(training, checked)
    if "early_stop_patience" in training and "valid_csv" not in dataset:
        training.wrong("early_stop_patience", "needs [dataset] valid_csv: without it PyMIC stops after that long")
    parse_inference(config, "valid", mistakes, axes=IMAGE_AXES if network.get("net_type") == "PCTNet" else None)
    if mistakes:
        raise ConfigError(mistakes)
    return plan


def check_supervised(config: Config, stage: str) -> None:
    """Check PyMIC's config for a supervised training or a test: what would crash there.

    Args:
        config: PyMIC's parsed config.
        stage: ``train`` or ``test``.

    Raises:
        ConfigError: with every mistake found.
    """
    mistakes: list[str] = []
    dataset, network, training = _sections(config, mistakes)
    is_ours = network.get("net_type") == "PCTNet"
    axes = IMAGE_AXES if is_ours else None
    stages = ["test"] if stage == "test" else ["train"] + ["valid"] * ("valid_csv" in dataset)
    for each in stages:
        _check_transforms_of_stage(dataset, each)
        _check_labelled_files(dataset, each)
    if is_ours:
        _check_pct_net(network)
    read_execution(network, config.get("training" if stage == "train" else "testing", {}).get("gpus"))
    if stage == "train":
        from pymic_vf.host.cached_sets import cache_mistakes  # which has checks from here

        mistakes.extend(cache_mistakes(config))
        dataset.read([BY_NAME[f"{each}_batch_size"] for each in stages])
        checked = _check_training(training, "valid" in stages, SEGMENTATION)
        _check_deep_supervision(network, checked["deep_supervise"], may_be_ignored=True)
        if "valid" not in stages:  # with a validation there is a best checkpoint at least
            _check_iterations(training, checked)
        # PyMIC's own inferer is there only where it validates, ours is made in any case
        parse_inference(config, "valid", mistakes, axes=axes, stock_too="valid" in stages)
    else:
        training.read(SEED_AND_FOLDER)
    # while training too, where a test of the same config is to come: it may be days later
    if stage == "test" or "output_dir" in config.get("testing", {}):
        parse_inference(config, "test", mistakes, axes=axes, stock_too=True)
    if mistakes:
        raise ConfigError(mistakes)


def check_network(config: Config) -> None:
    """Check the [network] keys of a network of ours, however it is trained.

    Raises:
        ConfigError: with every mistake found.
    """
    if config.get("network", {}).get("net_type") == "PCTNet":
        parse_network_settings(config["network"])


def make_transform(name: str, dataset: Mapping[str, Any]) -> Any:
    """The PyMIC transform of that name, made as PyMIC makes it."""
    return TransformDict[name]({**dataset, "task": dataset.get("task_type")})


def _sections(config: Config, mistakes: list[str]) -> list[Section]:
    return [Section(config.get(name, {}), name, mistakes) for name in ("dataset", "network", "training")]


def _check_unread_keys(config: Config, method: type[Method], mistakes: list[str]) -> None:
    """Note the keys of ours that would be ignored: misspelt ones and those of another section; log those of another
    method, which one config for several methods may have."""
    dataset = Section(config["dataset"], "dataset", mistakes)
    ours = (*SAMPLE_KEYS, *method.keys)
    of_others = {key.name for name in METHODS for key in method_class(name).keys} - {key.name for key in ours}
    others = ("patch_size", *(name.lower() for name in of_others))
    misspelt(dataset, ours, others, prefixes=tuple(f"{name.lower()}_" for name in METHODS))
    if unread := sorted(name for name in of_others if name in dataset):
        log.info("[dataset] %s: of another method than %s, not read", ", ".join(unread), method.title)
    for section, values in config.items():
        for name in (name for key in ours for name in (key.name, key.former) if name.lower() in values):
            if section != "dataset":
                Section(values, section, mistakes).wrong(name, "belongs in [dataset] and would be ignored here")


def _with_folders(dataset: Section, values: dict[str, Any]) -> dict[str, Any]:
    """The values with the folder of the cache as a path, ~ as a shell reads it."""
    name = values["cache_dir"]
    try:
        folder = None if name is None else Path(name).expanduser()
    except RuntimeError:
        folder = None
        dataset.wrong(_written("cache_dir", dataset), "must not begin with ~ and the name of a user that there is not")
    if values["cache_max_gib"] is not None and _written("cache_dir", dataset) not in dataset:
        dataset.wrong(_written("cache_max_gib", dataset), "needs cache_dir")
    return {**values, "cache_dir": folder}


def _written(name: str, dataset: Section) -> str:
    return dataset.written_name(BY_NAME[name])


def _check_sample_transforms(
    dataset: Section, values: Mapping[str, Any], name: str, method: Method
) -> tuple[TransformNames, TransformNames]:
    _check_body(dataset, values)
    volume = values["volume_transform"]
    for wrong in {*METHODS, ONE_HOT} & set(volume):
        dataset.wrong("volume_transform", f"must not have {wrong}, which belongs to a sample and not to a volume")
    _check_transforms(dataset, "volume_transform", [each for each in volume if each not in METHODS])
    default = (name, ONE_HOT) if method.task == SEGMENTATION else (name,)
    train = _split_at_method(dataset, "train_transform", values["train_transform"] or default, name, method)
    if not values["valid_transform"]:
        return train, train
    return train, _split_at_method(dataset, "valid_transform", values["valid_transform"], name, method)


def _check_body(dataset: Section, values: Mapping[str, Any]) -> None:
    """A threshold in HU is for voxels as the file has them, and these are kept only without intensity transforms."""
    key = "crop_foreground_threshold"
    if key in dataset and "crop_min_foreground" not in dataset:
        dataset.wrong(key, "needs crop_min_foreground")
    try:
        volume = VolumeTransform([make_transform(name, dataset.values) for name in values["volume_transform"]])
    except Exception:  # the check of the transforms says what is wrong with them
        return
    if not isinstance(values[key], str) and any(map(is_voxel_wise, volume.of_volume)):
        dataset.wrong(key, "must be otsu where volume_transform changes intensities and then the geometry")


def _split_at_method(
    dataset: Section, key: str, transforms: tuple[str, ...], name: str, method: Method
) -> TransformNames:
    if transforms.count(name) != 1:
        hint = "" if name in transforms else did_you_mean(name, transforms)
        dataset.wrong(key, f"must have {name} exactly once{hint}")
        return TransformNames((), ())
    before, after = transforms[: transforms.index(name)], transforms[transforms.index(name) + 1 :]
    if method.task == RECONSTRUCTION and after:
        dataset.wrong(key, f"must end with {name}: what comes after it would change the image and not its target")
    if method.task == SEGMENTATION and (after.count(ONE_HOT) != 1 or ONE_HOT in before):
        hint = "" if ONE_HOT in transforms else did_you_mean(ONE_HOT, transforms)
        dataset.wrong(key, f"must have {ONE_HOT} exactly once, after {name}, which makes the label{hint}")
    _check_transforms(dataset, key, (*before, *after))
    return TransformNames(before, after)


def _check_transforms(dataset: Section, key: str, transforms: Iterable[str]) -> None:
    for name in transforms:
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


def _check_scan_lists(
    dataset: Section, values: Mapping[str, Any], method: Method
) -> tuple[ScanList | None, ScanList | None]:
    lists = []
    for stage in ("train", "valid"):
        root, csv = values[f"{stage}_dir" if f"{stage}_dir" in dataset else "train_dir"], values[f"{stage}_csv"]
        scans = None
        if root is not None and csv is not None:
            scans = read_scan_list(csv, root, values["modal_num"], dataset.mistakes, method.scans_per_sample)
        lists.append(scans)
    return lists[0], lists[1]


def _check_transforms_of_stage(dataset: Section, stage: str) -> None:
    key = Key(f"{stage}_transform", names(), f"the transforms of the images to {stage}; None for none")
    if key.name not in dataset.values:
        dataset.missing(key.name, key.meaning)
    _check_transforms(dataset, key.name, dataset.read_key(key) or ())


def _check_labelled_files(dataset: Section, stage: str) -> None:
    """The csv and the files of one stage, where PyMIC's own reader finds them."""
    root_key = f"{stage}_dir" if f"{stage}_dir" in dataset or "train_dir" not in dataset else "train_dir"
    root = dataset.read_key(Key(root_key, path("a folder"), "the folder of the images", required=True))
    if root is not None and not Path(root).is_dir():
        dataset.mistakes.append(f"[dataset] {root_key} = {root}: there is no such folder")
    # a test without csv takes every image of its folder
    listed = Key(f"{stage}_csv", path("a csv file"), "the list of the images and labels", required=stage != "test")
    csv = dataset.read_key(listed)
    table = None if csv is None else read_table(Path(csv), dataset.mistakes)
    if table is None:
        return
    modalities = dataset.read_key(BY_NAME["modal_num"])
    columns = list(table.columns[:modalities])
    label = dataset.get(f"{stage}_label_key", "label")
    is_h5 = bool(len(table)) and str(table.iloc[0, 0]).endswith(".h5")
    if stage != "test" and not is_h5:
        if label in table.columns:
            columns.append(label)
        else:
            dataset.mistakes.append(f"{csv}: has no column {label!r}; its columns are {list(table.columns)}")
    if not len(table):
        dataset.mistakes.append(f"{csv}: lists no image")
    if root is not None:
        check_files(Path(csv), Path(root), table[columns], dataset.mistakes)


def _check_network(network: Section, method: Method, modalities: int) -> None:
    values = network.read(NETWORK_KEYS)
    net_type, in_chns = values["net_type"], values["in_chns"] or modalities
    if isinstance(net_type, str) and net_type not in SegNetDict:
        network.mistakes.append(f"[network] there is no net_type {net_type}{did_you_mean(net_type, SegNetDict)}")
    outputs = method.class_names(in_chns)
    if values["class_num"] not in (None, len(outputs)):
        network.wrong("class_num", f"must be {len(outputs)} for {method.title} ({', '.join(outputs)})")
    if in_chns < modalities:
        network.wrong("in_chns", f"must be at least [dataset] modal_num = {modalities}")
    if net_type == "PCTNet":
        _check_pct_net(network)


def _check_pct_net(network: Section) -> None:
    try:
        parse_network_settings(network.values)
    except ConfigError as error:
        network.mistakes.extend(m for m in error.mistakes if m not in network.mistakes)


def _check_training(training: Section, validates: bool, task: str) -> dict[str, Any]:
    """The values of [training] by name."""
    values = training.read(TRAINING_KEYS)
    scheduler = (values["lr_scheduler"] or "").lower()
    training.read(SCHEDULER_KEYS.get(scheduler, ()))
    if scheduler == "reducelronplateau" and not validates:
        training.wrong("lr_scheduler", "needs [dataset] valid_csv, whose validations it follows")
    known = SegLossDict if task == SEGMENTATION else ReconstructionLossDict
    for loss in values["loss_type"] or ():
        if loss not in known:
            training.mistakes.append(f"[training] loss_type: there is no loss {loss}{did_you_mean(loss, known)}")
    if isinstance(training.get("loss_type"), (list, tuple)):
        weights, losses = values["loss_weight"], values["loss_type"] or ()
        if weights is None and "loss_weight" not in training:
            training.missing("loss_weight", f"a weight for each loss of loss_type = {list(losses)}")
        elif weights is not None and len(weights) != len(losses):
            training.wrong("loss_weight", f"must have a weight for each loss of loss_type = {list(losses)}")
    return values


def _check_reconstruction(training: Section, method: Method) -> None:
    """What PyMIC's reconstruction agent asks for."""
    if isinstance(training.get("loss_type"), (list, tuple)):
        training.wrong("loss_type", f"must be one name for {method.title}, MAELoss or MSELoss")
    elif method.weights_voxels and training.get("loss_type") == "MSELoss":
        training.wrong("loss_type", f"must be MAELoss, the one that weights voxels, as {method.title} does here")
    if training.get("deep_supervise"):
        training.wrong("deep_supervise", f"must not be True for {method.title}: PyMIC has none for reconstructions")
    if "loss_acti_func" in training and training.get("loss_acti_func") not in ("tanh", "sigmoid"):
        training.wrong("loss_acti_func", "must be None, tanh or sigmoid for a reconstruction")


def _check_deep_supervision(network: Section, is_deep: bool, may_be_ignored: bool) -> None:
    """Deep supervision needs PCT-Net's four outputs. Without it three of them learn nothing, and several processes
    would decay their weights where one does not."""
    is_multiscale = network.get("multiscale_pred") is True
    if network.get("net_type") == "PCTNet" and is_deep != is_multiscale and not (may_be_ignored and is_multiscale):
        network.wrong("multiscale_pred", f"must be {is_deep} where [training] deep_supervise = {is_deep}")


def _check_iterations(training: Section, values: Mapping[str, Any]) -> None:
    """PyMIC saves only where ``iter_max`` and ``iter_save`` meet ``iter_valid``; a run that ends elsewhere is lost."""
    if "iter_max" not in training or "iter_valid" not in training:
        return
    block, last, save = values["iter_valid"], values["iter_max"], values["iter_save"]
    if last % block:
        training.wrong("iter_max", f"must be a multiple of iter_valid = {block}, or PyMIC does not save the end")
    if isinstance(save, Sequence):
        if any(at % block for at in save) or last not in save:
            training.wrong("iter_save", f"must be multiples of iter_valid = {block} and have iter_max = {last}")
    elif save is not None and (save % block or last % save):
        training.wrong("iter_save", f"must be a multiple of iter_valid = {block} that divides iter_max = {last}")
