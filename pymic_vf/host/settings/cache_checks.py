"""What is wrong with a supervised config that has ``cache_dir``."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pymic import TaskType

from pymic_vf.data.labelled_reader import LabelledScans
from pymic_vf.data.labelled_transform import split_at_random
from pymic_vf.data.scan_list import ScanList, read_table
from pymic_vf.errors import ConfigError
from pymic_vf.host.processes import process_count
from pymic_vf.host.settings.config_keys import BY_NAME
from pymic_vf.host.settings.dataset_checks import (
    check_labelled_files,
    check_transforms_of_stage,
    make_transform,
    with_folders,
)
from pymic_vf.keys import Section

KEYS = tuple(BY_NAME[name] for name in ("cache_dir", "cache_max_gib", "max_bad_fraction", "num_worker"))
Config = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class CachePlan:
    """A checked supervised config with a cache.

    Args:
        values: of KEYS by name, ``cache_dir`` as a path.
        scans: of ``train`` and, where there is a ``valid_csv``, ``valid``.
    """

    values: Mapping[str, Any]
    scans: Mapping[str, LabelledScans]


def is_asked(config: Config) -> bool:
    """Whether a supervised config wants its samples from a cache, or has a key that says so."""
    dataset = Section(config["dataset"], "dataset", [])
    return any(dataset.written_name(BY_NAME[name]) in dataset for name in ("cache_dir", "cache_max_gib"))


def cache_mistakes(config: Config) -> list[str]:
    """What is wrong with the keys of the cache in a supervised config; nothing where there is no cache."""
    mistakes: list[str] = []
    dataset = Section(config["dataset"], "dataset", mistakes)
    if not is_asked(config):
        return []
    with_folders(dataset, dataset.read(KEYS))
    if dataset.get("task_type") != TaskType.SEGMENTATION:
        dataset.wrong("task_type", "must be seg where cache_dir is set")
    if dataset.get("allow_missing_modal"):
        dataset.wrong("allow_missing_modal", "must be False where cache_dir is set: the cache keeps whole scans")
    if (count := process_count()) > 1:
        mistakes.append(
            f"[dataset] cache_dir: PyMIC's supervised training runs in one process, torchrun started {count}"
        )
    for stage in _stages(config):
        mistakes += _unfit_files(dataset, stage)
        mistakes += _unfit_transforms(dataset, stage)
    return mistakes


def check_cached(config: Config) -> CachePlan:
    """Check a supervised config with a cache.

    Raises:
        ConfigError: with every mistake found.
    """
    mistakes = cache_mistakes(config)
    dataset = Section(config["dataset"], "dataset", mistakes)
    for stage in _stages(config):
        check_transforms_of_stage(dataset, stage)
        check_labelled_files(dataset, stage)
        dataset.read_key(BY_NAME[f"{stage}_batch_size"])
    if mistakes:
        raise ConfigError(mistakes)
    values = with_folders(dataset, dataset.read(KEYS))
    return CachePlan(values, {stage: _scans(dataset, stage) for stage in _stages(config)})


def _stages(config: Config) -> list[str]:
    return ["train", "valid"] if config["dataset"].get("valid_csv") is not None else ["train"]


def _unfit_files(dataset: Section, stage: str) -> list[str]:
    """What a csv has that the cache cannot serve."""
    csv = dataset.get(f"{stage}_csv")
    table = read_table(Path(csv), []) if isinstance(csv, str) else None
    if table is None or not len(table):
        return []
    found = [name for name in ("image_weight", "pixel_weight") if name in table.columns]
    mistakes = [f"{csv}: has the column {name}, which samples from a cache_dir do not have" for name in found]
    if str(table.iloc[0, 0]).lower().endswith(".h5"):
        mistakes.append(f"{csv}: lists .h5 files, which PyMIC reads in their own way: leave [dataset] cache_dir out")
    return mistakes


def _unfit_transforms(dataset: Section, stage: str) -> list[str]:
    """Resample after a random transform takes the spacing of the scan, which is not kept."""
    names = dataset.get(f"{stage}_transform") or []
    names = [names] if isinstance(names, str) else names
    try:
        made = [make_transform(name, dataset.values) for name in names]
    except Exception:  # the check of the transforms says what is wrong with them
        return []
    _, rest = split_at_random(made)
    if not any(type(each).__name__ == "Resample" for each in rest):
        return []
    key = f"{stage}_transform"
    return [f"[dataset] {key}: Resample must come before all random transforms where cache_dir is set, got {names}"]


def _scans(dataset: Section, stage: str) -> LabelledScans:
    """The rows of a csv, in its order and as often as it has them, as PyMIC reads them."""
    root = Path(dataset.get(f"{stage}_dir") or dataset.get("train_dir"))
    table = read_table(Path(dataset.get(f"{stage}_csv")), [])
    columns = list(table.columns[: dataset.get("modal_num", 1)])
    label = dataset.get(f"{stage}_label_key", "label")

    def listed(names: list[str]) -> ScanList:
        return ScanList(root, np.array([[os.fsencode(name) for name in row] for row in table[names].to_numpy()]))

    return LabelledScans(listed(columns), listed([label, *columns]))
