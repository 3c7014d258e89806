"""The weights in a file's dict: where they are, under which names, and whether they are weights at all."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pymic_vf.errors import UserError

log = logging.getLogger(__name__)

WEIGHTS = "model_state_dict"
# PyMIC's; Lightning's and MONAI's; nnU-Net's; timm's and others'
ENTRIES = (WEIGHTS, "state_dict", "network_weights", "model")
HEAD = "head_state_dict"  # PyMIC's Vox2Vec has a second network
WRAPPERS = ("module.", "_orig_mod.")  # of DataParallel and of torch.compile
EXTRA_STATE = "_extra_state"  # which a module of somebody's own may put beside its weights
# Weights may share memory, but a file whose weights are so many times larger than itself is no honest one.
MOST_SHARED = 16
FEW = 3  # names in a message


def with_weights(content: Mapping[Any, Any], path: Path) -> dict[Any, Any]:
    """The content with its weights as a state dict under ``model_state_dict``; what is done to find them is logged.

    Args:
        content: as read from a file: PyMIC's checkpoint, another tool's, or a bare state dict.
        path: of the file, for the messages.

    Raises:
        UserError: there are no weights in it, or what is there are none.
    """
    entry = next((name for name in ENTRIES if isinstance(content.get(name), Mapping)), None)
    if entry is None and content and all(isinstance(value, Tensor) for value in content.values()):
        content = {WEIGHTS: content}
    elif entry is None:
        raise UserError(f"{path}: no weights in it ({' or '.join(ENTRIES)}); it holds {describe(content)}")
    elif entry != WEIGHTS:
        log.info("%s: the weights are its entry %r", path, entry)
    result = {**content, WEIGHTS: content[entry or WEIGHTS]}
    for name in (WEIGHTS, HEAD):
        if isinstance(result.get(name), Mapping):
            check_weights(result[name], path)
            result[name] = _without_wrappers(result[name], path)
    return result


def describe(content: Mapping[Any, Any]) -> str:
    """The entries of a dict and their types, the first few of them."""
    entries = [f"{repr(name)[:40]} ({type(value).__name__})" for name, value in list(content.items())[: 2 * FEW]]
    more = f" and {len(content) - len(entries)} more" if len(content) > len(entries) else ""
    return (", ".join(entries) or "nothing") + more


def check_weights(weights: Mapping[Any, Any], path: Path) -> None:
    """Whether a state dict has text for names and dense tensors in memory for weights, no larger than the file.

    Raises:
        UserError: it has not.
    """
    announced = 0
    for name, weight in weights.items():
        if not (isinstance(name, str) and name.isprintable()):
            raise UserError(f"{path}: the names of weights are text, got {repr(name)[:40]} ({type(name).__name__})")
        if name.endswith(EXTRA_STATE):
            continue
        if not isinstance(weight, Tensor):
            raise UserError(f"{path}: weights are tensors, {name} is a {type(weight).__name__}")
        if weight.layout != torch.strided or weight.is_meta or weight.is_quantized or weight.is_nested:
            kind = (
                "meta (it has a shape and no values)" if weight.is_meta else str(weight.layout).removeprefix("torch.")
            )
            raise UserError(f"{path}: {name} is no plain tensor but {'quantized' if weight.is_quantized else kind}")
        announced += weight.numel() * weight.element_size()
    if announced > MOST_SHARED * max(path.stat().st_size, 2**16):
        raise UserError(f"{path}: its weights announce {announced} bytes, many times those of the file; not loaded")


def non_finite(weights: Mapping[str, Any]) -> list[str]:
    """The names of the weights with a value that is no finite number."""
    return [name for name, weight in weights.items() if isinstance(weight, Tensor) and not _is_finite(weight)]


def _is_finite(weight: Tensor) -> bool:
    if not (weight.is_floating_point() or weight.is_complex()):
        return True
    if weight.element_size() == 1:  # float8 has few operations
        weight = weight.float()
    return bool(torch.isfinite(weight).all())


def refuse_non_finite(weights: Mapping[str, Any], path: Path) -> None:
    """Refuse weights of a run that diverged, from which nothing can be learned or segmented.

    Raises:
        UserError: some values are NaN or infinite.
    """
    if names := non_finite(weights):
        raise UserError(
            f"{path}: {len(names)} of its {len(weights)} weights are not finite, NaN or infinite ({few(names)}); not "
            "loaded. Its run diverged: take an earlier checkpoint"
        )


def few(names: Iterable[str]) -> str:
    """The first few names of many."""
    names = list(names)
    return ", ".join(names[:FEW]) + (" ..." if len(names) > FEW else "")


def _without_wrappers(weights: Mapping[str, Any], path: Path) -> Mapping[str, Any]:
    """The weights without what DataParallel and torch.compile put before each name."""
    while prefix := next((w for w in WRAPPERS if weights and all(n.startswith(w) for n in weights)), None):
        log.info("%s: the names of its weights begin with %r, which is left out", path, prefix)
        weights = {name.removeprefix(prefix): weight for name, weight in weights.items()}
    return weights


def without_outer_name(given: Mapping[str, Any], wanted: Iterable[str]) -> Mapping[str, Any]:
    """The weights without the outer names ("net.", "model.network.") of a tool that wraps networks, where none fits
    with them and some do without."""
    wanted = set(wanted)
    shorter = given
    while shorter and not wanted.intersection(shorter):
        outer = {name.partition(".")[0] for name in shorter}
        if len(outer) != 1 or not all("." in name for name in shorter):
            return given
        shorter = {name.partition(".")[2]: weight for name, weight in shorter.items()}
    if shorter is not given and shorter:
        left_out = next(iter(given)).removesuffix(next(iter(shorter)))
        log.info("the names of the weights begin with %r, which is left out", left_out)
    return shorter or given


def count_parameters(weights: Mapping[str, Any]) -> int:
    """Values of all tensors together."""
    return sum(math.prod(weight.shape) for weight in weights.values() if isinstance(weight, Tensor))
