"""The training and validation sets of a supervised config that has ``cache_dir``: its checks, readers and loaders."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pymic import TaskType
from pymic.transform.intensity import IntensityClip
from pymic.transform.normalize import NormalizeWithMeanStd, NormalizeWithMinMax, NormalizeWithPercentiles

from pymic_vf.data.bad_scans import FILE, BadScans
from pymic_vf.data.cache_folder import GIB, CacheFolder
from pymic_vf.data.labelled_reader import LabelledReader, LabelledScans
from pymic_vf.data.labelled_samples import LabelledSamples
from pymic_vf.data.labelled_transform import ImageTransform, split_at_random
from pymic_vf.data.loader import SampleLoader, SampleNumbers
from pymic_vf.data.random_crop import check_foreground, is_random_crop, least_size
from pymic_vf.data.scan import UnusableScanError, read_size
from pymic_vf.data.scan_check import check_before_training
from pymic_vf.data.scan_list import ScanList, read_table
from pymic_vf.data.seeds import TRAIN, VALID
from pymic_vf.errors import ConfigError, UserError
from pymic_vf.host.agents import try_first_sample
from pymic_vf.host.cached_finetuning import several_processes
from pymic_vf.host.settings import checks
from pymic_vf.host.settings.config_keys import BY_NAME
from pymic_vf.keys import Section

log = logging.getLogger(__name__)
KEYS = tuple(BY_NAME[name] for name in ("cache_dir", "cache_max_gib", "max_bad_fraction", "num_worker"))
# On one core of 2.5 GHz: a 512x512x200 .nii.gz and its label decoded, transformed and searched, and a crop from the
# cache (benchmarks/finetune_throughput.py)
SECONDS_A_VOXEL, CACHED_SECONDS = 2.4 / (512 * 512 * 200), 0.02
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
    checks._with_folders(dataset, dataset.read(KEYS))
    if dataset.get("task_type") != TaskType.SEGMENTATION:
        dataset.wrong("task_type", "must be seg where cache_dir is set")
    if dataset.get("allow_missing_modal"):
        dataset.wrong("allow_missing_modal", "must be False where cache_dir is set: the cache keeps whole scans")
    if (count := several_processes()) > 1:
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
        checks._check_transforms_of_stage(dataset, stage)
        checks._check_labelled_files(dataset, stage)
        dataset.read_key(BY_NAME[f"{stage}_batch_size"])
    if mistakes:
        raise ConfigError(mistakes)
    values = checks._with_folders(dataset, dataset.read(KEYS))
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
        made = [checks.make_transform(name, dataset.values) for name in names]
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


def cached_sets(agent: Any) -> dict[str, LabelledSamples]:
    """The samples of ``train`` and, with a ``valid_csv``, of ``valid``, for PyMIC's segmentation agent.

    Raises:
        ConfigError: with every mistake of the config found.
    """
    plan = check_cached(agent.config)
    cap = None if plan.values["cache_max_gib"] is None else int(plan.values["cache_max_gib"] * GIB)
    folder = CacheFolder(plan.values["cache_dir"], cap)
    file = Path(agent.config["training"]["ckpt_dir"]) / FILE
    sets = {}
    for stage, scans in plan.scans.items():
        transforms = agent.get_data_transform_list(*agent.get_transform_names_and_parameters(stage))
        head, rest = split_at_random(transforms)
        crop = rest[0] if rest and is_random_crop(rest[0]) else None
        images = ImageTransform(head, f"{stage}_transform", None, least_size(crop))
        reader = LabelledReader(scans, head, images, folder, functools.partial(check_foreground, crop))
        bad_scans = BadScans(scans.images, plan.values["max_bad_fraction"], file)
        stream = TRAIN if stage == "train" else VALID
        sets[stage] = LabelledSamples(reader, rest, agent.random_seed, stream, bad_scans)
    return sets


def create_loaders(agent: Any) -> None:
    """What PyMIC's ``create_dataset`` does, with samples from the cache.

    Raises:
        ConfigError: with every mistake of the config found.
        UserError: scans that cannot be used, or a cache that cannot be written to.
    """
    sets = cached_sets(agent)
    dataset = agent.config["dataset"]
    workers = dataset.get("num_worker", 8)
    check_before_training(list(sets.values()), workers)
    for stage, samples in sets.items():
        _tell_of_order(samples, f"{stage}_transform")
        try_first_sample(samples, f"{stage}_transform")
    device = _device(agent.config["training"]["gpus"])
    train, valid = sets["train"], sets.get("valid")
    agent.train_set, agent.valid_set = train, valid
    agent.train_loader = SampleLoader(train, SampleNumbers(), dataset["train_batch_size"], workers, train.classes)
    agent.train_loader.device = device
    if valid is not None:
        batch = dataset.get("valid_batch_size", 1)
        agent.valid_loader = SampleLoader(valid, SampleNumbers(count=len(valid)), batch, workers, valid.classes)
        agent.valid_loader.device = device
    log.info(
        "Samples of %d scans from cache_dir%s", len(train.reader), f", {len(valid)} others to validate" if valid else ""
    )


def _device(gpus: Sequence[int]) -> torch.device:
    """Where PyMIC's agent puts its batches."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", gpus[0] if len(gpus) == 1 else 0)
    torch.cuda.set_device(device)  # or pinned memory takes some of device 0, which may be another's
    return device


def _tell_of_order(samples: LabelledSamples, key: str) -> None:
    """Name, once, the transforms whose place in the list costs time or may not be what is meant."""
    rest = samples.transforms
    after_crop = [type(each).__name__ for each in rest if samples.crop and _measures(each)]
    if after_crop:
        log.info(
            "%s: %s after %s goes by the voxels of the crop, not of the scan, as in PyMIC",
            key, ", ".join(after_crop), type(samples.crop).__name__,
        )  # fmt: skip
    crops = [type(each).__name__ for each in rest if is_random_crop(each)]
    if samples.crop is None and crops:
        shape = samples.reader.shape(samples.used[0])
        log.warning(
            "%s: %s comes before %s and needs the whole scan: every sample reads and transforms all of its voxels "
            "(%.3g million in the first scan), where after %s it would be those of the crop",
            key, type(rest[0]).__name__, crops[0], np.prod(shape) / 1e6, crops[0],
        )  # fmt: skip


def _measures(transform: Any) -> bool:
    """Whether a transform of intensities takes its numbers from the voxels that it is given."""

    def lacks(values: Any) -> bool:
        return values is None or any(value is None for value in values)

    if type(transform) is NormalizeWithMeanStd:
        return lacks(transform.mean)
    if type(transform) is NormalizeWithMinMax:
        return lacks(transform.thred_lower) or lacks(transform.thred_upper)
    if type(transform) is IntensityClip:
        return transform.perct or lacks(transform.lower) or lacks(transform.upper)
    return type(transform) is NormalizeWithPercentiles


def tell_of_savings(config: Config) -> None:
    """For a config without a cache: one line of what it would save, by the size of the first scan."""
    dataset = config["dataset"]
    if "RandomCrop" not in (dataset.get("train_transform") or ()):
        return
    try:
        table = read_table(Path(dataset["train_csv"]), [])
        size = read_size(Path(dataset["train_dir"]) / str(table.iloc[0, 0]))
    except (KeyError, TypeError, AttributeError, IndexError, UserError, UnusableScanError):
        return  # the checks of the config say what is wrong
    log.info(
        "every sample decodes its whole scan, about %.2g s of processor time for the first (%s voxels); "
        "[dataset] cache_dir = FOLDER would read the crop alone, in about %.2g s, from the second epoch on",
        SECONDS_A_VOXEL * np.prod(size), "x".join(map(str, size)), CACHED_SECONDS,
    )  # fmt: skip
