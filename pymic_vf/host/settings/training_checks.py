"""What is wrong with [training] of a config of ours, and with its batches: losses, optimizer, iterations, folders."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pymic.loss.loss_dict_seg import SegLossDict
from pymic.net_run.agent_rec import ReconstructionLossDict

from pymic_vf.errors import UserError, did_you_mean
from pymic_vf.host.settings.config_keys import (
    LOSS_KEYS,
    OTHER_TRAINING_KEYS,
    SCHEDULER_KEYS,
    TRAINING_KEYS,
)
from pymic_vf.host.weights.checkpoint import find_checkpoint
from pymic_vf.keys import Section
from pymic_vf.methods.method import SEGMENTATION, Method
from pymic_vf.networks import network_of

MOST_SAMPLES = 4096  # of a batch
MOST_CHANNELS, MOST_CLASSES = 4096, 256  # PyMIC writes segmentations as bytes


def check_classes(network: Section) -> None:
    """Note more classes than a segmentation has numbers for, and channels that no image has."""
    for key, most in (("in_chns", MOST_CHANNELS), ("class_num", MOST_CLASSES)):
        value = network.get(key)
        if isinstance(value, int) and value > most:
            network.wrong(key, f"must be at most {most}")


def check_batch(dataset: Section) -> None:
    """Note a batch that no memory holds."""
    batch = dataset.get("train_batch_size")
    if isinstance(batch, int) and batch > MOST_SAMPLES:
        dataset.wrong("train_batch_size", f"must be at most {MOST_SAMPLES}")


def check_batches_of_windows(dataset: Section, testing: Section, stages: Iterable[str]) -> None:
    """Note batches of several images where PyMIC's sliding windows take one."""
    slides = testing.get("sliding_window_enable") is True and testing.get("sliding_window_inferer", "stock") == "stock"
    for stage in stages:
        batch = dataset.get(f"{stage}_batch_size")
        if slides and stage != "train" and isinstance(batch, int) and batch > 1:
            dataset.wrong(f"{stage}_batch_size", "must be 1 for the sliding windows of PyMIC")


def check_further_training(training: Section, network: Section, values: Mapping[str, Any], deep: bool) -> None:
    """Note what is wrong beside the rows of [training] themselves.

    Args:
        training: the section.
        network: the section [network].
        values: of [training] by name.
        deep: whether the losses of several outputs count.
    """
    further = training.read(OTHER_TRAINING_KEYS)
    for loss in values["loss_type"] or ():
        training.read(LOSS_KEYS.get(loss, ()))
    classes = network.get("class_num")
    if further["class_weight"] is not None and len(further["class_weight"]) != classes:
        training.wrong("class_weight", f"must have a weight for each class, [network] class_num = {classes}")
    weights = further["deep_supervise_weight"]
    ours = network_of(network.values)
    if ours and weights is not None and deep and len(weights) != ours.outputs:
        training.wrong("deep_supervise_weight", f"must have a weight for each of the network's {ours.outputs} outputs")
    for key, given in (("loss_weight", values["loss_weight"]), ("deep_supervise_weight", weights)):
        if given and sum(given) <= 0:
            training.wrong(key, "must not come to 0 or less in all")
    is_sgd = (values["optimizer"] or "").lower() == "sgd"
    if is_sgd and further["nesterov"] and values["momentum"] == 0:
        training.wrong("momentum", "must be above 0 for SGD, unless nesterov = False")
    check_folder(training, "ckpt_dir")
    _check_start(training, values)


def check_folder(section: Section, key: str) -> None:
    """Note a folder that cannot be made or written to."""
    name = section.get(key)
    if not isinstance(name, str):
        return
    folder = there = Path(name)
    try:
        while not there.exists() and there != there.parent:
            there = there.parent
        if not there.is_dir():
            section.wrong(key, f"must be the name of a folder; {there} is a file")
        elif not os.access(there, os.W_OK | os.X_OK):
            rule = "must be a folder that can be written to"
            section.wrong(key, rule if there == folder else f"{rule}; {there} cannot")
    except (OSError, ValueError) as error:
        section.wrong(key, f"must be the name of a folder ({getattr(error, 'strerror', None) or error})")


def _check_start(training: Section, values: Mapping[str, Any]) -> None:
    """The checkpoint that a training starts from is there."""
    start, folder = training.get("ckpt_init_name"), training.get("ckpt_dir")
    if training.get("resume") and isinstance(folder, str) and any(Path(folder).glob("*.pt")):
        return  # it goes on from one of its own
    if not isinstance(start, str) or not isinstance(folder, str):
        if values["ckpt_init_mode"] and "ckpt_init_name" not in training:
            training.wrong("ckpt_init_mode", "needs ckpt_init_name, the checkpoint to go on from")
        return
    # ckpt_dir is made later: FOLDER/../NAME has no meaning to the file system before
    path = f"{folder}/{start}" if Path(folder).is_dir() or Path(start).is_absolute() else _normal(folder, start)
    try:
        find_checkpoint(path)
    except UserError as error:
        training.mistakes.append(f"[training] ckpt_init_name = {start}: {error}")
    except (OSError, ValueError) as error:
        training.wrong("ckpt_init_name", f"must be the name of a checkpoint ({error})")


def _normal(folder: str, start: str) -> str:
    return os.path.normpath(f"{folder}/{start}")


def check_makes_one_hot(dataset: Section, stage: str, names: Iterable[str], known: Iterable[str]) -> None:
    """Note where no transform makes the one-hot label that a segmentation learns from.

    Args:
        dataset: the section.
        stage: train or valid.
        names: its transforms.
        known: the transforms whose results are known; one of others may make it.
    """
    names = list(names)
    if set(names) <= set(known) and not {"LabelToProbability", "PartialLabelToProbability"} & set(names):
        dataset.wrong(f"{stage}_transform", "must have LabelToProbability, which makes the label that the loss is of")


def check_training(training: Section, validates: bool, task: str) -> dict[str, Any]:
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


def check_reconstruction(training: Section, method: Method) -> None:
    """What PyMIC's reconstruction agent asks for."""
    if isinstance(training.get("loss_type"), (list, tuple)):
        training.wrong("loss_type", f"must be one name for {method.title}, MAELoss or MSELoss")
    elif method.weights_voxels and training.get("loss_type") == "MSELoss":
        training.wrong("loss_type", f"must be MAELoss, the one that weights voxels, as {method.title} does here")
    if training.get("deep_supervise"):
        training.wrong("deep_supervise", f"must not be True for {method.title}: PyMIC has none for reconstructions")
    if "loss_acti_func" in training and training.get("loss_acti_func") not in ("tanh", "sigmoid"):
        training.wrong("loss_acti_func", "must be None, tanh or sigmoid for a reconstruction")


def check_supervised_reconstruction(training: Section, network: Section) -> None:
    """What PyMIC's reconstruction agent asks for."""
    if network.get("class_num") != 1:
        network.wrong("class_num", "must be 1 for [dataset] task_type = rec")
    if isinstance(training.get("loss_type"), (list, tuple)):
        training.wrong("loss_type", "must be one name, MAELoss or MSELoss, for [dataset] task_type = rec")
    if training.get("deep_supervise"):
        training.wrong("deep_supervise", "must not be True for [dataset] task_type = rec")


def check_deep_supervision(network: Section, is_deep: bool, may_be_ignored: bool) -> None:
    """Deep supervision needs the several outputs of our networks. Without it all but one learn nothing, and several
    processes would decay their weights where one does not."""
    is_multiscale = network.get("multiscale_pred") is True
    is_ours = network_of(network.values) is not None
    if is_ours and is_deep != is_multiscale and not (may_be_ignored and is_multiscale):
        network.wrong("multiscale_pred", f"must be {is_deep} where [training] deep_supervise = {is_deep}")


def check_iterations(training: Section, values: Mapping[str, Any]) -> None:
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
