"""The example configs of networks: each pretrains, fine-tunes and is tested, and what PyMIC cannot run still fails so.

In this process, by PyMIC's agents, from the files themselves with narrower networks and smaller crops; `--long` has the
networks that have one width and one size alone.
"""

from __future__ import annotations

import configparser
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from pymic.net.net_dict_seg import SegNetDict
from pymic.net_run.agent_seg import SegmentationAgent

import pymic_vf
from pymic_vf.cli import read_config
from pymic_vf.host.agents import pretraining_agent
from pymic_vf.networks import NETWORKS

from conftest import make_scan, write_cfg, write_volume

pymic_vf.register()

FOLDER = Path(__file__).parents[1] / "config_examples" / "networks"
CHANNELS = {"feature_chns": [2, 4, 4, 8, 8]}
# for each pair of files, what makes it small
SMALL: dict[str, dict[str, Any]] = {
    "unet": CHANNELS,
    "unet_scse": CHANNELS,
    "unetpp": {"feature_chns": [2, 2, 2, 4, 4]},
    "unet2d5": CHANNELS,
    "fmunet": CHANNELS,
    "fmunetv3": CHANNELS,
    "lcovnet": CHANNELS,
    "nnformer": {"input_size": [32, 32, 32], "embed_dim": 4, "num_heads": [1, 1, 2, 2]},
}
WHOLE = ("unetr", "unetr_pp", "transunet")
# of a pair, what may differ between two networks, besides [network]
OWN_KEYS = {"ckpt_dir", "output_dir", "deep_supervise"}
OWN_KEYS_OF_2D = {"crop_size", "vf_patch_size_min", "vf_patch_size_max", "pad_output_size", "randomcrop_output_size",
                  "sliding_window_size", "sliding_window_stride"}  # fmt: skip


def sections(path: Path) -> dict[str, dict[str, str]]:
    config = configparser.ConfigParser()
    config.read(path)
    return {name: dict(config[name]) for name in config.sections()}


def test_every_network_has_a_pair_that_a_test_runs():
    pairs = {f"{name}_{what}.cfg" for name in (*SMALL, *WHOLE) for what in ("pretrain", "finetune")}
    assert {path.name for path in FOLDER.glob("*.cfg")} == pairs


@pytest.mark.parametrize("name", [*SMALL, *WHOLE])
@pytest.mark.parametrize("what", ["pretrain", "finetune"])
def test_networks_differ_in_nothing_else(name: str, what: str):
    """Otherwise a comparison of them would compare something else."""
    own, others = sections(FOLDER / f"{name}_{what}.cfg"), sections(FOLDER / f"unet_{what}.cfg")
    may = OWN_KEYS | (OWN_KEYS_OF_2D if name == "transunet" else set())
    assert own.keys() == others.keys()
    for section in own.keys() - {"network"}:
        differing = {key for key, _ in own[section].items() ^ others[section].items()}
        assert differing <= may
    assert own["training"]["ckpt_dir"] == f"model/{name}/{'pretrain_vf' if what == 'pretrain' else 'finetune'}"


@pytest.mark.parametrize("name", [*SMALL, *WHOLE])
def test_a_fine_tuning_has_the_network_of_its_pretraining(name: str):
    pretraining, finetuning = (sections(FOLDER / f"{name}_{what}.cfg")["network"] for what in ("pretrain", "finetune"))
    assert pretraining == finetuning
    assert finetuning["net_type"] in SegNetDict


def run_pair(name: str, scans: Path, out: Path, crop: list[int], network: dict[str, Any], caplog) -> None:
    """Two iterations of each with a validation, and the test."""
    caplog.set_level("INFO")
    data = {"train_dir": scans / "volumes", "num_worker": 0, "train_batch_size": 1, "valid_batch_size": 1}
    brief = {"iter_max": 2, "iter_valid": 2, "iter_save": 2}
    box = [max(1, side // 4) for side in crop]
    pretraining = sections(FOLDER / f"{name}_pretrain.cfg")
    pretraining["dataset"] |= data | {
        "train_csv": scans / "pretrain.csv", "valid_csv": scans / "pretrain.csv", "valid_samples": 1,
        "crop_size": crop, "cache_dir": out / "cache", "vf_patch_size_min": [1, 2, 2], "vf_patch_size_max": box,
    }  # fmt: skip
    pretraining["network"] |= network
    pretraining["training"] |= brief | {"ckpt_dir": out / "pretrain_vf"}
    finetuning = sections(FOLDER / f"{name}_finetune.cfg")
    finetuning["dataset"] |= data | {f"{stage}_csv": scans / "labelled.csv" for stage in ("train", "valid", "test")}
    finetuning["dataset"] |= {"pad_output_size": crop, "randomcrop_output_size": crop}
    finetuning["network"] |= network | {"class_num": 2}
    finetuning["training"] |= brief | {"ckpt_dir": out / "finetune"}
    finetuning["testing"] |= {"output_dir": out / "result", "sliding_window_size": crop, "sliding_window_stride": crop}
    pretraining_agent(read_config(write_cfg(out / "a.cfg", pretraining))).run()
    caplog.clear()
    (out / "finetune").mkdir()  # as pymic_train does
    config = write_cfg(out / "b.cfg", finetuning)
    SegmentationAgent(read_config(config)).run()
    rows = {row: int(n) for row, n in re.findall(r"^  (loaded|mis-shaped|missing|unused) +(\d+)$", caplog.text, re.M)}
    assert rows["missing"] == rows["unused"] == 0 < rows["loaded"]
    assert rows["mis-shaped"] <= 8, "more than output layers"
    weights = torch.load(out / "finetune" / "finetune_2.pt", weights_only=False)["model_state_dict"]
    assert all(torch.isfinite(w).all() for w in weights.values() if w.is_floating_point())
    SegmentationAgent(read_config(config), "test").run()
    assert len(list((out / "result").glob("*.nii.gz"))) == 2


@pytest.mark.parametrize("name", SMALL)
def test_a_pair_runs(scans: Path, tmp_path: Path, caplog, name: str):
    depth = 32 if name in ("lcovnet", "nnformer") else 16  # the least that these take
    run_pair(name, scans, tmp_path, [depth, 32, 32], SMALL[name], caplog)


@pytest.mark.long
@pytest.mark.parametrize("name", WHOLE)
def test_a_pair_runs_at_full_size(scans: Path, tmp_path: Path, caplog, name: str):
    size = (16, 256, 256) if name == "transunet" else (64, 128, 128)
    crop = [8, 256, 256] if name == "transunet" else [64, 128, 128]
    (tmp_path / "volumes").mkdir()
    for index in range(2):
        for voxels, suffix in zip(make_scan(index, size), ("", "_lab"), strict=True):
            write_volume(tmp_path / "volumes" / f"{index}{suffix}.nii.gz", voxels)
    table = pd.DataFrame([(f"{index}.nii.gz", f"{index}_lab.nii.gz") for index in range(2)], columns=["image", "label"])
    table.to_csv(tmp_path / "labelled.csv", index=False)
    table[["image"]].to_csv(tmp_path / "pretrain.csv", index=False)
    run_pair(name, tmp_path, tmp_path, crop, {}, caplog)


# As docs/networks.md lists them

TRIES = {"in_chns": 1, "class_num": 2}


@pytest.mark.parametrize(
    ("name", "params", "size", "error", "message"),
    [
        ("AttentionUNet", {"dimension": 3}, (16, 32, 32), AttributeError, "norm_type"),
        ("AttentionUNet", {}, (2, 32, 32), AttributeError, "norm_type"),
        ("SwinUNet", {"img_size": [64, 64]}, (2, 64, 64), RuntimeError, "is invalid for input of size"),
        ("UNETR_PP", {"img_size": [32, 64, 64]}, (32, 64, 64), RuntimeError, "must match the size"),
        ("TransUNet", {"img_size": [128, 128]}, (2, 128, 128), ZeroDivisionError, "modulo by zero"),
        ("CANet", {"feature_chns": [4, 8, 8, 16, 16]}, (2, 64, 64), RuntimeError, "channels"),
        ("COPLENet", {"feature_chns": [4, 8, 8, 16, 16], "dropout": [0] * 5}, (2, 64, 64), RuntimeError, "size of"),
        ("LCOVNet", {"feature_chns": [4] * 5}, (16, 32, 32), RuntimeError, "smaller than kernel size"),
    ],
)  # fmt: skip
def test_what_fails_inside_pymic_still_does(name: str, params: dict, size: tuple, error: type, message: str):
    with pytest.raises(error, match=message):
        SegNetDict[name]({**TRIES, **params})(torch.zeros(1, 1, *size))


def test_tdnet_returns_lists_of_lists():
    """Which no loss of PyMIC's supervised and self-supervised training takes."""
    channels = {"dimension": 3, "feature_chns": [2, 4, 4, 8, 8], "dropout": [0] * 5}
    outputs = SegNetDict["TDNet"]({**TRIES, **channels})(torch.zeros(1, 1, 16, 32, 32))
    assert all(isinstance(output, list) for output in outputs)


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("CANet", {}),
        ("COPLENet", {"feature_chns": [2, 4, 8, 16, 32], "dropout": [0] * 5}),
        ("CCTNet", {"dimension": 3, "feature_chns": [2, 4, 4, 8, 8], "dropout": [0] * 5}),
        ("DBNet", {"dimension": 3, "feature_chns": [2, 4, 4, 8, 8], "dropout": [0] * 5}),
    ],
)
def test_what_works_without_a_config_of_its_own(name: str, params: dict):
    outputs = SegNetDict[name]({**TRIES, **params})(torch.zeros(1, 1, 16, 64, 64))
    first = outputs[0] if isinstance(outputs, (list, tuple)) else outputs
    assert first.shape == (1, 2, 16, 64, 64)


def test_the_page_names_every_network():
    page = (FOLDER.parents[1] / "docs" / "networks.md").read_text()
    assert [name for name in (*SegNetDict, *NETWORKS) if f"`{name}`" not in page] == []
