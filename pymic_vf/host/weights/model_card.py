"""``pymic_vf inspect --export``: weights to give away, as safetensors with a model card beside them.

Paths of folders and files stay behind: they are nobody else's business.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from pymic_vf._version import __version__
from pymic_vf.errors import UserError
from pymic_vf.files import whole_file
from pymic_vf.host.weights.checkpoint_file import CHECKSUM, checksum
from pymic_vf.host.weights.inspection import PROVENANCE, Report, sha256
from pymic_vf.host.weights.state_dicts import refuse_non_finite

SUFFIX = ".safetensors"
PRIVATE = ("_dir", "_csv", "ckpt_", "ckpt_name", "source", "root")  # in the names of keys whose values are paths
CROPS = ("crop_size", "vf_crop_size", "randomcrop_output_size", "sliding_window_size", "patch_size", "input_size")


def export(report: Report, weights: Mapping[str, Any], target: Path) -> Path:
    """Write weights and their card.

    Args:
        report: of :func:`pymic_vf.host.weights.inspection.inspect_file`.
        weights: the state dict.
        target: FILE.safetensors; the card is FILE.md.

    Returns:
        The card.

    Raises:
        UserError: another suffix, weights that are not finite, or a folder that cannot be written to.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    if target.suffix != SUFFIX:
        raise UserError(f"--export takes a name that ends in {SUFFIX}, got {target}")
    refuse_non_finite(weights, Path(report["file"]))
    # its own memory for each: the format has no weights that share it
    tensors = {name: w.detach().contiguous().clone() for name, w in weights.items() if isinstance(w, Tensor)}
    public = {**report, "provenance": without_paths(report["provenance"])}
    card = target.with_suffix(".md")
    try:
        with whole_file(target) as temporary:
            save_file(tensors, temporary, metadata=_metadata(public, checksum(tensors)))
        text = model_card(public, target.name, sha256(target))
        with whole_file(card) as temporary:
            temporary.write_text(text)
    except OSError as error:
        raise UserError(f"{error.filename or target}: cannot be written ({error.strerror})") from error
    except SafetensorError as error:
        raise UserError(f"{target}: cannot be written ({error})") from error
    return card


def without_paths(provenance: Mapping[str, Any]) -> Report:
    """What made the weights, without the keys whose values are paths."""
    config = provenance.get("config")
    kept = {}
    for section, values in (config if isinstance(config, Mapping) else {}).items():
        if isinstance(values, Mapping):
            kept[section] = {name: value for name, value in values.items() if not _is_private(name, value)}
    data = provenance.get("data")
    data = {name: value for name, value in data.items() if name != "train_csv"} if isinstance(data, Mapping) else {}
    return {**provenance, "config": kept, "data": data} if provenance else {}


def _is_private(name: str, value: Any) -> bool:
    values = value if isinstance(value, list) else [value]
    return any(part in name.lower() for part in PRIVATE) or any(isinstance(v, str) and "/" in v for v in values)


def _metadata(report: Report, weights_sha256: str) -> dict[str, str]:
    score = report["validation"] or {}
    provenance = {**report["provenance"], "iteration": report["iteration"]}
    if score:
        provenance["valid_pred"] = score["score"]
    return {
        "format": "pt",
        CHECKSUM: weights_sha256,
        "source_sha256": report["sha256"],
        "exported_by": f"pymic_vf {__version__}",
        PROVENANCE: json.dumps(provenance),
    }


def model_card(report: Report, name: str, digest: str) -> str:
    """The card as Markdown.

    Args:
        report: what the weights are and what made them.
        name: of the file of weights.
        digest: its SHA-256.
    """
    made_by, network = report["provenance"], dict(report["network"])
    network.pop("known_by", None)
    network.pop("in_chns_inflate", None)
    dataset = _of(made_by, "config", "dataset")
    keys = {**_of(made_by, "config", "testing"), **network, **dataset}
    crop = next((f"{keys[key]} voxels (D, H, W)" for key in CROPS if key in keys), "not known")
    spacing = ", ".join(f"{key} = {value}" for key, value in dataset.items() if "spacing" in key)
    score = report["validation"]
    facts = {
        "Method": made_by.get("method") or ("none: trained from labels" if "method" in made_by else "not known"),
        "Iterations": "not known" if report["iteration"] is None else report["iteration"],
        "Validation": f"{score['score']} ({score['meaning']})" if score else "not known",
        "Crop or window": crop,
        "Spacing": f"{spacing} (mm)" if spacing else "no key of the config sets it: that of the scans",
        "Scans": _of(made_by, "data").get("scans", "not known"),
        "Fingerprint of the data": _of(made_by, "data").get("fingerprint", "not known"),
        "Created": made_by.get("created", "not known"),
        "Versions": ", ".join(f"{k} {v}" for k, v in _of(made_by, "versions").items()) or "not known",
        "Weights": f"{report['weights']}, {report['parameters']:,} values",
        "SHA-256 of this file": f"`{digest}`",
        "SHA-256 of the checkpoint": f"`{report['sha256']}`",
    }
    lines = [f"# {name}", "", "| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in facts.items())]
    if network:
        lines += [
            "",
            "## Network",
            "",
            "```",
            "[network]",
            *(f"{k} = {_as_config(v)}" for k, v in network.items()),
            "```",
        ]
    lines += ["", "## Loading", "", "```", "[training]", f"ckpt_init_name = /PATH/TO/{name}", "```", ""]
    lines.append(
        "with PyMIC and the plug-in pymic_vf; or `safetensors.torch.load_file`. Where `class_num` differs, new"
    )
    lines.append("heads start from random weights.")
    if dataset:
        lines += ["", "## Data as it was trained on", "", "```", "[dataset]"]
        lines += [*(f"{key} = {_as_config(value)}" for key, value in dataset.items()), "```"]
    return "\n".join(lines) + "\n"


def _of(values: Mapping[str, Any], *names: str) -> Mapping[str, Any]:
    """The nested dict of these names; empty where there is none."""
    for name in names:
        inner = values.get(name)
        values = inner if isinstance(inner, Mapping) else {}
    return values


def _as_config(value: Any) -> str:
    return f"[{', '.join(map(str, value))}]" if isinstance(value, list) else str(value)
