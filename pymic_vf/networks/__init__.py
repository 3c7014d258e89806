"""The networks of this package, each by its paper, with the settings that it reads from [network].

To add one: its file, a file of its settings, and a row here.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pymic_vf.keys import Key


@dataclass(frozen=True)
class Network:
    """One row of the table. Nothing is imported before it is asked for.

    Args:
        implementation: "module:class", which imports torch.
        settings: "module:function", which checks [network] and raises ConfigError with every mistake.
        key_rows: "module:name" of its keys.
        outputs: how many it has with `multiscale_pred`.
    """

    implementation: str
    settings: str
    key_rows: str
    outputs: int

    @property
    def parse(self) -> Callable[[Mapping[str, Any]], Any]:
        """Makes its settings of PyMIC's ``config["network"]``."""
        return _load(self.settings)

    @property
    def keys(self) -> tuple[Key, ...]:
        return _load(self.key_rows)


# [network] net_type
NETWORKS = {
    "PCTNet": Network(
        "pymic_vf.networks.pct_net:PCTNet",
        "pymic_vf.networks.pct_net_settings:parse_network_settings",
        "pymic_vf.networks.pct_net_settings:PCT_NET_KEYS",
        outputs=4,
    ),
    "nnFormer": Network(
        "pymic_vf.networks.nnformer:NNFormer",
        "pymic_vf.networks.nnformer_settings:parse_nnformer_settings",
        "pymic_vf.networks.nnformer_settings:NNFORMER_KEYS",
        outputs=3,
    ),
}


def network_of(section: Mapping[str, Any]) -> Network | None:
    """The row of the ``net_type`` of a config's section [network]; None where the network is not one of ours."""
    net_type = section.get("net_type")
    return NETWORKS.get(net_type) if isinstance(net_type, str) else None


def _load(place: str) -> Any:
    module, name = place.split(":")
    return getattr(importlib.import_module(module), name)
