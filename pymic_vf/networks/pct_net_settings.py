"""The ``[network]`` keys of PCT-Net.

Names are PyMIC's and MIS-FM's; defaults are those of the released implementation.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pymic_vf.errors import ConfigError, did_you_mean
from pymic_vf.keys import Key, Section, flag, list_of, number, one_of, whole
from pymic_vf.sizes import Size

log = logging.getLogger(__name__)

RESOLUTION_MODES = (0, 1, 2)
ALL_LEVELS, TRANSFORMER_LEVELS = "levels 0 to 4", "levels 2 to 4"

PCT_NET_KEYS = (
    Key("in_chns", whole(1), "channels of the input", required=True),
    Key("class_num", whole(1), "channels of each output", required=True),
    Key(
        "input_size",
        list_of(whole(1), 3, "D, H, W"),
        "the size that attention windows are fitted to; any size can be trained on and segmented",
        required=True,
    ),
    Key(
        "feature_chns",
        list_of(whole(1), 5, ALL_LEVELS),
        "channels, from the finest level to the coarsest (paper: 24, 48, 128, 256, 512)",
        (32, 64, 128, 256, 512),
    ),
    Key("dropout", list_of(number(0, 1, below=True), 5, ALL_LEVELS), "drop rates", (0.0, 0.0, 0.2, 0.2, 0.2)),
    Key(
        "depths",
        list_of(whole(1), 3, TRANSFORMER_LEVELS),
        "transformer blocks of a PCT block; every second one is shifted",
        (2, 2, 2),
    ),
    Key("num_heads", list_of(whole(1), 3, TRANSFORMER_LEVELS), "attention heads", (4, 8, 16)),
    Key(
        "window_sizes",
        list_of(whole(1), 3, TRANSFORMER_LEVELS),
        "side of the attention windows, in voxels of the level",
        (6, 6, 6),
    ),
    Key(
        "resolution_mode",
        one_of(*RESOLUTION_MODES),
        "0: isotropic voxels; 1: thick slices, 2D at the finest level (paper); 2: 2D at the two finest levels",
        0,
    ),
    Key("multiscale_pred", flag(), "four outputs while training, for `deep_supervise = True`", False),
    Key("update_mode", one_of(0, 1), "1: only the prediction head learns", 0),
)
# Keys of [network] that others read: PyMIC, and those of pymic_vf.host's execution and channel_inflation.
READ_BY_OTHERS = ("net_type", "infer_mode", "precision", "compile", "activation_checkpointing", "in_chns_inflate")


@dataclass(frozen=True)
class PCTNetSettings:
    """What a PCT-Net is built from: the values of `PCT_NET_KEYS`. Sizes are (D, H, W) in voxels."""

    in_chns: int
    class_num: int
    input_size: Size
    feature_chns: tuple[int, ...]
    dropout: tuple[float, ...]
    depths: tuple[int, ...]
    num_heads: tuple[int, ...]
    window_sizes: tuple[int, ...]
    resolution_mode: int
    multiscale_pred: bool
    update_mode: int

    @property
    def dimensions(self) -> tuple[int, int]:
        """Dimensions, 2 or 3, of convolution, pooling and upsampling at levels 0 and 1."""
        return (3 if self.resolution_mode == 0 else 2), (2 if self.resolution_mode == 2 else 3)

    @property
    def strides(self) -> tuple[Size, ...]:
        """Input voxels to a voxel of levels 0 to 4, per axis."""
        depth = [1]
        for dim in (*self.dimensions, 3, 3):
            depth.append(depth[-1] * (1 if dim == 2 else 2))
        return tuple((d, 2**level, 2**level) for level, d in enumerate(depth))

    def level_size(self, level: int) -> Size:
        """Size of a level for `input_size`, rounded down."""
        d, h, w = (side // stride for side, stride in zip(self.input_size, self.strides[level], strict=True))
        return d, h, w

    def window(self, level: int) -> tuple[int, int]:
        """(side, shift) of the windows of level 2, 3 or 4.

        A window that is not smaller than the smallest side of its level becomes that side and is never shifted.
        """
        wanted, smallest = self.window_sizes[level - 2], min(self.level_size(level))
        return (wanted, wanted // 2) if wanted < smallest else (smallest, 0)


def parse_network_settings(params: Mapping[str, Any]) -> PCTNetSettings:
    """The settings in `params`, PyMIC's ``config["network"]`` (lower-case keys).

    A key that nobody reads is logged, with the closest one of PCT-Net's.

    Raises:
        ConfigError: with one message for each missing key and each value that breaks a rule.
    """
    section = Section(params, "network", [])
    settings = PCTNetSettings(**section.read(PCT_NET_KEYS))
    _check_heads(section, settings)
    if settings.input_size is not None:
        _check_size(section, settings)
    log_unread_keys(params, PCT_NET_KEYS, "PCTNet")
    if section.mistakes:
        raise ConfigError(section.mistakes)
    return settings


def _check_heads(section: Section, settings: PCTNetSettings) -> None:
    for level, (chns, heads) in enumerate(zip(settings.feature_chns[2:], settings.num_heads, strict=True), start=2):
        if chns % heads:
            rule = f"at level {level}, {heads} heads do not divide {chns} channels"
            section.wrong("num_heads", f"must divide feature_chns level by level: {rule}")


def _check_size(section: Section, settings: PCTNetSettings) -> None:
    smallest = settings.strides[4]
    for axis, side, least in zip("DHW", settings.input_size, smallest, strict=True):
        if side < least:
            poolings = f"the poolings of resolution_mode {settings.resolution_mode}"
            section.wrong("input_size", f"must be at least {list(smallest)} for {poolings}: axis {axis} is {side}")


def log_unread_keys(params: Mapping[str, Any], keys: Iterable[Key], net_type: str) -> None:
    """A line for each key of [network] that neither the network nor anybody else reads."""
    names = [key.name for key in keys]
    for key in params:
        if key not in names and key not in READ_BY_OTHERS:
            log.warning("[network] %s = %r is not read by %s%s", key, params[key], net_type, did_you_mean(key, names))
