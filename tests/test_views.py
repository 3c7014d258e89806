from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from pymic import TaskType
from pymic.transform.trans_dict import TransformDict

from pymic_vf.data.views import View, all_of, is_view, seen_through

VOXELS = np.random.default_rng(0).integers(-9, 9, (2, 7, 9, 10)).astype(np.int16)


def made(name: str, **keys: Any):
    return TransformDict[name](
        {"task": TaskType.SEGMENTATION, **{f"{name}_{key}".lower(): value for key, value in keys.items()}}
    )


VIEWS = [
    ("Pad", {"output_size": [12, 9, 13]}),
    ("Pad", {"output_size": [30, 4, 31]}),  # mirrored more than once
    ("Pad", {"output_size": [4, 4, 4], "ceil_mode": True}),
    ("Pad", {"output_size": [16, 16]}),
    ("CenterCrop", {"output_size": [None, 4, 5]}),
    ("CenterCrop", {"output_size": [2, 9, 1]}),
    ("CropWithBoundingBox", {"start": [1, 0, 2], "output_size": [3, 9, 8]}),
]


@pytest.mark.parametrize(("name", "keys"), VIEWS)
def test_a_view_is_what_pymic_makes(name: str, keys: dict):
    transform = made(name, **keys)
    assert is_view(transform)
    view = View(VOXELS, seen_through(transform, all_of(VOXELS.shape[1:])))
    expected = made(name, **keys)({"image": VOXELS.copy()})["image"]
    assert view.shape == expected.shape
    assert np.array_equal(view[1], expected[1])
    size = expected.shape[1:]
    for start, stop in (((0, 0, 0), size), ([n // 3 for n in size], [n // 3 + 1 for n in size])):
        box = (slice(None), *(slice(a, b) for a, b in zip(start, stop, strict=True)))
        assert np.array_equal(view[box], expected[box])


def test_views_one_after_another():
    pad, crop = made("Pad", output_size=[12, 12, 12]), made("CenterCrop", output_size=[10, 10, 3])
    axes = seen_through(crop, seen_through(pad, all_of(VOXELS.shape[1:])))
    expected = crop(pad({"image": VOXELS.copy()}))["image"]
    assert np.array_equal(View(VOXELS, axes)[(slice(None),) * 4], expected)


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("CenterCrop", {"output_size": [8, 9, 9]}),
        ("CropWithBoundingBox", {"start": [1, 0, 2], "output_size": [3, 9, 9]}),
    ],
)
def test_a_box_that_is_not_there(name: str, keys: dict):
    with pytest.raises(ValueError, match=r"a volume of \[7, 9, 10\] voxels has no box from"):
        seen_through(made(name, **keys), all_of(VOXELS.shape[1:]))


def test_a_box_by_what_the_image_shows_is_no_view():
    assert not is_view(made("CropWithBoundingBox", start=None, output_size=[3, 3, 3]))
    assert not is_view(made("Rescale", output_size=[3, 3, 3]))
