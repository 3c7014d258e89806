"""The recipes for the paper's tasks, on phantoms that have the names, labels and layout of the real downloads."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk

from pymic_vf.compare.checks import check_runs
from pymic_vf.compare.plan import PRETRAINING, make_runs
from pymic_vf.compare.settings import read_settings

from conftest import write_volume

ROOT = Path(__file__).parents[1]
SIZE = (8, 12, 12)
SPLITS = {"segthor": (24, 6, 10), "synapse": (18, 4, 8), "miccai2015_head_neck": (30, 6, 12)}
COMPARISONS = sorted(str(file.relative_to(ROOT)) for file in (ROOT / "config_examples").rglob("compare*.cfg"))


@pytest.fixture(scope="module")
def make_lists() -> ModuleType:
    """The page's Python, as a reader would save it."""
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "recipes.md").read_text(), re.S)
    module = ModuleType("make_lists")
    exec(compile(code, "docs/recipes.md", "exec"), module.__dict__)
    return module


def scan(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(-1000, 1000, SIZE).astype(np.int16)


def thorax(source: Path) -> None:
    for index in range(1, 41):
        patient = source / f"Patient_{index:02d}"
        patient.mkdir(parents=True)
        write_volume(patient / f"{patient.name}.nii.gz", scan(index))
        write_volume(patient / "GT.nii.gz", (np.arange(np.prod(SIZE)) % 5).reshape(SIZE).astype(np.uint8))


def abdomen(source: Path) -> None:
    for name in ("img", "label"):
        (source / name).mkdir(parents=True)
    for index in range(1, 31):
        write_volume(source / "img" / f"img{index:04d}.nii.gz", scan(index))
        label = (np.arange(np.prod(SIZE)) % 14).reshape(SIZE).astype(np.uint8)
        write_volume(source / "label" / f"label{index:04d}.nii.gz", label)


def head_and_neck(source: Path) -> None:
    names = ("BrainStem", "Chiasm", "Mandible", "OpticNerve_L", "OpticNerve_R", "Parotid_L", "Parotid_R",
             "Submandibular_L", "Submandibular_R")  # fmt: skip
    for index in range(1, 49):
        patient = source / f"0522c{index:04d}"
        (patient / "structures").mkdir(parents=True)
        write_volume(patient / "img.nrrd", scan(index))
        for number, name in enumerate(names):
            if (index, name) != (7, "Submandibular_R"):
                mask = (np.arange(np.prod(SIZE)) % len(names) == number).reshape(SIZE).astype(np.uint8)
                write_volume(patient / "structures" / f"{name}.nrrd", mask)


DOWNLOADS: dict[str, Callable[[Path], None]] = {
    "segthor": thorax, "synapse": abdomen, "miccai2015_head_neck": head_and_neck
}  # fmt: skip


@pytest.fixture(scope="module")
def data(make_lists: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data/, made by the page's code, and config_examples/."""
    folder = tmp_path_factory.mktemp("recipes")
    for task, make in DOWNLOADS.items():
        make(folder / "download" / task)
        getattr(make_lists, task)(folder / "download" / task, folder / "data" / task)
    volumes = folder / "data" / "pretrain" / "volumes"
    volumes.mkdir(parents=True)
    for name, seeds in {"train": (100, 101), "valid": (102, 103)}.items():
        for seed in seeds:
            write_volume(volumes / f"{seed}.nii.gz", scan(seed))
        lines = ["image", *(f"{seed}.nii.gz" for seed in seeds)]
        (folder / "data" / "pretrain" / f"{name}.csv").write_text("\n".join(lines) + "\n")
    (folder / "config_examples").symlink_to(ROOT / "config_examples")
    return folder


@pytest.mark.parametrize("task", SPLITS)
def test_the_page_makes_the_papers_splits(data: Path, task: str):
    folder = data / "data" / task
    parts = [pd.read_csv(folder / f"{part}.csv") for part in ("train", "valid", "test")]
    assert tuple(map(len, parts)) == SPLITS[task]
    together = pd.concat(parts)
    assert together["image"].is_unique and all((folder / "volumes" / name).is_file() for name in together["label"])
    pairs = pd.read_csv(folder / "evaluation.csv")
    assert pairs["segmentation"].tolist() == parts[2]["image"].tolist()
    labels = sitk.GetArrayFromImage(sitk.ReadImage(str(folder / "volumes" / parts[0]["label"][0])))
    assert labels.max() == {"segthor": 4, "synapse": 8, "miccai2015_head_neck": 6}[task]


def test_labels_are_what_the_page_says(data: Path):
    def labels(task: str, name: str) -> np.ndarray:
        file = data / "data" / task / "volumes" / f"{name}_lab.nii.gz"
        return sitk.GetArrayFromImage(sitk.ReadImage(str(file))).reshape(-1)

    # of 14 labels the pancreas, 11, becomes 5, and esophagus, veins and adrenals go
    assert labels("synapse", "img0001")[:14].tolist() == [0, 1, 2, 3, 4, 0, 6, 7, 8, 0, 0, 5, 0, 0]
    assert labels("miccai2015_head_neck", "0522c0001")[:9].tolist() == [1, 2, 3, 4, 4, 5, 5, 6, 6]
    assert labels("miccai2015_head_neck", "0522c0007")[:9].tolist() == [1, 2, 3, 4, 4, 5, 5, 6, 0]


@pytest.mark.parametrize("cfg", [name for name in COMPARISONS if Path(name).parent.name in SPLITS])
def test_every_comparison_is_right(data: Path, cfg: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(data)
    runs = make_runs(read_settings(Path(cfg)))
    check_runs(runs)
    arms = {run.arm for run in runs if run.kind == PRETRAINING}
    if cfg.endswith("compare_k.cfg"):
        assert arms == {"K1", "K2", "K4", "K8", "K16"}
    elif cfg.endswith("compare_methods.cfg"):
        assert arms == {"PatchSwap", "Genesis", "MIM", "VF"}
    else:
        assert arms == {"VF"}
    assert len({run.fingerprint for run in runs}) == len(runs)
