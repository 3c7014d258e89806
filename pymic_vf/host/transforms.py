"""PyMIC's view of Volume Fusion: the transform ``VF``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from pymic.transform.abstract_transform import AbstractTransform

from pymic_vf.errors import ConfigError
from pymic_vf.host.settings.config_keys import BY_NAME
from pymic_vf.keys import Section
from pymic_vf.methods.volume_fusion import VolumeFusion


class VolumeFusionTransform(AbstractTransform):
    """Fuse ``image_foreground`` into ``image`` (Algorithm 1 of MIS-FM).

    Takes a sample with ``image`` (background) and ``image_foreground``, both float32 [C, D, H, W]; leaves ``image`` =
    X, float32 [C, D, H, W], ``label``, uint8 [1, D, H, W] in 0..K, and ``VF_Param``, the patches that were drawn, as
    JSON (start, size, label); ``image_foreground`` is gone. Randomness comes from numpy's global generator, as in every
    transform of PyMIC.

    Args:
        params: PyMIC's [dataset] section, with the ``VF_`` keys.

    Raises:
        ConfigError: wrong ``VF_`` values.
        ValueError: a sample of another shape than its foreground's, or smaller than the largest patch.
    """

    inverse = False  # PyMIC asks every transform whether predictions have to be turned back

    def __init__(self, params: Mapping[str, Any]) -> None:
        super().__init__(params)
        mistakes: list[str] = []
        dataset = Section(params, "dataset", mistakes)
        values = dataset.read((*VolumeFusion.keys, BY_NAME["crop_size"]))
        VolumeFusion.check(values, values["crop_size"], dataset)
        if mistakes:
            raise ConfigError(mistakes)
        self.method = VolumeFusion(values)

    def __call__(self, sample: dict[str, Any]) -> dict[str, Any]:
        crops = [sample["image"], sample.pop("image_foreground")]
        rng = np.random.default_rng(np.random.randint(0, 2**32, size=4, dtype=np.uint32))
        fused = self.method.sample(crops, rng)
        return {**sample, "image": fused["image"], "label": fused["label"], "VF_Param": json.dumps(fused["patches"])}
