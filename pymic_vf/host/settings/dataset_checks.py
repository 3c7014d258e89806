"""What is wrong with [dataset]: lists of scans, their files, and the transforms of samples and volumes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pymic import TaskDict, TaskType
from pymic.transform.trans_dict import TransformDict

from pymic_vf.data.scan import can_pymic_read
from pymic_vf.data.scan_list import ScanList, check_files, read_scan_list, read_table
from pymic_vf.errors import UserError, did_you_mean
from pymic_vf.host.settings.config_keys import (
    BY_NAME,
    OTHER_DATASET_KEYS,
)
from pymic_vf.host.settings.training_checks import (
    check_makes_one_hot,
)
from pymic_vf.host.settings.transform_keys import TRANSFORM_KEYS, check_channels, check_transform
from pymic_vf.keys import Key, Section, names, path
from pymic_vf.methods import METHODS
from pymic_vf.methods.method import RECONSTRUCTION, SEGMENTATION, Method

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


def make_transform(name: str, dataset: Mapping[str, Any]) -> Any:
    """The PyMIC transform of that name, made as PyMIC makes it."""
    return TransformDict[name]({**dataset, "task": dataset.get("task_type")})


def with_folders(dataset: Section, values: dict[str, Any]) -> dict[str, Any]:
    """The values with the folder of the cache as a path, ~ as a shell reads it."""
    name = values["cache_dir"]
    try:
        folder = None if name is None else Path(name).expanduser()
    except RuntimeError:
        folder = None
        dataset.wrong(written_name("cache_dir", dataset), "must not begin with ~ and a name that is no user")
    if values["cache_max_gib"] is not None and written_name("cache_dir", dataset) not in dataset:
        dataset.wrong(written_name("cache_max_gib", dataset), "needs cache_dir")
    pair = ("crop_min_foreground", "crop_foreground_threshold")
    for name, other in (pair, pair[::-1]):
        if name in dataset and other not in dataset:
            dataset.missing(other, f"{name} = {dataset.get(name)} needs it")
    return {**values, "cache_dir": folder}


def written_name(name: str, dataset: Section) -> str:
    return dataset.written_name(BY_NAME[name])


def check_sample_transforms(
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


def check_scan_lists(
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


def task_of(dataset: Section) -> str:
    return RECONSTRUCTION if dataset.get("task_type") == TaskType.RECONSTRUCTION else SEGMENTATION


def check_task(dataset: Section, task: str) -> None:
    """The task of the config is that of its method."""
    given = dataset.get("task_type")
    if given != (TaskType.SEGMENTATION if task == SEGMENTATION else TaskType.RECONSTRUCTION):
        wanted = "seg" if task == SEGMENTATION else "rec"
        dataset.mistakes.append(f"[dataset] task_type must be {wanted} for this method, got {_short(given)}")


def _short(task: Any) -> str:
    return next((name for name, kind in TaskDict.items() if kind == task), repr(task))


def check_supervised_data(dataset: Section, network: Section, stages: Sequence[str]) -> None:
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
    if task_of(dataset) == SEGMENTATION:
        for stage, names in zip(stages, listed, strict=True):
            if stage != "test" and f"{stage}_transform" in dataset.values:
                check_makes_one_hot(dataset, stage, names, TRANSFORM_KEYS)
    for stage in stages:
        if isinstance(dataset.get(f"{stage}_transform"), str):
            dataset.wrong(f"{stage}_transform", "must be a list of names, such as [RandomCrop]")


def check_transforms_of_stage(dataset: Section, stage: str) -> None:
    key = Key(f"{stage}_transform", names(), f"the transforms of the images to {stage}; None for none")
    if key.name not in dataset.values:
        dataset.missing(key.name, key.meaning)
    _check_transforms(dataset, key.name, dataset.read_key(key) or ())


def check_labelled_files(dataset: Section, stage: str) -> None:
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
