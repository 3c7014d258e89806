"""Kinds of files; what is hostile in them is in faults/test_checkpoints.py."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from pymic_vf.errors import UserError
from pymic_vf.host.weights.checkpoint_file import CHECKSUM, METADATA, checksum, read_file

WEIGHTS = {"w": torch.arange(6.0).reshape(2, 3), "n": torch.tensor(3), "h": torch.ones(2).bfloat16()}


@pytest.mark.parametrize("is_archive", [True, False])
def test_files_of_torch(tmp_path: Path, is_archive: bool):
    torch.save({"a": WEIGHTS, "b": [1, "x"]}, tmp_path / "a.pt", _use_new_zipfile_serialization=is_archive)
    content = read_file(tmp_path / "a.pt")
    assert content["b"] == [1, "x"] and torch.equal(content["a"]["w"], WEIGHTS["w"])


def test_safetensors_by_their_content(tmp_path: Path):
    save_file(WEIGHTS, tmp_path / "a.pt", metadata={"who": "me", CHECKSUM: checksum(WEIGHTS)})
    content = read_file(tmp_path / "a.pt", map_location="cpu")
    assert content[METADATA]["who"] == "me"
    assert all(torch.equal(content["model_state_dict"][name], weight) for name, weight in WEIGHTS.items())


def test_the_checksum_is_of_names_shapes_types_and_values():
    by_hand = b"h torch.bfloat16 [2]\n\x80\x3f\x80\x3fn torch.int64 []\n" + np.int64(3).tobytes()
    by_hand += b"w torch.float32 [2, 3]\n" + np.arange(6, dtype=np.float32).tobytes()
    assert checksum(WEIGHTS) == hashlib.sha256(by_hand).hexdigest()
    changed = [
        {**WEIGHTS, "w": WEIGHTS["w"] + 1},
        {**WEIGHTS, "w": WEIGHTS["w"].reshape(3, 2)},
        {**WEIGHTS, "n": WEIGHTS["n"].int()},
        {"v" if name == "w" else name: weight for name, weight in WEIGHTS.items()},
    ]
    sums = {checksum(weights) for weights in (WEIGHTS, *changed)}
    assert len(sums) == 5
    assert checksum(dict(reversed(WEIGHTS.items()))) == checksum(WEIGHTS)


def test_what_it_is_instead_is_named(tmp_path: Path):
    (tmp_path / "a.pt").write_bytes(b"\x1f\x8b" + bytes(50))
    with pytest.raises(UserError, match=r"a\.pt: not a checkpoint but compressed by gzip: unpack it first"):
        read_file(tmp_path / "a.pt")
    with pytest.raises(UserError, match=r"gone\.pt: cannot be read \(No such file or directory\)"):
        read_file(tmp_path / "gone.pt")
