"""What a network in training answers to a sample, for pictures."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from pymic_vf.methods.method import SEGMENTATION

ACTIVATIONS = {"tanh": torch.tanh, "sigmoid": torch.sigmoid}  # [training] loss_acti_func of a reconstruction


@torch.no_grad()
def answer_of(net: nn.Module, image: Any, task: str, loss_activation: str | None = None) -> np.ndarray:
    """The network's answer in inference; its mode is afterwards what it was.

    Args:
        net: PyMIC's; of several outputs the first counts.
        image: [C, D, H, W], an array or a tensor.
        task: of the method.
        loss_activation: what the loss applies to a reconstruction.

    Returns:
        [D, H, W]: classes as uint8, or the first channel of the restored image.
    """
    weight, was_training = next(net.parameters()), net.training
    net.eval()
    outputs = net(torch.as_tensor(np.ascontiguousarray(image))[None].to(weight.device, weight.dtype))
    net.train(was_training)
    output = (outputs[0] if isinstance(outputs, (list, tuple)) else outputs)[0]
    if task == SEGMENTATION:
        return output.argmax(0).to(torch.uint8).cpu().numpy()
    return ACTIVATIONS.get(loss_activation, lambda value: value)(output)[0].float().cpu().numpy()


def side_by_side(*volumes: np.ndarray) -> np.ndarray:
    """The middle axial slices of volumes [D, H, W], each from its darkest to its brightest value: [1, H, n * W] in
    [0, 1], as TensorBoard takes a picture."""
    slices = []
    for volume in volumes:
        plane = np.asarray(volume[volume.shape[0] // 2], np.float32)
        low, high = float(plane.min()), float(plane.max())
        slices.append((plane - low) / max(high - low, 1e-6))
    return np.concatenate(slices, axis=1)[None]
