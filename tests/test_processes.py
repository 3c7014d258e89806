"""Several processes, as torchrun starts them, train what one process trains."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch

from conftest import merged, pretraining, write_cfg

TORCHRUN = (
    "torchrun",
    "--standalone",
    "--nproc_per_node=2",
    "--no-python",
    Path(sys.executable).with_name("pymic_train"),
)
# double, so that what remains is the order of the sums; Adam makes much of that in float32, where biases in front of a
# batch normalisation have gradients of nothing but rounding
DOUBLE = {"dataset": {"tensor_type": "double", "train_batch_size": 4}, "network": {"dropout": [0] * 5}}
TOLERANCE = 1e-9


def config(scans: Path, folder: Path, **changes):
    validated = {"valid_csv": scans / "pretrain.csv", "valid_samples": 3}
    base = pretraining(scans, folder, **merged(DOUBLE, changes))
    base["training"]["ckpt_dir"] = folder / "run"
    return merged(base, {"dataset": validated})


@pytest.fixture(scope="module")
def trained(run, scans, tmp_path_factory):
    """Four iterations in one process and in two: {processes: (folder, output)}."""
    made = {}
    for processes, command in ((1, ("pymic_train",)), (2, TORCHRUN)):
        folder = tmp_path_factory.mktemp(f"processes_{processes}")
        cfg = config(scans, folder, training={"iter_max": 4, "iter_valid": 2, "iter_save": 2})
        made[processes] = folder / "run", run(*command, write_cfg(folder / "vf.cfg", cfg))
    return made


def differences(one: Path, two: Path) -> float:
    """The largest difference of weights, batch statistics and the optimizer's moments."""
    one, two = (torch.load(path, weights_only=False) for path in (one, two))
    assert one["iteration"] == two["iteration"]
    pairs = [(one["model_state_dict"], two["model_state_dict"])]
    states = [each["optimizer_state_dict"]["state"] for each in (one, two)]
    pairs += [(states[0][key], states[1][key]) for key in states[0]]
    for a, b in pairs:
        assert list(a) == list(b)
    return max((a[name].double() - b[name].double()).abs().max().item() for a, b in pairs for name in a)


@pytest.mark.parametrize("checkpoint", ["run_2.pt", "run_4.pt", "run_best.pt"])
def test_two_processes_train_what_one_does(trained, checkpoint):
    assert differences(*(trained[n][0] / checkpoint for n in (1, 2))) < TOLERANCE


def test_one_process_writes_and_logs(trained):
    one, two = (sorted(path.name for path in trained[n][0].iterdir()) for n in (1, 2))
    assert [name for name in two if not name.startswith(("events", "log_train"))] == [
        name for name in one if not name.startswith(("events", "log_train"))
    ]
    for kind in ("events", "log_train"):
        assert sum(name.startswith(kind) for name in two) == 1
    text = trained[2][1].stdout
    assert "2 processes train one network (gloo)" in text or torch.cuda.is_available()
    for line in ("deterministric is true", "Volume Fusion of 4 scans", "it 4", "waited for data"):
        assert text.count(line) == trained[1][1].stdout.count(line)
    losses = ([line for line in trained[n][1].stdout.splitlines() if " loss " in line] for n in (1, 2))
    assert next(losses) == next(losses) != []


def test_a_checkpoint_of_two_goes_on_in_one(run, scans, trained, tmp_path):
    start = {"ckpt_init_name": trained[2][0] / "run_2.pt", "ckpt_init_mode": 1}
    training = {"iter_max": 4, "iter_valid": 2, "iter_save": 2, **start}
    for name, command in (("one", ("pymic_train",)), ("two", TORCHRUN)):
        (tmp_path / name).mkdir()
        run(*command, write_cfg(tmp_path / "vf.cfg", config(scans, tmp_path / name, training=training)))
    assert differences(*(tmp_path / name / "run" / "run_4.pt" for name in ("one", "two"))) < TOLERANCE


def test_a_mistake_is_reported_once(run, scans, tmp_path):
    cfg = config(scans, tmp_path, dataset={"train_batch_size": 3}, training={"iter_valid": 0})
    done = run(*TORCHRUN, write_cfg(tmp_path / "vf.cfg", cfg), status=1)
    rule = "[dataset] train_batch_size must be a multiple of the 2 processes, which share each batch, got 3"
    assert done.stderr.count(rule) == 1
    assert done.stderr.count("[training] iter_valid must be") == 1


def test_bad_scans_of_all_processes_are_written_down_once(run, scans, tmp_path):
    volumes = tmp_path / "volumes"
    shutil.copytree(scans / "volumes", volumes)
    rows = pd.read_csv(scans / "pretrain.csv")
    broken = (volumes / rows.image[3]).read_bytes()
    (volumes / rows.image[3]).write_bytes(broken[: len(broken) // 2])
    dataset = {"train_dir": volumes, "max_bad_fraction": 0.5, "num_worker": 0}
    cfg = merged(config(scans, tmp_path, dataset=dataset), {"dataset": {"valid_csv": None}})
    run(*TORCHRUN, write_cfg(tmp_path / "vf.cfg", cfg))
    written = pd.read_csv(tmp_path / "run" / "unusable_scans.csv")
    assert written.image.tolist() == [str(volumes / rows.image[3])]


@pytest.mark.long
def test_batch_norm_of_all_compiles_without_a_break(run):
    script = Path(__file__).with_name("compiled_batch_norm.py")
    done = run("torchrun", "--standalone", "--nproc_per_node=2", script)
    assert done.stdout.count("equal") == 2


@pytest.mark.long
def test_a_reconstruction_in_two_processes_is_that_of_one(run, scans, tmp_path):
    reconstruction = {
        "dataset": {"task_type": "rec", "train_transform": None, "valid_csv": None, "MIM_block_size": [4, 8, 8]},
        "self_supervised_learning": {"method_name": "MIM"},
        "network": {"class_num": 1, "multiscale_pred": False},
        "training": {"loss_type": "MAELoss", "loss_weight": None, "deep_supervise": False},
    }
    for name, command in (("one", ("pymic_train",)), ("two", TORCHRUN)):
        (tmp_path / name).mkdir()
        cfg = merged(config(scans, tmp_path / name), reconstruction)
        run(*command, write_cfg(tmp_path / name / "mim.cfg", cfg))
    assert differences(*(tmp_path / name / "run" / "run_2.pt" for name in ("one", "two"))) < TOLERANCE
