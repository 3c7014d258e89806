from __future__ import annotations

import numpy as np
import pytest

from pymic_vf.keys import Section
from pymic_vf.methods.patch_swap import PatchSwap, draw_pair, swap


def method(**values) -> PatchSwap:
    section = Section({name.lower(): value for name, value in values.items()}, "dataset", [])
    return PatchSwap(section.read(PatchSwap.keys))


def test_a_swap_exchanges_two_patches_and_leaves_the_rest():
    image = np.arange(2 * 4 * 4 * 4, dtype=np.float32).reshape(2, 4, 4, 4)
    before = image.copy()
    swap(image, np.array([[0, 0, 0], [2, 1, 2]]), (2, 2, 2))
    assert np.array_equal(image[:, :2, :2, :2], before[:, 2:, 1:3, 2:])
    assert np.array_equal(image[:, 2:, 1:3, 2:], before[:, :2, :2, :2])
    assert (image != before).sum() == 2 * 2 * 8


def test_pairs_are_inside_apart_and_everywhere():
    shape, size = (6, 7, 8), (3, 2, 4)
    rng = np.random.default_rng(0)
    starts = np.array([draw_pair(rng, shape, size) for _ in range(3000)])
    assert (starts >= 0).all() and (starts + size <= shape).all()
    assert (np.abs(starts[:, 0] - starts[:, 1]) >= size).any(axis=1).all()
    assert starts.min(axis=(0, 1)).tolist() == [0, 0, 0]
    assert starts.max(axis=(0, 1)).tolist() == [3, 5, 4]
    # both of a pair are drawn alike: equal means but for 5 standard errors of a spread below 2
    assert (np.abs(starts[:, 0].mean(axis=0) - starts[:, 1].mean(axis=0)) < 5 * 2 * np.sqrt(2 / 3000)).all()


def test_sample():
    crop = np.random.default_rng(0).normal(size=(1, 32, 48, 48)).astype(np.float32)
    counts = []
    for seed in range(200):
        sample = method().sample([crop.copy()], np.random.default_rng(seed))
        counts.append(len(sample["swaps"]))
    assert min(counts) == 20 and max(counts) == 40
    # uniform in 21 values: mean 30, standard deviation 6.06; 5 standard errors of 200 draws
    assert abs(np.mean(counts) - 30) < 5 * 6.06 / np.sqrt(200)
    assert np.array_equal(sample["label"], crop) and sample["image"].dtype == np.float32
    assert np.array_equal(np.sort(sample["image"], axis=None), np.sort(crop, axis=None))
    restored = sample["image"].copy()
    for starts in reversed(sample["swaps"]):
        swap(restored, starts, (8, 16, 16))
    assert np.array_equal(restored, crop)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"PatchSwap_number": [5, 2]}, "PatchSwap_number must be [fewest, most]"),
        ({"PatchSwap_size": [33, 16, 16]}, "PatchSwap_size must not exceed crop_size = [32, 32, 32] (depth)"),
        ({"PatchSwap_size": [17, 17, 17]}, "PatchSwap_size must fit twice along an axis of crop_size = [32, 32, 32]"),
    ],
)
def test_mistakes(values, message):
    dataset = Section({name.lower(): value for name, value in values.items()}, "dataset", [])
    PatchSwap.check(dataset.read(PatchSwap.keys), (32, 32, 32), dataset)
    assert len(dataset.mistakes) == 1 and message in dataset.mistakes[0]
