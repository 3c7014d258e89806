"""What is wrong with [network]."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pymic.net.net_dict_seg import SegNetDict

from pymic_vf.errors import ConfigError, did_you_mean
from pymic_vf.host.settings.config_keys import (
    NETWORK_KEYS,
)
from pymic_vf.host.settings.known_keys import flat_network
from pymic_vf.host.settings.training_checks import (
    check_classes,
)
from pymic_vf.keys import Section, list_of, whole
from pymic_vf.methods.method import Method
from pymic_vf.networks import Network, network_of

IMAGE_AXES = 3  # of the images of our networks
IMAGE_SIZE = list_of(whole(1), IMAGE_AXES)


def check_pretrained_network(network: Section, method: Method, modalities: int) -> Any:
    """The settings of a network of ours, or None."""
    values = network.read(NETWORK_KEYS)
    net_type, in_chns = values["net_type"], values["in_chns"] or modalities
    if isinstance(net_type, str) and net_type not in SegNetDict:
        network.mistakes.append(f"[network] there is no net_type {net_type}{did_you_mean(net_type, SegNetDict)}")
    outputs = method.class_names(in_chns)
    if values["class_num"] not in (None, len(outputs)):
        network.wrong("class_num", f"must be {len(outputs)} for {method.title} ({', '.join(outputs)})")
    check_classes(network)
    if problem := flat_network(network.values):
        network.mistakes.append(problem)
    if in_chns < modalities:
        network.wrong("in_chns", f"must be at least [dataset] modal_num = {modalities}")
    ours = network_of(network.values)
    return check_settings(network, ours) if ours else None


def check_settings(network: Section, ours: Network) -> Any:
    """The settings of a network of ours; None where they have mistakes, which are noted."""
    try:
        return ours.parse(network.values)
    except ConfigError as error:
        network.mistakes.extend(m for m in error.mistakes if m not in network.mistakes)
        return None


def check_sizes(settings: Any, sizes: Mapping[str, Section]) -> None:
    """Note those of some sizes, by their keys, that a network of ours would refuse in the middle of a run."""
    if not hasattr(settings, "ill_sized_axes"):  # any size fits
        return
    for key, section in sizes.items():
        size = section.get(key)
        if IMAGE_SIZE.fits(size) and (wrong := settings.ill_sized_axes(size)):
            multiples = list(settings.strides[-1])
            section.wrong(key, f"must be multiples of {multiples} for this network: {'; '.join(wrong)}")
