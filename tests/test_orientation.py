"""Volumes that lie in any way are turned as SimpleITK turns them."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import SimpleITK as sitk

from pymic_vf.data.orientation import LPS, letters, upright, upright_spacing

WAYS = [
    "".join(letter)
    for order in itertools.permutations(("LR", "PA", "SI"))
    for letter in itertools.product(*order)
]  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
def test_every_way_to_lie(way: str):
    voxels = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)
    image = sitk.GetImageFromArray(voxels)
    image.SetSpacing((1.0, 2.0, 3.0))
    lying = sitk.DICOMOrient(image, way)
    direction, array = lying.GetDirection(), sitk.GetArrayFromImage(lying)
    assert letters(direction) == way
    np.testing.assert_array_equal(upright(array, direction), voxels)
    assert upright_spacing(lying.GetSpacing()[::-1], direction) == (3.0, 2.0, 1.0)


def test_slightly_turned_scans_go_to_the_closest_axes():
    turned = np.reshape(LPS, (3, 3)) @ [[0.96, -0.28, 0], [0.28, 0.96, 0], [0, 0, -1]]
    voxels = np.arange(24).reshape(2, 3, 4)
    assert letters(turned.ravel()) == "LPI"
    np.testing.assert_array_equal(upright(voxels, turned.ravel()), voxels[::-1])


@pytest.mark.parametrize("direction", [(), (1, 0, 0, 0, 1, 0, 0, 1, 0.1)])
def test_a_direction_that_does_not_say_leaves_it_as_it_is(direction: tuple):
    voxels = np.arange(24).reshape(2, 3, 4)
    np.testing.assert_array_equal(upright(voxels, direction), voxels)
    assert upright_spacing((3.0, 2.0, 1.0), direction) == (3.0, 2.0, 1.0)
