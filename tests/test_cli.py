from __future__ import annotations

import re
from pathlib import Path

import pytest

from pymic_vf.cli import main
from pymic_vf.demo.quickstart import example_configs, run_demo

from conftest import finetuning, pretraining, write_cfg

PNG = b"\x89PNG"


def test_version(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert re.fullmatch(r"\d+\.\d+\.\d+\n", capsys.readouterr().out)


def test_phantom(tmp_path: Path, capsys):
    out = tmp_path / "data"
    assert main(["phantom", str(out), "--size", "24", "40", "40", "--counts", "pretrain=2", "train=1"]) == 0
    assert (out / "pretrain.csv").read_text().splitlines()[0] == "image"
    assert len(list((out / "volumes").glob("*.nii.gz"))) == 2 + 2
    assert main(["phantom", str(tmp_path / "b"), "--counts", "train"]) == 1
    assert "--counts takes SET=N, N a whole number, got train" in capsys.readouterr().err


def test_check(scans: Path, tmp_path: Path, capsys):
    good = write_cfg(tmp_path / "good.cfg", pretraining(scans, tmp_path))
    assert main(["check", str(good)]) == 0
    assert "good.cfg: nothing wrong found" in capsys.readouterr().out
    bad = write_cfg(tmp_path / "bad.cfg", pretraining(scans, tmp_path, network={"class_num": 9}))
    assert main(["check", str(bad)]) == 1
    assert "class_num must be 5 for Volume Fusion (0/4, 1/4, 2/4, 3/4, 4/4), got 9" in capsys.readouterr().err
    assert main(["check", str(tmp_path / "gone.cfg")]) == 1
    assert "there is no such config file" in capsys.readouterr().err


def test_preview(scans: Path, tmp_path: Path):
    cfg = write_cfg(tmp_path / "a.cfg", pretraining(scans, tmp_path))
    assert main(["preview", str(cfg), "--out", str(tmp_path / "a.png"), "--sample", "3"]) == 0
    assert (tmp_path / "a.png").read_bytes().startswith(PNG)


def test_prepare(scans: Path, tmp_path: Path, capsys):
    without = write_cfg(tmp_path / "a.cfg", pretraining(scans, tmp_path))
    assert main(["prepare", str(without)]) == 1
    assert "cache_dir is missing" in capsys.readouterr().err
    cfg = write_cfg(tmp_path / "b.cfg", pretraining(scans, tmp_path, dataset={"VF_cache_dir": tmp_path / "cache"}))
    for _again in range(2):
        assert main(["prepare", str(cfg), "--jobs", "1"]) == 0
        assert "4 volumes are in the cache" in capsys.readouterr().out


def test_keys(capsys):
    assert main(["keys", "VF"]) == 0
    text = capsys.readouterr().out
    assert "  VF_patch_number = [10, 40]\n      fewest and most patches; a list of 2 whole numbers" in text
    assert "  crop_size = [64, 128, 128]" in text
    with pytest.raises(SystemExit):
        main(["keys", "VFF"])


def test_commands_for_a_pretraining_want_one(scans: Path, tmp_path: Path, capsys):
    cfg = write_cfg(tmp_path / "a.cfg", finetuning(scans, tmp_path))
    assert main(["preview", str(cfg), "--out", str(tmp_path / "a.png")]) == 1
    assert "is no config for a pretraining by VF or MIM or Genesis or PatchSwap" in capsys.readouterr().err
    assert main(["check", str(cfg)]) == 0


def test_demo(tmp_path: Path, capsys):
    """All its commands, with fewer iterations and scans than a user gets."""
    configs = tmp_path / "configs"
    configs.mkdir()
    for cfg in example_configs("quickstart").glob("*.cfg"):
        text = re.sub(r"iter_max( *)= \d+", r"iter_max\1= 2", cfg.read_text())
        text = text.replace("seeds    = [1, 2, 3]", "seeds    = [1]")
        (configs / cfg.name).write_text(re.sub(r"iter_valid( *)= \d+", r"iter_valid\1= 1", text))
    counts = {"pretrain": 2, "pretrain_valid": 2, "train": 2, "test": 1}
    run_demo(tmp_path / "out", configs, counts)
    text = capsys.readouterr().out
    assert re.search(r"Dice \(%\) +from scratch +\d", text) and re.search(r"ASSD \(mm\) +pretrained +\d", text)
    assert (tmp_path / "out" / "result" / "report.html").is_file()
    for name in ("fused_sample.png", "segmentations.png"):
        assert (tmp_path / "out" / name).read_bytes().startswith(PNG)
    assert main(["demo", "--out", str(tmp_path / "out")]) == 1
    assert "is not an empty folder" in capsys.readouterr().err
