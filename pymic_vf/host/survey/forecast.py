"""What a training will take: one batch forward and backward, and from it memory, hours and gigabytes.

Nothing is written into the run's own folders: the batch is made without the cache, from a copy of the config.
"""

from __future__ import annotations

import copy
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pymic import TaskType
from pymic.net_run.agent_rec import ReconstructionAgent
from pymic.net_run.agent_seg import SegmentationAgent
from pymic.net_run.get_optimizer import get_optimizer
from torch.utils.data import DataLoader

from pymic_vf.data.cache_folder import GIB
from pymic_vf.data.loader import SampleLoader, SampleNumbers
from pymic_vf.data.scan_survey import VolumeFacts
from pymic_vf.host.agents import Pretraining, pretraining_agent
from pymic_vf.host.settings.checks import method_name_of
from pymic_vf.host.survey.findings import FAIL, PASS, WARN, Findings
from pymic_vf.methods.method import SEGMENTATION

LONG_SECONDS = 30  # an iteration that took longer is not run twice
CACHED_SECONDS = 0.005  # a crop from the cache, see benchmarks/sample_throughput.py
MEMORY_SHARE = 0.8  # of the machine's memory

Config = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Batch:
    """What one batch showed.

    Args:
        loss: of the last iteration.
        step: seconds of its forward and backward pass and the optimizer.
        sample: seconds that making one sample took, without the cache.
        device: where it ran.
        peak: bytes that it took there at most: of CUDA, or of this process.
        checkpoint: bytes of a checkpoint: weights and the state of the optimizer.
    """

    loss: float
    step: float
    sample: float
    device: str
    peak: int
    checkpoint: int


def try_a_batch(config: Config) -> Batch:
    """Make a batch, and two iterations of the training with it.

    Raises:
        UserError: what is wrong with the data or the settings, found only now.
        Exception: whatever a network or a transform raises.
    """
    config = _copied(config)
    with tempfile.TemporaryDirectory() as folder, _random_state_kept():
        config["training"]["ckpt_dir"] = folder
        agent = _agent(config)
        loader = _loader(agent, config)
        start = time.monotonic()
        batch = next(iter(loader))
        sample = (time.monotonic() - start) / config["dataset"]["train_batch_size"]
        return _measured(agent, batch, sample)


def _copied(config: Config) -> Config:
    """The config without what would read or write elsewhere: one iteration from random weights, on one GPU."""
    config = {section: dict(copy.deepcopy(values)) for section, values in config.items()}
    for name in ("cache_dir", "vf_cache_dir", "cache_max_gib", "vf_cache_max_gib"):
        config["dataset"].pop(name, None)
    for name in ("ckpt_init_name", "ckpt_init_mode", "iter_save", "early_stop_patience", "resume"):
        config["training"].pop(name, None)
    config["training"].update(iter_max=1, iter_valid=1, gpus=config["training"]["gpus"][:1])
    config.setdefault("testing", {})
    return config


def _agent(config: Config) -> SegmentationAgent:
    if method_name_of(config):
        return pretraining_agent(config)
    is_rec = config["dataset"]["task_type"] == TaskType.RECONSTRUCTION
    return (ReconstructionAgent if is_rec else SegmentationAgent)(config, "train")


def _loader(agent: SegmentationAgent, config: Config) -> Any:
    data, size = agent.get_stage_dataset_from_config("train"), config["dataset"]["train_batch_size"]
    if not isinstance(agent, Pretraining):
        return DataLoader(data, batch_size=size, shuffle=True, drop_last=True)
    method = agent.plan.method
    classes = len(method.class_names(config["network"]["in_chns"])) if method.task == SEGMENTATION else None
    return SampleLoader(data, SampleNumbers(), size, 0, classes)


def _measured(agent: SegmentationAgent, batch: Mapping[str, Any], sample: float) -> Batch:
    SegmentationAgent.create_network(agent)
    number = agent.config["training"]["gpus"][0]
    agent.device = torch.device(f"cuda:{number}" if torch.cuda.is_available() else "cpu")
    agent.net.to(agent.device)
    parameters = agent.get_parameters_to_update()
    agent.optimizer = get_optimizer(agent.config["training"]["optimizer"], parameters, agent.config["training"])
    agent.create_loss_calculator()
    kind = ReconstructionAgent if isinstance(agent, ReconstructionAgent) else SegmentationAgent
    on_cuda = agent.device.type == "cuda"
    if on_cuda:
        torch.cuda.reset_peak_memory_stats(agent.device)
    for _ in range(2):
        agent.trainIter = iter([dict(batch)])
        start = time.monotonic()
        loss = kind.training(agent)["loss"]  # which waits for the device
        step = time.monotonic() - start
        if step > LONG_SECONDS:
            break
    peak = torch.cuda.max_memory_allocated(agent.device) if on_cuda else _memory_of_this_process()
    name = torch.cuda.get_device_name(agent.device) if on_cuda else f"the CPU ({torch.get_num_threads()} threads)"
    size = _bytes_of((agent.net.state_dict(), agent.optimizer.state_dict()))
    return Batch(float(loss), step, sample, name, int(peak), size)


def _memory_of_this_process() -> int:
    """The most that it had, in bytes; 0 where the system does not say."""
    try:
        import resource
    except ImportError:
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _bytes_of(content: Any) -> int:
    if isinstance(content, torch.Tensor):
        return content.numel() * content.element_size()
    if isinstance(content, Mapping):
        return sum(_bytes_of(each) for each in content.values())
    return sum(map(_bytes_of, content)) if isinstance(content, (list, tuple)) else 0


@contextmanager
def _random_state_kept() -> Iterator[None]:
    """The settings of torch as they were: an agent seeds all generators and asks for deterministic convolutions."""
    before = (torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic)
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = before


def forecast(config: Config, batch: Batch, volumes: Sequence[VolumeFacts], count: int, findings: Findings) -> None:
    """The lines about the run.

    Args:
        config: PyMIC's parsed config.
        batch: what one showed.
        volumes: what was read of some scans.
        count: how many scans there are to train on.
        findings: where the lines go.
    """
    finite = batch.loss == batch.loss and abs(batch.loss) != float("inf")
    findings.add(
        PASS if finite else FAIL,
        f"one batch forward and backward on {batch.device}: loss {batch.loss:.4g}, {batch.step:.3g} s",
    )
    _memory_lines(config, batch, volumes, findings)
    _time_line(config, batch, findings)
    _disk_lines(config, batch, volumes, count, findings)


def _memory_lines(config: Config, batch: Batch, volumes: Sequence[VolumeFacts], findings: Findings) -> None:
    if torch.cuda.is_available():
        total = torch.cuda.get_device_properties(config["training"]["gpus"][0]).total_memory
        tight = batch.peak > 0.9 * total
        findings.add(WARN if tight else PASS, f"device memory: {batch.peak / GIB:.3g} of {total / GIB:.3g} GiB at most")
    else:
        findings.add(PASS, f"memory of this process, network and one batch: {batch.peak / GIB:.3g} GiB at most")
    sizes = [each.extra for each in volumes if each.extra]
    workers, total = config["dataset"].get("num_worker", 8), _machine_memory()
    if not sizes or not total:
        return
    # a volume as it is in the file, as float32, and a transform's copy of it
    each = 4 * max(sizes)
    wanted = max(workers, 1) * each
    findings.add(
        WARN if wanted > MEMORY_SHARE * total else PASS,
        f"memory: {workers} workers of about {each / GIB:.3g} GiB, of {total / GIB:.3g} GiB in this machine",
    )


def _machine_memory() -> int:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return 0


def _time_line(config: Config, batch: Batch, findings: Findings) -> None:
    training, dataset = config["training"], config["dataset"]
    workers, size, last = dataset.get("num_worker", 8), dataset["train_batch_size"], training["iter_max"]
    is_cached = _cache_dir(config) is not None
    sample = min(batch.sample, CACHED_SECONDS) if is_cached else batch.sample
    data = sample * size / max(workers, 1)
    waits = data > batch.step and workers > 0
    seconds = max(batch.step, data) if workers else batch.step + data
    text = (
        f"{seconds:.3g} s an iteration (network {batch.step:.3g}, data {data:.3g} with {workers} workers"
        f"{', once the cache is filled' if is_cached else ''}): about {seconds * last / 3600:.3g} hours for "
        f"{last} iterations, validations not counted"
    )
    hint = ""
    if waits and not is_cached:
        hint = "; the network waits for data: [dataset] cache_dir keeps decoded scans" if method_name_of(config) else (
            "; the network waits for data: more num_worker")  # fmt: skip
    findings.add(WARN if hint else PASS, text + hint)


def _cache_dir(config: Config) -> str | None:
    dataset = config["dataset"]
    return dataset.get("cache_dir") or dataset.get("vf_cache_dir")


def _disk_lines(config: Config, batch: Batch, volumes: Sequence[VolumeFacts], count: int, findings: Findings) -> None:
    training = config["training"]
    save, last = training.get("iter_save"), training["iter_max"]
    kept = len(save) if isinstance(save, (list, tuple)) else last // save if save else 1
    kept += "valid_csv" in config["dataset"]
    free = _free(training["ckpt_dir"])
    wanted = batch.checkpoint * kept
    findings.add(
        FAIL if wanted > free else PASS,
        f"disk of ckpt_dir: {kept} checkpoints of {batch.checkpoint / 2**20:.3g} MiB, {free / GIB:.3g} GiB are free",
    )
    folder, sizes = _cache_dir(config), [each.extra for each in volumes if each.extra]
    if folder is None or not sizes:
        return
    files = [sum(file.stat().st_size for file in each.entry.images) for each in volumes if each.extra]
    size = min(sum(sizes), sum(files)) / len(sizes) * count  # an entry takes no more than its scan's file, or little
    cap = config["dataset"].get("cache_max_gib") or config["dataset"].get("vf_cache_max_gib")
    wanted = min(size, cap * GIB) if cap else size
    free = _free(folder)
    findings.add(
        WARN if wanted > free else PASS,
        f"disk of cache_dir: about {size / GIB:.3g} GiB for {count} scans, {free / GIB:.3g} GiB are free",
    )


def _free(folder: str) -> int:
    there = Path(folder).expanduser().absolute()
    while not there.exists() and there != there.parent:
        there = there.parent
    return shutil.disk_usage(there).free
