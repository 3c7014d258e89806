"""The ``[testing]`` keys that the inference reads, from PyMIC's config; every mistake noted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pymic_vf.errors import did_you_mean
from pymic_vf.host.config import Section

KEY = "sliding_window_inferer"
CHOICES = ("stock", "fast")
TTA_MODES = 3  # PyMIC's, counted from 0
# Windows a call where sliding_window_batch is not given. Two would do on the CPU, where torch runs many 3D convolutions
# of a single small window several times slower (they miss oneDNN); a GPU has more to fill.
DEFAULT_BATCH = 4


@dataclass(frozen=True)
class InferenceSettings:
    """How to walk over a volume.

    Args:
        window: size of the windows in voxels, an entry an axis, None for the whole axis; None: no windows at all.
        stride: steps between windows, an entry an axis, None for the window's size.
        batch: most windows in a call of the network.
        tta_mode: PyMIC's test-time augmentation: 0 none, 1 flips in the last two axes, 2 turned views.
        result_on_image_device: bring a result that was summed on the CPU back to the image's device.
    """

    window: tuple[int | None, ...] | None = None
    stride: tuple[int | None, ...] | None = None
    batch: int = DEFAULT_BATCH
    tta_mode: int = 0
    result_on_image_device: bool = False


def parse_inference(
    config: Mapping[str, Mapping[str, Any]],
    stage: str,
    mistakes: list[str],
    axes: int | None = None,
    stock_too: bool = False,
) -> InferenceSettings | None:
    """The settings of the fast inferer, or None where a config leaves the inference to PyMIC.

    Args:
        config: PyMIC's parsed config.
        stage: ``valid`` (PyMIC's rule: windows of [dataset] patch_size at half a window's stride, no test-time
            augmentation, the result on the image's device) or ``test`` (the keys of [testing]).
        mistakes: filled with what is wrong.
        axes: of the images; None where it is not known.
        stock_too: check the keys also where PyMIC's own inferer reads them, which ends in a traceback for wrong ones.
    """
    testing = Section(config.get("testing", {}), "testing", mistakes)
    for key, value in testing.values.items():
        if key != KEY and key.startswith("sliding") and value in CHOICES:
            testing.wrong(key, f"is no key and would be ignored{did_you_mean(key, [KEY])}")
    choice = testing.get(KEY, "stock")
    if choice not in CHOICES:
        testing.wrong(KEY, f"must be one of {', '.join(CHOICES)}{did_you_mean(choice, CHOICES)}")
    stock = choice == "stock"
    if stock and not stock_too:
        return None
    testing.boolean("sliding_window_enable", False)
    slides = bool(testing.get("sliding_window_enable"))  # for a wrong value too, so that the other keys are checked
    batch = DEFAULT_BATCH
    if slides or not stock:
        batch = testing.integer("sliding_window_batch", DEFAULT_BATCH, 1, none_is_absent=not stock)
    tta_mode, window, stride = 0, None, None
    if stage == "test":
        tta_mode = testing.integer("tta_mode", 0, 0, TTA_MODES - 1, none_is_absent=not stock)
    if slides and stage == "test":
        window, stride = (_sizes(testing, key, axes) for key in ("sliding_window_size", "sliding_window_stride"))
        if window and stride and len(window) != len(stride):
            testing.wrong("sliding_window_stride", f"must have {len(window)} entries, as sliding_window_size has")
    elif slides:
        window = _valid_window(config, testing, axes, stock)
        stride = window and tuple(size and max(1, size // 2) for size in window)
    settings = InferenceSettings(window, stride, batch, tta_mode, result_on_image_device=stage == "valid")
    return settings if choice == "fast" else None


def _valid_window(
    config: Mapping[str, Mapping[str, Any]], testing: Section, axes: int | None, stock: bool
) -> tuple[int | None, ...] | None:
    dataset = Section(config.get("dataset", {}), "dataset", testing.mistakes)
    section, key = (dataset, "patch_size") if "patch_size" in dataset else (testing, "sliding_window_size")
    window = _sizes(section, key, axes)
    if stock and window and not all(size and size > 1 for size in window):
        section.wrong(key, "must have entries of at least 2, of which PyMIC's validation takes halves as its stride")
    return window


def _sizes(section: Section, key: str, axes: int | None) -> tuple[int | None, ...] | None:
    value = section.require(key, "sliding_window_enable = True needs it")
    if value is None:
        return None
    ok = isinstance(value, (list, tuple)) and len(value) in ((2, 3) if axes is None else (axes,))
    if ok and all(size is None or (type(size) is int and size > 0) for size in value):
        return tuple(value)
    count = "2 or 3" if axes is None else axes
    section.wrong(key, f"must be a list of {count} whole numbers of at least 1 (None: the whole axis)")
    return None
