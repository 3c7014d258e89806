"""What the network will be shown: one sample of a user's own pretraining config and data, as a picture; and after
training what the network makes of it."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from pymic_vf.data.orientation import LPS
from pymic_vf.data.samples import Samples
from pymic_vf.data.scan import UnusableScanError
from pymic_vf.data.scan_header import joined_header
from pymic_vf.data.scan_list import ScanList
from pymic_vf.demo.pictures import draw_sample
from pymic_vf.errors import UserError
from pymic_vf.host.agents import Pretraining, pretraining_agent
from pymic_vf.host.answers import answer_of
from pymic_vf.host.weights import checkpoint
from pymic_vf.host.weights.weight_report import compare_weights
from pymic_vf.methods.method import SEGMENTATION, Panel

log = logging.getLogger(__name__)
LOOKED_AT, ENOUGH = 16, 0.5  # samples; the share of a crop that is something


def draw_preview(config: dict[str, dict[str, Any]], number: int | None, path: Path, ckpt: Path | None = None) -> int:
    """Draw sample `number` of a pretraining config, before the transforms after the method, and return the number.

    Args:
        config: as PyMIC parses it.
        number: of the training stream, from 0; None for the first that shows much.
        path: the PNG.
        ckpt: the network's answer is drawn too, with these weights; by default with those of the last checkpoint in
            ckpt_dir, and not at all where there is none, or one that does not fit, which is said.

    Raises:
        ConfigError: the config's mistakes.
        UserError: `ckpt` is no checkpoint of this network.
        UnusableScanError: a scan of this sample cannot be read.
    """
    agent = pretraining_agent(config)
    method = agent.plan.method
    samples: Samples = agent.get_stage_dataset_from_config("train")
    number = _first_that_shows_much(samples) if number is None else number
    crops, sample = samples.crops(number), samples.method_sample(number)
    names = method.class_names(agent.config["network"]["in_chns"]) if sample["label"].dtype.kind == "u" else []
    answer = _answer_panels(agent, sample["image"], ckpt)
    spacing, direction = _geometry(samples, agent.plan.train_scans, number)
    draw_sample([*method.panels(crops, sample), *answer], names, path, method.title, spacing, direction)
    return number


def _geometry(samples: Samples, scans: ScanList, number: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Spacing (z, y, x) and direction of the first crop of a sample; 1 mm and LPS where its file has none.

    A transform of the whole volume may have changed the spacing, as the size tells.
    """
    index = samples.scans_of(number)[0]
    try:
        header, size = joined_header(scans.files(index)), samples.reader.shape(index)[1:]
    except UnusableScanError:  # another stands in for it
        return (1.0, 1.0, 1.0), LPS
    if header.spacing is None:
        return (1.0, 1.0, 1.0), LPS
    sizes = zip(header.spacing, header.size, size, strict=True)
    return tuple(step * before / after for step, before, after in sizes), header.direction


def _first_that_shows_much(samples: Samples) -> int:
    """Of the first samples the one with all classes, whose crops are no more than half of one value, such as air."""
    best, most = 0, (0, 0.0)
    for number in range(LOOKED_AT):
        label = samples.method_sample(number)["label"]
        classes = len(np.unique(label)) if label.dtype.kind == "u" else 0
        tissue = min(float(np.mean(crop > crop.min())) for crop in samples.crops(number))
        if (classes, min(tissue, ENOUGH)) > most:
            best, most = number, (classes, min(tissue, ENOUGH))
    return best


def _answer_panels(agent: Pretraining, image: np.ndarray, ckpt: Path | None) -> list[Panel]:
    """A panel of the network's answer, or nothing."""
    try:
        folder = Path(agent.config["training"]["ckpt_dir"])
        loaded = checkpoint.load(folder / checkpoint.LATEST if ckpt is None else ckpt)
        net = _network(agent, loaded)
    except UserError as error:
        if ckpt is not None:
            raise
        log.info("without the network's answer: %s", error)
        return []
    log.info("with the network's answer, by the weights of %s", loaded.path)
    title = f"iteration {loaded['iteration']}" if "iteration" in loaded else ""
    return [_answer(agent, net, image, title)]


def _network(agent: Pretraining, loaded: checkpoint.Checkpoint) -> nn.Module:
    """The config's network with the checkpoint's weights, for inference.

    Raises:
        UserError: they are not of this network.
    """
    agent.create_network()
    weights = loaded["model_state_dict"]
    report = compare_weights(weights, agent.net.state_dict())
    if report.mis_shaped or report.missing:
        raise UserError(
            f"{loaded.path}: its weights are not of the network of this config: {len(report.mis_shaped)} have another "
            f"shape, {len(report.missing)} are missing, such as {(report.mis_shaped or report.missing)[0]}"
        )
    agent.net.load_state_dict(weights, strict=False)
    return agent.net.eval()


def _answer(agent: Pretraining, net: nn.Module, image: np.ndarray, title: str) -> Panel:
    """What the network makes of `image` [C, D, H, W]: classes over it, or the first channel of its restoration."""
    task = agent.plan.method.task
    answer = answer_of(net, image, task, agent.config["training"].get("loss_acti_func"))
    over = (image[0], answer) if task == SEGMENTATION else (answer,)
    return Panel("network's answer", title, *over)
