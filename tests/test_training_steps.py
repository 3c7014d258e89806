"""A run that is interrupted anywhere and goes on ends with the weights of one that was not."""

from __future__ import annotations

import logging
import os
import re
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from pymic.net_run.agent_seg import SegmentationAgent

import pymic_vf
from pymic_vf.errors import UserError
from pymic_vf.host.agents import pretraining_agent
from pymic_vf.host.training_steps import mean_scalars

from conftest import NETWORK, finetuning, merged, parsed, pretraining

pymic_vf.register()

UNET = {**dict.fromkeys(NETWORK), "net_type": "UNet", "dimension": 3, "in_chns": 1, "class_num": 2,
        "feature_chns": [2, 4, 8, 16, 16], "dropout": [0.2] * 5, "multiscale_pred": False}  # fmt: skip
# six iterations in two blocks, two batches an epoch, validations that draw random numbers too
STEPS = {"iter_max": 6, "iter_valid": 3, "iter_save": 3, "resume": "auto", "deep_supervise": False}


def unet_run(scans: Path, out: Path, **training) -> dict:
    dataset = {
        "train_csv": out / "four.csv",
        "valid_csv": scans / "labelled.csv",
        "num_worker": 0,
        "valid_transform": ["NormalizeWithMeanStd", "RandomCrop", "LabelToProbability"],
    }
    rows = [f"scan_{k}.nii.gz,scan_{k}_lab.nii.gz\n" for k in range(4)]
    (out / "four.csv").write_text("image,label\n" + "".join(rows))
    return finetuning(scans, out, dataset=dataset, network=UNET, training={**STEPS, **training})


def pct_run(scans: Path, out: Path, **training) -> dict:
    steps = {**STEPS, "iter_max": 2, "iter_valid": 2, "iter_save": 2, "deep_supervise": True, **training}
    network = {"dropout": [0.2] * 5}
    return merged(unet_run(scans, out), {"network": {**dict.fromkeys(UNET), **NETWORK, "class_num": 2, **network},
                                         "dataset": {"num_worker": 2, "valid_csv": None}, "training": steps})  # fmt: skip


def vf_run(scans: Path, out: Path, **training) -> dict:
    dataset = {"num_worker": 1, "valid_csv": scans / "pretrain.csv", "valid_samples": 2}
    network = {**UNET, "class_num": 5}
    return pretraining(scans, out, dataset=dataset, network=network, training={**STEPS, **training})


RUNS = {"UNet": unet_run, "PCTNet": pct_run, "VF": vf_run}


def agent_of(config: dict, folder: Path):
    config = parsed(folder / "a.cfg", config)
    Path(config["training"]["ckpt_dir"]).mkdir(exist_ok=True)  # as pymic_train does
    return pretraining_agent(config) if "self_supervised_learning" in config else SegmentationAgent(config)


def train(config: dict, folder: Path, stop_at: int | None = None) -> None:
    """Run an agent; with `stop_at`, SIGTERM comes while so many losses have been computed, in validations too."""
    agent = agent_of(config, folder)
    computed, loss_of = 0, agent.get_loss_value

    def counted(*args):
        nonlocal computed
        computed += 1
        if computed == stop_at:
            os.kill(os.getpid(), signal.SIGTERM)
        return loss_of(*args)

    agent.get_loss_value = counted
    if stop_at is None:
        agent.run()
        return
    with pytest.raises(SystemExit) as stopped:
        agent.run()
    assert stopped.value.code == 75


def assert_same(one: Path, two: Path) -> None:
    """The checkpoints of two runs, but for their names of the run and the time: weights, moments, random numbers."""
    names = sorted(path.name for path in one.iterdir() if path.suffix in (".pt", ".txt") and "log" not in path.name)
    assert names == sorted(p.name for p in two.iterdir() if p.suffix in (".pt", ".txt") and "log" not in p.name)
    for name in names:
        if name.endswith(".txt"):
            assert (one / name).read_text() == (two / name).read_text(), name
        else:
            a, b = (torch.load(folder / name, weights_only=False) for folder in (one, two))
            assert _equal(_comparable(a), _comparable(b)), name


def _comparable(content: dict) -> dict:
    state = {**content.pop("pymic_vf")["state"], "run": None}
    for rank in state["ranks"]:
        for scalars, _ in rank["steps"]:
            for name in [name for name in scalars if name.endswith("_time")]:
                del scalars[name]
    return {**content, "state": state}


def _equal(a, b) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_equal(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(_equal, a, b))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


@pytest.fixture(scope="module")
def undisturbed(scans, tmp_path_factory):
    """The folder of each run of `RUNS`, by name, made when it is first asked for."""
    made: dict[str, Path] = {}

    def folder(name: str) -> Path:
        if name not in made:
            out = tmp_path_factory.mktemp(name)
            config = RUNS[name](scans, out)
            train(config, out)
            made[name] = Path(config["training"]["ckpt_dir"])
        return made[name]

    return folder


@pytest.mark.parametrize(
    ("name", "stops"),
    [
        ("UNet", [2, 2]),  # within a block, then in the validation at its end
        ("UNet", [1, 1, 1, 1, 2, 1, 1, 1, 1]),  # again and again
        ("VF", [5, 1]),
        ("PCTNet", [1]),
    ],
)
def test_an_interrupted_run_ends_like_one_that_was_not(scans, tmp_path, undisturbed, name, stops):
    config = RUNS[name](scans, tmp_path)
    for stop_at in stops:
        train(config, tmp_path, stop_at)
        assert list(Path(config["training"]["ckpt_dir"]).glob("*_resume.pt"))
    train(config, tmp_path)
    assert_same(undisturbed(name), Path(config["training"]["ckpt_dir"]))
