"""What a network answers, and its picture."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from pymic_vf.host.answers import answer_of, side_by_side
from pymic_vf.methods.method import RECONSTRUCTION, SEGMENTATION


def test_the_class_of_the_largest_output_in_inference():
    net = nn.Sequential(nn.Conv3d(1, 2, 1, bias=False), nn.Dropout(0.9))
    net[0].weight.data = torch.tensor([1.0, -1.0]).reshape(2, 1, 1, 1, 1)
    image = np.array([3.0, -3.0], np.float32).reshape(1, 1, 1, 2)
    answer = answer_of(net, image, SEGMENTATION)
    assert answer.tolist() == [[[0, 1]]] and answer.dtype == np.uint8
    assert net.training


def test_a_restoration_by_the_activation_of_its_loss():
    net = nn.Conv3d(1, 1, 1, bias=False)
    net.weight.data.fill_(2)
    image = torch.full((1, 1, 1, 1), 0.25)
    assert answer_of(net, image, RECONSTRUCTION).item() == 0.5
    assert np.isclose(answer_of(net, image, RECONSTRUCTION, "tanh").item(), np.tanh(0.5))


def test_slices_side_by_side():
    volume = np.zeros((3, 2, 2))
    volume[1] = [[1, 3], [2, 3]]
    assert side_by_side(volume, np.ones((3, 2, 1))).tolist() == [[[0, 1, 0], [0.5, 1, 0]]]
