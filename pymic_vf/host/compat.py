"""Repairs of PyMIC 0.6.2, one function a gap.

Each takes the PyMIC module that it mends, changes only what crashed or silently failed there, and does nothing where
the gap is not. The plug-in calls them when PyMIC's modules are imported.
"""

from __future__ import annotations

import builtins
import configparser
import contextlib
import errno
import functools
import inspect
import io
import logging
import os
import re
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, TracebackType
from typing import IO, Any

import torch

from pymic_vf.errors import ConfigError, UserError
from pymic_vf.files import open_whole
from pymic_vf.host.processes import is_other_rank
from pymic_vf.host.runs.whole_outputs import DISK_ERRORS
from pymic_vf.host.weights import checkpoint
from pymic_vf.host.weights.checkpoint_file import allow_numpy_scalars
from pymic_vf.plugin import VERBOSE

log = logging.getLogger(__name__)


class _TorchForAgents(ModuleType):
    """torch as one PyMIC module sees it: torch itself but for the few functions that a repair puts here."""

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


def _torch_of(host: ModuleType) -> ModuleType:
    if not isinstance(host.torch, _TorchForAgents):
        host.torch = _TorchForAgents("torch")
    return host.torch


@functools.cache
def _say_once(message: str) -> None:
    log.warning(message)


def use_available_device(host: ModuleType) -> None:
    """PyMIC names ``cuda:N`` literally and cannot run without CUDA: run on the CPU there, and say so.

    Not on Apple's MPS: PyMIC's sliding window multiplies by float64 maps, which MPS does not have.
    """

    def device(name: Any, *args: Any) -> torch.device:
        wanted = torch.device(name, *args)
        if wanted.type != "cuda":
            return wanted
        if not torch.cuda.is_available():
            _say_once("\n*** No CUDA device: running on the CPU, which is very much slower. ***\n")
            return torch.device("cpu")
        if (wanted.index or 0) >= torch.cuda.device_count():
            raise UserError(
                f"gpus = [{wanted.index}]: this machine has {torch.cuda.device_count()} CUDA device(s), numbered from 0"
            )
        return wanted

    _torch_of(host).device = device


def save_checkpoints_whole(host: ModuleType) -> None:
    """PyMIC overwrites checkpoints in place, so a kill leaves a torn one: write aside, then rename.

    The same for ``_best.txt`` and ``_latest.txt``, which name the checkpoint to test with.
    """
    _torch_of(host).save = checkpoint.save_whole
    host.open = open_whole


def let_rank_zero_write(host: ModuleType) -> None:
    """Under ``torchrun`` every process would write the same files: those of rank zero are enough."""
    if not is_other_rank():
        return
    _torch_of(host).save = lambda *_, **__: None
    host.open = _open_nothing_to_write
    host.SummaryWriter = functools.partial(host.SummaryWriter, write_to_disk=False)


def _open_nothing_to_write(file: Any, mode: str = "r", *args: Any, **options: Any) -> IO:
    return builtins.open(os.devnull if "w" in mode else file, mode, *args, **options)  # noqa: PTH123


def let_rank_zero_log(host: ModuleType) -> None:
    """Under ``torchrun`` every process would log the same lines into one file: the others only print their warnings."""
    if is_other_rank():
        logging.getLogger().addHandler(logging.NullHandler())  # with it, PyMIC's basicConfig does nothing
        host.wrtie_config = lambda *_: None


def load_checkpoints_safely(host: ModuleType) -> None:
    """torch >= 2.6 refuses the numpy scalar in PyMIC's checkpoints: allow that type, keep the protection."""
    _torch_of(host).load = checkpoint.load


def load_weights_alone(host: ModuleType) -> None:
    """PyMIC's helpers for files of weights leave it to torch's version whether code in them runs: it never does."""
    allow_numpy_scalars()
    _torch_of(host).load = lambda *args, **options: torch.load(*args, **{**options, "weights_only": True})


def allow_no_validation_set(host: ModuleType) -> None:
    """Without ``valid_csv`` PyMIC reads a ``valid_loader`` that nothing set; its ``validation`` then expects None."""
    if not hasattr(host.NetRunAgent, "valid_loader"):
        host.NetRunAgent.valid_loader = None


_FLOAT = re.compile(r"[+-]?(\d+\.\d*|\.\d+|\d+(?=[eE]))([eE][+-]?\d+)?")


def parse_every_float(host: ModuleType) -> None:
    """PyMIC reads ``1.5e-3`` and ``1E-3`` as text and fails on ``.5``: read them as numbers."""
    stock: Callable[[str], bool] = host.is_float

    @functools.wraps(stock)
    def is_float(text: str) -> bool:
        try:
            return bool(_FLOAT.fullmatch(text)) or stock(text)
        except IndexError:  # '.5' is above; '.x' is a text
            return False

    host.is_float = is_float


def show_user_errors_plainly(_host: ModuleType) -> None:
    """PyMIC's commands end in a traceback whatever the cause: show a user's mistake as its message alone.

    The exit status stays 1, and the message also goes to the run's log file.
    """
    previous = sys.excepthook
    if getattr(previous, "shows_user_errors", False):
        return

    def excepthook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        message = _message_for_users(error, trace)
        if message is None:
            previous(kind, error, trace)
            return
        message = f"\nError: {message}"
        print(message, file=sys.stderr)
        record = logging.LogRecord(__name__, logging.ERROR, __file__, 0, message, None, None)
        for handler in logging.getLogger().handlers:
            if isinstance(handler, logging.FileHandler):
                handler.handle(record)

    excepthook.shows_user_errors = True
    sys.excepthook = excepthook


def print_config_once(host: ModuleType) -> None:
    """PyMIC's commands print every key as they parse it, ``pymic_test`` the whole config besides, and then log it: the
    log is enough. ``PYMIC_VF_VERBOSE=1`` leaves it as it was."""
    if os.environ.get(VERBOSE):
        return
    stock: Callable = host.parse_config

    @functools.wraps(stock)
    def parse_config(args: Any) -> dict[str, Any]:
        with contextlib.redirect_stdout(io.StringIO()):
            return stock(args)

    host.parse_config = parse_config
    host.print = lambda *what, **options: None if isinstance(what[0], dict) else builtins.print(*what, **options)


# PyMIC's commands read sections, keys and names of methods before any agent is there to check them
UNUSABLE_FILES = (
    errno.ENOENT, errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG,
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG,
)  # fmt: skip
COMMANDS = ("pymic.net_run.train", "pymic.net_run.predict", "pymic.util.parse_config")


def _message_for_users(error: BaseException, trace: TracebackType | None) -> str | None:
    """What to say instead of a traceback; None where the error is no mistake of a user that we know."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, OSError) and error.errno in DISK_ERRORS and _is_of_writing(trace):
        return (
            f"{error.filename or 'a file'} cannot be written ({error.strerror}): make room there, or choose another "
            "folder (ckpt_dir, output_dir)"
        )
    if isinstance(error, configparser.Error):
        return f"the config file cannot be parsed: {error}"
    if isinstance(error, OSError) and error.filename is not None and error.errno in UNUSABLE_FILES:
        return f"{os.fsdecode(error.filename)}: {error.strerror}"
    if isinstance(error, KeyError) and str(error.args[0]).startswith("File not found: "):  # PyMIC's reader of images
        return str(error.args[0])
    frames = traceback.extract_tb(trace)
    if not frames or frames[-1].filename not in [getattr(sys.modules.get(name), "__file__", "") for name in COMMANDS]:
        return None
    if isinstance(error, KeyError):
        return f"the config has no section, key or method {error.args[0]!r}, which PyMIC needs"
    return str(error) if isinstance(error, ValueError) else None


def _is_of_writing(trace: TracebackType | None) -> bool:
    """Whether an error of the file system comes from what PyMIC's commands or its agents' loops write."""
    writers = {"makedirs", "mkdir", "_open", "open_whole", "close_and_rename", "whole_file", "basicConfig"}
    return any(frame.name in writers for frame in traceback.extract_tb(trace))


def allow_no_validation_of_reconstructions(host: ModuleType) -> None:
    """Without ``valid_csv`` PyMIC's reconstructions iterate over None, and without ``[testing]`` they lack the section:
    a validation of nothing has a loss that is no number, which is never the best."""
    stock: Callable = host.ReconstructionAgent.validation

    @functools.wraps(stock)
    def validation(agent: Any) -> dict[str, Any]:
        agent.config.setdefault("testing", {})
        return {"loss": float("nan")} if agent.valid_loader is None else stock(agent)

    host.ReconstructionAgent.validation = validation


def explain_missing_checkpoint(host: ModuleType) -> None:
    """``pymic_test`` before any checkpoint was written ends in a bare FileNotFoundError: say what is missing."""
    stock: Callable = host.NetRunAgent.get_checkpoint_name

    @functools.wraps(stock)
    def get_checkpoint_name(agent: Any) -> Any:
        _check_checkpoint_of_test(agent.config)
        try:
            return stock(agent)
        except FileNotFoundError as error:
            raise UserError(
                f"no {Path(error.filename)}: with [testing] ckpt_mode = {agent.config['testing']['ckpt_mode']} "
                "(0 latest, 1 best) that file names the checkpoint to use, and training has not written it; "
                "_best exists only after a validation"
            ) from error

    host.NetRunAgent.get_checkpoint_name = get_checkpoint_name


def _check_checkpoint_of_test(config: dict[str, dict[str, Any]]) -> None:
    """What PyMIC's choice of a checkpoint to test with takes for granted.

    Raises:
        UserError: a key is missing or of another kind, or the file that names an iteration is none.
    """
    testing, training = config["testing"], config.get("training", {})
    mode, name = testing.get("ckpt_mode"), testing.get("ckpt_name")
    if mode is None:
        raise UserError("[testing] ckpt_mode is missing: 0 the latest, 1 the best, 2 a file, 3 a list of files")
    if mode == 3 and not (isinstance(name, (list, tuple)) and name and all(isinstance(each, str) for each in name)):
        raise UserError(f"[testing] ckpt_name must be a list of files where ckpt_mode = 3, got {name!r}")
    if mode not in (0, 1, 3) and not isinstance(name, str):
        raise UserError(f"[testing] ckpt_name must be the name of a file where ckpt_mode = {mode!r}, got {name!r}")
    if mode in (0, 1) and isinstance(folder := training.get("ckpt_dir"), str):
        prefix = training.get("ckpt_prefix") or folder.split("/")[-1]
        note = Path(folder) / f"{prefix}_{'best' if mode else 'latest'}.txt"
        if os.path.lexists(note):
            checkpoint.read_note(note)


def check_configs_of_our_network(host: ModuleType) -> None:
    """PyMIC finds a wrong path or a missing key one at a time, by traceback: where a network of ours is to learn from
    labels, or is tested, all at once. Other ways of training are PyMIC's to check."""
    stock: Callable = host.SegmentationAgent.create_dataset

    @functools.wraps(stock)
    def create_dataset(agent: Any) -> None:
        from pymic_vf.host.settings.checks import (  # needs PyMIC's registries, complete by now
            check_supervised,
            is_supervised,
        )
        from pymic_vf.networks import network_of

        own_data = agent.train_set is not None or agent.test_set is not None
        is_ours = network_of(agent.config.get("network", {})) is not None
        if is_ours and not own_data and (agent.stage == "test" or is_supervised(agent.config)):
            check_supervised(agent.config, agent.stage, is_next=True)
        stock(agent)

    host.SegmentationAgent.create_dataset = create_dataset


def offer_fast_inference(host: ModuleType) -> None:
    """Opt-in, ``[testing] sliding_window_inferer = fast``: PyMIC computes each clamped window several times, one at a
    time in validation; give its agents our inferer instead of theirs."""
    stock: Callable = host.SegmentationAgent.create_network

    @functools.wraps(stock)
    def create_network(agent: Any) -> None:
        from pymic_vf.host.inference import inferer_for

        stock(agent)
        if agent.inferer is None:
            agent.inferer = inferer_for(agent.config, "valid" if agent.stage == "train" else "test")

    host.SegmentationAgent.create_network = create_network


def run_networks_as_asked(host: ModuleType) -> None:
    """Opt-in, ``[network] precision``, ``compile`` or ``activation_checkpointing``: for any 3D network of PyMIC."""
    stock: Callable = host.SegmentationAgent.create_network

    @functools.wraps(stock)
    def create_network(agent: Any) -> None:
        from pymic_vf.host.execution import EXECUTION_KEYS, configure_execution, read_execution
        from pymic_vf.keys import Section

        stock(agent)
        network = Section(agent.config["network"], "network", [])
        if not any(key.name in network for key in EXECUTION_KEYS):
            return
        gpus = agent.config["training" if agent.stage == "train" else "testing"].get("gpus")
        values = read_execution(network, gpus)
        if network.mistakes:
            raise ConfigError(network.mistakes)
        configure_execution(agent.net, **values)

    host.SegmentationAgent.create_network = create_network


def build_unetr_with_todays_monai(host: ModuleType) -> None:
    """PyMIC's UNETR gives MONAI's ViT the argument ``pos_embed``, whose name has been ``proj_type`` since MONAI 1.4."""
    stock: Callable = host.ViT
    if "pos_embed" in inspect.signature(stock).parameters:
        return

    @functools.wraps(stock, updated=())
    def vit(*args: Any, pos_embed: str, **options: Any) -> torch.nn.Module:
        return stock(*args, proj_type=pos_embed, **options)

    host.ViT = vit


def explain_lack_of_memory(host: ModuleType) -> None:
    """A training or a test that runs out of memory ends in torch's traceback, from wherever it happened: for what is
    ours, say what to change."""
    agent = getattr(host, "ReconstructionAgent", host.SegmentationAgent)
    for name, learns in (("training", True), ("validation", False), ("infer", False)):
        if name in vars(agent):
            setattr(agent, name, _memory_explained(vars(agent)[name], learns))


def _memory_explained(stock: Callable, learns: bool) -> Callable:
    @functools.wraps(stock)
    def run(agent: Any) -> Any:
        try:
            return stock(agent)
        except RuntimeError as error:
            from pymic_vf.host.memory_advice import is_advised, is_lack_of_memory, memory_advice

            ours = is_advised(agent.config) or type(agent).__module__.startswith("pymic_vf.")
            if not (ours and is_lack_of_memory(error)):
                raise
            raise UserError(f"{memory_advice(agent.config, learns)} {error}") from error

    return run
