from __future__ import annotations

import numpy as np
import pytest

from pymic_vf.keys import Section
from pymic_vf.methods.masked_image import MaskedImageModelling, draw_hidden


def method(**values) -> MaskedImageModelling:
    section = Section({name.lower(): value for name, value in values.items()}, "dataset", [])
    return MaskedImageModelling(section.read(MaskedImageModelling.keys))


def test_presets():
    original, pymic = method(), method(MIM_preset="pymic")
    assert (original.block_size, original.mask_ratio, original.loss_voxels) == ((16, 16, 16), 0.75, "hidden")
    assert (pymic.block_size, pymic.mask_ratio, pymic.loss_voxels) == ((8, 16, 16), 0.45, "all")
    second = method(MIM_preset="pymic", MIM_block_size=[16, 16, 16], MIM_mask_ratio=0.15, MIM_loss_voxels="hidden")
    assert (second.block_size, second.mask_ratio, second.loss_voxels) == ((16, 16, 16), 0.15, "hidden")


def test_whole_blocks_are_hidden_and_the_share_is_met():
    shape, block = (64, 128, 96), (16, 16, 16)
    for seed in range(20):
        mask = draw_hidden(np.random.default_rng(seed), shape, block, 0.75)
        blocks = mask.reshape(4, 16, 8, 16, 6, 16).transpose(0, 2, 4, 1, 3, 5).reshape(4 * 8 * 6, -1)
        assert (blocks.all(axis=1) | ~blocks.any(axis=1)).all()
        assert blocks.all(axis=1).sum() == 144  # 0.75 * 192


def test_every_block_is_hidden_as_often():
    draws = np.array([draw_hidden(np.random.default_rng(k), (4, 4, 4), (2, 2, 2), 0.5) for k in range(2000)])
    shares = draws[:, ::2, ::2, ::2].mean(axis=0)
    # each of 8 blocks with probability 1/2 in 2,000 draws: 5 standard deviations of 0.0112
    assert np.abs(shares - 0.5).max() < 5 * 0.0112


def test_blocks_at_the_far_end_are_cut():
    mask = draw_hidden(np.random.default_rng(0), (5, 7, 3), (4, 4, 4), 0.5)
    assert mask.shape == (5, 7, 3)
    assert (mask[:4, :4, :3] == mask[0, 0, 0]).all() and (mask[4:, 4:, :3] == mask[4, 4, 0]).all()


@pytest.mark.parametrize("preset", ["original", "pymic"])
def test_sample(preset):
    crop = np.random.default_rng(0).normal(size=(2, 32, 32, 32)).astype(np.float32)
    sample = method(MIM_preset=preset).sample([crop.copy()], np.random.default_rng(1))
    assert np.array_equal(sample["label"], crop) and sample["image"].dtype == np.float32
    hidden = (sample["image"] == 0).all(axis=0)
    assert np.array_equal(sample["image"][:, ~hidden], crop[:, ~hidden])
    assert 0.4 < hidden.mean() < 0.8
    if preset == "original":
        assert np.array_equal(sample["pixel_weight"], np.stack([hidden] * 2).astype(np.float32))
    else:
        assert "pixel_weight" not in sample
    again = method(MIM_preset=preset).sample([crop.copy()], np.random.default_rng(1))
    assert np.array_equal(again["image"], sample["image"])


@pytest.mark.parametrize(
    ("values", "crop_size", "count"),
    [({}, (16, 16, 16), 1), ({"MIM_mask_ratio": 0.01}, (32, 32, 32), 8), ({"MIM_mask_ratio": 0.99}, (32, 32, 32), 8)],
)
def test_a_crop_with_nothing_hidden_or_nothing_seen_is_named(values, crop_size, count):
    dataset = Section({name.lower(): value for name, value in values.items()}, "dataset", [])
    MaskedImageModelling.check(dataset.read(MaskedImageModelling.keys), crop_size, dataset)
    assert len(dataset.mistakes) == 1
    assert f"has {count} blocks of [16, 16, 16], of which MIM_mask_ratio =" in dataset.mistakes[0]


def test_panels():
    crop = np.random.default_rng(0).normal(size=(1, 32, 32, 32)).astype(np.float32)
    mim = method()
    sample = mim.sample([crop], np.random.default_rng(1))
    panels = mim.panels([crop], sample)
    assert [panel.title for panel in panels] == ["crop", "hidden blocks", "to restore"]
    assert np.array_equal(panels[1].image, sample["image"][0])
