"""``pymic_vf inspect``: what is in a file of weights and what made it, without any code of it being run."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from pymic_vf.host.weights.checkpoint import Checkpoint, read
from pymic_vf.host.weights.checkpoint_file import METADATA
from pymic_vf.host.weights.state_dicts import count_parameters, few, non_finite

PROVENANCE = "pymic_vf"  # the entry of a checkpoint that says what made it
CHUNK = 2**20
LONGEST, LARGEST = 1000, 2**63  # texts and lists, and numbers, that are shown
DICE, OF_LOSS = "Dice of the validation", "1 / (1 + loss) of the validation"
Report = dict[str, Any]


def inspect_file(path: Path) -> tuple[Report, Checkpoint]:
    """What `path` has, as plain values that JSON knows, and its content.

    Raises:
        UserError: it is no file of weights, or damaged, or it has code.
    """
    checkpoint = read(path, map_location="cpu")
    weights = checkpoint["model_state_dict"]
    made_by = _provenance(checkpoint)
    bad = non_finite(weights)
    report = {
        "file": str(checkpoint.path),
        "bytes": checkpoint.path.stat().st_size,
        "sha256": sha256(checkpoint.path),
        "iteration": _plain(checkpoint.get("iteration", made_by.get("iteration"))),
        "validation": _validation(checkpoint, made_by),
        "network": _network(weights, made_by),
        "weights": len(weights),
        "parameters": count_parameters(weights),
        "types": dict(Counter(str(w.dtype).removeprefix("torch.") for w in weights.values() if isinstance(w, Tensor))),
        "not_finite": bad,
        "resumable": "optimizer_state_dict" in checkpoint and "iteration" in checkpoint,
        "other_entries": sorted(repr(name)[:40] for name in checkpoint if name not in KNOWN),
        "provenance": made_by,
    }
    return report, checkpoint


KNOWN = ("model_state_dict", "optimizer_state_dict", "iteration", "valid_pred", METADATA, PROVENANCE)


def sha256(path: Path) -> str:
    """Of the whole file."""
    total = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            total.update(chunk)
    return total.hexdigest()


def _provenance(checkpoint: Checkpoint) -> Report:
    """What a checkpoint of ours, or an export of one, says of its making; empty where it says nothing."""
    entry = checkpoint.get(PROVENANCE)
    found = entry.get("provenance") if isinstance(entry, Mapping) else None
    metadata = checkpoint.get(METADATA)
    if found is None and isinstance(metadata, Mapping):
        try:
            found = json.loads(metadata.get(PROVENANCE, "null"))
        except (ValueError, TypeError, RecursionError):
            found = None
    return _plain(found) if isinstance(found, Mapping) else {}


def _plain(value: Any, depth: int = 6) -> Any:
    """The value as JSON can write it and a terminal can show it; what cannot be becomes a short text."""
    if isinstance(value, (np.floating, float)):
        return float(value) if math.isfinite(value) else str(float(value))
    if isinstance(value, str):
        return "".join(char if char.isprintable() else "?" for char in value[:LONGEST])
    if value is None or (isinstance(value, int) and abs(value) < LARGEST):
        return value
    if depth and isinstance(value, Mapping):
        return {str(_plain(name, 0)): _plain(each, depth - 1) for name, each in list(value.items())[:LONGEST]}
    if depth and isinstance(value, (list, tuple)):
        return [_plain(each, depth - 1) for each in value[:LONGEST]]
    return f"({type(value).__name__})"


def _validation(checkpoint: Checkpoint, made_by: Report) -> Report | None:
    """The score of the validation, and which score it is, as far as that is known."""
    score = checkpoint.get("valid_pred", made_by.get("valid_pred"))
    if score is None:
        return None
    if "method" not in made_by:
        meaning = f"{DICE}, or {OF_LOSS} for a pretraining"
    else:
        meaning = OF_LOSS if made_by["method"] else DICE
    return {"score": _plain(score), "meaning": meaning}


def _network(weights: Mapping[str, Any], made_by: Report) -> Report:
    """The [network] keys, from the config or, for a PCT-Net, as far as names and shapes tell them."""
    config = made_by.get("config")
    section = config.get("network") if isinstance(config, Mapping) else None
    if isinstance(section, Mapping) and section:
        return {**section, "known_by": "its config"}
    try:
        return pct_net_of(weights)
    except (KeyError, IndexError, ValueError, TypeError):  # names of a PCT-Net and not its shapes
        return {}


def pct_net_of(weights: Mapping[str, Tensor]) -> Report:
    """The keys of the PCT-Net that has these weights; empty where their names are not a PCT-Net's.

    The released weights have all three resolution modes.
    """
    modes = [mode for mode in range(3) if f"embeddings.{mode}.proj.weight" in weights]
    if not modes or "pyramid_ct.down3.conv.2.weight" not in weights:
        return {}
    first = f"embeddings.{modes[0]}."
    proj = weights[first + "proj.weight"]
    chns = [len(weights[f"{first}{name}.conv.2.weight"]) for name in ("down1", "down2")]
    chns += [len(weights[f"pyramid_ct.{name}.conv.2.weight"]) for name in ("down3", "down4")]
    table = "pyramid_ct.convtrans_e{}.trans.blocks.0.attn.relative_position_bias_table"
    tables = [weights[table.format(level)].shape for level in (2, 3, 4)]
    return {
        "net_type": "PCTNet",
        "resolution_mode": modes if len(modes) > 1 else modes[0],
        "in_chns": proj.shape[1],
        "class_num": len(weights["pyramid_ct.out_conv2.conv.2.weight"]),
        "feature_chns": [len(proj), *chns],
        "num_heads": [heads for _rows, heads in tables],
        "windows": [(round(rows ** (1 / 3)) + 1) // 2 for rows, _heads in tables],
        "known_by": "the names and shapes of its weights",
    }


def as_text(report: Report) -> str:
    """The report for a terminal."""
    network = dict(report["network"])
    known_by = network.pop("known_by", "")
    lines = {
        "size": f"{report['bytes']:,} bytes",
        "SHA-256": report["sha256"],
        "iteration": "not in the file" if report["iteration"] is None else report["iteration"],
        "validation": "no score in the file",
        "network": "not known" if not network else f"{network.pop('net_type', 'not known')} (by {known_by})",
        **{f"  {name}": value for name, value in network.items()},
        "weights": f"{report['weights']}, {report['parameters']:,} values; "
        + ", ".join(f"{count} {kind}" for kind, count in report["types"].items()),
        "not finite": f"{len(report['not_finite'])} weights"
        + (f": {few(report['not_finite'])}" if report["not_finite"] else ""),
        "resuming": "possible (ckpt_init_mode = 1)" if report["resumable"] else "not possible, weights alone",
    }
    if report["validation"]:
        lines["validation"] = f"{report['validation']['score']} ({report['validation']['meaning']})"
    if report["other_entries"]:
        lines["also in it"] = few(report["other_entries"])
    made_by = report["provenance"]
    if not made_by:
        lines["made by"] = "not in the file"
    for name in ("method", "created", "versions", "data"):
        if name in made_by:
            lines[name] = _one_line(made_by[name])
    if isinstance(config := made_by.get("config"), Mapping):
        for section, values in config.items():
            lines[f"[{section}]"] = _one_line(values)
    width = max(map(len, lines))
    return "\n".join([report["file"], *(f"  {name:<{width}}  {value}" for name, value in lines.items())])


def _one_line(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} = {each}" for name, each in value.items())
    return str(value)
