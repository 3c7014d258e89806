"""Samples from the cache are the ones that PyMIC makes; and a fine-tuning by PyMIC's agent on them."""

from __future__ import annotations

import copy
import logging
import random
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from pymic.net_run.agent_seg import SegmentationAgent

import pymic_vf
from pymic_vf.data.loader import one_hot
from pymic_vf.host.cached_sets import cached_sets

from conftest import finetuning, parsed, write_volume

pymic_vf.register()
logging.getLogger().setLevel(logging.INFO)

CROP = {"RandomCrop_output_size": [8, 16, 16], "RandomCrop_foreground_focus": True, "RandomCrop_foreground_ratio": 0.7}
WINDOW = {"NormalizeWithMinMax_channels": [0], "NormalizeWithMinMax_threshold_lower": [-100],
          "NormalizeWithMinMax_threshold_upper": [180]}  # fmt: skip
MEASURED = {"NormalizeWithMinMax_channels": [0], "NormalizeWithMinMax_threshold_lower": "None",
            "NormalizeWithMinMax_threshold_upper": [150]}  # fmt: skip
FLIP = {"RandomFlip_flip_depth": True, "RandomFlip_flip_height": True, "RandomFlip_flip_width": True}
ROTATE = {"RandomRotate_angle_range_d": [-30, 30], "RandomRotate_angle_range_h": [-20, 20],
          "RandomRotate_angle_range_w": None}  # fmt: skip
# train_transform without LabelToProbability at its end, and the keys
LISTS: dict[str, tuple[list[str], dict[str, Any]]] = {
    "our example": (["NormalizeWithMinMax", "Pad", "RandomCrop"],
                    {**WINDOW, **CROP, "Pad_output_size": [16, 24, 24]}),
    "MIS-FM's example": (["RandomCrop", "NormalizeWithMeanStd", "RandomFlip"],
                         {**CROP, **FLIP, "RandomCrop_foreground_focus": False}),
    "resized": (["Rescale", "NormalizeWithMeanStd", "RandomCrop", "RandomFlip"],
                {**CROP, **FLIP, "Rescale_output_size": [None, 30, 28], "RandomCrop_mask_label": [3]}),
    "augmented": (["Pad", "NormalizeWithMeanStd", "RandomCrop", "RandomRotate", "GammaCorrection", "GaussianNoise"],
                  {**CROP, **ROTATE, "Pad_output_size": [16, 24, 26], "Pad_ceil_mode": True,
                   "NormalizeWithMeanStd_mask_threshold": 20, "NormalizeWithMeanStd_set_background_to_random": False}),
    "converted labels": (["LabelConvert", "Pad", "NormalizeWithPercentiles", "RandomCrop", "RandomFlip"],
                         {**CROP, **FLIP, "LabelConvert_source_list": [1, 2, 3], "LabelConvert_target_list": [2, 1, 1],
                          "Pad_output_size": [20, 28]}),
    "resampled": (["Resample", "IntensityClip", "NormalizeWithMinMax", "RandomCrop"],
                  {**CROP, **MEASURED, "Resample_output_spacing": [2.0, 1.3, 1.3], "IntensityClip_channels": [0],
                   "IntensityClip_lower": [-90], "IntensityClip_upper": None}),
    "a box by a threshold": (["CropWithBoundingBox", "NormalizeWithMeanStd", "Pad", "RandomCrop", "RandomFlip"],
                             {**CROP, **FLIP, "CropWithBoundingBox_start": "None",
                              "CropWithBoundingBox_output_size": "None", "CropWithBoundingBox_threshold": 120,
                              "Pad_output_size": [16, 24, 24], "RandomCrop_mask_label": [1, 3]}),
    "resized crops": (["NormalizeWithMeanStd", "RandomResizedCrop", "RandomFlip"],
                      {**FLIP, "RandomResizedCrop_output_size": [12, 20, 20],
                       "RandomResizedCrop_resize_lower_bound": [0.7, 0.8, 0.8],
                       "RandomResizedCrop_resize_upper_bound": [1.6, 1.3, 1.2],
                       "RandomResizedCrop_foreground_ratio": 0.5}),
    "a crop at the centre": (["NormalizeWithMinMax", "CenterCrop", "RandomCrop", "RandomRescale", "Pad", "CenterCrop"],
                             {**CROP, **MEASURED, "CenterCrop_output_size": [10, 20, 18],
                              "Pad_output_size": [10, 20, 18],
                              "RandomRescale_lower_bound": [0.8, 0.8, 0.8],
                              "RandomRescale_upper_bound": [1.2, 1.2, 1.2]}),
    "random before the crop": (["NormalizeWithMeanStd", "RandomFlip", "RandomCrop"], {**CROP, **FLIP}),
    "no crop": (["NormalizeWithMeanStd", "CropWithBoundingBox", "RandomFlip"],
                {**FLIP, "CropWithBoundingBox_start": [1, 2, 0], "CropWithBoundingBox_output_size": [9, 20, 21]}),
}  # fmt: skip
SIZES = ((13, 29, 26), (18, 23, 31), (11, 40, 22))


def make_case(seed: int, size: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Noise with three organs, int16 like HU, and their label."""
    rng = np.random.default_rng(seed)
    image, label = rng.normal(0, 40, size), np.zeros(size, np.uint8)
    for organ in (1, 2, 3):
        start = [int(rng.integers(0, n // 2)) for n in size]
        label[tuple(slice(a, a + 2 + n // 4) for a, n in zip(start, size, strict=True))] = organ
    return (image + 70 * label).astype(np.int16), label


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """volumes/, labelled.csv (3 scans); for reading only."""
    folder = tmp_path_factory.mktemp("cases")
    (folder / "volumes").mkdir()
    rows = []
    for index, size in enumerate(SIZES):
        image, label = make_case(index, size)
        rows.append((f"{index}.nii.gz", f"{index}_lab.nii.gz"))
        write_volume(folder / "volumes" / rows[-1][0], image, (1.0, 1.1, 2.5))
        write_volume(folder / "volumes" / rows[-1][1], label, (1.0, 1.1, 2.5))
    pd.DataFrame(rows, columns=["image", "label"]).to_csv(folder / "labelled.csv", index=False)
    return folder


def cached(cases: Path, out: Path, names: list[str], **changes: Any) -> dict:
    """The sections of a supervised config with a cache."""
    dataset = {
        "train_transform": [*names, "LabelToProbability"],
        "num_worker": 0,
        "cache_dir": out / "cache",
        **changes.pop("dataset", {}),
    }
    config = finetuning(cases, out, dataset=dataset, **changes)
    config["network"] |= {"class_num": 4}
    return config


@pytest.mark.parametrize("name", LISTS)
def test_samples_are_pymics(cases: Path, tmp_path: Path, name: str, request: pytest.FixtureRequest):
    names, keys = LISTS[name]
    config = parsed(tmp_path / "a.cfg", cached(cases, tmp_path, names, dataset=keys))
    agent = SegmentationAgent(config)
    stock, ours, classes = agent.get_stage_dataset_from_config("train"), cached_sets(agent)["train"], 4
    for draw in range(102 if request.config.getoption("--long") else 12):
        index = draw % len(SIZES)
        results = []
        # some of PyMIC's objects remember the size of their first volume: new ones for each
        for make in (copy.deepcopy(stock).__getitem__, ours.sample):
            random.seed(draw)
            np.random.seed(draw)
            results.append((make(index), random.getstate(), np.random.get_state()[1:3]))
        (expected, state, np_state), (sample, our_state, our_np_state) = results
        assert sample["image"].shape == expected["image"].shape
        np.testing.assert_allclose(sample["image"], expected["image"], rtol=2e-6, atol=2e-6)
        assert np.array_equal(sample["label"], expected["label"])
        label = torch.as_tensor(sample["label"])[None]
        assert np.array_equal(one_hot(label, classes)[0].numpy(), expected["label_prob"])
        assert state == our_state and np.array_equal(np_state[0], our_np_state[0]) and np_state[1] == our_np_state[1]
