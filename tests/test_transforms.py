from __future__ import annotations

import json

import numpy as np
import pytest
from pymic import TaskType

from pymic_vf.errors import ConfigError
from pymic_vf.host.transforms import VolumeFusionTransform

PARAMS = {
    "task": TaskType.SEGMENTATION,
    "vf_crop_size": [8, 10, 12],
    "vf_foreground_classes": 3,
    "vf_patch_number": [4, 4],
    "vf_patch_size_min": [2, 2, 2],
    "vf_patch_size_max": [4, 5, 6],
}


def make_sample(seed: int = 0) -> dict[str, np.ndarray]:
    background, foreground = np.random.default_rng(seed).normal(size=(2, 1, 8, 10, 12)).astype(np.float32)
    return {"image": background, "image_foreground": foreground}


def test_sample_is_replaced_by_fused_one():
    before = make_sample()
    sample = VolumeFusionTransform(PARAMS)(dict(before))
    assert "image_foreground" not in sample
    image, label = sample["image"], sample["label"]
    assert image.dtype == np.float32 and image.shape == (1, 8, 10, 12)
    assert label.dtype == np.uint8 and label.shape == (1, 8, 10, 12)
    assert label.max() <= 3
    assert np.array_equal(image[label == 0], before["image"][label == 0])
    assert np.array_equal(image[label == 3], before["image_foreground"][label == 3])


def test_drawn_patches_stay_with_the_sample():
    sample = VolumeFusionTransform(PARAMS)(make_sample())
    label = np.zeros((8, 10, 12), np.uint8)
    patches = json.loads(sample["VF_Param"])
    assert len(patches) == 4
    for (z, y, x), (d, h, w), k in patches:
        label[z : z + d, y : y + h, x : x + w] = k
    assert np.array_equal(label, sample["label"][0])


def test_numpy_seed_decides():
    def fused(seed: int) -> np.ndarray:
        np.random.seed(seed)
        return VolumeFusionTransform(PARAMS)(make_sample())["label"]

    assert np.array_equal(fused(1), fused(1))
    assert not np.array_equal(fused(1), fused(2))


def test_wrong_values_are_all_named():
    with pytest.raises(ConfigError) as caught:
        VolumeFusionTransform({**PARAMS, "vf_patch_number": [5, 2], "vf_patch_size_max": [9, 5, 6]})
    assert len(caught.value.mistakes) == 2
    assert "VF_patch_number must be [fewest, most]" in str(caught.value)
    assert "VF_patch_size_max must not exceed crop_size = [8, 10, 12] (depth), got [9, 5, 6]" in str(caught.value)
