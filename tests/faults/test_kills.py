"""A run that is killed again and again, at any moment, ends with the weights of one that was not."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from pathlib import Path

import pytest
from test_training_steps import RUNS, assert_same
from warm_processes import start

from conftest import merged

ALONE, WITH_WORKERS = os.kill, os.killpg


def config_of(name: str, scans: Path, out: Path) -> dict:
    """A run that saves after every iteration; a pretraining has a worker and fills a cache."""
    config = RUNS[name](scans, out, checkpoint_minutes=0)
    return merged(config, {"dataset": {"cache_dir": out / "cache" if name == "VF" else None}})


def kill_until_it_ends(config: dict, out: Path, longest: float, moments: random.Random, most: int) -> int:
    """Start a run again until it ends by itself; returns how often it was killed, no more than `most` times."""
    kills = 0
    while True:
        process = start(config, out)
        process.join(moments.uniform(0, longest) if kills < most else 120)
        if process.exitcode is not None:
            assert process.exitcode == 0, (out / "output.txt").read_text()[-3000:]
            return kills
        assert kills < most, "it hangs"
        with contextlib.suppress(ProcessLookupError):  # it may have had no time to make a group
            moments.choice((ALONE, WITH_WORKERS))(process.pid, signal.SIGKILL)
        process.join(20)
        kills += process.exitcode == -signal.SIGKILL


def kill(name: str, scans: Path, tmp_path: Path, count: int) -> None:
    """Runs that are killed `count` times in all, each compared with one that was not killed."""
    for folder in ("whole", "killed"):
        (tmp_path / folder).mkdir()
    whole = config_of(name, scans, tmp_path / "whole")
    process = start(whole, tmp_path / "whole")  # its start also starts the warm process
    process.join(120)
    assert process.exitcode == 0, (tmp_path / "whole" / "output.txt").read_text()[-3000:]
    begin = time.monotonic()
    again = merged(whole, {"training": {"overwrite": True, "resume": None}})
    start(again, tmp_path / "whole").join(120)
    longest = time.monotonic() - begin
    moments, kills, runs = random.Random(count), 0, 0
    while kills < count:
        out = tmp_path / "killed" / str(runs)
        out.mkdir()
        config = config_of(name, scans, out)
        kills += kill_until_it_ends(config, out, longest, moments, count - kills)
        folder, undisturbed = (Path(each["training"]["ckpt_dir"]) for each in (config, whole))
        assert_same(undisturbed, folder)
        assert not [path for path in folder.iterdir() if "incomplete" in path.name or "resume" in path.name]
        runs += 1
    print(f"{name}: {kills} kills of {runs} runs of {longest:.1f} s, all bit-identical to the one that was not killed")


def test_a_killed_run_ends_bit_identical(scans: Path, tmp_path: Path):
    kill("VF", scans, tmp_path, 3)


@pytest.mark.long
@pytest.mark.parametrize("name", ["UNet", "VF"])
def test_many_killed_runs_end_bit_identical(name, scans: Path, tmp_path: Path):
    kill(name, scans, tmp_path, 75)
