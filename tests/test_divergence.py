"""Steps that are not finite are named and left out; too many end the run, and no checkpoint has such weights."""

from __future__ import annotations

import csv
import math
import re
from pathlib import Path

import pytest
import torch
from test_training_steps import STEPS, UNET, agent_of
from torch import nn

import pymic_vf
from pymic_vf.errors import UserError
from pymic_vf.host.processes import Processes
from pymic_vf.host.runs.divergence import StepGuard, is_finite
from pymic_vf.host.runs.run_state import WatchedLoader

from conftest import finetuning, merged, pretraining

pymic_vf.register()


class Batches:
    """Four batches of two images: the third is not finite, the fourth all zeros."""

    def __iter__(self):
        for k in range(4):
            image = torch.full((2, 1, 4, 4, 4), math.nan if k == 2 else float(k % 3))
            image[0] = 1
            yield {"image": image, "names": [(f"a{k}.nii.gz", f"b{k}.nii.gz")]}


def step(net, optimizer, guard, loader, iteration, factor=1.0):
    """An iteration as PyMIC's training() makes it; the loss is `factor` times a mean."""
    loss_of = guard.watch_loss(lambda output: factor * output.square().mean())
    with guard.step(iteration, loader) as bad:
        batch = next(loader)
        optimizer.zero_grad()
        loss_of(net(batch["image"])).backward()
        optimizer.step()
    return bad


def make(tmp_path, most=10):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv3d(1, 2, 1), nn.BatchNorm3d(2))
    optimizer = torch.optim.Adam(net.parameters(), 0.1)
    return net, optimizer, StepGuard(net, optimizer, Processes(), tmp_path / "bad_steps.csv", most)


def copied(net, optimizer):
    moments = [v.clone() for state in optimizer.state_dict()["state"].values() for v in state.values()]
    return {name: value.clone() for name, value in net.state_dict().items()}, moments


def test_a_bad_step_changes_nothing(tmp_path):
    net, optimizer, guard = make(tmp_path)
    loader = iter(WatchedLoader(Batches()))
    assert step(net, optimizer, guard, loader, 1) == step(net, optimizer, guard, loader, 2) == []
    weights, moments = copied(net, optimizer)
    assert step(net, optimizer, guard, loader, 3) == ["nan", "nan"]
    after, moments_after = copied(net, optimizer)
    assert all(torch.equal(weights[name], after[name]) for name in weights)  # running statistics too
    assert all(map(torch.equal, moments, moments_after))
    assert guard.in_a_row == 1
    assert step(net, optimizer, guard, loader, 4) == [] and guard.in_a_row == 0
    assert not torch.equal(weights["0.weight"], net.state_dict()["0.weight"])
    rows = list(csv.reader((tmp_path / "bad_steps.csv").open()))
    assert rows == [
        ["iteration", "loss", "gradient", "sample", "voxels"],
        ["3", "nan", "nan", "a2.nii.gz", "finite"],
        ["3", "nan", "nan", "b2.nii.gz", "not finite"],
    ]


@pytest.mark.parametrize("factor", [math.inf, math.nan])
def test_a_loss_of_any_kind(tmp_path, factor):
    net, optimizer, guard = make(tmp_path)
    assert step(net, optimizer, guard, iter(WatchedLoader(Batches())), 1, factor)[0] == str(factor)


def test_too_many_in_a_row(tmp_path):
    net, optimizer, guard = make(tmp_path, most=2)
    loader = iter(WatchedLoader(Batches()))
    step(net, optimizer, guard, loader, 1, math.inf)
    with pytest.raises(UserError, match=r"at 2 iterations in a row, the last 2.*max_bad_steps = 2.*learning_rate"):
        step(net, optimizer, guard, loader, 2, math.inf)
    guard.close()
    weights, _ = copied(net, optimizer)
    assert is_finite(weights)
    weights["0.bias"][0] = math.inf
    assert not is_finite(weights)


def test_a_diverging_run_ends_and_keeps_its_checkpoints(scans: Path, tmp_path: Path):
    config = finetuning(scans, tmp_path, network=UNET, dataset={"num_worker": 0, "valid_csv": scans / "labelled.csv"},
                        training={**STEPS, "iter_max": 3, "max_bad_steps": 3})  # fmt: skip
    agent_of(config, tmp_path).run()
    folder = tmp_path / "finetune"
    before = {path.name: path.read_bytes() for path in folder.glob("*.pt")}
    weights = torch.load(folder / "finetune_3.pt", weights_only=True)["model_state_dict"]
    next(iter(weights.values()))[:] = 3e38  # finite, and what it makes of an image is not
    torch.save(weights, tmp_path / "wild.pt")
    wild = {"resume": None, "overwrite": True, "ckpt_init_name": "../wild.pt"}
    with pytest.raises(UserError, match="diverged: at 3 iterations in a row, the last 3"):
        agent_of(merged(config, {"training": wild}), tmp_path).run()
    wild["max_bad_steps"] = 4
    agent = agent_of(merged(config, {"training": wild}), tmp_path)
    agent.create_dataset()
    agent.create_network()
    first = next(agent.net.parameters())
    agent.net.register_forward_pre_hook(lambda *_: setattr(first, "data", torch.full_like(first, math.inf)))
    with pytest.raises(UserError, match=r"weights after iteration 3 are not finite numbers: .*_3\.pt is not written"):
        agent.train_valid()
    assert {path.name: path.read_bytes() for path in folder.glob("*.pt")} == before
    rows = list(csv.DictReader((folder / "bad_steps.csv").open()))
    assert rows[0]["iteration"] == "1" and {row["sample"] for row in rows} == {"scan_0.nii.gz", "scan_1.nii.gz"}


def test_a_pretraining_names_scans_and_places(scans: Path, tmp_path: Path):
    """A learning rate of 1e30 takes the network out of float32 in one step."""
    training = {"deep_supervise": False, "iter_max": 5, "learning_rate": "1e30", "max_bad_steps": 2}
    config = pretraining(scans, tmp_path, dataset={"num_worker": 0}, network={**UNET, "class_num": 5},
                         training=training)  # fmt: skip
    with pytest.raises(UserError, match="diverged: at 2 iterations in a row, the last 3"):
        agent_of(config, tmp_path).run()
    rows = list(csv.DictReader((tmp_path / "pretrain" / "bad_steps.csv").open()))
    assert [row["iteration"] for row in rows] == ["2", "2", "3", "3"]
    assert [row["sample"].split(":")[0] for row in rows] == ["sample 2", "sample 3", "sample 4", "sample 5"]
    place = r"\S+scan_\d\.nii\.gz at \[\d+, \d+, \d+\]"
    assert all(re.fullmatch(rf"sample \d: {place}; {place}", row["sample"]) for row in rows)
