from __future__ import annotations

import numpy as np
import pytest

from pymic_vf.methods.volume_fusion import FusionSettings, Patch, draw_patches, fuse, paint_labels

PAPER = FusionSettings()
SHAPE = (64, 128, 128)


def test_paper_settings_are_the_defaults():
    assert (PAPER.classes, PAPER.patch_number) == (4, (10, 40))
    assert (PAPER.patch_size_min, PAPER.patch_size_max) == ((8, 8, 8), (40, 80, 80))


def test_later_patch_over_earlier_one():
    patches = [Patch((0, 0, 0), (2, 2, 2), 3), Patch((1, 1, 1), (2, 2, 2), 1)]
    label = paint_labels(patches, (3, 3, 3))
    assert label.dtype == np.uint8
    assert label[0, 0, 0] == 3
    assert label[1, 1, 1] == 1  # in both: the later one
    assert label[2, 2, 2] == 1
    assert (label == 0).sum() == 27 - 8 - 8 + 1


def test_fused_values_follow_equation_1():
    background, foreground = np.full((1, 1, 1, 3), 10, np.int16), np.full((1, 1, 1, 3), 50, np.int16)
    fused = fuse(background, foreground, np.array([[[0, 1, 4]]], np.uint8), 4)
    assert fused.dtype == np.float32
    assert fused.ravel().tolist() == [10.0, 20.0, 50.0]


def test_whole_coefficients_are_exact():
    rng = np.random.default_rng(0)
    background, foreground = rng.normal(0, 1e3, (2, 2, 4, 5, 6)).astype(np.float32)
    label = rng.integers(0, 8, (4, 5, 6)).astype(np.uint8)
    fused = fuse(background, foreground, label, 7)
    assert np.array_equal(fused[:, label == 0], background[:, label == 0])
    assert np.array_equal(fused[:, label == 7], foreground[:, label == 7])
    alpha = label / 7
    expected = alpha * foreground.astype(float) + (1 - alpha) * background.astype(float)
    np.testing.assert_allclose(fused, expected, rtol=1e-5, atol=1e-3)


def test_fuse_refuses_other_shapes():
    with pytest.raises(ValueError, match="must be of one size"):
        fuse(np.zeros((1, 2, 2, 2)), np.zeros((1, 2, 2, 3)), np.zeros((2, 2, 2), np.uint8), 4)


def test_draws_are_uniform_and_inside():
    rng = np.random.default_rng(1)
    samples = [draw_patches(rng, SHAPE, PAPER) for _ in range(2000)]
    counts = np.array([len(patches) for patches in samples])
    assert counts.min() == 10 and counts.max() == 40
    # M uniform in 31 values: mean 25, standard deviation sqrt((31^2 - 1) / 12) = 8.94; 5 standard errors of 2000 draws
    assert abs(counts.mean() - 25) < 5 * 8.94 / np.sqrt(2000)
    patches = [patch for drawn in samples for patch in drawn]
    sizes, starts = np.array([p.size for p in patches]), np.array([p.start for p in patches])
    assert sizes.min(axis=0).tolist() == [8, 8, 8] and sizes.max(axis=0).tolist() == [40, 80, 80]
    assert (starts >= 0).all() and (starts + sizes <= SHAPE).all()
    assert (starts + sizes == SHAPE).any(axis=0).all()  # the last place is reached too
    # sizes uniform in 8..40 and 8..80; standard deviations sqrt((33^2 - 1) / 12) and sqrt((73^2 - 1) / 12)
    errors = np.array([9.52, 21.07, 21.07]) / np.sqrt(len(sizes))
    assert (np.abs(sizes.mean(axis=0) - [24, 44, 44]) < 5 * errors).all()
    labels = np.bincount([p.label for p in patches], minlength=5)
    assert labels[0] == 0
    # each of 4 labels with probability 1/4
    assert (np.abs(labels[1:] / len(patches) - 0.25) < 5 * np.sqrt(0.25 * 0.75 / len(patches))).all()


def test_fixed_ranges_leave_nothing_to_chance():
    settings = FusionSettings(1, (3, 3), (2, 2, 2), (2, 2, 2))
    patches = draw_patches(np.random.default_rng(0), (2, 2, 2), settings)
    assert patches == [Patch((0, 0, 0), (2, 2, 2), 1)] * 3


def test_patches_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"\[40, 80, 80\] voxels do not fit a crop of \[64, 64, 64\]"):
        draw_patches(np.random.default_rng(0), (64, 64, 64), PAPER)
