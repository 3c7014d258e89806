"""PyMIC's ``Inferer`` by MONAI's sliding window: each distinct window once, in batches.

Opt-in by ``[testing] sliding_window_inferer = fast``. The results are PyMIC's, with two differences: PyMIC clamps the
windows that cross the far edge, so that several coincide, and counts each of them, where here a window counts once;
and sizes at which PyMIC fails, because it rounds a place down, work.

The Gaussian weight of an output goes through MONAI as its last channel, and the mean is the quotient of the sums.
MONAI's own weights are others: centred half a voxel off for even sizes, at least 0.001, and shifted at coarse scales.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from pymic_vf.errors import ConfigError
from pymic_vf.host.settings.inference_settings import InferenceSettings, parse_inference

log = logging.getLogger(__name__)

SIGMA = 1 / 8  # of the Gaussian, in windows; PyMIC's value
# by tta_mode: the views of a volume that are averaged; each undoes itself
VIEWS: dict[int, list[Callable[[Tensor], Tensor]]] = {
    1: [lambda x: x, lambda x: x.flip(-2), lambda x: x.flip(-1), lambda x: x.flip(-2, -1)],
    2: [lambda x: x, lambda x: x.transpose(-1, -3), lambda x: x.transpose(-2, -3)],
}

Model = Callable[[Tensor], Tensor | Sequence[Tensor]]


def inferer_for(config: Mapping[str, Mapping[str, Any]], stage: str) -> SlidingWindowInferer | None:
    """The inferer for a ``valid`` or ``test`` stage of a PyMIC config; None where PyMIC's own is asked for.

    Raises:
        ConfigError: with every mistake in the keys that the inference reads.
    """
    mistakes: list[str] = []
    settings = parse_inference(config, stage, mistakes)
    if mistakes:
        raise ConfigError(mistakes)
    return settings and SlidingWindowInferer(settings)


class SlidingWindowInferer:
    """PyMIC's ``Inferer``, each window once; see the head of this file for what differs."""

    def __init__(self, settings: InferenceSettings) -> None:
        self.settings = settings

    @torch.no_grad()
    def run(self, model: Model, image: Tensor) -> Tensor | list[Tensor]:
        """The prediction for a batch of volumes of one size.

        Args:
            model: maps [B, C, d, h, w] (or [B, C, h, w]) to a tensor [B, classes, ...] or to a list of them, finest
                first, none larger than its input.
            image: [N, C, D, H, W] or [N, C, H, W], float32; it is not written to.

        Returns:
            What the model returns where one window holds the volume and `tta_mode` is 0. Otherwise float32
            [N, classes, D, H, W], or the list of them: an output of d_i voxels for d in the window has D * d_i // d.
            The mean of several views is on the CPU.

        Raises:
            ConfigError: the keys do not fit the image's number of axes, or a turned view the outputs' scales.
        """
        axes, window, tta_mode = image.dim() - 2, self.settings.window, self.settings.tta_mode
        if window and len(window) != axes:
            raise ConfigError([f"[testing] sliding_window_size = {list(window)}, but the images have {axes} axes"])
        if tta_mode == 0:
            return self._predict(model, image)
        if tta_mode == 2 and axes != 3:
            raise ConfigError([f"[testing] tta_mode = 2 needs images of 3 axes, not {axes}"])
        views, means = VIEWS[tta_mode], []
        for view in views:
            outputs = self._predict(model, view(image))
            shares = [view(output).to("cpu", torch.float32) / len(views) for output in _as_list(outputs)]
            if means and [mean.shape for mean in means] != [share.shape for share in shares]:
                rule = "needs outputs of one scale along all axes, or the views cannot be averaged; use 0 or 1"
                raise ConfigError([f"[testing] tta_mode = 2 {rule}"])
            means = [mean + share for mean, share in zip(means, shares, strict=True)] if means else shares
        return means[0] if isinstance(outputs, Tensor) else means

    def _predict(self, model: Model, image: Tensor) -> Tensor | list[Tensor]:
        size = tuple(image.shape[2:])
        window = _at_most(size, self.settings.window)
        if window == size:
            return model(image)
        stride = _at_most(window, self.settings.stride)
        outputs = _slide(model, image, window, stride, self.settings.batch)
        if self.settings.result_on_image_device:
            outputs = [output.to(image.device) for output in outputs]
        return outputs if len(outputs) > 1 else outputs[0]  # as PyMIC does for a list of one


def _slide(model: Model, image: Tensor, window: tuple[int, ...], stride: tuple[int, ...], batch: int) -> list[Tensor]:
    """The outputs for the whole image; on the CPU where the image's device has no room for them."""
    from monai.inferers import sliding_window_inference  # its import takes seconds

    sizes: list[tuple[int, ...]] = []

    def weighted(windows: Tensor) -> tuple[Tensor, ...]:
        outputs = _as_list(model(windows.clone()))  # MONAI's single window is a view of the image
        sizes[:] = [tuple(output.shape[2:]) for output in outputs]
        return tuple(_with_weight(output, window) for output in outputs)

    # MONAI's stride is int(window * (1 - overlap)): with half a voxel more no rounding reaches the next number
    overlap = [max(0.0, 1 - (s + 0.5) / w) for s, w in zip(stride, window, strict=True)]
    slide = functools.partial(sliding_window_inference, image, window, batch, weighted, overlap)
    try:
        sums = slide()
    except torch.OutOfMemoryError:
        sums = None
    if sums is None:  # not in the handler, which keeps the tensors of the failed call alive
        log.warning("%s has no room for the prediction of this volume: it is summed on the CPU, slower", image.device)
        sums = slide(device="cpu")
    return [_mean(each, size, window, image.shape[2:]) for each, size in zip(_as_list(sums), sizes, strict=True)]


def _with_weight(output: Tensor, window: tuple[int, ...]) -> Tensor:
    """An output times its weight, and the weight as one more channel: float32 [B, classes + 1, ...].

    Where the scale is no exact float, MONAI would misplace some windows: such an output is given in the window's size.
    """
    size = tuple(output.shape[2:])
    weight = _gaussian(window, size, output.device)
    joined = torch.cat([output * weight, weight.expand_as(output[:, :1])], dim=1)
    is_exact = all(Fraction(o / w) == Fraction(o, w) for o, w in zip(size, window, strict=True))
    return joined if is_exact else F.interpolate(joined, window, mode="nearest-exact")


def _mean(sums: Tensor, size: Sequence[int], window: Sequence[int], volume: Sequence[int]) -> Tensor:
    """The sums of the weighted outputs, of `size` for a window, by the sums of their weights."""
    target = [n * o // w for n, o, w in zip(volume, size, window, strict=True)]
    if list(sums.shape[2:]) != target:  # summed in the volume's size
        voxels = [-(-n * w // o) for n, o, w in zip(target, size, window, strict=True)]
        sums = F.interpolate(sums[(..., *map(slice, voxels))], target, mode="nearest-exact")
    return sums[:, :-1].div_(sums[:, -1:])


@functools.lru_cache(maxsize=32)
def _gaussian(window: tuple[int, ...], size: tuple[int, ...], device: torch.device) -> Tensor:
    """PyMIC's weights: a Gaussian about voxel window // 2, of which a coarser output takes the nearest voxels."""
    offsets = [(torch.arange(o) * w // o - w // 2) / w for o, w in zip(size, window, strict=True)]
    axes = [torch.exp(-0.5 * (offset / SIGMA) ** 2) for offset in offsets]
    return functools.reduce(lambda product, axis: product.unsqueeze(-1) * axis, axes).to(device)


def _at_most(limits: tuple[int, ...], values: tuple[int | None, ...] | None) -> tuple[int, ...]:
    """The values, an entry an axis, but no larger than the limits; the limit where there is none."""
    return tuple(min(value or limit, limit) for value, limit in zip(values or limits, limits, strict=True))


def _as_list(outputs: Tensor | Sequence[Tensor]) -> Sequence[Tensor]:
    return [outputs] if isinstance(outputs, Tensor) else outputs
