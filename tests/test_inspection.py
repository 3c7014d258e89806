from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pymic_vf.cli import main
from pymic_vf.host.weights.inspection import as_text, inspect_file, pct_net_of
from pymic_vf.networks.pct_net import PCTNet

from conftest import NETWORK

PROVENANCE = {
    "config": {"network": NETWORK, "dataset": {"train_dir": "/patients", "crop_size": [16, 32, 32]}},
    "versions": {"pymic_vf": "1.0.0", "torch": "2.9"},
    "method": "VF",
    "data": {"train_csv": "/patients/a.csv", "scans": 4, "fingerprint": "ab12"},
    "created": "2026-01-01T00:00:00",
}


def write(path: Path, weights: dict[str, Any], provenance: Any = None, **more: Any) -> Path:
    content = {"iteration": 20, "valid_pred": np.float64(0.25), "model_state_dict": weights, **more}
    if provenance is not None:
        content["pymic_vf"] = {"format": 1, "provenance": provenance, "state": {}}
    torch.save(content, path)
    return path


def squeezed(text: str) -> str:
    """The text without what aligns its columns."""
    return re.sub(" +", " ", text)


def test_a_checkpoint_of_ours(tmp_path: Path):
    net = PCTNet(NETWORK)
    path = write(tmp_path / "a.pt", net.state_dict(), PROVENANCE, optimizer_state_dict={})
    report, checkpoint = inspect_file(path)
    assert report["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert report["iteration"] == 20 and report["resumable"]
    assert report["validation"] == {"score": 0.25, "meaning": "1 / (1 + loss) of the validation"}
    assert report["network"] == {**NETWORK, "known_by": "its config"}
    assert report["weights"] == len(net.state_dict()) == sum(report["types"].values())
    assert report["parameters"] == sum(weight.numel() for weight in checkpoint["model_state_dict"].values())
    assert report["provenance"] == PROVENANCE
    text = squeezed(as_text(report))
    for line in ("method VF", "0.25 (1 / (1 + loss) of the validation)", "torch = 2.9", "fingerprint = ab12",
                 "resuming possible"):  # fmt: skip
        assert line in text, line


def test_what_the_score_of_a_validation_is(tmp_path: Path):
    weights = {"w": torch.ones(2)}
    meanings = [
        inspect_file(write(tmp_path / "a.pt", weights, provenance))[0]["validation"]["meaning"]
        for provenance in (None, {"method": None}, {"method": "MIM"})
    ]
    dice, of_loss = "Dice of the validation", "1 / (1 + loss) of the validation"
    assert meanings == [f"{dice}, or {of_loss} for a pretraining", dice, of_loss]


@pytest.mark.parametrize("mode", [0, 1, 2])
def test_a_pct_net_is_known_by_its_weights(tmp_path: Path, mode: int):
    network = {**NETWORK, "resolution_mode": mode, "in_chns": 3, "class_num": 4}
    net = PCTNet(network)
    found = pct_net_of(net.state_dict())
    assert all(found[key] == network[key] for key in ("in_chns", "class_num", "feature_chns", "num_heads"))
    assert found["resolution_mode"] == mode
    assert found["windows"] == [net.settings.window(level)[0] for level in (2, 3, 4)]
    torch.save({name: torch.tensor(1.0) for name in net.state_dict()}, tmp_path / "odd.pt")
    assert inspect_file(tmp_path / "odd.pt")[0]["network"] == {}
    assert pct_net_of({"encoder.weight": torch.ones(2)}) == {}


def test_released_weights_and_bare_dicts(tmp_path: Path):
    weights: dict[str, torch.Tensor] = {}
    for mode in (0, 1, 2):
        weights |= PCTNet({**NETWORK, "resolution_mode": mode}).state_dict()
    torch.save(weights, tmp_path / "released.pt")
    report, _checkpoint = inspect_file(tmp_path / "released.pt")
    assert report["network"]["resolution_mode"] == [0, 1, 2] and report["iteration"] is None
    text = squeezed(as_text(report))
    assert "iteration not in the file" in text and "made by not in the file" in text
    assert "not possible, weights alone" in text


@pytest.mark.parametrize(
    "provenance",
    [
        {"method": "\x1b[2J", "data": {"scans": 2**900, "a\nb": float("nan")}},
        [],
        "text",
        {"config": 3},
        {"config": {"network": []}},
        {"data": torch.ones(2)},
    ],
)
def test_odd_provenance_is_shown_as_it_is(tmp_path: Path, provenance: Any):
    report, _checkpoint = inspect_file(write(tmp_path / "a.pt", {"w": torch.ones(2)}, provenance))
    json.dumps(report, allow_nan=False)
    assert as_text(report).replace("\n", "").isprintable()
    assert "not finite" in as_text(report)


def test_the_command(tmp_path: Path, capsys):
    path = write(tmp_path / "a.pt", {"module.w": torch.tensor([1.0, float("nan")])}, PROVENANCE)
    assert main(["inspect", str(path)]) == 0
    assert "not finite 1 weights: w\n" in squeezed(capsys.readouterr().out)
    assert main(["inspect", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["not_finite"] == ["w"]
    assert main(["inspect", str(tmp_path / "gone.pt")]) == 1
    assert "gone.pt" in capsys.readouterr().err
