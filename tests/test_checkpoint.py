from __future__ import annotations

import logging
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from pymic_vf.errors import UserError
from pymic_vf.host.weights import checkpoint
from pymic_vf.host.weights.checkpoint_file import allow_numpy_scalars


def test_numpy_scalars_load_and_other_types_do_not(tmp_path: Path):
    allow_numpy_scalars()
    for scalar in (np.float32(0.25), np.float64(0.75)):
        torch.save({"valid_pred": scalar, "model_state_dict": {}}, tmp_path / "a.pt")
        assert checkpoint.load(tmp_path / "a.pt", map_location="cpu")["valid_pred"] == scalar
    torch.save({"model_state_dict": {}, "extra": Path("x")}, tmp_path / "b.pt")
    with pytest.raises(UserError, match=r"b\.pt: this file contains code \(pathlib.*\); not loaded$"):
        checkpoint.load(tmp_path / "b.pt", weights_only=False)  # as PyMIC's test asks for


def test_bare_state_dict_is_taken(tmp_path: Path):
    torch.save({"weight": torch.ones(2)}, tmp_path / "a.pt")
    loaded = checkpoint.load(tmp_path / "a.pt")
    assert loaded["model_state_dict"]["weight"].tolist() == [1, 1]
    with pytest.raises(UserError, match=r"has no 'optimizer_state_dict' \(which resuming \(ckpt_init_mode = 1\) needs"):
        loaded["optimizer_state_dict"]


def test_entries_of_another_type_are_named(tmp_path: Path):
    weights = {"w": torch.ones(2)}
    torch.save({"model_state_dict": weights, "iteration": -1, "valid_pred": "x"}, tmp_path / "a.pt")
    loaded = checkpoint.load(tmp_path / "a.pt")
    with pytest.raises(UserError, match=r"a\.pt: its 'iteration' must be a whole number, got a int"):
        loaded["iteration"]
    with pytest.raises(UserError, match=r"its 'valid_pred' must be a number, got a str"):
        loaded.get("valid_pred", 0)
    assert loaded.get("valid_loss", 10) == 10


def test_absolute_name_behind_ckpt_dir(tmp_path: Path):
    path = tmp_path / "a.pt"
    torch.save({"model_state_dict": {}}, path)
    assert checkpoint.find_checkpoint(f"model/run/{path}") == path


def test_latest_is_the_last_checkpoint_of_a_folder(tmp_path: Path):
    with pytest.raises(UserError, match=r"latest: one file PREFIX_latest\.txt must name .* there is none"):
        checkpoint.find_checkpoint(tmp_path / "latest")
    (tmp_path / "run_latest.txt").write_text("20")
    with pytest.raises(UserError, match=r"run_latest\.txt names .*run_20\.pt, which is not there"):
        checkpoint.find_checkpoint(tmp_path / "latest")
    (tmp_path / "run_20.pt").touch()
    assert checkpoint.find_checkpoint(tmp_path / "latest") == tmp_path / "run_20.pt"
    assert checkpoint.find_checkpoint(f"model/run/{tmp_path}/latest") == tmp_path / "run_20.pt"
    (tmp_path / "latest").touch()  # a file of that very name is meant itself
    assert checkpoint.find_checkpoint(tmp_path / "latest") == tmp_path / "latest"


def test_missing_cut_off_and_wrong_files_are_named(tmp_path: Path):
    with pytest.raises(UserError, match=r"no checkpoint model/gone\.pt"):
        checkpoint.load("model/gone.pt")
    torch.save({"model_state_dict": {"w": torch.ones(1000)}}, tmp_path / "a.pt")
    (tmp_path / "cut.pt").write_bytes((tmp_path / "a.pt").read_bytes()[:500])
    with pytest.raises(UserError, match=r"cut\.pt: not a checkpoint"):
        checkpoint.load(tmp_path / "cut.pt")
    torch.save([1], tmp_path / "list.pt")
    with pytest.raises(UserError, match="this file holds a list"):
        checkpoint.load(tmp_path / "list.pt")


def test_a_flipped_bit_is_found(tmp_path: Path):
    path = tmp_path / "a.pt"
    torch.save({"model_state_dict": {"w": torch.ones(1000)}}, path)
    content = bytearray(path.read_bytes())
    middle = content.index(torch.ones(50).numpy().tobytes()) + 20
    content[middle] ^= 4
    path.write_bytes(content)
    assert not torch.equal(torch.load(path)["model_state_dict"]["w"], torch.ones(1000))  # which torch does not notice
    with pytest.raises(UserError, match=r"a\.pt: damaged, the checksum of .* in it is wrong; not loaded"):
        checkpoint.load(path)


def test_names_from_data_parallel(tmp_path: Path, caplog):
    torch.save({"model_state_dict": {"module.w": torch.ones(2), "module.b": torch.zeros(1)}}, tmp_path / "a.pt")
    with caplog.at_level(logging.INFO):
        assert list(checkpoint.load(tmp_path / "a.pt")["model_state_dict"]) == ["w", "b"]
    assert "begin with 'module.', which is left out" in caplog.text
    torch.save({"model_state_dict": {"module.w": torch.ones(2), "b": torch.zeros(1)}}, tmp_path / "b.pt")
    assert list(checkpoint.load(tmp_path / "b.pt")["model_state_dict"]) == ["module.w", "b"]


class KillsItsPickler:
    def __reduce__(self):
        os.kill(os.getpid(), signal.SIGKILL)


def test_kill_while_saving_leaves_the_old_checkpoint(tmp_path: Path):
    path = tmp_path / "a.pt"
    checkpoint.save_whole({"model_state_dict": {"w": torch.ones(3)}}, path)
    script = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "import torch; from test_checkpoint import KillsItsPickler\n"
        "from pymic_vf.host.weights.checkpoint import save_whole\n"
        f"save_whole([torch.zeros(10), KillsItsPickler()], {str(path)!r})"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == -signal.SIGKILL
    assert checkpoint.load(path)["model_state_dict"]["w"].tolist() == [1, 1, 1]


def test_a_full_disk_is_named_and_leaves_the_old_checkpoint(tmp_path: Path):
    path = tmp_path / "a.pt"
    checkpoint.save_whole({"model_state_dict": {"w": torch.ones(3)}}, path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(
            UserError, match=r"a\.pt cannot be written \(File too large\); those written before are whole"
        ):
            checkpoint.save_whole({"model_state_dict": {"w": torch.ones(100_000)}}, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [file.name for file in tmp_path.iterdir()] == ["a.pt"]
    assert checkpoint.load(path)["model_state_dict"]["w"].tolist() == [1, 1, 1]
    with pytest.raises(UserError, match=r"cannot be written \(No such file or directory\)"):
        checkpoint.save_whole({}, tmp_path / "no folder" / "a.pt")
