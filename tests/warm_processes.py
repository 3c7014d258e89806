"""Processes for runs that are to be killed: forked from one that has imported PyMIC already, so a start is cheap."""

from __future__ import annotations

import logging
import multiprocessing
import os
import sys
from pathlib import Path

# what PyMIC's commands import too, once for all processes
from test_training_steps import agent_of

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload([__name__])
# where the warm process looks for these modules: it knows nothing of pytest's paths
os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])


def start(config: dict, folder: Path) -> multiprocessing.Process:
    """Train by a config in a process group of its own; what it prints goes to ``folder/output.txt``."""
    process = _context.Process(target=_train, args=(config, folder))
    process.start()
    return process


def _train(config: dict, folder: Path) -> None:
    os.setsid()
    multiprocessing.set_start_method("fork", force=True)  # of its own workers, as in a command
    output = (folder / "output.txt").open("a")
    os.dup2(output.fileno(), 1)
    os.dup2(output.fileno(), 2)
    logging.basicConfig(stream=sys.stdout, level=logging.INFO, format="%(message)s", force=True)
    agent_of(config, folder).run()
