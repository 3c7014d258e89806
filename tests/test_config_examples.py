"""The example configs: no key that nothing reads, and the paper's values where they promise them."""

from __future__ import annotations

import configparser
import re
from functools import cache
from pathlib import Path

import pymic
import pytest

import pymic_vf

EXAMPLES = Path(__file__).parents[1] / "config_examples"
CONFIGS = sorted(EXAMPLES.rglob("*.cfg"))


@cache
def texts_in_the_code() -> set[str]:
    """Every quoted text of PyMIC and of this package, in lower case."""
    found: set[str] = set()
    for package in (pymic, pymic_vf):
        for file in Path(package.__file__).parent.rglob("*.py"):
            found.update(re.findall(r"""["']([\w ]+)["']""", file.read_text().lower()))
    return found


def read(path: Path) -> configparser.ConfigParser:
    config = configparser.ConfigParser()
    config.read(path)
    return config


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: str(path.relative_to(EXAMPLES)))
def test_every_key_is_read(path: Path):
    config = read(path)
    # keys that PyMIC and the settings of PCT-Net make of parts: train_ + dir, and the names of dataclass fields
    made = {f"{stage}_{what}" for stage in ("train", "valid", "test") for what in ("dir", "csv", "transform")}
    # an override of a comparison ends with the key: pretrain.SECTION.KEY
    keys = [key.rsplit(".", 1)[-1] for name in config.sections() for key in config[name]]
    unread = [key for key in keys if key not in texts_in_the_code() | made]
    assert not unread


def test_there_are_the_promised_ones():
    names = {str(path.relative_to(EXAMPLES)) for path in CONFIGS}
    assert {"pretrain_vf.cfg", "pretrain_mim.cfg", "finetune.cfg", "evaluation.cfg"} <= names
    assert {f"{task}/{name}.cfg" for task in ("quickstart", "left_atrium", "head_neck")
            for name in ("pretrain_vf", "finetune", "evaluation")} <= names  # fmt: skip


def test_the_papers_settings():
    config = read(EXAMPLES / "pretrain_vf.cfg")
    dataset, network, training = config["dataset"], config["network"], config["training"]
    assert dataset["crop_size"] == "[64, 128, 128]" and dataset["VF_foreground_classes"] == "4"
    assert dataset["VF_patch_number"] == "[10, 40]" and dataset["train_batch_size"] == "4"
    assert (dataset["VF_patch_size_min"], dataset["VF_patch_size_max"]) == ("[8, 8, 8]", "[40, 80, 80]")
    assert network["feature_chns"] == "[24, 48, 128, 256, 512]"
    assert (training["optimizer"], training["learning_rate"], training["weight_decay"]) == ("Adam", "1e-3", "1e-5")
    assert (training["iter_max"], training["lr_step"], training["lr_gamma"]) == ("100000", "20000", "0.5")
    training = read(EXAMPLES / "finetune.cfg")["training"]
    assert (training["iter_max"], training["lr_step"], training["lr_gamma"]) == ("30000", "5000", "0.5")
