"""A look at what the network will be shown: one fused sample of a user's own config and data."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from pymic_vf.demo.pictures import draw_fusion
from pymic_vf.host.agents import VolumeFusionAgent


class _Recorded:
    """A fusion transform that keeps what it was given."""

    def __init__(self, fuse: Any) -> None:
        self.fuse = fuse

    def __call__(self, sample: dict[str, Any]) -> dict[str, Any]:
        self.background, self.foreground = sample["image"].copy(), sample["image_foreground"].copy()
        return self.fuse(sample)


def draw_preview(config: dict[str, dict[str, Any]], number: int, path: Path) -> None:
    """Draw sample `number` of a pretraining config as in figure 2 of the paper, before the transforms after ``VF``.

    Args:
        config: as PyMIC parses it.
        number: of the training stream, from 0.
        path: the PNG.

    Raises:
        ConfigError: the config's mistakes.
        UnusableScanError: a scan of this sample cannot be read.
    """
    agent = VolumeFusionAgent(config)
    samples = agent.get_stage_dataset_from_config("train")
    recorded = _Recorded(samples.transforms.fuse)
    samples.transforms = replace(samples.transforms, fuse=recorded, after=())
    sample = samples[number]
    classes, label = agent.plan.train.fusion.classes, sample["label"][0]
    draw_fusion(
        recorded.background[0], recorded.foreground[0], label / classes, sample["image"][0], label, classes, path
    )
