"""``ckpt_init_name``: what PyMIC's agents load from a checkpoint, said in a table, and more of it where asked for."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import Tensor, nn

from pymic_vf.errors import ConfigError, UserError
from pymic_vf.host.processes import is_other_rank
from pymic_vf.host.weights.channel_inflation import INFLATION_KEY, inflate
from pymic_vf.host.weights.state_dicts import without_outer_name
from pymic_vf.host.weights.weight_report import FILE, WeightReport, compare_weights, fits
from pymic_vf.keys import Section

log = logging.getLogger(__name__)


def report_loaded_weights(host: ModuleType) -> None:
    """PyMIC drops weights that do not fit without a word, and logs each name that does: log a short table instead.

    For a network of ours, weights of which nothing fits are an error.
    """
    agent_class = getattr(host, "ClassificationAgent", None) or host.SegmentationAgent
    stock: Callable = agent_class.load_pretrained_weights

    @functools.wraps(stock)
    def load_pretrained_weights(agent: Any, network: Any, pretrained_dict: Mapping, device_ids: list[int]) -> None:
        net = network.module if len(device_ids) > 1 else network
        weights, report = select_weights(net, pretrained_dict, agent.config["network"])
        training = agent.config["training"]
        _tell(report, net, training)
        learned = {name for name, _ in net.named_parameters()}
        if type(net).__module__.startswith("pymic_vf.") and not learned.intersection(report.loaded):
            raise UserError(
                f"ckpt_init_name = {training.get('ckpt_init_name')}: none of its {len(pretrained_dict)} weights fits "
                f"{type(net).__name__}, which would start from random weights; {FILE} has every name"
            )
        with _without_list_of_names(stock.__name__):
            stock(agent, network, weights, device_ids)

    agent_class.load_pretrained_weights = load_pretrained_weights


def select_weights(
    net: nn.Module, given: Mapping[str, Tensor], network: Mapping[str, Any]
) -> tuple[dict[str, Tensor], WeightReport]:
    """The weights that fit, as the section [network] says, and what becomes of all of them.

    Raises:
        ConfigError: ``in_chns_inflate`` is neither True nor False.
    """
    section = Section(network, "network", [])
    is_inflated = section.read_key(INFLATION_KEY)
    if section.mistakes:
        raise ConfigError(section.mistakes)
    wanted = _tensors(net.get_parameters_to_load() if hasattr(net, "get_parameters_to_load") else net.state_dict())
    explain = getattr(net, "explain_mismatch", lambda _name: None)
    given = without_outer_name(_tensors(given), wanted)
    class_num, in_chns = (_channels(network.get(name)) for name in ("class_num", "in_chns"))
    inflated: list[str] = []
    if is_inflated and in_chns:
        given, inflated = inflate(given, wanted, in_chns)
    report = replace(compare_weights(given, wanted, explain, class_num, in_chns), inflated=inflated)
    return {name: weight for name, weight in given.items() if name in wanted and fits(weight, wanted[name])}, report


def _tensors(weights: Mapping[str, Any]) -> dict[str, Tensor]:
    """Without the extra state of a module, which may be anything."""
    return {name: weight for name, weight in weights.items() if isinstance(weight, Tensor)}


def _channels(value: Any) -> int | None:
    return value if isinstance(value, int) else None  # PyMIC's networks of several outputs have lists


def explain_unfitting_weights(host: ModuleType) -> None:
    """A test whose checkpoint is another network's ends in torch's traceback with every name: say what does not fit."""
    agent_class = getattr(host, "ClassificationAgent", None) or host.SegmentationAgent
    stock: Callable = agent_class.infer

    @functools.wraps(stock)
    def infer(agent: Any) -> Any:
        agent.get_checkpoint_name()  # which says what is wrong with the choice of a checkpoint
        agent.net.load_state_dict = functools.partial(_load_all, agent.net, agent.net.load_state_dict)
        try:
            return stock(agent)
        finally:
            del agent.net.load_state_dict  # that of this object, which hid the class's

    agent_class.infer = infer


def _load_all(net: nn.Module, load: Callable, weights: Mapping[str, Tensor], *args: Any, **options: Any) -> Any:
    """`load_state_dict` of a network; where it is none of its checkpoint, a table of why.

    Raises:
        UserError: weights of other names, shapes or of whole numbers.
    """
    _fitting, report = select_weights(net, weights, {})
    cause = None
    if not report.mis_shaped:
        try:
            return load(without_outer_name(weights, net.state_dict()), *args, **options)
        except RuntimeError as error:
            cause = error
    title = f"the checkpoint to test with is not of this {type(net).__name__}; [network] must be as in its training:"
    raise UserError(report.table(title)) from cause


def _tell(report: WeightReport, net: nn.Module, training: Mapping[str, Any]) -> None:
    title = f"Weights of {training.get('ckpt_init_name')} for {type(net).__name__}"
    if training.get("ckpt_init_mode") and not (report.mis_shaped or report.missing or report.unused):
        log.info("%s: all %d loaded", title, len(report.loaded))  # a resumed run, whose folder is as it was
        return
    level = logging.INFO if not (report.mis_shaped or report.missing) else logging.WARNING
    log.log(level, report.table(f"{title} (every name: {FILE} in ckpt_dir):"))
    if not is_other_rank():
        report.write(Path(training["ckpt_dir"]), title)


@contextmanager
def _without_list_of_names(function: str) -> Iterator[None]:
    """Hide what PyMIC's function of that name logs: a line for each weight, of which the table has told."""
    root = logging.getLogger()  # to which PyMIC logs

    def is_shown(record: logging.LogRecord) -> bool:
        return record.funcName != function or record.levelno > logging.INFO

    root.addFilter(is_shown)
    try:
        yield
    finally:
        root.removeFilter(is_shown)
