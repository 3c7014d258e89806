"""SIGTERM and SIGUSR1 at every stage: the status says "submit again", workers end, and nothing is lost."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from test_training_steps import RUNS, assert_same
from warm_processes import start

from conftest import merged, write_cfg

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


def wait_until_gone(group: int) -> None:
    """All processes of a group have ended; workers that were left look for their parent every five seconds."""
    end = time.monotonic() + 30
    with contextlib.suppress(ProcessLookupError):
        while time.monotonic() < end:
            os.killpg(group, 0)
            time.sleep(0.05)
        raise AssertionError(f"processes of group {group} are left")


def stop_again_and_again(name: str, scans: Path, tmp_path: Path, steps: int) -> None:
    """A run that gets a signal a little later each time, to itself or to its workers too, and its undisturbed twin."""
    folders = []
    for twin in ("whole", "stopped"):
        (tmp_path / twin).mkdir()
        config = RUNS[name](scans, tmp_path / twin)
        folders.append(Path(config["training"]["ckpt_dir"]))
        if twin == "whole":
            process = start(config, tmp_path / twin)
            process.join(120)
            begin = time.monotonic()
            again = {"overwrite": True, "resume": None, "max_bad_steps": 10}
            process = start(merged(config, {"training": again}), tmp_path / twin)
            process.join(120)
            assert process.exitcode == 0
            longest = time.monotonic() - begin
    output, ends = tmp_path / "stopped" / "output.txt", []
    for step in range(steps):
        before = output.stat().st_size if output.is_file() else 0
        process = start(config, tmp_path / "stopped")
        process.join(longest * (step + 0.5) / steps)
        number, is_for_all = SIGNALS[step % 2], step % 3 == 0
        with contextlib.suppress(ProcessLookupError):
            (os.killpg if is_for_all else os.kill)(process.pid, number)
        process.join(60)
        text = output.read_text()[before:] if output.is_file() else ""
        assert process.exitcode in (0, 75) or (process.exitcode == -number and "training start" not in text), text[
            -3000:
        ]
        assert "Traceback" not in text
        wait_until_gone(process.pid)
        ends.append(process.exitcode)
        if process.exitcode == 0 and 75 in ends:
            break
        if process.exitcode == 0:  # the machine was busy when the time was taken: anew, with earlier signals
            shutil.rmtree(folders[1])
            longest /= 4
    assert 75 in ends, ends
    process = start(config, tmp_path / "stopped")
    process.join(120)
    assert process.exitcode == 0
    assert_same(*folders)


STAGES = ("", "training start", "it 3")  # a run has begun when it prints these


def test_signals_at_every_stage(scans, tmp_path):
    config = RUNS["UNet"](scans, tmp_path, iter_max=60)
    output = tmp_path / "output.txt"
    for number, stage in zip((signal.SIGTERM, signal.SIGUSR1, signal.SIGTERM), STAGES, strict=True):
        before = output.stat().st_size if output.is_file() else 0
        process = start(config, tmp_path)
        end = time.monotonic() + 60
        while not (output.is_file() and stage in output.read_text()[before:]) and time.monotonic() < end:
            time.sleep(0.01)
        os.kill(process.pid, number)
        process.join(60)
        text = output.read_text()[before:]
        assert process.exitcode in ((75,) if stage else (75, -number)), text[-3000:]
        assert "Traceback" not in text
        wait_until_gone(process.pid)
    saved = torch.load(tmp_path / "finetune" / "finetune_resume.pt", weights_only=True)
    assert saved["iteration"] >= 3


@pytest.mark.long
@pytest.mark.parametrize("name", ["UNet", "VF", "PCTNet"])
def test_many_signals_at_every_stage(name, scans, tmp_path):
    stop_again_and_again(name, scans, tmp_path, 25)


def _signalled(command: list, cfg: Path, log: Path) -> subprocess.Popen:
    """Start a command and send it SIGTERM after its first block."""
    with log.open("w") as output:
        process = subprocess.Popen([*command, cfg], stdout=output, stderr=subprocess.STDOUT,
                                   env={**os.environ, "OMP_NUM_THREADS": "1"})  # fmt: skip
    end = time.monotonic() + 300
    while "training/validation time" not in log.read_text() and process.poll() is None and time.monotonic() < end:
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    process.wait(120)
    return process


@pytest.mark.long
def test_the_command(scans, tmp_path):
    config = RUNS["VF"](scans, tmp_path, iter_max=300)
    log = tmp_path / "log.txt"
    command = Path(sys.executable).with_name("pymic_train")
    assert _signalled([command], write_cfg(tmp_path / "a.cfg", config), log).returncode == 75
    text = log.read_text()
    assert "SIGTERM: saved after iteration" in text and "submit the run again to go on (exit status 75)" in text
    assert "Traceback" not in text


@pytest.mark.long
def test_processes_stop_together(scans, tmp_path):
    config = RUNS["VF"](scans, tmp_path, iter_max=300)
    log = tmp_path / "log.txt"
    bin_folder = Path(sys.executable).parent
    command = [bin_folder / "torchrun", "--standalone", "--nproc_per_node=2", "--no-python", bin_folder / "pymic_train"]
    _signalled(command, write_cfg(tmp_path / "a.cfg", config), log)
    saved = torch.load(tmp_path / "pretrain" / "pretrain_resume.pt", weights_only=True)
    assert len(saved["pymic_vf"]["state"]["ranks"]) == 2
    assert "saved after iteration" in log.read_text()
