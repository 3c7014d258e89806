"""PyMIC's view of Volume Fusion: the transform ``VF``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from pymic.transform.abstract_transform import AbstractTransform

from pymic_vf.host.config import fusion_of
from pymic_vf.methods.volume_fusion import draw_patches, fuse, paint_labels


class VolumeFusion(AbstractTransform):
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
        self.settings = fusion_of(params)

    def __call__(self, sample: dict[str, Any]) -> dict[str, Any]:
        foreground = sample.pop("image_foreground")
        background = sample["image"]
        shape = background.shape[1:]
        rng = np.random.default_rng(np.random.randint(0, 2**32, size=4, dtype=np.uint32))
        patches = draw_patches(rng, shape, self.settings)
        label = paint_labels(patches, shape)
        sample["VF_Param"] = json.dumps(patches)
        sample["image"] = fuse(background, foreground, label, self.settings.classes)
        sample["label"] = label[None]
        return sample
