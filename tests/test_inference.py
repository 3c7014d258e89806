"""The sliding window against PyMIC's own ``Inferer``, which is the oracle."""

from __future__ import annotations

import itertools
import logging
import math
import random
import re
from collections import Counter

import numpy as np
import pytest
import torch
from pymic.net_run.infer_func import Inferer
from scipy.ndimage import gaussian_filter
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from pymic_vf.errors import ConfigError
from pymic_vf.host import inference
from pymic_vf.host.inference import SlidingWindowInferer, inferer_for, window_starts
from pymic_vf.host.inference_settings import InferenceSettings, parse_inference

CLASSES = 3


class Network:
    """A deterministic network that sees where in a window it is, and keeps the windows it was given.

    Args:
        strides: one output each, pooled by that much; None for a single tensor.
    """

    def __init__(self, strides: tuple = ()) -> None:
        self.strides = strides
        self.seen: list[torch.Tensor] = []

    def __call__(self, x: torch.Tensor) -> torch.Tensor | list[torch.Tensor]:
        self.seen.append(x.clone())
        ramp = sum(torch.linspace(0, 1, n).view([-1 if i == axis else 1 for i in range(3)])
                   for axis, n in enumerate(x.shape[2:]))  # fmt: skip
        y = torch.cat([x * ramp, x.roll(1, -1) - 0.5 * x.roll(1, -2), x.roll(2, -3) * x], dim=1)
        if not self.strides:
            return y
        return [F.avg_pool3d(y, stride, ceil_mode=True) for stride in self.strides]

    @property
    def windows(self) -> torch.Tensor:
        return torch.cat(self.seen)


def stock(model: Network, image: torch.Tensor, window, stride, batch: int = 1, tta_mode: int = 0):
    config = {"sliding_window_enable": True, "sliding_window_size": list(window), "class_num": CLASSES,
              "sliding_window_stride": list(stride), "sliding_window_batch": batch, "tta_mode": tta_mode}  # fmt: skip
    return Inferer(config).run(model, image)


def fast(model: Network, image: torch.Tensor, window, stride, batch: int = 4, tta_mode: int = 0):
    return SlidingWindowInferer(InferenceSettings(tuple(window), tuple(stride), batch, tta_mode)).run(model, image)


def plain(model: Network, image: torch.Tensor, window, stride, flips=()) -> list[torch.Tensor]:
    """The definition, in float64: each distinct window once, its outputs weighted by PyMIC's map, sums divided."""
    image = image.flip(flips)
    delta = np.zeros(window)
    delta[tuple(w // 2 for w in window)] = 1
    full = torch.from_numpy(gaussian_filter(delta, [w / 8 for w in window], mode="constant"))
    axes = zip(image.shape[2:], window, stride, strict=True)
    sums, weights = None, None
    for corner in itertools.product(*({min(s, n - w) for s in range(0, n, t)} for n, w, t in axes)):
        crop = image[(..., *(slice(c, c + w) for c, w in zip(corner, window, strict=True)))]
        outputs = [x.double() for x in model(crop)]
        scales = [[a / b for a, b in zip(x.shape[2:], window, strict=True)] for x in outputs]
        if sums is None:
            sizes = [[int(n * k) for n, k in zip(image.shape[2:], scale, strict=True)] for scale in scales]
            sums = [x.new_zeros(*x.shape[:2], *size) for x, size in zip(outputs, sizes, strict=True)]
            weights = [torch.zeros_like(x) for x in sums]
        for i, (x, scale) in enumerate(zip(outputs, scales, strict=True)):
            start = [int(c * k) for c, k in zip(corner, scale, strict=True)]
            region = (..., *(slice(a, a + n) for a, n in zip(start, x.shape[2:], strict=True)))
            gaussian = F.interpolate(full[None, None], scale_factor=scale)
            sums[i][region] += gaussian * x
            weights[i][region] += gaussian
    return [(x / w).flip(flips) for x, w in zip(sums, weights, strict=True)]


def assert_same(ours, theirs) -> None:
    assert type(ours) is type(theirs)
    ours, theirs = ([x] if isinstance(x, torch.Tensor) else x for x in (ours, theirs))
    assert [x.shape for x in ours] == [x.shape for x in theirs]
    for a, b in zip(ours, theirs, strict=True):
        assert a.dtype == b.dtype == torch.float32
        # some tens of float32 additions of numbers of this size
        assert (a - b).abs().max() <= 1e-5 * b.abs().max()


def random_case(rng: random.Random, distinct: bool, multiple_of: int = 1) -> tuple[list[int], list[int], list[int]]:
    """Size, window and stride of a volume on whose grid no two of PyMIC's windows coincide, or some do."""
    while True:
        window = [rng.randrange(multiple_of, 13, multiple_of) for _ in range(3)]
        stride = [rng.randint(max(1, w // 3), w) for w in window]
        size = [rng.randint(w, 22) for w in window]
        starts = [[min(s, n - w) for s in range(0, n, t)] for n, w, t in zip(size, window, stride, strict=True)]
        unique = all(len(set(axis)) == len(axis) for axis in starts)
        if unique == distinct and size != window and math.prod(map(len, starts)) <= 80:
            return size, window, stride


@pytest.mark.parametrize("seed", range(12))
def test_equals_pymic_where_no_windows_coincide(seed):
    size, window, stride = random_case(random.Random(seed), distinct=True)
    image = torch.randn(1, 1, *size)
    assert_same(fast(Network(), image, window, stride), stock(Network(), image, window, stride))


@pytest.mark.parametrize("seed", range(4))
def test_equals_pymic_with_flips(seed):
    size, window, stride = random_case(random.Random(seed), distinct=True)
    args = (torch.randn(1, 1, *size), window, stride)
    assert_same(fast(Network(), *args, tta_mode=1), stock(Network(), *args, tta_mode=1))


@pytest.mark.parametrize(("size", "window", "stride"), [((8, 7, 8), 5, 4), ((12, 6, 18), 6, 6), ((7, 8, 14), 7, 7)])
def test_equals_pymic_with_turned_views(size, window, stride):
    args = (torch.randn(1, 1, *size), [window] * 3, [stride] * 3)
    assert_same(fast(Network(), *args, tta_mode=2), stock(Network(), *args, tta_mode=2))


@pytest.mark.parametrize("seed", range(6))
def test_equals_the_definition_where_windows_coincide(seed):
    size, window, stride = random_case(random.Random(seed), distinct=False, multiple_of=4)
    image, strides = torch.randn(1, 1, *size), (1, (1, 2, 2), (2, 4, 4))
    args = (image, window, stride)
    assert_same(fast(Network(strides), *args), [x.float() for x in plain(Network(strides), *args)])
    views = [plain(Network(strides), *args, flips) for flips in ((), (-2,), (-1,), (-2, -1))]
    means = [(sum(outputs) / 4).float() for outputs in zip(*views, strict=True)]
    assert_same(fast(Network(strides), *args, tta_mode=1), means)


@pytest.mark.parametrize("tta_mode", [0, 1])
@pytest.mark.parametrize("seed", range(6))
def test_lists_of_outputs_equal_pymic(seed, tta_mode):
    size, window, stride = random_case(random.Random(seed), distinct=True, multiple_of=4)
    image = torch.randn(1, 1, *size)
    strides = (1, (1, 2, 2), (2, 4, 4), 4)
    args = (image, window, stride)
    assert_same(fast(Network(strides), *args, tta_mode=tta_mode), stock(Network(strides), *args, tta_mode=tta_mode))


def test_a_list_of_one_output_is_what_pymic_makes_of_it():
    image = torch.randn(1, 1, 8, 8, 8)
    for window in ([4, 4, 4], [8, 8, 8]):
        args = (image, window, window)
        assert_same(fast(Network((1,)), *args), stock(Network((1,)), *args))


@pytest.mark.parametrize("seed", range(6))
def test_every_distinct_window_is_seen_once(seed):
    size, window, stride = random_case(random.Random(seed), distinct=False)
    image = torch.arange(math.prod(size), dtype=torch.float32).view(1, 1, *size)
    ours, theirs = Network(), Network()
    fast(ours, image, window, stride)
    stock(theirs, image, window, stride)

    def corners(model: Network) -> Counter:
        return Counter(model.windows[:, 0, 0, 0, 0].tolist())

    expected = corners(theirs) - Counter([1.0])  # PyMIC's first call is a volume of ones
    assert set(corners(ours)) == set(expected)
    assert set(corners(ours).values()) == {1}
    assert len(ours.windows) < expected.total()


def test_class_map_hardly_differs_where_windows_coincide():
    """Logits as a trained network's: some units a class, and off by a few tenths with the place in the window."""

    def model(x):
        place = 0.3 * Network()(x)[:, :1].abs().clamp(max=1)
        return torch.cat([torch.zeros_like(x), 8 * x - 2 + place, -8 * x - 2 + place], dim=1)

    blobs = torch.randn(1, 1, 4, 5, 6, generator=torch.Generator().manual_seed(0))
    args = (F.interpolate(blobs, (22, 35, 46), mode="trilinear"), [8, 16, 16], [4, 8, 8])
    ours, theirs = fast(model, *args), stock(model, *args)
    assert (ours - theirs).abs().max() > 1e-3
    assert [(theirs.argmax(1) == c).any() for c in range(CLASSES)] == [True] * CLASSES
    assert (ours.argmax(1) != theirs.argmax(1)).float().mean() < 1e-3


@pytest.mark.parametrize("batch", [1, 2, 5, 100])
def test_batches_of_windows_and_of_images(batch):
    images = torch.randn(3, 1, 9, 8, 7)
    model = Network((1, 2))
    together = fast(model, images, [4, 4, 4], [2, 2, 2], batch)
    calls = [len(windows) for windows in model.seen]
    places = 4 * 3 * 3  # of which PyMIC has 5 * 4 * 4
    assert sum(calls) == 3 * places
    assert len(calls) == math.ceil(3 * places / batch)
    assert max(calls) - min(calls) <= 1
    for i, output in enumerate(together):
        alone = torch.cat([fast(Network((1, 2)), image[None], [4, 4, 4], [2, 2, 2])[i] for image in images])
        torch.testing.assert_close(output, alone)


def test_outputs_of_a_scale_that_floats_round_down():
    """55 * (6 / 22) is 14.99..., so PyMIC has no room for the last of the six."""
    args = (torch.randn(1, 1, 55, 4, 4), [22, 4, 4], [11, 4, 4])
    with pytest.raises(RuntimeError, match="size"):
        stock(Network((1, (4, 1, 1))), *args)
    assert [list(x.shape[2:]) for x in fast(Network((1, (4, 1, 1))), *args)] == [[55, 4, 4], [15, 4, 4]]

    def constant(x):
        return [torch.ones(len(x), 1, 22, 4, 4), torch.ones(len(x), 1, 6, 4, 4)]

    for output in fast(constant, *args):
        torch.testing.assert_close(output, torch.ones_like(output))


@pytest.mark.parametrize(("size", "window", "stride"), [(300, 256, 200), (9, 1, 1), (512, 3, 3), (257, 128, 127)])
def test_shares_sum_to_one_everywhere(size, window, stride):
    starts = inference._output_starts(size, window, stride, False, window)
    shares = inference._output_shares(size, window, stride, False, window, torch.device("cpu"))
    total = torch.zeros(size)
    for start, share in zip(starts, shares, strict=True):
        total[start : start + window] += share
    torch.testing.assert_close(total, torch.ones(size))
    assert (shares > 0).all()


def test_whole_axes_and_strides_beyond_the_window():
    image = torch.randn(1, 1, 6, 10, 12)
    for window, stride in (([None, 5, 6], [None, 9, 6]), ([99, 5, 12], [99, 5, None])):
        assert_same(fast(Network(), image, window, stride), stock(Network(), image, window, stride))


def test_volumes_within_a_window_go_through_whole():
    image = torch.randn(2, 1, 6, 5, 4)
    for settings in (InferenceSettings(), InferenceSettings((6, 8, 8), (3, 4, 4))):
        model = Network((1, 2))
        outputs = SlidingWindowInferer(settings).run(model, image)
        assert [len(x) for x in model.seen] == [2]
        assert all(torch.equal(a, b) for a, b in zip(outputs, Network((1, 2))(image), strict=True))


@pytest.mark.parametrize("tta_mode", [1, 2])
def test_whole_volumes_with_test_time_augmentation(tta_mode):
    image = torch.randn(1, 1, 4, 6, 8)
    ours = SlidingWindowInferer(InferenceSettings(tta_mode=tta_mode)).run(Network(), image)
    assert_same(ours, Inferer({"tta_mode": tta_mode}).run(Network(), image))


def test_an_image_of_two_axes():
    def model(x):
        return x.repeat(1, 2, 1, 1)

    image = torch.randn(1, 1, 12, 10)
    for tta_mode in (0, 1):
        torch.testing.assert_close(fast(model, image, [4, 4], [2, 2], tta_mode=tta_mode), model(image))


def test_the_image_is_not_written_to():
    image = torch.randn(1, 1, 8, 8, 8)
    before = image.clone()
    fast(lambda x: x.mul_(2), image, [4, 4, 4], [2, 2, 2], batch=1)
    assert torch.equal(image, before)


def test_half_precision_outputs_are_summed_in_float32():
    image = torch.randn(1, 1, 8, 8, 8)
    output = fast(lambda x: torch.full_like(x, 1 / 3, dtype=torch.bfloat16), image, [4, 4, 4], [1, 1, 1])
    assert output.dtype == torch.float32
    torch.testing.assert_close(output, torch.full_like(output, torch.tensor(1 / 3, dtype=torch.bfloat16).item()))


class Allocations(TorchDispatchMode):
    """The storages of at least so many bytes that come into being."""

    def __init__(self, at_least: int) -> None:
        super().__init__()
        self.at_least, self.kept = at_least, {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor) and out.untyped_storage().nbytes() >= self.at_least:
            self.kept[out.untyped_storage().data_ptr()] = out  # kept alive, so that no address comes twice
        return out


@pytest.mark.parametrize("tta_mode", [0, 1, 2])
def test_one_buffer_of_the_volume_times_the_classes(tta_mode):
    image = torch.randn(1, 1, 12, 12, 12)
    with Allocations(image.nbytes) as big:
        output = fast(Network(), image, [6, 6, 6], [3, 3, 3], batch=1, tta_mode=tta_mode)
    assert set(big.kept) - {image.data_ptr()} == {output.data_ptr()}


def test_sums_that_do_not_fit_the_device_are_kept_on_the_cpu(monkeypatch, caplog):
    image = torch.randn(1, 1, 8, 8, 8)
    args = (image, [4, 4, 4], [2, 2, 2])
    expected = fast(Network(), *args)
    monkeypatch.setattr(inference, "_free_bytes", lambda _device: 4 * CLASSES * 8**3 - 1)
    with caplog.at_level(logging.WARNING):
        torch.testing.assert_close(fast(Network(), *args), expected, rtol=0, atol=0)
    assert [r.getMessage() for r in caplog.records if "summed on the CPU" in r.getMessage()] == [
        "the prediction of this volume takes 0.00 GiB, more than cpu has room for: it is summed on the CPU, slower"
    ]


def test_sums_whose_allocation_fails_are_kept_on_the_cpu(monkeypatch, caplog):
    image = torch.randn(1, 1, 8, 8, 8)
    args = (image, [4, 4, 4], [2, 2, 2])
    expected = fast(Network(), *args)
    zeros, calls = inference._zeros, []

    def fails_first(shapes, device):
        calls.append(device)
        if len(calls) == 1:
            raise torch.OutOfMemoryError
        return zeros(shapes, device)

    monkeypatch.setattr(inference, "_zeros", fails_first)
    torch.testing.assert_close(fast(Network(), *args), expected, rtol=0, atol=0)
    assert "summed on the CPU" in caplog.text


@pytest.mark.parametrize("fails_at", [1, 3])
def test_a_network_that_runs_out_of_memory_beside_the_sums_gets_their_room(caplog, fails_at):
    image = torch.randn(1, 1, 8, 8, 8)
    args = (image, [4, 4, 4], [2, 2, 2])
    expected = fast(Network(), *args)
    model, calls = Network(), itertools.count(1)

    def runs_out(x):
        if next(calls) == fails_at:
            raise torch.OutOfMemoryError("no room")
        return model(x)

    if fails_at == 1:  # nothing is summed yet: the network alone is too large
        with pytest.raises(torch.OutOfMemoryError, match="no room"):
            fast(runs_out, *args)
        return
    torch.testing.assert_close(fast(runs_out, *args), expected, rtol=0, atol=0)
    assert caplog.text.count("summed on the CPU") == 1


def test_turned_views_of_outputs_with_other_scales_are_refused():
    image = torch.randn(1, 1, 8, 8, 8)
    with pytest.raises(ConfigError, match=r"tta_mode = 2: an output of .* another scale"):
        fast(Network((1, (1, 2, 2))), image, [4, 4, 4], [4, 4, 4], tta_mode=2)


def test_window_starts():
    assert window_starts(183, 64, 32) == [0, 32, 64, 96, 119]
    assert window_starts(64, 64, 32) == [0]
    assert window_starts(10, 3, 3) == [0, 3, 6, 7]


TESTING = {"sliding_window_inferer": "fast", "sliding_window_enable": True,
           "sliding_window_size": [8, 16, 16], "sliding_window_stride": [4, 8, 8]}  # fmt: skip


def test_stock_configs_are_left_to_pymic():
    for testing in ({}, {**TESTING, "sliding_window_inferer": "stock"}, {"sliding_window_inferer": None}):
        for stage in ("valid", "test"):
            assert inferer_for({"testing": testing}, stage) is None
    assert inferer_for({}, "valid") is None


def test_settings_of_the_stages():
    config = {"testing": {**TESTING, "sliding_window_batch": 8, "tta_mode": 1}, "dataset": {"patch_size": [6, 5, 1]}}
    assert inferer_for(config, "test").settings == InferenceSettings((8, 16, 16), (4, 8, 8), 8, 1)
    assert inferer_for(config, "valid").settings == InferenceSettings(
        (6, 5, 1), (3, 2, 1), 8, result_on_image_device=True
    )
    del config["dataset"]
    assert inferer_for(config, "valid").settings.window == (8, 16, 16)
    config["testing"]["sliding_window_enable"] = False
    assert inferer_for(config, "test").settings.window is None
    assert inferer_for(config, "valid").settings.window is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sliding_window_inferer": "fats"}, r"must be one of stock, fast \(did you mean fast\?\), got 'fats'"),
        ({"sliding_window_inferrer": "fast"}, r"sliding_window_inferrer.*did you mean sliding_window_inferer\?"),
        ({"sliding_window_size": None}, "sliding_window_size is missing"),
        ({"sliding_window_size": [8, 16.5, 16]}, r"sliding_window_size must be .* got \[8, 16.5, 16\]"),
        ({"sliding_window_stride": [4, 0, 8]}, r"sliding_window_stride must be .* got \[4, 0, 8\]"),
        ({"sliding_window_stride": [4, 8]}, r"sliding_window_stride must have 3 entries.* got \[4, 8\]"),
        ({"sliding_window_batch": 0}, "sliding_window_batch must be .* got 0"),
        ({"tta_mode": 3}, "tta_mode must be .* got 3"),
        ({"sliding_window_enable": "yes"}, "sliding_window_enable must be True or False, got 'yes'"),
        ({"sliding_window_size": [True, 16, 16]}, r"sliding_window_size must be .* got \[True, 16, 16\]"),
    ],
)
def test_mistakes_are_named(changes, message):
    with pytest.raises(ConfigError, match=message):
        inferer_for({"testing": {**TESTING, **changes}}, "test")


def test_all_mistakes_together():
    mistakes: list[str] = []
    parse_inference({"testing": {**TESTING, "tta_mode": 9, "sliding_window_batch": "x"}}, "test", mistakes)
    assert len(mistakes) == 2


def test_a_wrong_inferer_does_not_hide_the_other_mistakes():
    mistakes: list[str] = []
    changes = {"sliding_window_inferer": "fats", "sliding_window_enable": "yes", "sliding_window_stride": [4, 0, 8]}
    assert parse_inference({"testing": {**TESTING, **changes, "tta_mode": 9}}, "test", mistakes) is None
    assert {m.split()[1] for m in mistakes} == {*changes, "tta_mode"}


@pytest.mark.parametrize("key", ["sliding_window_size", "sliding_window_stride", "patch_size"])
def test_the_number_of_axes_where_it_is_known(key):
    config = {"testing": dict(TESTING), "dataset": {}}
    section, stage = ("dataset", "valid") if key == "patch_size" else ("testing", "test")
    config[section][key] = [8, 8]
    mistakes: list[str] = []
    parse_inference(config, stage, mistakes, axes=3)
    rule = "must be a list of 3 whole numbers of at least 1 (None: the whole axis), got [8, 8]"
    assert mistakes == [f"[{section}] {key} {rule}"]


STOCK = {**TESTING, "sliding_window_inferer": "stock"}


@pytest.mark.parametrize(
    ("changes", "stage", "message"),
    [
        ({"tta_mode": 3}, "test", "tta_mode must be .* at most 2, got 3"),
        ({"tta_mode": None}, "test", "tta_mode must be .* got None"),
        ({"sliding_window_stride": [8, 0, 16]}, "test", r"sliding_window_stride must be .* got \[8, 0, 16\]"),
        ({"sliding_window_stride": None}, "test", "sliding_window_stride is missing"),
        ({"sliding_window_batch": None}, "test", "sliding_window_batch must be .* got None"),
        ({"sliding_window_enable": "yes"}, "valid", "sliding_window_enable must be True or False"),
        ({"sliding_window_size": [None, 16, 16]}, "valid", "sliding_window_size must have entries of at least 2"),
        ({"sliding_window_size": [1, 16, 16]}, "valid", "sliding_window_size must have entries of at least 2"),
    ],
)
def test_what_fails_in_pymics_own_inferer(changes, stage, message):
    config, mistakes = {"testing": {**STOCK, **changes}}, []
    assert parse_inference(config, stage, mistakes, axes=3, stock_too=True) is None
    assert len(mistakes) == 1 and re.search(message, mistakes[0])
    assert inferer_for(config, stage) is None  # networks of others are left alone


@pytest.mark.parametrize(
    "changes",
    [
        *({"tta_mode": tta_mode} for tta_mode in (0, 1, 2)),
        {"sliding_window_size": [None, 16, 16], "sliding_window_stride": [None, 8, 8]},
        {"sliding_window_enable": False, "sliding_window_size": 3, "sliding_window_batch": 0},
        {"sliding_window_enable": None},
    ],
)
def test_what_pymics_own_inferer_takes(changes):
    mistakes: list[str] = []
    parse_inference({"testing": {**STOCK, **changes}}, "test", mistakes, axes=3, stock_too=True)
    assert not mistakes


def test_windows_of_another_number_of_axes():
    with pytest.raises(ConfigError, match="images have 2 axes"):
        fast(Network(), torch.zeros(1, 1, 8, 8), [4, 4, 4], [2, 2, 2])
