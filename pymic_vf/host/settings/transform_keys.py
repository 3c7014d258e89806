"""The keys of [dataset] that PyMIC's transforms read, a row each, as PyMIC 0.6.2 spells them.

A value that PyMIC takes as None stands in the rule; everything else would end in a traceback at the first sample, or
worse, in none. Sizes are those of 3D images, [depth, height, width] in voxels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

from pymic_vf.keys import Key, Kind, Section, either, flag, list_of, number, one_of, whole


def or_none(kind: Kind) -> Kind:
    """A value of that kind, or None, which PyMIC understands there."""
    return Kind(
        f"None or {kind.rule}",
        lambda value: value is None or kind.fits(value),
        f"None or {kind.plural}" if kind.plural else "",
        lambda value: None if value is None else kind.convert(value),
        kind.hint,
    )


def _with_depth_as_it_is() -> Kind:
    """[None, height, width]."""

    def fits(value: Any) -> bool:
        return isinstance(value, (list, tuple)) and len(value) == 3 and value[0] is None and PLANE.fits(value[1:])

    return Kind("[None, height, width]", fits)


PLANE = list_of(whole(1), 2)
CHANNELS = or_none(list_of(whole(0)))
SIZE = list_of(whole(1), 3)
SIZE_OR_WHOLE_AXES = list_of(or_none(whole(1)), 3)
LIMITS = or_none(list_of(or_none(number())))
SHARE, FACTOR, RANGE, FEWEST_AND_MOST = number(0, 1), number(0), list_of(number(), 2), list_of(whole(0), 2)
CLASSES = list_of(whole(0))
REQUIRED = object()


def _rows(transform: str, **kinds: tuple[Kind, str, Any] | tuple[Kind, str]) -> tuple[Key, ...]:
    """The rows of a transform: its own keys (kind, meaning, default), and `inverse`, which all of them have."""
    rows = {**kinds, "inverse": (or_none(flag()), "the prediction of a test is turned back", None)}
    return tuple(
        Key(
            f"{transform}_{name}", kind, meaning, None if default is REQUIRED else default,
            required=default is REQUIRED, none_is_absent=False,
        )
        for name, (kind, meaning, default) in rows.items()
    )  # fmt: skip


def _random(transform: str, **kinds: tuple[Kind, str, Any]) -> tuple[Key, ...]:
    """Those of a transform of the intensities that is not applied to every sample or channel."""
    return _rows(
        transform,
        channels=(CHANNELS, "the channels; None for all", None),
        probability=(SHARE, "of a sample", 0.5),
        probability_per_channel=(SHARE, "of a channel", 0.5),
        **kinds,
    )


_BLOCKS = {
    "probability": (SHARE, "of a sample", 0.5),
    "block_range": (FEWEST_AND_MOST, "fewest and most blocks", None),
    "block_size": (SIZE, "of a block", None),
}
TRANSFORM_KEYS: dict[str, tuple[Key, ...]] = {
    # geometry
    "Affine": _rows(
        "Affine",
        scale_range=(RANGE, "smallest and largest factor", REQUIRED),
        shear_range=(RANGE, "in degrees", REQUIRED),
        rotate_range=(RANGE, "in degrees", REQUIRED),
        output_size=(or_none(PLANE), "[height, width]", None),
    ),
    "CenterCrop": _rows("CenterCrop", output_size=(SIZE_OR_WHOLE_AXES, "of the crop; None: the whole axis", REQUIRED)),
    "CropWithBoundingBox": _rows(
        "CropWithBoundingBox",
        start=(or_none(list_of(whole(0), 3)), "the first voxel; None: found by the threshold", REQUIRED),
        output_size=(or_none(SIZE), "of the crop; None: the box above the threshold", REQUIRED),
        threshold=(number(), "what is above is inside", 1.0),
    ),
    "CropWithForeground": _rows(
        "CropWithForeground",
        labels=(or_none(CLASSES), "the classes", None),
        margin=(list_of(whole(0), 3), "around the label", (5, 10, 10)),
    ),
    "CropHumanRegion": _rows(
        "CropHumanRegion",
        intensity_threshold=(number(), "what is above is body", -600),
        threshold_mode=(one_of("mean", "max"), "over the slices", "mean"),
        zaxis_threshold=(SHARE, "share of slices", 0.5),
    ),
    "RandomCrop": _rows(
        "RandomCrop",
        output_size=(SIZE_OR_WHOLE_AXES, "of the crop; None: the whole axis", REQUIRED),
        foreground_focus=(flag(), "crops around a class of the label", False),
        foreground_ratio=(or_none(SHARE), "share of such crops", 0.5),
        mask_label=(or_none(CLASSES), "the classes that they lie around", None),
    ),
    "RandomResizedCrop": _rows(
        "RandomResizedCrop",
        output_size=(SIZE, "of the crop", REQUIRED),
        resize_lower_bound=(list_of(FACTOR, 3), "smallest factors", REQUIRED),
        resize_upper_bound=(list_of(FACTOR, 3), "largest factors", REQUIRED),
        resize_prob=(SHARE, "of a sample", 0.5),
        foreground_ratio=(SHARE, "share of crops around a class of the label", 0.0),
        mask_label=(or_none(CLASSES), "the classes that they lie around", None),
    ),
    "RandomSlice": _rows(
        "RandomSlice",
        output_size=(whole(1), "slices", REQUIRED),
        foreground_focus=(flag(), "slices with a class of the label", False),
        foreground_ratio=(or_none(SHARE), "share of such slices", 0.5),
        mask_label=(or_none(CLASSES), "the classes", None),
        shuffle=(flag(), "in any order", False),
    ),
    "Pad": _rows(
        "Pad",
        output_size=(either(SIZE, PLANE), "the least size", REQUIRED),
        ceil_mode=(flag(), "to a multiple of it", False),
    ),
    "Rescale": _rows(
        "Rescale", output_size=(either(whole(1), SIZE, _with_depth_as_it_is(), PLANE), "new size", REQUIRED)
    ),
    "RandomRescale": _rows(
        "RandomRescale",
        lower_bound=(list_of(or_none(FACTOR), 3), "smallest factors", REQUIRED),
        upper_bound=(list_of(or_none(FACTOR), 3), "largest factors", REQUIRED),
        probability=(SHARE, "of a sample", 0.5),
    ),
    "Resample": _rows(
        "Resample",
        output_spacing=(list_of(or_none(number(1e-3)), 3), "in mm; None: as it is", REQUIRED),
        ignore_zspacing_range=(or_none(RANGE), "spacings of the depth that are left alone", None),
    ),
    "RandomFlip": _rows(
        "RandomFlip",
        flip_depth=(flag(), "along the depth", REQUIRED),
        flip_height=(flag(), "along the height", REQUIRED),
        flip_width=(flag(), "along the width", REQUIRED),
    ),
    "RandomRotate": _rows(
        "RandomRotate",
        angle_range_d=(or_none(RANGE), "within slices, in degrees", REQUIRED),
        angle_range_h=(or_none(RANGE), "around the height, in degrees", None),
        angle_range_w=(or_none(RANGE), "around the width, in degrees", None),
        probability=(SHARE, "of a sample", 0.5),
    ),
    "RandomRot90": _rows("RandomRot90", probability=(SHARE, "of a sample", 0.75)),
    "RandomTranspose": _rows("RandomTranspose"),
    # intensities
    "NormalizeWithMeanStd": _rows(
        "NormalizeWithMeanStd",
        channels=(CHANNELS, "the channels; None for all", None),
        mean=(LIMITS, "of each; None: measured", None),
        std=(LIMITS, "of each; None: measured", None),
        mask_threshold=(or_none(number()), "measured above it", None),
        set_background_to_random=(flag(), "what is not above it becomes noise", True),
    ),
    "NormalizeWithMinMax": _rows(
        "NormalizeWithMinMax",
        channels=(CHANNELS, "the channels; None for all", REQUIRED),
        threshold_lower=(LIMITS, "what becomes -1, of each; None: the smallest voxel", REQUIRED),
        threshold_upper=(LIMITS, "what becomes 1, of each; None: the largest voxel", REQUIRED),
    ),
    "NormalizeWithPercentiles": _rows(
        "NormalizeWithPercentiles",
        channels=(CHANNELS, "the channels; None for all", None),
        percentile_lower=(number(0, 100), "in per cent", 0.1),
        percentile_upper=(number(0, 100), "in per cent", 99.9),
        output_mode=(whole(0), "0: to [0, 1]; else to [-1, 1]", 0),
    ),
    "IntensityClip": _rows(
        "IntensityClip",
        channels=(list_of(whole(0)), "the channels", REQUIRED),
        lower=(LIMITS, "of each channel", None),
        upper=(LIMITS, "of each channel", None),
        percentile_mode=(flag(), "the limits are percentiles", False),
    ),
    "HistEqual": _rows(
        "HistEqual",
        channels=(CHANNELS, "the channels; None for all", None),
        bin=(whole(1), "bins of the histogram", 2000),
    ),
    "GammaCorrection": _random(
        "GammaCorrection",
        gamma_min=(FACTOR, "smallest exponent", 0.7),
        gamma_max=(FACTOR, "largest exponent", 1.5),
        intensity_flip_probability=(SHARE, "of inverted intensities", 0.0),
    ),
    "GaussianNoise": _random(
        "GaussianNoise", std_min=(FACTOR, "smallest deviation", 0.02), std_max=(FACTOR, "largest deviation", 0.1)
    ),
    "GaussianBlur": _random(
        "GaussianBlur",
        sigma_min=(FACTOR, "smallest width, in voxels", REQUIRED),
        sigma_max=(FACTOR, "largest width, in voxels", REQUIRED),
    ),
    "BrightnessAdditive": _random(
        "BrightnessAdditive",
        sigma_min=(number(), "smallest summand", REQUIRED),
        sigma_max=(number(), "largest summand", REQUIRED),
    ),
    "BrightnessMultiplicative": _random(
        "BrightnessMultiplicative",
        sigma_min=(FACTOR, "smallest factor", REQUIRED),
        sigma_max=(FACTOR, "largest factor", REQUIRED),
    ),
    "AdaptiveContrastAdjust": _rows(
        "AdaptiveContrastAdjust",
        channels=(CHANNELS, "the channels; None for all", None),
        percent_lower=(number(0, 100), "in per cent", 2),
        percent_upper=(number(0, 100), "in per cent", 98),
        probability=(SHARE, "of a sample", 0.5),
    ),
    "ChannelWiseThreshold": _rows(
        "ChannelWiseThreshold",
        channels=(list_of(whole(0)), "the channels", REQUIRED),
        threshold_lower=(LIMITS, "of each", REQUIRED),
        threshold_upper=(LIMITS, "of each", REQUIRED),
        replace_lower=(LIMITS, "what voxels below become", REQUIRED),
        replace_upper=(LIMITS, "what voxels above become", REQUIRED),
    ),
    "ChannelWiseThresholdWithNormalize": _rows(
        "ChannelWiseThresholdWithNormalize",
        channels=(list_of(whole(0)), "the channels", REQUIRED),
        threshold_lower=(LIMITS, "of each", REQUIRED),
        threshold_upper=(LIMITS, "of each", REQUIRED),
        mean_std_mode=(flag(), "by mean and deviation", REQUIRED),
    ),
    "GrayscaleToRGB": _rows("GrayscaleToRGB"),
    "NonLinearTransform": _rows(
        "NonLinearTransform",
        channels=(CHANNELS, "the channels; None for all", None),
        **{**_BLOCKS, "block_range": (or_none(FEWEST_AND_MOST), "fewest and most blocks; None: everywhere", None)},
    ),
    "LocalShuffling": _rows("LocalShuffling", **_BLOCKS),
    "InPainting": _rows("InPainting", **_BLOCKS),
    "OutPainting": _rows("OutPainting", **{**_BLOCKS, "block_size": (or_none(SIZE), "of a block", None)}),
    "InOutPainting": _rows("InOutPainting", probability=(SHARE, "of a sample", 0.5)),
    "PatchSwaping": _rows("PatchSwaping", block_range=_BLOCKS["block_range"], block_size=_BLOCKS["block_size"]),
    "MaskedImageModeling": _rows(
        "MaskedImageModeling",
        ratio=(SHARE, "share that is hidden", 0.45),
        block_size=(SIZE, "of a block", (8, 16, 16)),
        per_channel=(flag(), "other blocks in each channel", False),
    ),
    # labels
    "ReduceLabelDim": _rows("ReduceLabelDim"),
    "LabelSelect": _rows("LabelSelect", target_list=(CLASSES, "the classes that stay", REQUIRED)),
    "LabelConvert": _rows(
        "LabelConvert",
        source_list=(list_of(whole(0)), "classes as they are", REQUIRED),
        target_list=(list_of(whole(0)), "what they become", REQUIRED),
    ),
    "LabelConvertNonzero": _rows("LabelConvertNonzero"),
    "LabelToProbability": _rows("LabelToProbability", class_num=(whole(1), "classes; [network] class_num", None)),
    "PartialLabelToProbability": _rows(
        "PartialLabelToProbability", class_num=(whole(1), "classes; [network] class_num", None)
    ),
    "SelfReconstructionLabel": _rows("SelfReconstructionLabel"),
    "MaskedImageModelingLabel": _rows(
        "MaskedImageModelingLabel",
        patch_size=(SIZE, "of a block", (16, 16, 16)),
        ratio=(SHARE, "share that is hidden", 0.15),
    ),
}
# Transforms of PyMIC's own self-supervised methods: their names are known, their values are not judged.
OTHER_TRANSFORMS = (
    "Crop4Dino", "Crop4VoCo", "Crop4Vox2Vec", "Crop4VoxMMSD", "Crop4VolumeFusion", "VolumeFusion",
    "VolumeFusionShuffle", "ContrastAdjust", "ExtractChannel", "LabelSmooth", "CopyPaste", "PatchMix",
)  # fmt: skip
PAIRS = (("_min", "_max"), ("_lower_bound", "_upper_bound"), ("percentile_lower", "percentile_upper"),
         ("percent_lower", "percent_upper"), ("threshold_lower", "threshold_upper"))  # fmt: skip


def check_transform(name: str, dataset: Section) -> None:
    """Note what PyMIC's transform would fail on, or do nothing sensible with.

    Args:
        name: of the transform; of one that has no rows nothing is noted.
        dataset: the section.
    """
    keys = TRANSFORM_KEYS.get(name, ())
    known = len(dataset.mistakes)
    values = dataset.read(replace(key, meaning=f"the transform {name} needs it") for key in keys)
    if len(dataset.mistakes) > known:
        return
    values = {key.removeprefix(f"{name}_"): value for key, value in values.items()}
    for check in (_check_channels, _check_ranges, *([_CHECKS[name]] if name in _CHECKS else [])):
        check(name, values, dataset)


def check_channels(dataset: Section, transforms: Iterable[str], network: Section) -> None:
    """Note the channels, of all transforms of a config, that images do not have."""
    channels = network.get("in_chns")
    if not isinstance(channels, int):
        return
    for name in dict.fromkeys(transforms):
        keys = [key.name for key in TRANSFORM_KEYS.get(name, ()) if key.name == f"{name}_channels"]
        chosen = dataset.get(keys[0]) if keys else None
        if isinstance(chosen, (list, tuple)) and any(isinstance(c, int) and c >= channels for c in chosen):
            dataset.wrong(keys[0], f"must be below [network] in_chns = {channels}, the number of channels")


def _check_channels(name: str, values: Mapping[str, Any], dataset: Section) -> None:
    chosen = values.get("channels")
    if chosen is None:
        return
    by_number = name in ("IntensityClip", "ChannelWiseThreshold", "ChannelWiseThresholdWithNormalize")
    needed = max(chosen) + 1 if by_number else len(chosen)
    for key, value in values.items():
        if key != "channels" and isinstance(value, tuple) and len(value) < needed and "block" not in key:
            dataset.wrong(f"{name}_{key}", f"must have a value for each channel of {name}_channels = {list(chosen)}")


def _check_ranges(name: str, values: Mapping[str, Any], dataset: Section) -> None:
    """Lower limits below upper ones."""
    for low, high in PAIRS:
        for key in (key for key in values if key.endswith(low)):
            upper = key.removesuffix(low) + high
            for least, most in zip(_listed(values[key]), _listed(values.get(upper)), strict=False):
                is_empty = least >= most if "threshold" in key or "percent" in key else least > most
                if is_empty:
                    rule = "be smaller than" if "threshold" in key or "percent" in key else "not exceed"
                    dataset.wrong(f"{name}_{key}", f"must {rule} {name}_{upper} = {most:g}")
                    break
    for key, value in values.items():
        if key.endswith("range") and value is not None and value[0] > value[1]:
            dataset.wrong(f"{name}_{key}", "must be [least, most] with least <= most")


def _listed(value: Any) -> list[float]:
    values = value if isinstance(value, tuple) else (value,)
    return list(values) if None not in values else []


def _check_mean_std(name: str, values: Mapping[str, Any], dataset: Section) -> None:
    if (values["mean"] is None) != (values["std"] is None):
        dataset.wrong(f"{name}_mean", f"and {name}_std must both be there, or none of them")
    if any(std is not None and std <= 0 for std in values["std"] or ()):
        dataset.wrong(f"{name}_std", "must be above 0")


def _check_focus(name: str, values: Mapping[str, Any], dataset: Section) -> None:
    if values["foreground_focus"] and values["foreground_ratio"] is None:
        dataset.wrong(f"{name}_foreground_ratio", f"must be a number from 0 to 1 where {name}_foreground_focus = True")


def _check_rotation(name: str, values: Mapping[str, Any], dataset: Section) -> None:
    if all(values[f"angle_range_{axis}"] is None for axis in "dhw"):
        dataset.wrong(f"{name}_angle_range_d", "must be a range of degrees, or one of h and w must")


def _check_box(name: str, values: Mapping[str, Any], dataset: Section) -> None:
    if values["start"] is not None and values["output_size"] is None:
        dataset.wrong(f"{name}_output_size", f"must be a size where {name}_start is given")


def _check_conversion(name: str, values: Mapping[str, Any], dataset: Section) -> None:
    if len(values["source_list"]) != len(values["target_list"]):
        dataset.wrong(f"{name}_target_list", f"must be as long as {name}_source_list")


_CHECKS: dict[str, Callable[[str, Mapping[str, Any], Section], None]] = {
    "NormalizeWithMeanStd": _check_mean_std,
    "RandomRotate": _check_rotation,
    "RandomCrop": _check_focus,
    "RandomSlice": _check_focus,
    "CropWithBoundingBox": _check_box,
    "LabelConvert": _check_conversion,
}
