from __future__ import annotations

import hashlib
import logging
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from test_inspection import PROVENANCE, squeezed, write

from pymic_vf.cli import main
from pymic_vf.host.weights.checkpoint import load
from pymic_vf.networks.pct_net import PCTNet

from conftest import NETWORK


def test_weights_and_their_card(tmp_path: Path, capsys):
    net = PCTNet(NETWORK)
    write(tmp_path / "a.pt", net.state_dict(), PROVENANCE)
    target = tmp_path / "out.safetensors"
    assert main(["inspect", str(tmp_path / "a.pt"), "--export", str(target)]) == 0
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.pt", "out.md", "out.safetensors"]
    loaded = load(target, map_location="cpu")["model_state_dict"]
    assert all(torch.equal(weight, loaded[name]) for name, weight in net.state_dict().items())
    card = (tmp_path / "out.md").read_text()
    for line in ("| Method | VF |", "| Iterations | 20 |", "| Crop or window | [16, 32, 32] voxels (D, H, W) |",
                 f"`{hashlib.sha256(target.read_bytes()).hexdigest()}`", "pymic_vf 1.0.0, torch 2.9",
                 "ckpt_init_name = /PATH/TO/out.safetensors", "resolution_mode = 1", "| Scans | 4 |"):  # fmt: skip
        assert line in card, line
    with safe_open(target, "pt") as file:
        metadata = file.metadata()
    assert "/patients" not in card + str(metadata) and "train_dir" not in card + str(metadata)
    assert all(isinstance(value, str) for value in metadata.values())
    capsys.readouterr()
    assert main(["inspect", str(target)]) == 0
    text = squeezed(capsys.readouterr().out)
    assert "method VF" in text and "iteration 20" in text and "fingerprint = ab12" in text


def test_weights_that_share_memory_and_unknown_origin(tmp_path: Path):
    one = torch.arange(6.0).reshape(2, 3)
    torch.save({"a": one, "b": one.T}, tmp_path / "a.pt")
    assert main(["inspect", str(tmp_path / "a.pt"), "--export", str(tmp_path / "b.safetensors")]) == 0
    assert torch.equal(load(tmp_path / "b.safetensors")["model_state_dict"]["b"], one.T)
    assert "| Method | not known |" in (tmp_path / "b.md").read_text()


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("b.pt", 1.0, "--export takes a name that ends in .safetensors"),
        ("b.safetensors", float("nan"), "1 of its 1 weights are not finite"),
        ("gone/b.safetensors", 1.0, "cannot be written (No such file or directory)"),
    ],
)
def test_nothing_half_is_left(tmp_path: Path, capsys, name: str, value: float, message: str):
    torch.save({"a": torch.tensor([value])}, tmp_path / "a.pt")
    assert main(["inspect", str(tmp_path / "a.pt"), "--export", str(tmp_path / name)]) == 1
    assert message in capsys.readouterr().err
    assert [file.name for file in tmp_path.iterdir()] == ["a.pt"]
    logging.getLogger().setLevel(logging.WARNING)
