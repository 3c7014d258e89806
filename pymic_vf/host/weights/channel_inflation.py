"""A network of more input channels than its checkpoint's: the first convolution's weights, repeated.

As I3D (Carreira and Zisserman, 2017, section 2.4) inflates 2D filters along time, here along the channels: repeated r
times and divided by r, so that the same image in every channel gives what the checkpoint's network gave.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from pymic_vf.keys import Key, flag

INFLATION_KEY = Key(
    "in_chns_inflate",
    flag(),
    "where ckpt_init_name has weights for fewer input channels, they are repeated and divided by the repeats",
    False,
)
KERNEL = 5  # dimensions of a 3D convolution's weights, [out, in, D, H, W]


def can_be_inflated(given: Tensor, wanted: Tensor, in_chns: int | None) -> bool:
    """Whether `given` and `wanted` are weights of a first convolution of fewer and of `in_chns` input channels."""
    if in_chns is None or given.dim() != KERNEL or wanted.dim() != KERNEL or wanted.shape[1] != in_chns:
        return False
    out, channels, *kernel = given.shape
    return [out, *kernel] == [wanted.shape[0], *wanted.shape[2:]] and 0 < channels < in_chns and in_chns % channels == 0


def inflate(
    given: Mapping[str, Tensor], wanted: Mapping[str, Tensor], in_chns: int
) -> tuple[dict[str, Tensor], list[str]]:
    """The weights, those of first convolutions with `in_chns` input channels: channel c is channel c mod n of n.

    Args:
        given: a checkpoint's weights.
        wanted: the network's.
        in_chns: the network's input channels.

    Returns:
        All weights, and the names of those that were repeated.
    """
    weights, inflated = dict(given), []
    for name in given.keys() & wanted.keys():
        if can_be_inflated(given[name], wanted[name], in_chns):
            repeats = in_chns // given[name].shape[1]
            weights[name] = given[name].repeat(1, repeats, 1, 1, 1) / repeats
            inflated.append(name)
    return weights, sorted(inflated)
