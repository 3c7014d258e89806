"""The sliding window against PyMIC's own ``Inferer`` and against a plain definition in float64."""

from __future__ import annotations

import itertools
import math
import random
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
import torch
from pymic.net_run.infer_func import Inferer
from scipy.ndimage import gaussian_filter
from torch.nn import functional as F

from pymic_vf.errors import ConfigError
from pymic_vf.host.inference import SlidingWindowInferer, inferer_for
from pymic_vf.host.settings.inference_settings import InferenceSettings

CLASSES = 3


class Network:
    """A deterministic network that sees where in a window it is, and keeps the windows it was given.

    Args:
        strides: one output each, pooled by that much; none for a single tensor.
    """

    def __init__(self, *strides) -> None:
        self.strides = strides
        self.seen: list[torch.Tensor] = []

    def __call__(self, x: torch.Tensor) -> torch.Tensor | list[torch.Tensor]:
        self.seen.append(x.clone())
        ramp = sum(torch.linspace(0, 1, n).view([-1 if i == axis else 1 for i in range(3)])
                   for axis, n in enumerate(x.shape[2:]))  # fmt: skip
        y = torch.cat([x * ramp, x.roll(1, -1) - 0.5 * x.roll(1, -2), x.roll(2, -3) * x], dim=1)
        return [F.avg_pool3d(y, stride, ceil_mode=True) for stride in self.strides] if self.strides else y


def stock(model, image, window, stride, tta_mode: int = 0):
    config = {"sliding_window_enable": True, "sliding_window_size": list(window), "class_num": CLASSES,
              "sliding_window_stride": list(stride), "tta_mode": tta_mode}  # fmt: skip
    return Inferer(config).run(model, image)


def fast(model, image, window, stride, tta_mode: int = 0, batch: int = 4):
    return SlidingWindowInferer(InferenceSettings(tuple(window), tuple(stride), batch, tta_mode)).run(model, image)


def distinct_starts(size: int, window: int, stride: int) -> list[int]:
    return sorted({min(start, size - window) for start in range(0, size, stride)})


def plain(model, image, window, stride, flips=()) -> list[torch.Tensor]:
    """The definition, in float64: each distinct window once, its outputs weighted by PyMIC's map, sums divided."""
    image = image.flip(flips)
    delta = np.zeros(window)
    delta[tuple(w // 2 for w in window)] = 1
    full = torch.from_numpy(gaussian_filter(delta, [w / 8 for w in window], mode="constant"))
    sums, weights = {}, {}
    for corner in itertools.product(*map(distinct_starts, image.shape[2:], window, stride)):
        crop = image[(..., *(slice(c, c + w) for c, w in zip(corner, window, strict=True)))]
        for i, output in enumerate(model(crop)):
            size = output.shape[2:]
            gaussian = F.interpolate(full[None, None], size)
            whole = [n * o // w for n, o, w in zip(image.shape[2:], size, window, strict=True)]
            start = [c * o // w for c, o, w in zip(corner, size, window, strict=True)]
            region = (..., *(slice(a, a + o) for a, o in zip(start, size, strict=True)))
            sums.setdefault(i, torch.zeros(*output.shape[:2], *whole, dtype=torch.float64))[region] += gaussian * output
            weights.setdefault(i, torch.zeros(1, 1, *whole, dtype=torch.float64))[region] += gaussian
    return [(sums[i] / weights[i]).flip(flips).float() for i in sums]


def assert_same(ours, theirs) -> None:
    """Equal to 1e-5 of the largest value: some tens of float32 additions of numbers of that size."""
    assert type(ours) is type(theirs)
    ours, theirs = ([x] if isinstance(x, torch.Tensor) else x for x in (ours, theirs))
    assert [x.shape for x in ours] == [x.shape for x in theirs]
    for a, b in zip(ours, theirs, strict=True):
        assert a.dtype == b.dtype == torch.float32
        assert (a - b).abs().max() <= 1e-5 * b.abs().max()


def random_case(seed: int, distinct: bool, multiple_of: int = 1):
    """Image, window and stride; on their grid no two of PyMIC's windows coincide, or some do."""
    rng = random.Random(seed)
    while True:
        window = [rng.randrange(multiple_of, 13, multiple_of) for _ in range(3)]
        stride = [rng.randint(max(1, w // 3), w) for w in window]
        size = [rng.randint(w, 22) for w in window]
        starts = [[min(s, n - w) for s in range(0, n, t)] for n, w, t in zip(size, window, stride, strict=True)]
        unique = all(len(set(axis)) == len(axis) for axis in starts)
        if unique == distinct and size != window and math.prod(map(len, starts)) <= 80:
            return torch.randn(1, 1, *size, generator=torch.Generator().manual_seed(seed)), window, stride


@pytest.mark.parametrize("tta_mode", [0, 1])
@pytest.mark.parametrize("seed", range(8))
def test_equals_pymic_where_no_windows_coincide(seed, tta_mode):
    case = random_case(seed, distinct=True)
    assert_same(fast(Network(), *case, tta_mode), stock(Network(), *case, tta_mode))


@pytest.mark.parametrize("tta_mode", [0, 1])
@pytest.mark.parametrize("seed", range(6))
def test_lists_of_outputs_equal_pymics(seed, tta_mode):
    case = random_case(seed, distinct=True, multiple_of=4)
    strides = (1, (1, 2, 2), (2, 4, 4), 4)
    assert_same(fast(Network(*strides), *case, tta_mode), stock(Network(*strides), *case, tta_mode))


@pytest.mark.parametrize(("size", "window", "stride"), [((8, 7, 8), 5, 4), ((12, 6, 18), 6, 6), ((7, 8, 14), 7, 7)])
def test_turned_views_equal_pymics(size, window, stride):
    case = torch.randn(1, 1, *size), [window] * 3, [stride] * 3
    assert_same(fast(Network(), *case, tta_mode=2), stock(Network(), *case, tta_mode=2))


@pytest.mark.parametrize("seed", range(6))
def test_equals_the_definition_where_windows_coincide(seed):
    case = random_case(seed, distinct=False, multiple_of=4)
    strides = (1, (1, 2, 2), (2, 4, 4))
    assert_same(fast(Network(*strides), *case), plain(Network(*strides), *case))
    views = [plain(Network(*strides), *case, flips) for flips in ((), (-2,), (-1,), (-2, -1))]
    means = [sum(outputs) / 4 for outputs in zip(*views, strict=True)]
    assert_same(fast(Network(*strides), *case, tta_mode=1), means)


def test_the_class_map_hardly_differs_where_windows_coincide():
    """Logits as a trained network's: some units a class, and off by a few tenths with the place in the window."""

    def model(x):
        place = 0.3 * Network()(x)[:, :1].abs().clamp(max=1)
        return torch.cat([torch.zeros_like(x), 8 * x - 2 + place, -8 * x - 2 + place], dim=1)

    blobs = torch.randn(1, 1, 4, 5, 6, generator=torch.Generator().manual_seed(0))
    case = F.interpolate(blobs, (22, 35, 46), mode="trilinear"), [8, 16, 16], [4, 8, 8]
    ours, theirs = fast(model, *case), stock(model, *case)
    assert (ours - theirs).abs().max() > 1e-3
    assert [(theirs.argmax(1) == c).any() for c in range(CLASSES)] == [True] * CLASSES
    assert (ours.argmax(1) != theirs.argmax(1)).float().mean() < 1e-3


@pytest.mark.parametrize("seed", range(6))
def test_each_distinct_window_is_seen_once(seed):
    image, window, stride = random_case(seed, distinct=False)
    image = torch.arange(image.numel(), dtype=torch.float32).view_as(image)
    model = Network()
    fast(model, image, window, stride)
    corners = itertools.product(*map(distinct_starts, image.shape[2:], window, stride))
    assert Counter(torch.cat(model.seen)[:, 0, 0, 0, 0].int().tolist()) == Counter(
        int(image[0, 0][corner]) for corner in corners
    )


@pytest.mark.parametrize("window", [1, 2, 3, 10, 22, 49, 100, 128, 160])
def test_the_stride_is_exact(window):
    seen: list[int] = []

    def model(x):
        seen.extend(x[:, 0, 0, 0].int().tolist())
        return x

    for stride in range(1, window + 1):
        size = window + 2 * stride + 1
        seen.clear()
        fast(model, torch.arange(size).float().view(1, 1, size, 1), [window, 1], [stride, 1])
        assert seen == distinct_starts(size, window, stride), stride


@pytest.mark.parametrize("batch", [1, 2, 5, 100])
def test_batches_of_windows_and_of_images(batch):
    images = torch.randn(3, 1, 9, 8, 7)
    model = Network(1, 2)
    together = fast(model, images, [4, 4, 4], [2, 2, 2], batch=batch)
    calls = [len(windows) for windows in model.seen]
    windows = 3 * 4 * 3 * 3
    assert sum(calls) == windows and max(calls) <= batch and len(calls) == math.ceil(windows / batch)
    for i, output in enumerate(together):
        alone = torch.cat([fast(Network(1, 2), image[None], [4, 4, 4], [2, 2, 2])[i] for image in images])
        torch.testing.assert_close(output, alone)


@pytest.mark.parametrize("size", [55, 66])
def test_outputs_of_a_scale_that_floats_round_down(size):
    """55 * (6 / 22) is 14.99..., so PyMIC and MONAI have no room for the last of the six."""
    case = torch.randn(1, 1, size, 4, 4), [22, 4, 4], [11, 4, 4]
    strides = (1, (4, 1, 1))
    if size == 55:
        with pytest.raises(RuntimeError, match="size"):
            stock(Network(*strides), *case)
    assert_same(fast(Network(*strides), *case), plain(Network(*strides), *case))


@pytest.mark.parametrize("stride", [5, 11])
@pytest.mark.parametrize("size", range(54, 66))
def test_coarse_outputs_are_in_their_places(size, stride):
    """A volume of coordinates: every coarse voxel is the coordinate of its centre, to less than its own extent."""

    def model(x):
        return [x, F.interpolate(x, (6, 2, 4), mode="area")]

    image = torch.arange(size).float().view(1, 1, size, 1, 1).expand(-1, -1, -1, 4, 4)
    fine, coarse = fast(model, image, [22, 4, 4], [stride, 4, 4])
    torch.testing.assert_close(fine, image)
    assert list(coarse.shape[2:]) == [size * 6 // 22, 2, 4]
    centres = (torch.arange(size * 6 // 22) + 0.5) * 22 / 6 - 0.5
    assert (coarse - centres.view(-1, 1, 1)).abs().max() < 22 / 6


def test_a_list_of_one_output_is_what_pymic_makes_of_it():
    for window in ([4, 4, 4], [8, 8, 8]):
        case = torch.randn(1, 1, 8, 8, 8), window, window
        assert_same(fast(Network(1), *case), stock(Network(1), *case))


def test_whole_axes_and_strides_beyond_the_window():
    image = torch.randn(1, 1, 6, 10, 12)
    for window, stride in (([None, 5, 6], [None, 9, 6]), ([99, 5, 12], [99, 5, None])):
        assert_same(fast(Network(), image, window, stride), stock(Network(), image, window, stride))


def test_volumes_within_a_window_go_through_whole():
    image = torch.randn(2, 1, 6, 5, 4)
    for settings in (InferenceSettings(), InferenceSettings((6, 8, 8), (3, 4, 4))):
        model = Network(1, 2)
        outputs = SlidingWindowInferer(settings).run(model, image)
        assert [len(x) for x in model.seen] == [2]
        assert all(torch.equal(a, b) for a, b in zip(outputs, Network(1, 2)(image), strict=True))


@pytest.mark.parametrize("tta_mode", [1, 2])
def test_whole_volumes_with_test_time_augmentation(tta_mode):
    image = torch.randn(1, 1, 4, 6, 8)
    ours = SlidingWindowInferer(InferenceSettings(tta_mode=tta_mode)).run(Network(), image)
    assert_same(ours, Inferer({"tta_mode": tta_mode}).run(Network(), image))


@pytest.mark.parametrize("tta_mode", [0, 1])
def test_an_image_of_two_axes(tta_mode):
    def model(x):
        return torch.cat([x.roll(1, -1), x.roll(1, -2) ** 2, x], dim=1)

    case = torch.randn(1, 1, 12, 9), [4, 4], [4, 3]
    assert_same(fast(model, *case, tta_mode), stock(model, *case, tta_mode))


@pytest.mark.parametrize("model", [lambda x: x, lambda x: x.mul_(2)])
def test_the_image_is_not_written_to(model):
    image = torch.randn(1, 1, 8, 8, 8)
    before = image.clone()
    fast(model, image, [4, 4, 4], [2, 2, 2], batch=1)
    assert torch.equal(image, before)


def test_half_precision_outputs_are_summed_in_float32():
    image = torch.randn(1, 1, 8, 8, 8)
    output = fast(lambda x: torch.full_like(x, 1 / 3, dtype=torch.bfloat16), image, [4, 4, 4], [1, 1, 1])
    assert output.dtype == torch.float32
    torch.testing.assert_close(output, torch.full_like(output, torch.tensor(1 / 3, dtype=torch.bfloat16).item()))


@pytest.mark.parametrize("failing_call", [1, 3])
def test_where_memory_runs_out_the_cpu_sums(failing_call, caplog):
    case = torch.randn(1, 1, 8, 8, 8), [4, 4, 4], [2, 2, 2]
    model, calls = Network(), itertools.count(1)

    def runs_out_once(x):
        if next(calls) == failing_call:
            raise torch.OutOfMemoryError("no room")
        return model(x)

    assert torch.equal(fast(runs_out_once, *case), fast(Network(), *case))
    assert caplog.text.count("no room for the prediction of this volume: it is summed on the CPU") == 1


def test_a_network_that_is_too_large_fails_in_the_end():
    def runs_out(_x):
        raise torch.OutOfMemoryError("no room")

    with pytest.raises(torch.OutOfMemoryError, match="no room"):
        fast(runs_out, torch.randn(1, 1, 8, 8, 8), [4, 4, 4], [2, 2, 2])


def test_turned_views_of_outputs_with_other_scales_are_refused():
    image = torch.randn(1, 1, 8, 8, 8)
    with pytest.raises(ConfigError, match="tta_mode = 2 needs outputs of one scale along all axes"):
        fast(Network(1, (1, 2, 2)), image, [4, 4, 4], [4, 4, 4], tta_mode=2)


def test_images_of_another_number_of_axes():
    image = torch.zeros(1, 1, 8, 8)
    with pytest.raises(ConfigError, match=r"sliding_window_size = \[4, 4, 4\], but the images have 2 axes"):
        fast(Network(), image, [4, 4, 4], [2, 2, 2])
    with pytest.raises(ConfigError, match="tta_mode = 2 needs images of 3 axes, not 2"):
        fast(Network(), image, [4, 4], [2, 2], tta_mode=2)


def test_the_inferer_that_a_config_asks_for():
    testing = {"sliding_window_inferer": "fast", "sliding_window_enable": True, "tta_mode": 1,
               "sliding_window_size": [8, 16, 16], "sliding_window_stride": [4, 8, 8]}  # fmt: skip
    assert inferer_for({"testing": testing}, "test").settings == InferenceSettings((8, 16, 16), (4, 8, 8), 4, 1)
    assert inferer_for({"testing": {**testing, "sliding_window_inferer": "stock"}}, "test") is None
    with pytest.raises(ConfigError, match="2 mistakes") as caught:
        inferer_for({"testing": {**testing, "tta_mode": 9, "sliding_window_batch": "x"}}, "test")
    assert len(caught.value.mistakes) == 2


def test_monai_is_imported_only_to_slide():
    code = "import sys, pymic_vf.host.inference; sys.exit('monai' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
