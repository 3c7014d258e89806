"""The ``[network]`` keys of nnFormer.

The defaults are what the authors of PyMIC used (of the paper's, for isotropic voxels).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from pymic_vf.errors import ConfigError
from pymic_vf.keys import Key, Section, flag, list_of, one_of, whole
from pymic_vf.networks.pct_net_settings import log_unread_keys
from pymic_vf.sizes import Size

LEVELS = "levels 0 to 3"
PATCH = list_of(replace(one_of(1, 2, 4), plural="numbers, each 1, 2 or 4"), 3, "D, H, W")

NNFORMER_KEYS = (
    Key("in_chns", whole(1), "channels of the input", required=True),
    Key("class_num", whole(1), "channels of each output", required=True),
    Key(
        "input_size",
        list_of(whole(1), 3, "D, H, W"),
        "the size that attention windows are fitted to; a multiple of 8 * patch_size, as are all sizes that it takes",
        required=True,
    ),
    Key(
        "patch_size",
        PATCH,
        "voxels to a token of level 0; thick slices: [2, 4, 4] or [1, 4, 4]",
        (4, 4, 4),
    ),
    Key("embed_dim", whole(2), "channels of level 0; each level has twice those of the one before", 192),
    Key("depths", list_of(whole(1), 4, LEVELS), "transformer blocks of a stage; every second one is shifted", (2,) * 4),
    Key("num_heads", list_of(whole(1), 4, LEVELS), "attention heads", (6, 12, 24, 48)),
    Key(
        "window_sizes",
        list_of(whole(1), 4, LEVELS),
        "side of the attention windows in tokens; along an axis where the level is smaller, the level's",
        (4, 4, 8, 4),
    ),
    Key("multiscale_pred", flag(), "three outputs while training, for `deep_supervise = True`", False),
)


@dataclass(frozen=True)
class NNFormerSettings:
    """What an nnFormer is built from: the values of `NNFORMER_KEYS`. Sizes are (D, H, W)."""

    in_chns: int
    class_num: int
    input_size: Size
    patch_size: Size
    embed_dim: int
    depths: tuple[int, ...]
    num_heads: tuple[int, ...]
    window_sizes: tuple[int, ...]
    multiscale_pred: bool

    @property
    def chns(self) -> tuple[int, ...]:
        """Channels of levels 0 to 3."""
        return tuple(self.embed_dim * 2**level for level in range(4))

    @property
    def strides(self) -> tuple[Size, ...]:
        """Input voxels to a token of levels 0 to 3, per axis."""
        d, h, w = self.patch_size
        return tuple((d * 2**level, h * 2**level, w * 2**level) for level in range(4))

    def window(self, level: int) -> tuple[Size, Size]:
        """Sides and shifts of the windows of a level.

        Along an axis that one window covers there is no shift. Where it covers all axes the attention is global: with
        the default windows that is so at levels 2 and 3 for inputs of up to 128 voxels a side.
        """
        sides, shifts = [], []
        for length, stride in zip(self.input_size, self.strides[level], strict=True):
            tokens, wanted = length // stride, self.window_sizes[level]
            sides.append(min(wanted, tokens))
            shifts.append(wanted // 2 if wanted < tokens else 0)
        return tuple(sides), tuple(shifts)

    def ill_sized_axes(self, size: Size) -> list[str]:
        """What is wrong with an input size, axis by axis; empty where nothing is."""
        return [
            f"axis {axis} is {side}, no multiple of {stride}"
            for axis, side, stride in zip("DHW", size, self.strides[3], strict=True)
            if side % stride
        ]


def parse_nnformer_settings(params: Mapping[str, Any]) -> NNFormerSettings:
    """The settings in `params`, PyMIC's ``config["network"]`` (lower-case keys).

    A key that nobody reads is logged, with the closest one of nnFormer's.

    Raises:
        ConfigError: with one message for each missing key and each value that breaks a rule.
    """
    section = Section(params, "network", [])
    settings = NNFormerSettings(**section.read(NNFORMER_KEYS))
    for level, (chns, heads) in enumerate(zip(settings.chns, settings.num_heads, strict=True)):
        if chns % heads:
            section.wrong("num_heads", f"must divide the channels: {heads} heads do not divide {chns} at level {level}")
    is_patch_right = PATCH.fits(section.get("patch_size", settings.patch_size))
    wrong = settings.ill_sized_axes(settings.input_size) if settings.input_size and is_patch_right else []
    if wrong:
        section.wrong("input_size", f"must be multiples of {list(settings.strides[3])}: {'; '.join(wrong)}")
    log_unread_keys(params, NNFORMER_KEYS, "nnFormer")
    if section.mistakes:
        raise ConfigError(section.mistakes)
    return settings
