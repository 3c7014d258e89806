"""The ``[network]`` keys that PCT-Net reads: parsed once, every mistake reported together.

Names are PyMIC's and MIS-FM's; defaults are those of the released implementation.
"""

from __future__ import annotations

import logging
import numbers
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from pymic_vf.errors import ConfigError, did_you_mean

log = logging.getLogger(__name__)

RESOLUTION_MODES = (0, 1, 2)
UPDATE_MODES = (0, 1)
PRECISIONS = ("fp32", "bf16")
# Keys of [network] that PyMIC itself reads, or that say nothing to a network on its own.
HOST_KEYS = ("net_type", "infer_mode")

Size = tuple[int, int, int]


@dataclass(frozen=True)
class PCTNetSettings:
    """What a PCT-Net is built from. Sizes are (D, H, W) in voxels; lists go from the finest level to the coarsest.

    Attributes:
        in_chns: channels of the input.
        class_num: channels of each output.
        input_size: the size that windows are fitted to; any other size works as input.
        feature_chns: channels of levels 0 to 4.
        dropout: drop rates of levels 0 to 4.
        depths: attention blocks of a PCT block at levels 2, 3, 4; every second one is shifted.
        num_heads: attention heads at levels 2, 3, 4.
        window_sizes: side of the attention windows at levels 2, 3, 4, in voxels of that level.
        resolution_mode: 0, 1 or 2 of the levels 0 and 1 are 2D.
        multiscale_pred: four outputs instead of one while training.
        update_mode: 0 trains everything, 1 the prediction heads alone.
        precision: "fp32", or "bf16" for automatic mixed precision inside the network.
        compile: compile the network with ``torch.compile``.
        activation_checkpointing: recompute activations in the backward pass instead of keeping them.
    """

    in_chns: int
    class_num: int
    input_size: Size
    feature_chns: tuple[int, ...] = (32, 64, 128, 256, 512)
    dropout: tuple[float, ...] = (0.0, 0.0, 0.2, 0.2, 0.2)
    depths: tuple[int, ...] = (2, 2, 2)
    num_heads: tuple[int, ...] = (4, 8, 16)
    window_sizes: tuple[int, ...] = (6, 6, 6)
    resolution_mode: int = 0
    multiscale_pred: bool = False
    update_mode: int = 0
    precision: str = "fp32"
    compile: bool = False
    activation_checkpointing: bool = False

    @property
    def strides(self) -> tuple[Size, ...]:
        """Input voxels to a voxel of levels 0 to 4, per axis."""
        depth = [1, 1 if self.resolution_mode >= 1 else 2]
        depth.append(depth[1] * (1 if self.resolution_mode == 2 else 2))
        depth += [depth[2] * 2, depth[2] * 4]
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


KEYS = tuple(field.name for field in fields(PCTNetSettings))
REQUIRED = ("in_chns", "class_num", "input_size")


class _RuleError(Exception):
    """A rule that a value breaks."""


def _integer(low: int) -> Callable[[Any], int]:
    def check(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < low:
            raise _RuleError(f"must be a whole number of at least {low}")
        return int(value)

    return check


def _rate(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not 0 <= value < 1:
        raise _RuleError("must be a number in [0, 1)")
    return float(value)


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise _RuleError("must be True or False")
    return value


def _one_of(choices: tuple) -> Callable[[Any], Any]:
    def check(value: Any) -> Any:
        # True == 1 in Python, but a flag is not a mode.
        if isinstance(value, bool) or value not in choices:
            hint = did_you_mean(value, choices) if isinstance(value, str) else ""
            raise _RuleError(f"must be one of {', '.join(map(str, choices))}{hint}")
        return value

    return check


def _list_of(check_item: Callable[[Any], Any], length: int, what: str) -> Callable[[Any], tuple]:
    def check(value: Any) -> tuple:
        if not isinstance(value, (list, tuple)) or len(value) != length:
            raise _RuleError(f"must be a list of {length} values ({what})")
        try:
            return tuple(check_item(item) for item in value)
        except _RuleError as rule:
            raise _RuleError(f"must be a list of {length} values ({what}), each of which {rule}") from None

    return check


_CHECKS: dict[str, Callable[[Any], Any]] = {
    "in_chns": _integer(1),
    "class_num": _integer(1),
    "input_size": _list_of(_integer(1), 3, "D, H, W"),
    "feature_chns": _list_of(_integer(1), 5, "levels 0 to 4"),
    "dropout": _list_of(_rate, 5, "levels 0 to 4"),
    "depths": _list_of(_integer(1), 3, "levels 2 to 4"),
    "num_heads": _list_of(_integer(1), 3, "levels 2 to 4"),
    "window_sizes": _list_of(_integer(1), 3, "levels 2 to 4"),
    "resolution_mode": _one_of(RESOLUTION_MODES),
    "multiscale_pred": _flag,
    "update_mode": _one_of(UPDATE_MODES),
    "precision": _one_of(PRECISIONS),
    "compile": _flag,
    "activation_checkpointing": _flag,
}


def parse_network_settings(params: Mapping[str, Any]) -> PCTNetSettings:
    """The settings in `params`, PyMIC's ``config["network"]`` (lower-case keys).

    A key that PCT-Net does not read is logged, with the closest one that it reads.

    Raises:
        ConfigError: with one message for each missing key and each value that breaks a rule.
    """
    mistakes = [f"[network] {key} is missing; PCTNet needs it" for key in REQUIRED if params.get(key) is None]
    good: dict[str, Any] = {}
    for key in KEYS:
        value = params.get(key)
        if value is None:  # PyMIC reads the word None as no value
            continue
        try:
            good[key] = _CHECKS[key](value)
        except _RuleError as rule:
            mistakes.append(f"[network] {key} {rule}, got {value!r}")
    mistakes += _mistakes_between_keys(good)
    _log_unread_keys(params)
    if mistakes:
        raise ConfigError(mistakes)
    return PCTNetSettings(**good)


def _mistakes_between_keys(good: dict[str, Any]) -> list[str]:
    """Rules over several keys, checked where each of them is valid on its own."""
    mistakes = []
    probe = PCTNetSettings(**{"in_chns": 1, "class_num": 1, "input_size": (1, 1, 1)} | good)
    for level, (chns, heads) in enumerate(zip(probe.feature_chns[2:], probe.num_heads, strict=True), start=2):
        if chns % heads:
            mistakes.append(
                f"[network] num_heads must divide feature_chns level by level: "
                f"at level {level}, {heads} heads do not divide {chns} channels"
            )
    if "input_size" in good:
        for axis, side, stride in zip("DHW", probe.input_size, probe.strides[4], strict=True):
            if side < stride:
                mistakes.append(
                    f"[network] input_size must be at least {list(probe.strides[4])} for the poolings of "
                    f"resolution_mode {probe.resolution_mode}: axis {axis} is {side}"
                )
    return mistakes


def _log_unread_keys(params: Mapping[str, Any]) -> None:
    for key in params:
        if key not in KEYS and key not in HOST_KEYS:
            log.warning("[network] %s = %r is not read by PCTNet%s", key, params[key], did_you_mean(key, KEYS))
