"""Everything that can be wrong with a config of ours, found and reported together before any work.

What is checked is what is ours: the pretraining methods of this package, and the supervised training and test of its
networks. Configs of PyMIC's other methods and networks are PyMIC's to judge.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pymic import TaskDict, TaskType
from pymic.loss.loss_dict_seg import SegLossDict
from pymic.net.net_dict_seg import SegNetDict
from pymic.net_run.agent_rec import ReconstructionLossDict
from pymic.transform.trans_dict import TransformDict

from pymic_vf.data.scan import can_pymic_read
from pymic_vf.data.scan_list import ScanList, check_files, read_scan_list, read_table
from pymic_vf.errors import ConfigError, UserError, did_you_mean
from pymic_vf.host.execution import EXECUTION_KEYS, read_execution
from pymic_vf.host.processes import process_count
from pymic_vf.host.settings.config_keys import (
    BY_NAME,
    DATASET_KEYS,
    METHOD_KEYS,
    NETWORK_KEYS,
    OTHER_DATASET_KEYS,
    OTHER_TRAINING_KEYS,
    RUN_KEYS,
    SAMPLE_KEYS,
    SCHEDULER_KEYS,
    SEED_AND_FOLDER,
    TRAINING_KEYS,
)
from pymic_vf.host.settings.inference_settings import INFERER, parse_inference
from pymic_vf.host.settings.known_keys import flat_network, log_other_methods, unread_keys
from pymic_vf.host.settings.testing_checks import check_testing
from pymic_vf.host.settings.training_checks import (
    check_batch,
    check_batches_of_windows,
    check_classes,
    check_further_training,
    check_makes_one_hot,
)
from pymic_vf.host.settings.transform_keys import TRANSFORM_KEYS, check_channels, check_transform
from pymic_vf.host.weights.channel_inflation import INFLATION_KEY
from pymic_vf.keys import Key, Section, list_of, names, path, whole
from pymic_vf.methods import METHODS, method_class
from pymic_vf.methods.method import RECONSTRUCTION, SEGMENTATION, Method
from pymic_vf.networks import Network, network_of
from pymic_vf.sizes import Size

log = logging.getLogger(__name__)
IMAGE_AXES = 3  # of the images of our networks
IMAGE_SIZE = list_of(whole(1), IMAGE_AXES)
ONE_HOT = "LabelToProbability"
Config = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class TransformNames:
    """The transforms of a sample before and after the method."""

    before: tuple[str, ...]
    after: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """All of them."""
        return self.before + self.after


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
        _with_folders(dataset, values),
        *_check_sample_transforms(dataset, values, name, method),
        *_check_scan_lists(dataset, values, method),
    )
    if values["train_batch_size"] and values["train_batch_size"] % processes:
        dataset.wrong("train_batch_size", f"must be a multiple of the {processes} processes, which share each batch")
    check_batch(dataset)
    check_channels(dataset, (*values["volume_transform"], *plan.train.names, *plan.valid.names), network)
    Section(config["self_supervised_learning"], "self_supervised_learning", mistakes).read(METHOD_KEYS)
    _check_task(dataset, method.task)
    settings = _check_network(network, method, values["modal_num"])
    _check_sizes(settings, {_written("crop_size", dataset): dataset})
    checked = _check_training(training, "valid_csv" in dataset, method.task)
    check_further_training(training, network, checked, bool(checked["deep_supervise"]))
    read_execution(network, checked["gpus"])
    if method.task == RECONSTRUCTION:
        _check_reconstruction(training, method)
    is_deep = checked["deep_supervise"] and method.task == SEGMENTATION
    _check_deep_supervision(network, is_deep, may_be_ignored=False)
    _check_iterations(training, checked)
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
        _check_transforms_of_stage(dataset, each)
        _check_labelled_files(dataset, each)
    network.read_key(INFLATION_KEY)
    if ours:
        _check_unread_keys(config, mistakes, is_our_network=True)
        network.read(NETWORK_KEYS)
        check_classes(network)
        testing = Section(config.get("testing", {}), "testing", mistakes)
        sizes = {"RandomCrop_output_size": dataset, "sliding_window_size": testing}
        _check_sizes(_check_settings(network, ours), sizes)
        _check_supervised_data(dataset, network, stages)
        check_batches_of_windows(dataset, testing, stages)
    read_execution(network, config.get("training" if stage == "train" else "testing", {}).get("gpus"))
    if stage == "train":
        from pymic_vf.host.cached_sets import cache_mistakes  # which has checks from here

        mistakes.extend(cache_mistakes(config))
        dataset.read([BY_NAME[f"{each}_batch_size"] for each in stages])
        task = _task_of(dataset)
        checked = _check_training(training, "valid" in stages, task)
        if ours:
            check_further_training(training, network, checked, bool(checked["deep_supervise"]))
            if task == RECONSTRUCTION:
                _check_supervised_reconstruction(training, network)
        _check_deep_supervision(network, checked["deep_supervise"], may_be_ignored=True)
        _check_iterations(training, checked)
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
    _check_iterations(training, values)
    if training.mistakes:
        raise ConfigError(training.mistakes)


def check_network(config: Config) -> None:
    """Check the [network] keys of a network of ours, however it is trained.

    Raises:
        ConfigError: with every mistake found.
    """
    if ours := network_of(config.get("network", {})):
        ours.parse(config["network"])


def make_transform(name: str, dataset: Mapping[str, Any]) -> Any:
    """The PyMIC transform of that name, made as PyMIC makes it."""
    return TransformDict[name]({**dataset, "task": dataset.get("task_type")})


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
    pair = ("crop_min_foreground", "crop_foreground_threshold")
    for name, other in (pair, pair[::-1]):
        if name in dataset and other not in dataset:
            dataset.missing(other, f"{name} = {dataset.get(name)} needs it")
    return {**values, "cache_dir": folder}


def _written(name: str, dataset: Section) -> str:
    return dataset.written_name(BY_NAME[name])


def _check_sample_transforms(
    dataset: Section, values: Mapping[str, Any], name: str, method: Method
) -> tuple[TransformNames, TransformNames]:
    volume = values["volume_transform"]
    for wrong in {*METHODS, ONE_HOT} & set(volume):
        dataset.wrong("volume_transform", f"must not have {wrong}, which belongs to a sample and not to a volume")
    _check_transforms(dataset, "volume_transform", [each for each in volume if each not in METHODS])
    default = (name, ONE_HOT) if method.task == SEGMENTATION else (name,)
    train = _split_at_method(dataset, "train_transform", values["train_transform"] or default, name, method)
    if not values["valid_transform"]:
        return train, train
    return train, _split_at_method(dataset, "valid_transform", values["valid_transform"], name, method)


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
        known = len(dataset.mistakes)
        check_transform(name, dataset)
        if len(dataset.mistakes) > known:
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


def _task_of(dataset: Section) -> str:
    return RECONSTRUCTION if dataset.get("task_type") == TaskType.RECONSTRUCTION else SEGMENTATION


def _check_task(dataset: Section, task: str) -> None:
    """The task of the config is that of its method."""
    given = dataset.get("task_type")
    if given != (TaskType.SEGMENTATION if task == SEGMENTATION else TaskType.RECONSTRUCTION):
        wanted = "seg" if task == SEGMENTATION else "rec"
        dataset.mistakes.append(f"[dataset] task_type must be {wanted} for this method, got {_short(given)}")


def _short(task: Any) -> str:
    return next((name for name, kind in TaskDict.items() if kind == task), repr(task))


def _check_supervised_data(dataset: Section, network: Section, stages: Sequence[str]) -> None:
    """The keys of [dataset] that PyMIC's own reader takes, and what the network must be given."""
    rows = [key for key in OTHER_DATASET_KEYS if key.name.startswith(tuple(f"{stage}_" for stage in stages))]
    rows = [key for key in rows if not key.name.endswith(("_csv", "_dir", "_transform"))]
    own = ("num_worker", "modal_num", "tensor_type", "patch_size", "allow_missing_modal", "supervise_type")
    rows += [BY_NAME[name] for name in own[2:]]
    # PyMIC's reader and loader fail on None, which a pretraining takes for no value
    rows += [replace(BY_NAME[name], none_is_absent=False) for name in own[:2]]
    dataset.read(rows)
    listed = [dataset.get(f"{stage}_transform") for stage in stages]
    listed = [names if isinstance(names, (list, tuple)) else [] for names in listed]
    check_channels(dataset, [name for names in listed for name in names], network)
    if _task_of(dataset) == SEGMENTATION:
        for stage, names in zip(stages, listed, strict=True):
            if stage != "test" and f"{stage}_transform" in dataset.values:
                check_makes_one_hot(dataset, stage, names, TRANSFORM_KEYS)
    for stage in stages:
        if isinstance(dataset.get(f"{stage}_transform"), str):
            dataset.wrong(f"{stage}_transform", "must be a list of names, such as [RandomCrop]")


def _check_supervised_reconstruction(training: Section, network: Section) -> None:
    """What PyMIC's reconstruction agent asks for."""
    if network.get("class_num") != 1:
        network.wrong("class_num", "must be 1 for [dataset] task_type = rec")
    if isinstance(training.get("loss_type"), (list, tuple)):
        training.wrong("loss_type", "must be one name, MAELoss or MSELoss, for [dataset] task_type = rec")
    if training.get("deep_supervise"):
        training.wrong("deep_supervise", "must not be True for [dataset] task_type = rec")


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
    label = dataset.read_key(BY_NAME[f"{stage}_label_key"])
    is_h5 = bool(len(table)) and str(table.iloc[0, 0]).endswith(".h5")
    if stage != "test" and not is_h5:
        if label in table.columns:
            columns.append(label)
        else:
            dataset.mistakes.append(f"{csv}: has no column {label!r}; its columns are {list(table.columns)}")
    if not len(table):
        dataset.mistakes.append(f"{csv}: lists no image")
    batch = dataset.get("train_batch_size")
    is_cached = "cache_dir" in dataset  # then another loader makes the batches
    if stage == "train" and not is_cached and isinstance(batch, int) and batch > len(table) > 0:
        dataset.wrong("train_batch_size", f"must not exceed the {len(table)} images of train_csv: PyMIC drops the rest")
    if root is not None:
        check_files(Path(csv), Path(root), table[columns], dataset.mistakes, readable=can_pymic_read)


def _check_network(network: Section, method: Method, modalities: int) -> Any:
    """The settings of a network of ours, or None."""
    values = network.read(NETWORK_KEYS)
    net_type, in_chns = values["net_type"], values["in_chns"] or modalities
    if isinstance(net_type, str) and net_type not in SegNetDict:
        network.mistakes.append(f"[network] there is no net_type {net_type}{did_you_mean(net_type, SegNetDict)}")
    outputs = method.class_names(in_chns)
    if values["class_num"] not in (None, len(outputs)):
        network.wrong("class_num", f"must be {len(outputs)} for {method.title} ({', '.join(outputs)})")
    check_classes(network)
    if problem := flat_network(network.values):
        network.mistakes.append(problem)
    if in_chns < modalities:
        network.wrong("in_chns", f"must be at least [dataset] modal_num = {modalities}")
    ours = network_of(network.values)
    return _check_settings(network, ours) if ours else None


def _check_settings(network: Section, ours: Network) -> Any:
    """The settings of a network of ours; None where they have mistakes, which are noted."""
    try:
        return ours.parse(network.values)
    except ConfigError as error:
        network.mistakes.extend(m for m in error.mistakes if m not in network.mistakes)
        return None


def _check_sizes(settings: Any, sizes: Mapping[str, Section]) -> None:
    """Note those of some sizes, by their keys, that a network of ours would refuse in the middle of a run."""
    if not hasattr(settings, "ill_sized_axes"):  # any size fits
        return
    for key, section in sizes.items():
        size = section.get(key)
        if IMAGE_SIZE.fits(size) and (wrong := settings.ill_sized_axes(size)):
            multiples = list(settings.strides[-1])
            section.wrong(key, f"must be multiples of {multiples} for this network: {'; '.join(wrong)}")


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
    """Deep supervision needs the several outputs of our networks. Without it all but one learn nothing, and several
    processes would decay their weights where one does not."""
    is_multiscale = network.get("multiscale_pred") is True
    is_ours = network_of(network.values) is not None
    if is_ours and is_deep != is_multiscale and not (may_be_ignored and is_multiscale):
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
