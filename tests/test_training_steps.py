"""A run that is interrupted anywhere and goes on ends with the weights of one that was not."""

from __future__ import annotations

import logging
import os
import re
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from pymic.net_run.agent_seg import SegmentationAgent

import pymic_vf
from pymic_vf.errors import UserError
from pymic_vf.host.agents import pretraining_agent
from pymic_vf.host.runs import iteration_file
from pymic_vf.host.runs.scalars import mean_scalars

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
    network = {**dict.fromkeys(UNET), **NETWORK, "class_num": 2, "dropout": [0.2] * 5}
    dataset = {"num_worker": 2, "valid_csv": None}
    return merged(unet_run(scans, out), {"network": network, "dataset": dataset, "training": steps})


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
        pytest.param("UNet", [1, 1, 1, 1, 2, 1, 1, 1, 1], marks=pytest.mark.long),  # again and again
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


def test_the_loop_gives_what_pymic_alone_does(scans, tmp_path, undisturbed, caplog, monkeypatch):
    """The same weights and log lines as without any key of ours, whose network is then none of ours to watch."""
    monkeypatch.setattr(iteration_file, "SECONDS", 0)
    caplog.set_level(logging.INFO)
    stock = unet_run(scans, tmp_path, resume=None)
    agent = agent_of(stock, tmp_path)
    agent.run()
    assert not hasattr(agent, "stop_signals")
    lines = _scalars_logged(caplog.text)
    ours = torch.load(undisturbed("UNet") / "finetune_6.pt", weights_only=True)
    theirs = torch.load(tmp_path / "finetune" / "finetune_6.pt", weights_only=False)
    assert "pymic_vf" not in theirs
    for name in ("model_state_dict", "optimizer_state_dict", "iteration"):
        assert _equal(ours[name], theirs[name])
    caplog.clear()
    (tmp_path / "again").mkdir()
    monkeypatch.setenv(iteration_file.VARIABLE, str(tmp_path / "iteration.txt"))
    train(unet_run(scans, tmp_path / "again"), tmp_path / "again")
    assert iteration_file.read_iteration(tmp_path / "iteration.txt") == 6
    assert _scalars_logged(caplog.text) == lines != []


def _scalars_logged(text: str) -> list[str]:
    return re.findall(r"(?:train|valid) loss .*|The best .*|learning rate .*", text)


def test_mean_of_a_block():
    steps = [{"loss": loss, "avg_fg_dice": 0.0, "class_dice": np.float32([0.5, dice]), "data_time": 1.0}
             for loss, dice in ((1.0, 0.25), (3.0, 0.75), (float("nan"), 0.0))]  # fmt: skip
    mean = mean_scalars([(steps[0], False), (steps[1], False), (steps[2], True)])
    assert (mean["loss"], mean["data_time"], mean["avg_fg_dice"]) == (2.0, 2.0, 0.5)
    assert mean["class_dice"].tolist() == [0.5, 0.5] and mean["class_dice"].dtype == np.float32
    assert np.isnan(mean_scalars([(steps[2], True)])["loss"])


def test_a_finished_run_is_left_as_it_is(scans, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    config = unet_run(scans, tmp_path, iter_max=3)
    train(config, tmp_path)
    folder = tmp_path / "finetune"
    before = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.pt")}
    assert set(before) == {"finetune_3.pt", "finetune_best.pt"}
    (folder / "finetune_latest.txt").unlink()  # as a kill may leave it
    (folder / ".incomplete-abc.pt").write_bytes(b"half a checkpoint")
    shutil.copy(folder / "finetune_best.pt", folder / "finetune_resume_before.pt")
    train(config, tmp_path)
    assert {path.name: path.stat().st_mtime_ns for path in folder.glob("*.pt")} == before
    assert (folder / "finetune_latest.txt").read_text() == "3"
    assert "this run has reached iter_max = 3; there is nothing left to do" in caplog.text


def test_another_runs_checkpoints_are_not_replaced_unasked(scans, tmp_path):
    train(unet_run(scans, tmp_path, iter_max=3), tmp_path)
    with pytest.raises(
        UserError, match=r"another run \(finetune_3\.pt, finetune_best\.pt\).*resume = auto.*overwrite = True"
    ):
        train(unet_run(scans, tmp_path, iter_max=3, resume=None, max_bad_steps=5), tmp_path)
    with pytest.raises(UserError, match="checkpoints of another run"):  # of another network, with resume = auto
        config = unet_run(scans, tmp_path, iter_max=3)
        train(merged(config, {"network": {"feature_chns": [4, 4, 8, 16, 16]}}), tmp_path)
    train(unet_run(scans, tmp_path, iter_max=3, resume=None, max_bad_steps=5, overwrite=True), tmp_path)


def test_damaged_checkpoints_are_passed_over(scans, tmp_path, undisturbed, caplog):
    config = unet_run(scans, tmp_path)
    train(config, tmp_path, 4 + 2)  # after the validation: finetune_3.pt, finetune_best.pt, finetune_resume.pt
    folder = tmp_path / "finetune"
    newest = folder / "finetune_resume.pt"
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 4
    newest.write_bytes(content)
    train(config, tmp_path)
    assert re.search(r"resume = auto: .*finetune_resume\.pt.*(damaged|passed over)", caplog.text)
    assert_same(undisturbed("UNet"), folder)


def test_resuming_by_name_is_as_exact(scans, tmp_path, undisturbed):
    train(unet_run(scans, tmp_path, iter_max=3), tmp_path)
    resumed = {"resume": None, "max_bad_steps": 10, "ckpt_init_name": "finetune_3.pt", "ckpt_init_mode": 1}
    train(unet_run(scans, tmp_path, **resumed), tmp_path)
    assert_same(undisturbed("UNet"), tmp_path / "finetune")
    with pytest.raises(UserError, match="another iter_valid than 2"):
        train(unet_run(scans, tmp_path, **resumed, iter_valid=2, iter_save=2), tmp_path)


def test_checkpoint_minutes(scans, tmp_path, caplog):
    """Zero: after every iteration; the one before is kept, and neither outlives the run."""
    config = unet_run(scans, tmp_path, checkpoint_minutes=0)
    train(config, tmp_path, 3)
    folder = tmp_path / "finetune"
    newest, before = (
        torch.load(folder / f"finetune_{name}.pt", weights_only=True) for name in ("resume", "resume_before")
    )
    assert (newest["iteration"], before["iteration"]) == (3, 2)
    provenance = newest["pymic_vf"]["provenance"]
    assert provenance["config"]["training"]["iter_max"] == 6 and provenance["method"] is None
    assert provenance["data"]["scans"] == 4 and len(provenance["data"]["fingerprint"]) == 64
    train(config, tmp_path)
    assert not list(folder.glob("*resume*"))
