"""What the network will be shown: one sample of a user's own pretraining config and data, as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pymic_vf.data.samples import Samples
from pymic_vf.demo.pictures import draw_sample
from pymic_vf.host.agents import pretraining_agent


def draw_preview(config: dict[str, dict[str, Any]], number: int, path: Path) -> None:
    """Draw sample `number` of a pretraining config, before the transforms after the method.

    Args:
        config: as PyMIC parses it.
        number: of the training stream, from 0.
        path: the PNG.

    Raises:
        ConfigError: the config's mistakes.
        UnusableScanError: a scan of this sample cannot be read.
    """
    agent = pretraining_agent(config)
    method = agent.plan.method
    samples: Samples = agent.get_stage_dataset_from_config("train")
    crops, sample = samples.crops(number), samples.method_sample(number)
    names = method.class_names(agent.config["network"]["in_chns"]) if sample["label"].dtype.kind == "u" else []
    draw_sample(method.panels(crops, sample), names, path, method.title)
