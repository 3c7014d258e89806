from __future__ import annotations

import numpy as np
import pytest

from pymic_vf.data.foreground import Foreground


@pytest.mark.parametrize("values", [[0, 1, 2], [-3, 0, 7], [5, 5, 5], [0, 300, 60000]])
def test_every_voxel_of_every_class_is_found_where_numpy_finds_it(values: list[int]):
    label = np.random.default_rng(0).choice(values, (4, 5, 6)).astype(np.int32)
    label[2] = values[0]  # a slice without the others
    foreground = Foreground.from_lists(Foreground.of(label).to_lists())
    assert foreground.classes.tolist() == np.unique(label).tolist()
    assert foreground.total == label.sum()
    for value in values:
        places = np.argwhere(label == value).tolist()
        assert foreground.count(value) == len(places)
        assert [list(foreground.voxel(value, n, label.__getitem__)) for n in range(len(places))] == places


def test_a_value_that_is_not_there():
    assert Foreground.of(np.zeros((2, 3, 3), np.uint8)).count(4) == 0


def test_values_that_are_no_classes():
    with pytest.raises(ValueError, match="values from 0 to 65536 are no classes"):
        Foreground.of(np.array([[[0, 65536]]]))
