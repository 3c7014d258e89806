from __future__ import annotations

import numpy as np
import pytest

from pymic_vf.keys import Section
from pymic_vf.methods.genesis import (
    INNER_SIDES,
    OUTER_SIDES,
    PRESETS,
    ModelGenesis,
    draw_boxes,
    draw_curve,
    flip,
    map_intensities,
    paint,
    shuffle_windows,
)

SHAPE = (40, 60, 80)


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def crop(seed: int = 0, channels: int = 1) -> np.ndarray:
    return generator(seed).uniform(-1, 1, (channels, *SHAPE)).astype(np.float32)


def method(**values) -> ModelGenesis:
    section = Section({name.lower(): value for name, value in values.items()}, "dataset", [])
    return ModelGenesis(section.read(ModelGenesis.keys))


def test_presets():
    original, pymic = method().settings, method(Genesis_preset="pymic").settings
    assert (original.flip, original.map, original.shuffle, original.paint, original.inner) == (0.4, 0.9, 0.5, 0.9, 0.2)
    assert (original.windows, original.window_size) == ((10_000, 10_000), None)
    assert (pymic.flip, pymic.map, pymic.shuffle, pymic.paint, pymic.inner) == (0, 0.8, 1, 0.9, 0.8)
    assert (pymic.windows, pymic.window_size) == ((32, 64), (8, 16, 16))
    assert method(Genesis_flip=0.0, Genesis_windows=[1, 2]).settings.windows == (1, 2)


def test_curves_are_monotonic_maps_of_the_unit_interval_onto_itself():
    falling = 0
    for seed in range(400):
        points, values = draw_curve(generator(seed))
        assert (np.diff(points) >= 0).all() and points[0] == 0 and points[-1] == 1
        steps = np.diff(values)
        assert (steps >= 0).all() or (steps <= 0).all()
        assert {values[0], values[-1]} == {0.0, 1.0}
        falling += values[0] == 1
    # one in two of 400: 5 standard deviations of 10
    assert abs(falling - 200) < 50


def test_intensities_keep_their_range_and_their_order():
    image = crop()
    mapped = map_intensities(image, (-1, 1), generator(3))
    assert mapped.dtype == np.float32 and mapped.min() >= -1 and mapped.max() <= 1
    order = np.diff(mapped.ravel()[np.argsort(image, axis=None)])
    assert (order >= 0).all() or (order <= 0).all()
    assert not np.array_equal(mapped, image)


def test_shuffling_moves_voxels_and_changes_none():
    image = crop(channels=2)
    shuffled = shuffle_windows(image, PRESETS["pymic"], generator(1))
    assert not np.array_equal(shuffled, image)
    assert np.array_equal(np.sort(shuffled, axis=None), np.sort(image, axis=None))
    before, after = image.reshape(2, -1), shuffled.reshape(2, -1)
    moved = {tuple(voxel) for voxel in after.T.tolist()}  # both channels of a voxel move together
    assert moved == {tuple(voxel) for voxel in before.T.tolist()}


def test_small_windows_move_voxels_by_less_than_a_tenth():
    depth = np.broadcast_to(np.arange(40, dtype=np.float32)[:, None, None], SHAPE)[None]
    once = PRESETS["original"].__class__(0, 0, 1, 0, 0, (1, 1), None)
    for seed in range(50):
        assert np.abs(shuffle_windows(depth, once, generator(seed)) - depth).max() < 4


@pytest.mark.parametrize(("sides", "largest"), [(INNER_SIDES, 5 / 27), (OUTER_SIDES, 1.0)])
def test_boxes(sides, largest):
    shares = np.array([draw_boxes(generator(seed), SHAPE, sides).mean() for seed in range(300)])
    smallest = np.prod([int(side * sides[0]) for side in SHAPE]) / np.prod(SHAPE)
    assert smallest <= shares.min() < shares.max() <= largest


def test_painting_leaves_the_other_voxels():
    image = crop()
    for is_inner in (True, False):
        painted = paint(image, is_inner, (-1, 1), generator(5))
        changed = painted != image
        assert painted.min() >= -1 and painted.max() <= 1
        boxes = draw_boxes(generator(5), SHAPE, INNER_SIDES if is_inner else OUTER_SIDES)
        assert np.array_equal(changed[0], boxes == is_inner)
        noise = painted[changed]
        # uniform in [-1, 1]: mean 0, standard deviation 0.577; 5 standard errors
        assert abs(noise.mean()) < 5 * 0.577 / np.sqrt(noise.size)


def test_flips_follow_their_probability():
    image = np.arange(8, dtype=np.float32).reshape(1, 2, 2, 2)
    kept = np.array([flip(image, 0.4, generator(seed))[0, 0, 0, 0] for seed in range(2000)])
    along = [(kept.astype(int) >> bit & 1).mean() for bit in range(3)]
    # 0.4 along each axis in 2,000 draws: 5 standard deviations of 0.011
    assert np.abs(np.array(along) - 0.4).max() < 5 * 0.011


def test_sample_is_a_corrupted_crop_and_its_target():
    image = crop()
    for preset in PRESETS:
        sample = method(Genesis_preset=preset).sample([image.copy()], generator(2))
        again = method(Genesis_preset=preset).sample([image.copy()], generator(2))
        assert np.array_equal(sample["image"], again["image"])
        assert sample["image"].dtype == sample["label"].dtype == np.float32
        assert not np.array_equal(sample["image"], sample["label"])
        assert np.array_equal(np.sort(sample["label"], axis=None), np.sort(image, axis=None))
    nothing = method(Genesis_flip=0.0, Genesis_map=0.0, Genesis_shuffle=0.0, Genesis_paint=0.0)
    sample = nothing.sample([image], generator())
    assert np.array_equal(sample["image"], image) and np.array_equal(sample["label"], image)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"Genesis_range": [1, -1]}, "Genesis_range must be [lowest, highest]"),
        ({"Genesis_windows": [5, 2]}, "Genesis_windows must be [fewest, most]"),
        ({"Genesis_window_size": [41, 1, 1]}, "Genesis_window_size must not exceed crop_size = [40, 60, 80]"),
    ],
)
def test_mistakes(values, message):
    dataset = Section({name.lower(): value for name, value in values.items()}, "dataset", [])
    ModelGenesis.check(dataset.read(ModelGenesis.keys), SHAPE, dataset)
    assert len(dataset.mistakes) == 1 and message in dataset.mistakes[0]
