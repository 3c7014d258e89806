"""Small real scans on disk, and PyMIC's real commands."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk
import torch

torch.set_num_threads(1)  # each worker of the tests has one core
REAL_DATA = Path(__file__).parents[2] / "shared" / "data"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="also the tests that take many minutes, such as many kills")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    lacking = {
        "long": None if config.getoption("--long") else "LONG: this test runs with --long",
        "cuda": None if torch.cuda.is_available() else "NO CUDA DEVICE: this test did not run",
        "real_data": None if REAL_DATA.is_dir() else "NO REAL SCANS in ../shared/data: this test did not run",
    }
    for item in items:
        for name, reason in lacking.items():
            if reason and name in item.keywords:
                item.add_marker(pytest.mark.skip(reason=reason))


def write_volume(path: Path, voxels: np.ndarray, spacing: tuple[float, ...] = (1.0, 1.0, 2.5)) -> Path:
    """Write [D, H, W] voxels; spacing in mm as (x, y, z)."""
    image = sitk.GetImageFromArray(voxels)
    image.SetSpacing(spacing)
    sitk.WriteImage(image, str(path))
    return path


def make_scan(seed: int, size: tuple[int, int, int] = (18, 36, 40)) -> tuple[np.ndarray, np.ndarray]:
    """A bright box of varied place in noise, int16 like HU, and its label."""
    rng = np.random.default_rng(seed)
    voxels = rng.normal(0, 30, size).astype(np.int16)
    label = np.zeros(size, np.uint8)
    corner = [int(rng.integers(2, n // 3)) for n in size]
    label[tuple(slice(c, c + n // 2) for c, n in zip(corner, size, strict=True))] = 1
    voxels[label > 0] += 200
    return voxels, label


@pytest.fixture(scope="session")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder: volumes/, pretrain.csv (4 scans), labelled.csv (2), evaluation.csv; for reading only."""
    folder = tmp_path_factory.mktemp("scans")
    (folder / "volumes").mkdir()
    names = []
    for index in range(4):
        voxels, label = make_scan(index)
        names.append((f"scan_{index}.nii.gz", f"scan_{index}_lab.nii.gz"))
        write_volume(folder / "volumes" / names[-1][0], voxels)
        write_volume(folder / "volumes" / names[-1][1], label)
    pd.DataFrame({"image": [image for image, _ in names]}).to_csv(folder / "pretrain.csv", index=False)
    labelled = pd.DataFrame(names[:2], columns=["image", "label"])
    labelled.to_csv(folder / "labelled.csv", index=False)
    labelled[["label", "image"]].to_csv(folder / "evaluation.csv", index=False)
    return folder


NETWORK = {
    "net_type": "PCTNet",
    "in_chns": 1,
    "class_num": 5,
    "input_size": [16, 32, 32],
    "feature_chns": [2, 4, 8, 16, 32],
    "num_heads": [2, 4, 8],
    "resolution_mode": 1,
    "multiscale_pred": True,
}
TRAINING = {
    "gpus": [0],
    "loss_type": ["DiceLoss", "CrossEntropyLoss"],
    "loss_weight": [0.5, 0.5],
    "deep_supervise": True,
    "optimizer": "Adam",
    "learning_rate": "1.5e-3",
    "momentum": 0.9,
    "weight_decay": "1E-5",
    "lr_scheduler": "StepLR",
    "lr_step": 2,
    "lr_gamma": ".5",
    "iter_max": 2,
    "iter_valid": 1,
}


def pretraining(scans: Path, out: Path, **changes: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The sections of a small pretraining config; `changes` are merged in by section, None removes a key."""
    config = {
        "dataset": {
            "task_type": "seg",
            "supervise_type": "self_sup",
            "tensor_type": "float",
            "train_dir": scans / "volumes",
            "train_csv": scans / "pretrain.csv",
            "train_batch_size": 2,
            "num_worker": 1,
            "volume_transform": ["NormalizeWithMeanStd"],
            "train_transform": ["VF", "LabelToProbability"],
            "VF_crop_size": [16, 32, 32],
            "VF_patch_number": [2, 5],
            "VF_patch_size_min": [2, 4, 4],
            "VF_patch_size_max": [8, 16, 16],
        },
        "self_supervised_learning": {"method_name": "VF"},
        "network": NETWORK,
        "training": {**TRAINING, "ckpt_dir": out / "pretrain"},
    }
    return merged(config, changes)


def finetuning(scans: Path, out: Path, **changes: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The sections of a small supervised config, with its test."""
    config = {
        "dataset": {
            "task_type": "seg",
            "tensor_type": "float",
            "train_dir": scans / "volumes",
            "train_csv": scans / "labelled.csv",
            "test_csv": scans / "labelled.csv",
            "train_batch_size": 2,
            "num_worker": 1,
            "train_transform": ["NormalizeWithMeanStd", "RandomCrop", "LabelToProbability"],
            "valid_transform": ["NormalizeWithMeanStd", "LabelToProbability"],
            "test_transform": ["NormalizeWithMeanStd"],
            "RandomCrop_output_size": [16, 32, 32],
            "RandomCrop_foreground_focus": False,
        },
        "network": {**NETWORK, "class_num": 2},
        "training": {**TRAINING, "ckpt_dir": out / "finetune"},
        "testing": {
            "gpus": [0],
            "ckpt_mode": 0,
            "output_dir": out / "result",
            "sliding_window_enable": True,
            "sliding_window_size": [16, 32, 32],
            "sliding_window_stride": [8, 16, 16],
        },
    }
    return merged(config, changes)


def merged(config: Mapping[str, Mapping], changes: Mapping[str, Mapping]) -> dict[str, dict[str, Any]]:
    sections = {name: {**config.get(name, {}), **changes.get(name, {})} for name in {**config, **changes}}
    return {name: {k: v for k, v in keys.items() if v is not None} for name, keys in sections.items()}


def write_cfg(path: Path, config: Mapping[str, Mapping[str, Any]]) -> Path:
    """Write the sections as a PyMIC config."""

    def text(value: Any) -> str:
        return f"[{', '.join(map(str, value))}]" if isinstance(value, (list, tuple)) else str(value)

    sections = (
        f"[{name}]\n" + "".join(f"{key} = {text(value)}\n" for key, value in keys.items())
        for name, keys in config.items()
    )
    path.write_text("\n".join(sections))
    return path


def parsed(path: Path, config: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """The config as PyMIC's commands would have it."""
    from pymic_vf.cli import read_config

    return read_config(write_cfg(path, config))


Run = Callable[..., subprocess.CompletedProcess]


@pytest.fixture(scope="session")
def run() -> Run:
    """Run a command of this environment: `run("pymic_train", cfg, status=1, env={...})` checks its exit status."""

    def run(command: str, *arguments: Any, status: int = 0, env: Mapping[str, str] | None = None, cwd: Any = None):
        executable = sys.executable if command == "python" else Path(sys.executable).parent / command
        done = subprocess.run(
            [executable, *map(str, arguments)],
            capture_output=True,
            text=True,
            cwd=cwd,
            env={**os.environ, "OMP_NUM_THREADS": "1", **(env or {})},
            check=False,
        )
        assert done.returncode == status, f"{command} {arguments}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    return run
