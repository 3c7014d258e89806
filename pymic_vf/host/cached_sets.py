"""The training and validation sets of a supervised config that has ``cache_dir``: its readers and loaders."""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pymic.transform.intensity import IntensityClip
from pymic.transform.normalize import NormalizeWithMeanStd, NormalizeWithMinMax, NormalizeWithPercentiles

from pymic_vf.data.bad_scans import FILE, BadScans
from pymic_vf.data.cache_folder import GIB, CacheFolder
from pymic_vf.data.labelled_reader import LabelledReader
from pymic_vf.data.labelled_samples import LabelledSamples
from pymic_vf.data.labelled_transform import ImageTransform, split_at_random
from pymic_vf.data.loader import SampleLoader, SampleNumbers
from pymic_vf.data.random_crop import check_foreground, is_random_crop, least_size
from pymic_vf.data.scan import UnusableScanError
from pymic_vf.data.scan_check import check_before_training
from pymic_vf.data.scan_header import read_header
from pymic_vf.data.scan_list import read_table
from pymic_vf.data.seeds import TRAIN, VALID
from pymic_vf.errors import UserError
from pymic_vf.host.agents import try_first_sample
from pymic_vf.host.settings.cache_checks import check_cached

log = logging.getLogger(__name__)
# On one core of 2.5 GHz: a 512x512x200 .nii.gz and its label decoded, transformed and searched, and a crop from the
# cache (benchmarks/finetune_throughput.py)
SECONDS_A_VOXEL, CACHED_SECONDS = 2.4 / (512 * 512 * 200), 0.02
Config = Mapping[str, Mapping[str, Any]]


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
        size = read_header(Path(dataset["train_dir"]) / str(table.iloc[0, 0])).size
    except (KeyError, TypeError, AttributeError, IndexError, UserError, UnusableScanError):
        return  # the checks of the config say what is wrong
    log.info(
        "every sample decodes its whole scan, about %.2g s of processor time for the first (%s voxels); "
        "[dataset] cache_dir = FOLDER would read the crop alone, in about %.2g s, from the second epoch on",
        SECONDS_A_VOXEL * np.prod(size), "x".join(map(str, size)), CACHED_SECONDS,
    )  # fmt: skip
