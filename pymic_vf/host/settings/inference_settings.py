"""The ``[testing]`` keys that the inference reads, from PyMIC's config; every mistake noted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from pymic_vf.keys import Key, Kind, Section, flag, list_of, misspelt, one_of, whole

# Windows a call where sliding_window_batch is not given. Two would do on the CPU, where torch runs many 3D convolutions
# of a single small window several times slower (they miss oneDNN); a GPU has more to fill.
DEFAULT_BATCH = 4


def _sizes(axes: int | None) -> Kind:
    size = whole(1)
    return list_of(replace(size, fits=lambda value: value is None or size.fits(value)), axes, "None: the whole axis")


INFERER = Key("sliding_window_inferer", one_of("stock", "fast"), "`fast`: each window once, in batches", "stock")
ENABLE = Key("sliding_window_enable", flag(), "windows instead of whole volumes", False)
SIZE = Key("sliding_window_size", _sizes(None), "voxels of a window; `sliding_window_enable = True` needs it")
STRIDE = Key("sliding_window_stride", _sizes(None), "steps between windows; `sliding_window_enable = True` needs it")
BATCH = Key("sliding_window_batch", whole(1), "windows at once", DEFAULT_BATCH, none_is_absent=False)
TTA_MODE = Key("tta_mode", whole(0, 2), "a test's views: 1 flipped ones too, 2 turned ones", 0, none_is_absent=False)
INFERENCE_KEYS = (INFERER, ENABLE, SIZE, STRIDE, BATCH, TTA_MODE)


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
    dataset, testing = (Section(config.get(name, {}), name, mistakes) for name in ("dataset", "testing"))
    meant = {name: value for name, value in testing.values.items() if INFERER.kind.fits(value)}
    misspelt(Section(meant, "testing", mistakes), INFERENCE_KEYS)  # or PyMIC would ignore a misspelt INFERER silently
    inferer, asked = testing.read_key(INFERER), testing.get(INFERER.name, "stock")
    if asked == "stock" and not stock_too:
        return None
    testing.read_key(ENABLE)
    slides = bool(testing.get(ENABLE.name))  # for a wrong value too, so that the other keys are checked
    is_test, window, stride = stage == "test", None, None
    batch = testing.read_key(BATCH) if slides else DEFAULT_BATCH
    tta_mode = testing.read_key(TTA_MODE) if is_test else 0
    if slides and is_test:
        window, stride = (_read_sizes(testing, key, axes) for key in (SIZE, STRIDE))
        if window and stride and len(window) != len(stride):
            testing.wrong(STRIDE.name, f"must have {len(window)} entries, as {SIZE.name} has")
    elif slides:
        section, key = (dataset, replace(SIZE, name="patch_size")) if "patch_size" in dataset else (testing, SIZE)
        window = _read_sizes(section, key, axes)
        if asked == "stock" and window and not all(size and size > 1 for size in window):
            section.wrong(key.name, "must have entries of at least 2: PyMIC's validation takes halves as its stride")
        stride = window and tuple(size and max(1, size // 2) for size in window)
    settings = InferenceSettings(window, stride, batch, tta_mode, result_on_image_device=not is_test)
    return settings if inferer == "fast" else None


def _read_sizes(section: Section, key: Key, axes: int | None) -> tuple[int | None, ...] | None:
    return section.read_key(replace(key, kind=_sizes(axes), required=True))
