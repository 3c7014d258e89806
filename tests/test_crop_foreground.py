"""Crops that hold some of the body: ``crop_min_foreground``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import pymic_vf
from pymic_vf.cli import main
from pymic_vf.data.samples import Samples
from pymic_vf.host.agents import pretraining_agent

from conftest import parsed, pretraining, write_cfg, write_volume

pymic_vf.register()
SIZE = (24, 64, 64)
CROP = [16, 32, 32]
BODY = 0.3


@pytest.fixture(scope="module")
def patients(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three scans of air of -1000 HU with a body of 0 to 60 HU in another corner of each."""
    folder = tmp_path_factory.mktemp("patients")
    (folder / "volumes").mkdir()
    names = [f"{index}.nii.gz" for index in range(3)]
    for index, name in enumerate(names):
        rng = np.random.default_rng(index)
        voxels = rng.normal(-1000, 8, SIZE)
        corner = (slice(None), slice(36, None) if index % 2 else slice(28), slice(36, None) if index else slice(28))
        voxels[corner] = rng.uniform(0, 60, voxels[corner].shape)
        write_volume(folder / "volumes" / name, voxels.astype(np.int16))
    pd.DataFrame({"image": names}).to_csv(folder / "pretrain.csv", index=False)
    return folder


def samples(patients: Path, out: Path, method: str = "VF", **dataset: Any) -> Samples:
    changes = {
        "dataset": {"num_worker": 0, "volume_transform": ["NormalizeWithMeanStd"], **dataset},
        "self_supervised_learning": {"method_name": method},
    }
    if method != "VF":
        changes["dataset"] |= {"task_type": "rec", "train_transform": [method], "MIM_block_size": [4, 8, 8]}
        changes["network"] = {"class_num": 1, "multiscale_pred": False}
        changes["training"] = {"loss_type": "MAELoss", "loss_weight": None, "deep_supervise": False}
    agent = pretraining_agent(parsed(out / "a.cfg", pretraining(patients, out, **changes)))
    return agent.get_stage_dataset_from_config("train")


def shares(data: Samples) -> list[float]:
    """Of body in each crop, which is the brighter part of a normalised volume."""
    return [float((crop > 0).mean()) for number in range(40) for crop in data.crops(number)]


@pytest.mark.parametrize("threshold", [None, -500, "Otsu"])
@pytest.mark.parametrize("cached", [True, False])
def test_every_crop_holds_the_share_asked_for(patients: Path, tmp_path: Path, cached: bool, threshold: Any):
    anywhere = shares(samples(patients, tmp_path))
    assert min(anywhere) < BODY / 3  # crops of air are what the key is for
    keys = {"crop_min_foreground": BODY, "cache_dir": tmp_path / "cache" if cached else None}
    held = shares(samples(patients, tmp_path, **keys, crop_foreground_threshold=threshold))
    assert min(held) >= BODY
    # a crop that held enough anyway is the same one
    assert [new for old, new in zip(anywhere, held, strict=True) if old >= BODY] == [s for s in anywhere if s >= BODY]
    assert len(list((tmp_path / "cache").glob("*/*.otsu.json"))) == (3 if cached and threshold != -500 else 0)


def test_the_same_for_every_method(patients: Path, tmp_path: Path):
    assert min(shares(samples(patients, tmp_path, "MIM"))) < BODY / 3
    assert min(shares(samples(patients, tmp_path, "MIM", crop_min_foreground=BODY))) >= BODY


def test_cached_or_not_and_in_any_order_the_samples_are_the_same(patients: Path, tmp_path: Path):
    plain = samples(patients, tmp_path, crop_min_foreground=BODY)
    cached = samples(patients, tmp_path, crop_min_foreground=BODY, cache_dir=tmp_path / "cache")
    again = samples(patients, tmp_path, crop_min_foreground=BODY, cache_dir=tmp_path / "cache")
    for number in (5, 1, 3):
        for other in (cached, again):
            assert np.array_equal(plain[number]["image"], other[number]["image"])


def test_a_share_that_no_crop_has_takes_the_best_of_a_hundred(patients: Path, tmp_path: Path):
    best = shares(samples(patients, tmp_path, crop_min_foreground=1))
    # at most 28 of a crop's 32 rows and columns are body; at least 20 of both in 9 of 33 places along each of the two
    # axes, which 100 draws miss with a probability of 4e-4
    assert (20 / 32) ** 2 <= min(best) <= max(best) <= (28 / 32) ** 2


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"crop_min_foreground": 1.5}, "crop_min_foreground must be a number from 0 to 1, got 1.5"),
        ({"crop_foreground_threshold": -500}, "crop_foreground_threshold needs crop_min_foreground, got -500"),
        ({"crop_min_foreground": 0.2, "crop_foreground_threshold": "ostu"}, "must be a number or one of otsu"),
        ({"crop_min_foreground": 0.2, "crop_foreground_threshold": -500, "Rescale_output_size": [20, 40, 40],
          "volume_transform": ["NormalizeWithMeanStd", "Rescale"]},
         "crop_foreground_threshold must be otsu where volume_transform changes intensities and then the geometry"),
    ],
)  # fmt: skip
def test_mistakes(patients: Path, tmp_path: Path, capsys, keys: dict, message: str):
    assert main(["check", str(write_cfg(tmp_path / "a.cfg", pretraining(patients, tmp_path, dataset=keys)))]) == 1
    assert message in capsys.readouterr().err
