"""The pretraining methods, each a pure file: crops and a generator in, the network's input and target out.

To add one, see docs/adding_a_method.md.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pymic_vf.methods.method import Method

# [self_supervised_learning] method_name, and the class, imported when it is asked for
METHODS = {
    "VF": "pymic_vf.methods.volume_fusion:VolumeFusion",
    "MIM": "pymic_vf.methods.masked_image:MaskedImageModelling",
    "Genesis": "pymic_vf.methods.genesis:ModelGenesis",
    "PatchSwap": "pymic_vf.methods.patch_swap:PatchSwap",
}


def method_class(name: str) -> type[Method]:
    """The class of a method in the table."""
    module, attribute = METHODS[name].split(":")
    return getattr(importlib.import_module(module), attribute)
