"""Every method of the table pretrains a network of ours and one of PyMIC's, and its weights start a fine-tuning.

In this process, by PyMIC's agents; the commands themselves are in test_chain.py and test_processes.py.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path

import pytest
import torch
from pymic.net_run.agent_seg import SegmentationAgent
from pymic.net_run.self_sup import SelfSupMethodDict

import pymic_vf
from pymic_vf.cli import main
from pymic_vf.host.agents import pretraining_agent
from pymic_vf.methods import METHODS, method_class
from pymic_vf.methods.method import RECONSTRUCTION

from conftest import NETWORK, finetuning, merged, parsed, pretraining, write_cfg

pymic_vf.register()

UNET = {"net_type": "UNet", "dimension": 3, "in_chns": 1, "feature_chns": [2, 4, 8, 16, 16], "dropout": [0] * 5,
        "multiscale_pred": False}  # fmt: skip
SMALL = {"MIM_block_size": [4, 8, 8], "PatchSwap_size": [4, 8, 8], "Genesis_windows": [50, 50]}


def config(method: str, net: dict, scans: Path, out: Path, **changes) -> dict:
    """A small pretraining by `method`; the network has as many outputs as the method wants."""
    is_reconstruction = method_class(method).task == RECONSTRUCTION
    kind = {
        "dataset": {
            "train_transform": None,
            "task_type": "rec" if is_reconstruction else "seg",
            "num_worker": 0,
            **SMALL,
        },
        "self_supervised_learning": {"method_name": method},
        "network": {
            **dict.fromkeys(NETWORK),
            **net,
            "class_num": 1 if is_reconstruction else 5,
            "multiscale_pred": net["multiscale_pred"] and not is_reconstruction,
        },
        "training": {"deep_supervise": net.get("multiscale_pred", False) and not is_reconstruction},
    }
    if is_reconstruction:
        kind["training"] |= {"loss_type": "MAELoss", "loss_weight": None}
    return merged(pretraining(scans, out, **kind), changes)


@pytest.mark.parametrize("network", [NETWORK, UNET], ids=["PCTNet", "UNet"])
@pytest.mark.parametrize("method", METHODS)
def test_pretraining_and_fine_tuning(scans: Path, tmp_path: Path, caplog, method: str, network: dict):
    caplog.set_level(logging.INFO)
    validated = {"dataset": {"valid_csv": scans / "pretrain.csv", "valid_samples": 2}}
    pretraining_agent(parsed(tmp_path / "a.cfg", config(method, network, scans, tmp_path, **validated))).run()
    assert f"{method_class(method).title} of 4 scans, 2 samples of 4 others to validate" in caplog.text
    saved = torch.load(tmp_path / "pretrain" / "pretrain_2.pt", weights_only=False)
    assert saved["iteration"] == 2
    assert all(torch.isfinite(w).all() for w in saved["model_state_dict"].values() if w.is_floating_point())
    best = torch.load(tmp_path / "pretrain" / "pretrain_best.pt", weights_only=False)
    losses = [float(loss) for loss in re.findall(r"valid loss ([\d.]+)|train/valid loss [\d.]+/([\d.]+)", caplog.text)
              for loss in loss if loss]  # fmt: skip
    assert len(losses) == 2
    assert best["valid_pred"] == pytest.approx(1 / (1 + min(losses)), abs=1e-4)
    assert best["iteration"] == 1 + losses.index(min(losses))
    events = next((tmp_path / "pretrain").glob("events*")).read_bytes()
    assert events.count(b"sample_target_answer") == 2 == events.count(b"\x89PNG")
    caplog.clear()
    tuned = finetuning(scans, tmp_path, network={**dict.fromkeys(NETWORK), **network, "class_num": 2},
                       dataset={"num_worker": 0},
                       training={"ckpt_init_name": "../pretrain/latest", "iter_max": 1,
                                 "deep_supervise": network.get("multiscale_pred", False)})  # fmt: skip
    (tmp_path / "finetune").mkdir()  # as pymic_train does
    SegmentationAgent(parsed(tmp_path / "b.cfg", tuned)).run()
    rows = {row: int(n) for row, n in re.findall(r"^  (loaded|mis-shaped|missing|unused) +(\d+)$", caplog.text, re.M)}
    assert rows["missing"] == rows["unused"] == 0
    assert 0 < rows["mis-shaped"] <= 8 < rows["loaded"]  # the output convolutions, which have another class_num


@pytest.mark.parametrize("method", [name for name in METHODS if name != "VF"])
def test_a_resumed_reconstruction_goes_on_with_the_stream(scans: Path, tmp_path: Path, caplog, method: str):
    """Four iterations at once, and two and two more; without a validation set, with a worker."""
    caplog.set_level(logging.INFO)

    def losses(**training) -> list[str]:
        caplog.clear()
        changes = {"training": {"lr_step": 100, "overwrite": True, **training}, "dataset": {"num_worker": 1}}
        pretraining_agent(parsed(tmp_path / "a.cfg", config(method, UNET, scans, tmp_path, **changes))).run()
        return re.findall(r"train/valid loss ([\d.]+)/nan", caplog.text)

    whole = losses(iter_max=4)
    first = losses(iter_max=2)
    rest = losses(iter_max=4, ckpt_init_name="pretrain_2.pt", ckpt_init_mode=1)
    assert len(whole) == 4 and first + rest == whole


@pytest.mark.parametrize("method", METHODS)
def test_preview_and_check(scans: Path, tmp_path: Path, method: str):
    cfg = write_cfg(tmp_path / "a.cfg", config(method, NETWORK, scans, tmp_path))
    assert main(["check", str(cfg)]) == 0
    assert main(["preview", str(cfg), "--out", str(tmp_path / "a.png"), "--sample", "3"]) == 0
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_several_channels_are_restored_one_by_one(scans: Path, tmp_path: Path):
    (tmp_path / "two.csv").write_text("a,b\nscan_0.nii.gz,scan_1.nii.gz\nscan_2.nii.gz,scan_3.nii.gz\n")
    changes = {
        "dataset": {"train_csv": tmp_path / "two.csv", "modal_num": 2},
        "network": {"in_chns": 2, "class_num": 2},
    }
    pretraining_agent(parsed(tmp_path / "a.cfg", config("MIM", UNET, scans, tmp_path, **changes))).run()
    assert (tmp_path / "pretrain" / "pretrain_2.pt").is_file()


@pytest.mark.parametrize(
    ("method", "transform"), [("ModelGenesis", "InOutPainting"), ("PatchSwapping", "PatchSwaping")]
)
def test_methods_of_pymic_train_our_network_without_a_validation(
    scans: Path, tmp_path: Path, caplog, method, transform
):
    caplog.set_level(logging.INFO)
    steps = ["NormalizeWithMeanStd", "RandomCrop", "SelfReconstructionLabel", transform]
    crop = {"RandomCrop_output_size": [16, 32, 32], "RandomCrop_foreground_focus": False, "train_label": False,
            "PatchSwaping_patch_size": [4, 8, 8], "InOutPainting_block_size": [4, 8, 8]}  # fmt: skip
    changes = {
        "dataset": {"train_transform": steps, "VF_crop_size": None, **crop},
        "self_supervised_learning": {"method_name": method},
        "training": {"iter_max": 2, "iter_valid": 2},
    }
    stock = merged(config("MIM", NETWORK, scans, tmp_path), changes)
    SelfSupMethodDict[method](parsed(tmp_path / "a.cfg", stock)).run()
    assert re.search(r"train/valid loss [\d.]+/nan", caplog.text)
    assert (tmp_path / "pretrain" / "pretrain_2.pt").is_file()
