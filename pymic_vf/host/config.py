"""The settings of a Volume Fusion run, read once from PyMIC's config; all mistakes reported together.

Keys arrive lower-cased by PyMIC and values parsed (int, float, bool, list, None or text); messages show the keys as the
README writes them.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pymic_vf.errors import ConfigError, did_you_mean
from pymic_vf.methods.volume_fusion import FusionSettings, Triple

FUSE, ONE_HOT = "VF", "LabelToProbability"
VF_KEYS = (
    "VF_crop_size",
    "VF_foreground_classes",
    "VF_patch_number",
    "VF_patch_size_min",
    "VF_patch_size_max",
    "VF_valid_samples",
    "VF_cache_dir",
    "VF_cache_max_gib",
    "VF_max_bad_fraction",
)
NEAR = 0.8  # similarity from which a key of [dataset] is a misspelt one of ours; PyMIC's own keys stay below 0.76
AXES = ("depth", "height", "width")


class Section:
    """One section of the config, whose getters note what is wrong and go on with the default.

    Args:
        values: the section as PyMIC parsed it.
        name: its name, for the messages.
        mistakes: where the messages are collected.
    """

    def __init__(self, values: Mapping[str, Any], name: str, mistakes: list[str]) -> None:
        self.values, self.name, self.mistakes = values, name, mistakes

    def __contains__(self, key: str) -> bool:
        return self.values.get(key.lower()) is not None

    def get(self, key: str, default: Any = None) -> Any:
        """The value as it is; an empty or None one counts as absent."""
        value = self.values.get(key.lower())
        return default if value is None else value

    def wrong(self, key: str, rule: str) -> None:
        """Note that `key` breaks `rule`."""
        self.mistakes.append(f"[{self.name}] {key} {rule}, got {self.values.get(key.lower())!r}")

    def require(self, key: str, why: str) -> Any:
        """The value of a key that must be there."""
        if key not in self:
            self.mistakes.append(f"[{self.name}] {key} is missing: {why}")
        return self.get(key)

    def path(self, key: str, what: str) -> str | None:
        """The name of a file or folder; None where there is none."""
        value = self.get(key)
        if value is None or isinstance(value, str):
            return value
        # PyMIC takes the name 2018 for a number
        hint = f" (./{value} where that is its name)" if isinstance(value, (int, float)) else ""
        self.wrong(key, f"must be the name of {what}{hint}")
        return None

    def boolean(self, key: str, default: bool) -> bool:
        """True or False."""
        value = self.get(key, default)
        if isinstance(value, bool):
            return value
        self.wrong(key, "must be True or False")
        return default

    def integer(
        self, key: str, default: int, minimum: int, maximum: int | None = None, none_is_absent: bool = True
    ) -> int:
        """A whole number in [minimum, maximum]; None is absent, but not to PyMIC, where PyMIC itself reads the key."""
        value = self.get(key, default) if none_is_absent else self.values.get(key.lower(), default)
        if _is_int(value) and value >= minimum and (maximum is None or value <= maximum):
            return value
        upper = "" if maximum is None else f" and at most {maximum}"
        self.wrong(key, f"must be a whole number of at least {minimum}{upper}")
        return default

    def number(self, key: str, default: float, minimum: float, maximum: float) -> float:
        """A number in [minimum, maximum]."""
        value = self.get(key, default)
        if (_is_int(value) or isinstance(value, float)) and minimum <= value <= maximum:
            return float(value)
        self.wrong(key, f"must be a number from {minimum:g} to {maximum:g}")
        return default

    def integers(self, key: str, default: Sequence[int], minimum: int) -> tuple[int, ...]:
        """A list of as many whole numbers as the default has, each at least `minimum`."""
        value = self.get(key, default)
        fits = isinstance(value, (list, tuple)) and len(value) == len(default)
        if fits and all(_is_int(item) and item >= minimum for item in value):
            return tuple(value)
        self.wrong(key, f"must be a list of {len(default)} whole numbers of at least {minimum}")
        return tuple(default)

    def names(self, key: str, default: Sequence[str] = ()) -> tuple[str, ...]:
        """A list of names."""
        value = self.get(key, default)
        if isinstance(value, str):
            value = [value]
        if isinstance(value, (list, tuple)) and all(isinstance(item, str) for item in value):
            return tuple(name for name in value if name)
        self.wrong(key, "must be a list of names")
        return tuple(default)


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


@dataclass(frozen=True)
class SampleSettings:
    """What one fused sample is made of.

    Args:
        crop_size: (D, H, W) of the sub-volumes, in voxels.
        fusion: Algorithm 1's parameters.
        volume_transform: PyMIC transforms applied once to a whole volume.
        before: those applied to each sub-volume of a pair.
        after: those applied to the fused sample; the last step of the chain.
    """

    crop_size: Triple
    fusion: FusionSettings
    volume_transform: tuple[str, ...] = ()
    before: tuple[str, ...] = ()
    after: tuple[str, ...] = (ONE_HOT,)


@dataclass(frozen=True)
class ReadingSettings:
    """How scans are read.

    Args:
        cache_dir: where decoded volumes are kept; None decodes them each time they are needed.
        cache_max_gib: what they may take in all, in GiB; None for no cap.
        max_bad_fraction: the share of the scans that may be unusable; a run stops when more are.
    """

    cache_dir: Path | None = None
    cache_max_gib: float | None = None
    max_bad_fraction: float = 0.05


def parse_reading(dataset: Section) -> ReadingSettings:
    """The settings of the cache and of what becomes of bad scans."""
    cache_dir = _home_expanded(dataset, "VF_cache_dir")
    max_gib = None
    if "VF_cache_max_gib" in dataset:
        max_gib = dataset.number("VF_cache_max_gib", 0.0, 0.0, 1e9)
        if "VF_cache_dir" not in dataset:
            dataset.wrong("VF_cache_max_gib", "needs VF_cache_dir")
    share = dataset.number("VF_max_bad_fraction", ReadingSettings.max_bad_fraction, 0.0, 1.0)
    return ReadingSettings(cache_dir, max_gib, share)


def _home_expanded(dataset: Section, key: str) -> Path | None:
    """The folder `key` names, with ~ as a shell reads it."""
    name = dataset.path(key, "a folder")
    try:
        return None if name is None else Path(name).expanduser()
    except RuntimeError:
        dataset.wrong(key, "must not begin with ~ and the name of a user that there is not")
        return None


def check_vf_keys(config: Mapping[str, Mapping[str, Any]], mistakes: list[str]) -> None:
    """Note the keys of ours that would be ignored: misspelt ones, and those in another section than [dataset]."""
    known = {key.lower(): key for key in VF_KEYS}
    for name, values in config.items():
        section, ours = Section(values, name, mistakes), name == "dataset"
        for key in values:
            if key in known and not ours:
                section.wrong(known[key], "belongs in [dataset] and would be ignored here")
            elif key not in known and (key.startswith("vf") or (ours and _is_near(key, known))):
                rule = f"there is no such key{did_you_mean(key, VF_KEYS)}; it would be ignored"
                place = "" if ours else ", and such keys belong in [dataset]"
                mistakes.append(f"[{name}] {key}: {rule}{place}, got {values[key]!r}")


def _is_near(key: str, known: Iterable[str]) -> bool:
    return bool(difflib.get_close_matches(key, known, 1, NEAR))


def parse_fusion(dataset: Section, crop_size: Sequence[int]) -> FusionSettings:
    """Algorithm 1's parameters and their rules (section 4.2)."""
    paper = FusionSettings()
    classes = dataset.integer("VF_foreground_classes", paper.classes, 1, 255)
    number = dataset.integers("VF_patch_number", paper.patch_number, 0)
    smallest = dataset.integers("VF_patch_size_min", paper.patch_size_min, 1)
    largest = dataset.integers("VF_patch_size_max", paper.patch_size_max, 1)
    if number[0] > number[1]:
        dataset.wrong("VF_patch_number", "must be [fewest, most] with fewest <= most")
    if inverted := _axes_above(smallest, largest):
        dataset.wrong("VF_patch_size_min", f"must not exceed VF_patch_size_max = {list(largest)} ({inverted})")
    if outside := _axes_above(largest, crop_size):
        dataset.wrong("VF_patch_size_max", f"must not exceed VF_crop_size = {list(crop_size)} ({outside})")
    return FusionSettings(classes, number, smallest, largest)


def _axes_above(sizes: Sequence[int], limits: Sequence[int]) -> str:
    return ", ".join(axis for axis, size, limit in zip(AXES, sizes, limits, strict=True) if size > limit)


def parse_samples(dataset: Section, stage: str = "train") -> SampleSettings:
    """The settings of the training samples, or of the validation samples where ``valid_transform`` asks for others."""
    crop_size = dataset.integers("VF_crop_size", (64, 128, 128), 1)
    before, after = _split_at_fusion(dataset, f"{stage}_transform")
    volume_transform = dataset.names("volume_transform")
    for name in {FUSE, ONE_HOT} & set(volume_transform):
        dataset.wrong("volume_transform", f"must not have {name}, which belongs to a sample and not to a volume")
    return SampleSettings(crop_size, parse_fusion(dataset, crop_size), volume_transform, before, after)


def _split_at_fusion(dataset: Section, key: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    names = dataset.names(key, (FUSE, ONE_HOT))
    for needed in (FUSE, ONE_HOT):
        if names.count(needed) != 1:
            hint = "" if needed in names else did_you_mean(needed, names)
            dataset.wrong(key, f"must have {needed} exactly once{hint}")
    if FUSE not in names:
        return (), names
    place = names.index(FUSE)
    if ONE_HOT in names[:place]:
        dataset.wrong(key, f"must have {FUSE} before {ONE_HOT}, which needs the label that {FUSE} makes")
    return names[:place], names[place + 1 :]


def fusion_of(params: Mapping[str, Any]) -> FusionSettings:
    """Algorithm 1's parameters from PyMIC's [dataset] section.

    Raises:
        ConfigError: with every mistake in them.
    """
    mistakes: list[str] = []
    dataset = Section(params, "dataset", mistakes)
    fusion = parse_fusion(dataset, dataset.integers("VF_crop_size", (64, 128, 128), 1))
    if mistakes:
        raise ConfigError(mistakes)
    return fusion
