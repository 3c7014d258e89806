"""Sliding-window inference: PyMIC's windows, each computed once, in batches, blended in one buffer.

Opt-in by ``[testing] sliding_window_inferer = fast``; the object has the interface of PyMIC's ``Inferer``. What it
computes is what PyMIC 0.6.2 computes, with these differences:

- PyMIC clamps the windows that cross the far edge, so that several of them coincide, and runs and counts each of
  them. Here a window is there once, so voxels near the far edges weigh it once.
- The Gaussian map and the grid of windows are both products of their axes, so the total weight of a voxel is one too.
  Each window is therefore weighted by its share of that total, an outer product of short vectors: the sum of the
  windows is already the mean, there is no map of total weights, no division, and every flipped or turned copy of the
  volume is added into the same buffer. The shares of a voxel sum to 1 however small the Gaussian is there.
- Outputs of several scales are placed with whole-number arithmetic, and a window's output always fits its place.
  PyMIC's floats give the same places, but for some sizes round to one voxel too few and fail (windows of 22 with
  outputs of 6, for one).
- Windows of several images share a batch, and a volume's batches are of even sizes.

MONAI's ``sliding_window_inference`` walks the same windows. It holds a volume of weights for each output and another
buffer for each flipped copy, takes other voxels of the map for coarser outputs, so that these are not PyMIC's, and
rounds places as PyMIC does; ``benchmarks/sliding_window.py`` compares the two.
"""

from __future__ import annotations

import functools
import itertools
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from pymic_vf.errors import ConfigError
from pymic_vf.host.inference_settings import InferenceSettings, parse_inference

log = logging.getLogger(__name__)

SIGMA = 1 / 8  # of the Gaussian, in windows; PyMIC's value

Model = Callable[[torch.Tensor], torch.Tensor | Sequence[torch.Tensor]]


@dataclass(frozen=True)
class _View:
    """One way to show the volume to the network: two axes swapped, then some flipped."""

    swap: tuple[int, int] | None = None
    flips: tuple[int, ...] = ()

    def swapped(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.transpose(*self.swap) if self.swap else tensor

    def flipped(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.flip(self.flips) if self.flips else tensor


_VIEWS = {
    0: (_View(),),
    1: (_View(), _View(flips=(-2,)), _View(flips=(-1,)), _View(flips=(-2, -1))),
    2: (_View(), _View(swap=(-1, -3)), _View(swap=(-2, -3))),
}


def inferer_for(config: Mapping[str, Mapping[str, Any]], stage: str) -> SlidingWindowInferer | None:
    """The inferer that a PyMIC config asks for, or None where it leaves the inference to PyMIC.

    Args:
        config: PyMIC's parsed config.
        stage: ``valid`` (PyMIC's rule: windows of [dataset] patch_size at half a window's stride, no test-time
            augmentation, the result on the image's device) or ``test`` (the keys of [testing]).

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
    def run(self, model: Model, image: torch.Tensor) -> torch.Tensor | list[torch.Tensor]:
        """The prediction for a batch of volumes of one size.

        Args:
            model: maps [B, C, d, h, w] (or [B, C, h, w]) to a tensor [B, classes, ...] or to a list of them with
                different spatial sizes, finest first.
            image: [N, C, D, H, W] or [N, C, H, W].

        Returns:
            What the model returns where one window holds the volume and `tta_mode` is 0; otherwise float32
            [N, classes, D, H, W], or the list of them, output i in the size floor(D * d_i / d), ... for its window
            d_i for the window d. On the CPU where the image's device has no room for it, with a line in the log.

        Raises:
            ConfigError: the keys do not fit the image's number of axes, or a turned view the outputs' scales.
        """
        self._check_axes(image.dim() - 2)
        views = _VIEWS[self.settings.tta_mode]
        if len(views) == 1 and self._tiling(image.shape[2:], ()).is_whole:
            return model(image)
        mean = _Mean(image.device, len(views))
        for view in views:
            self._add_view(mean, model, image, view)
        return mean.result(self.settings.result_on_image_device)

    def _check_axes(self, axes: int) -> None:
        window = self.settings.window
        if window is not None and len(window) != axes:
            raise ConfigError([f"[testing] sliding_window_size = {list(window)}, but the images have {axes} axes"])
        if self.settings.tta_mode == 2 and axes != 3:
            raise ConfigError([f"[testing] tta_mode = 2 needs images of 3 axes, not {axes}"])

    def _tiling(self, size: Sequence[int], flips: tuple[int, ...]) -> _Tiling:
        window = self.settings.window or (None,) * len(size)
        stride = self.settings.stride or (None,) * len(size)
        window = tuple(min(w or s, s) for w, s in zip(window, size, strict=True))
        stride = tuple(min(t or w, w) for t, w in zip(stride, window, strict=True))
        return _Tiling(tuple(size), window, stride, tuple(axis - len(size) in flips for axis in range(len(size))))

    def _add_view(self, mean: _Mean, model: Model, image: torch.Tensor, view: _View) -> None:
        shown = view.swapped(image)
        tiling = self._tiling(shown.shape[2:], view.flips)
        places = [(n, place) for n in range(len(shown)) for place in tiling.places()]
        batch = len(shown) if tiling.is_whole else self.settings.batch  # whole volumes: as many at once as PyMIC gives
        for group in _groups(places, batch):
            regions = [(n, tiling.region(place, tiling.window)) for n, place in group]
            windows = torch.stack([shown[(n, slice(None), *region)] for n, region in regions])
            outputs = _call(model, view.flipped(windows), mean)
            several = isinstance(outputs, (list, tuple))
            # PyMIC unpacks a list of one where it slides, and keeps it where it does not
            mean.as_list = several and (len(outputs) > 1 or tiling.is_whole)
            outputs = outputs if several else [outputs]
            mean.add([view.flipped(output) for output in outputs], group, tiling, view, len(shown))


def _groups(items: list, largest: int) -> list[list]:
    """The items in order, in as few groups of at most `largest` as it takes, no two differing by more than one."""
    count = math.ceil(len(items) / largest)
    bounds = [len(items) * i // count for i in range(count + 1)]
    return [items[start:end] for start, end in itertools.pairwise(bounds)]


def _call(model: Model, windows: torch.Tensor, mean: _Mean) -> torch.Tensor | Sequence[torch.Tensor]:
    """The network's output; where its memory runs out beside the sums, they move to the CPU and it has one more go."""
    try:
        return model(windows)
    except torch.OutOfMemoryError:
        if not mean.can_move:
            raise
    # outside of the handler, which would keep the failed call's tensors alive
    mean.move_to_cpu()
    return model(windows)


@dataclass(frozen=True)
class _Tiling:
    """The grid of windows over one view of a volume; an entry an axis.

    A mirrored axis is walked from its far end, as PyMIC does by flipping the volume; places are the unflipped ones.
    """

    size: tuple[int, ...]
    window: tuple[int, ...]
    stride: tuple[int, ...]
    mirrored: tuple[bool, ...]

    @property
    def is_whole(self) -> bool:
        """Whether one window holds the volume."""
        return self.window == self.size

    @property
    def axes(self) -> list[tuple[int, int, int, bool]]:
        """(size, window, stride, mirrored) of each axis."""
        return list(zip(self.size, self.window, self.stride, self.mirrored, strict=True))

    def places(self) -> list[tuple[int, ...]]:
        """The index of each window along each axis; each distinct window once."""
        return list(itertools.product(*(range(len(window_starts(*axis[:3]))) for axis in self.axes)))

    def output_size(self, output: Sequence[int]) -> tuple[int, ...]:
        """The volume's size in the scale of an output of that size for a window, rounded down as PyMIC does."""
        return tuple(s * o // w for s, o, w in zip(self.size, output, self.window, strict=True))

    def region(self, place: tuple[int, ...], output: Sequence[int]) -> tuple[slice, ...]:
        """Where a window's output of that size lies in the whole output; with the window's size: in the volume."""
        starts = [_output_starts(*axis, o)[index] for axis, o, index in zip(self.axes, output, place, strict=True)]
        return tuple(slice(start, start + o) for start, o in zip(starts, output, strict=True))

    def share(self, place: tuple[int, ...], output: Sequence[int], device: torch.device) -> torch.Tensor:
        """The share of a window's output in each voxel of its region: float32, of the output's size."""
        axes = zip(self.axes, output, place, strict=True)
        shares = [_output_shares(*axis, o, device)[index] for axis, o, index in axes]
        return functools.reduce(lambda product, share: product.unsqueeze(-1) * share, shares)


def window_starts(size: int, window: int, stride: int) -> list[int]:
    """First voxels of the distinct windows along an axis; a window that crosses the end is clamped to it."""
    return list(dict.fromkeys(min(start, size - window) for start in range(0, size, stride)))


@functools.lru_cache(maxsize=512)
def _output_starts(size: int, window: int, stride: int, mirrored: bool, output: int) -> list[int]:
    """First voxels of the windows' outputs along an axis, `output` being the size of one."""
    starts = [start * output // window for start in window_starts(size, window, stride)]
    return [size * output // window - start - output for start in starts] if mirrored else starts


@functools.lru_cache(maxsize=512)
def _output_shares(
    size: int, window: int, stride: int, mirrored: bool, output: int, device: torch.device
) -> torch.Tensor:
    """The share of each window in the voxels of its output along an axis: [windows, output], float32.

    The map is PyMIC's: a Gaussian about voxel window // 2, and for a coarser output the nearest of its voxels.
    """
    offset = torch.arange(output) * window // output - window // 2
    gaussian = torch.exp(-0.5 * (offset / (SIGMA * window)).double() ** 2)
    gaussian = gaussian.flip(0) if mirrored else gaussian
    starts = _output_starts(size, window, stride, mirrored, output)
    total = torch.zeros(size * output // window, dtype=torch.float64)
    for start in starts:
        total[start : start + output] += gaussian
    return torch.stack([gaussian / total[start : start + output] for start in starts]).to(device, torch.float32)


class _Mean:
    """The mean over windows and views of each of a network's outputs, summed in float32.

    Args:
        device: where the image is, and the sums too if they fit.
        views: how many views will be added.
    """

    def __init__(self, device: torch.device, views: int) -> None:
        self.device = device
        self.views = views
        self.sums: list[torch.Tensor] = []
        self.as_list = False
        self.on_cpu_instead = False

    def add(
        self,
        outputs: Sequence[torch.Tensor],
        places: Sequence[tuple[int, tuple[int, ...]]],
        tiling: _Tiling,
        view: _View,
        images: int,
    ) -> None:
        """Add one batch of windows.

        Args:
            outputs: each [windows, classes, ...], unflipped.
            places: of each window, the number of its image and its place in the tiling.
        """
        if not self.sums:
            shapes = [(images, output.shape[1], *tiling.output_size(output.shape[2:])) for output in outputs]
            self.sums = self._allocate(shapes)
        for whole, output in zip(self.sums, outputs, strict=True):
            target, size = view.swapped(whole), output.shape[2:]
            if target.shape[2:] != tiling.output_size(size):
                raise ConfigError(
                    [f"[testing] tta_mode = 2: an output of {list(size)} for windows of {list(tiling.window)} has "
                     "another scale when the volume is turned, so that the views cannot be averaged; use 0 or 1"]
                )  # fmt: skip
            values = output.to(whole.device, torch.float32)
            for (image, place), window in zip(places, values, strict=True):
                share = tiling.share(place, size, whole.device)
                region = (image, slice(None), *tiling.region(place, size))
                target[region].addcmul_(window, share, value=1 / self.views)

    def result(self, on_image_device: bool) -> torch.Tensor | list[torch.Tensor]:
        """The outputs as the network gave them, a tensor or a list."""
        outputs = [whole.to(self.device) for whole in self.sums] if on_image_device else self.sums
        return outputs if self.as_list else outputs[0]

    @property
    def can_move(self) -> bool:
        """Whether there is anything to move to the CPU."""
        return bool(self.sums) and not self.on_cpu_instead

    def move_to_cpu(self) -> None:
        """Make room on the device."""
        self._say_cpu(sum(whole.nbytes for whole in self.sums))
        self.sums = [whole.cpu() for whole in self.sums]

    def _allocate(self, shapes: Sequence[tuple[int, ...]]) -> list[torch.Tensor]:
        needed = 4 * sum(math.prod(shape) for shape in shapes)
        if needed <= _free_bytes(self.device):
            try:
                return _zeros(shapes, self.device)
            except torch.OutOfMemoryError:  # free memory in pieces, or another process took it
                pass
        self._say_cpu(needed)
        return _zeros(shapes, torch.device("cpu"))

    def _say_cpu(self, needed: int) -> None:
        self.on_cpu_instead = True
        log.warning(
            "the prediction of this volume takes %.2f GiB, more than %s has room for: it is summed on the CPU, slower",
            needed / 2**30, self.device,
        )  # fmt: skip


def _zeros(shapes: Sequence[tuple[int, ...]], device: torch.device) -> list[torch.Tensor]:
    return [torch.zeros(shape, device=device) for shape in shapes]


def _free_bytes(device: torch.device) -> float:
    """Memory that new tensors can have: what the driver has free and what torch keeps without using it."""
    if device.type != "cuda":
        return math.inf
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + kept
