"""Whatever happens to the files of a cache while a fine-tuning reads them, its samples stay the same; a damaged scan or
label is named and set aside."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from pymic.net_run.agent_seg import SegmentationAgent

import pymic_vf
from pymic_vf.data.labelled_samples import LabelledSamples
from pymic_vf.host.cached_sets import cached_sets

from conftest import finetuning, make_scan, parsed, write_volume

pymic_vf.register()
KEYS = {
    "num_worker": 0,
    "train_transform": ["NormalizeWithMeanStd", "Pad", "RandomCrop", "RandomFlip", "LabelToProbability"],
    "Pad_output_size": [20, 40, 40],
    "RandomCrop_foreground_focus": True,
    "RandomFlip_flip_depth": False,
    "RandomFlip_flip_height": True,
    "RandomFlip_flip_width": True,
    "max_bad_fraction": 0.5,
}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    (tmp_path / "volumes").mkdir()
    rows = [(f"{index}.nii.gz", f"{index}_lab.nii.gz") for index in range(3)]
    for index, row in enumerate(rows):
        for name, voxels in zip(row, make_scan(index), strict=True):
            write_volume(tmp_path / "volumes" / name, voxels)
    pd.DataFrame(rows, columns=["image", "label"]).to_csv(tmp_path / "labelled.csv", index=False)
    return tmp_path


def samples(data: Path) -> LabelledSamples:
    config = finetuning(data, data, dataset={**KEYS, "cache_dir": data / "cache"})
    return cached_sets(SegmentationAgent(parsed(data / "a.cfg", config)))["train"]


def same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return all(np.array_equal(a[key], b[key]) for key in ("image", "label"))


def damage(path: Path, rng: np.random.Generator) -> None:
    """Flip a byte, cut the file off, empty it, remove it, or put another one of the cache in its place."""
    content = bytearray(path.read_bytes())
    kind = rng.integers(5)
    if kind == 0:
        content[rng.integers(len(content))] ^= 1 + rng.integers(255)
    elif kind == 1:
        content = content[: rng.integers(len(content))]
    elif kind == 2:
        content = b""
    elif kind == 3:
        path.unlink()
        return
    else:
        others = sorted(path.parent.parent.glob(f"*/*{path.suffix}"))
        content = others[rng.integers(len(others))].read_bytes()
    path.write_bytes(content)


def test_damage_to_the_cache_changes_no_sample(data: Path, request: pytest.FixtureRequest):
    data_set = samples(data)
    expected = [data_set[number] for number in range(9)]
    rng = np.random.default_rng(0)
    for turn in range(400 if request.config.getoption("--long") else 40):
        files = sorted((data / "cache").glob("*/*"))
        for _ in range(rng.integers(1, 4)):
            if (path := files[rng.integers(len(files))]).is_file() and path.stat().st_size:
                damage(path, rng)
        if turn % 3 == 0:
            data_set = samples(data)  # as after a restart; otherwise a worker that has the files open
        number = int(rng.integers(9))
        assert same(data_set[number], expected[number]), f"turn {turn}, sample {number}"


@pytest.mark.parametrize("name", ["1.nii.gz", "1_lab.nii.gz"])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.999])
def test_a_file_that_is_cut_off_is_set_aside(data: Path, name: str, share: float):
    path = data / "volumes" / name
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    data_set = samples(data)
    made = [data_set[number] for number in range(9)]
    named = {index: reason for sample in made for index, reason in sample.get("bad_scans", {}).items()}
    assert list(named) == [1] and str(path) in named[1]
    assert all(same(sample, samples(data)[number]) for number, sample in enumerate(made))


def test_a_label_that_is_replaced_while_it_is_used(data: Path):
    """By one of another image: from then on its voxels, and never a mixture of both."""
    data_set = samples(data)
    before = [data_set[number]["label"].sum() for number in range(9)]
    path = data / "volumes" / "0_lab.nii.gz"
    with gzip.open(path, "rb") as file:
        content = file.read()
    path.write_bytes(gzip.compress(content[:352] + bytes(len(content) - 352)))
    after = [data_set[number]["label"].sum() for number in range(9)]
    changed = [number for number in range(9) if before[number] != after[number]]
    assert changed and all(after[number] == 0 for number in changed)
