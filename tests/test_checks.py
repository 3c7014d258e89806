"""Wrong configs and scans, each by the message that a user gets; PyMIC's commands are in test_chain.py."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import pymic_vf
from pymic_vf.errors import ConfigError, UserError
from pymic_vf.host.agents import pretraining_agent
from pymic_vf.host.settings.checks import (
    check_network,
    check_pretraining,
    check_supervised,
    is_supervised,
    method_name_of,
)

from conftest import finetuning, make_scan, parsed, pretraining, write_volume

pymic_vf.register()

PRETRAINING_MISTAKES = [
    ({"dataset": {"VF_patchnumber": [1, 2]}}, "vf_patchnumber: there is no such key (did you mean VF_patch_number?)"),
    ({"dataset": {"VF_foreground_classes": 0}}, "VF_foreground_classes must be a whole number of at least 1"),
    ({"dataset": {"VF_foreground_classes": 2}}, "class_num must be 3 for Volume Fusion (0/2, 1/2, 2/2), got 5"),
    (
        {"dataset": {"VF_patch_number": [5, 2]}},
        "VF_patch_number must be [fewest, most] with fewest <= most, got [5, 2]",
    ),
    (
        {"dataset": {"VF_patch_size_min": [9, 4, 4]}},
        "VF_patch_size_min must not exceed VF_patch_size_max = [8, 16, 16] (depth)",
    ),
    (
        {"dataset": {"VF_patch_size_max": [8, 33, 16]}},
        "VF_patch_size_max must not exceed crop_size = [16, 32, 32] (height)",
    ),
    (
        {"dataset": {"VF_crop_size": [16, 32]}},
        "VF_crop_size must be a list of 3 whole numbers of at least 1, got [16, 32]",
    ),
    ({"dataset": {"train_transform": ["LabelToProbability"]}}, "train_transform must have VF exactly once"),
    (
        {"dataset": {"train_transform": ["LabelToProbability", "VF"]}},
        "must have LabelToProbability exactly once, after VF",
    ),
    (
        {"dataset": {"volume_transform": ["Rescal"]}},
        "volume_transform: there is no transform Rescal (did you mean Rescale?)",
    ),
    ({"dataset": {"volume_transform": ["Rescale"]}}, "Rescale_output_size is missing: the transform Rescale needs it"),
    ({"dataset": {"train_csv": "gone.csv"}}, "gone.csv: there is no such csv file"),
    ({"dataset": {"train_dir": "gone"}}, "train_dir = gone: there is no such folder"),
    ({"dataset": {"train_batch_size": None}}, "train_batch_size is missing"),
    ({"network": {"net_type": "PCTnet"}}, "there is no net_type PCTnet (did you mean PCTNet?)"),
    ({"network": {"num_heads": [3, 4, 8]}}, "num_heads"),
    ({"network": {"net_type": "UNet"}}, "dimension is missing: 3; without it PyMIC's UNet is a 2D network"),
    ({"network": {"multiscale_pred": False}}, "multiscale_pred must be True where [training] deep_supervise = True"),
    ({"training": {"learning_rate": "fast"}}, "learning_rate must be a number of at least 0, got 'fast'"),
    ({"training": {"iter_valid": 3}}, "iter_max must be a multiple of iter_valid = 3"),
    (
        {"training": {"iter_max": 6, "iter_save": 4}},
        "iter_save must be a multiple of iter_valid = 1 that divides iter_max = 6",
    ),
    ({"training": {"early_stop_patience": 100}}, "early_stop_patience needs [dataset] valid_csv"),
    ({"training": {"gpus": 0}}, "gpus must be a list of whole numbers of at least 0, got 0"),
    ({"training": {"lr_scheduler": "None"}}, "lr_scheduler is missing: PyMIC needs one"),
    *(
        (
            {"training": {"random_seed": seed}},
            f"random_seed must be a whole number of at least 0 and at most 4294967295, got {got}",
        )
        for seed, got in ((-1, -1), ("abc", "'abc'"), (1.5, 1.5), (99999999999, 99999999999), ("None", None))
    ),
    ({"dataset": {"valid_batch_size": "a"}}, "valid_batch_size must be a whole number of at least 1, got 'a'"),
    ({"dataset": {"train_dir": 5}}, "train_dir must be the name of a folder (./5 where that is its name), got 5"),
    ({"dataset": {"train_csv": ["a", "b"]}}, "[dataset] train_csv must be the name of a csv file, got ['a', 'b']"),
    ({"dataset": {"valid_csv": 5}}, "valid_csv must be the name of a csv file (./5 where that is its name), got 5"),
    ({"dataset": {"valid_csv": "a.csv", "valid_dir": 5}}, "[dataset] valid_dir must be the name of a folder"),
    ({"training": {"ckpt_dir": 5}}, "[training] ckpt_dir must be the name of a folder (./5 where that is its name)"),
    ({"training": {"VF_cache_dir": "a"}}, "[training] VF_cache_dir belongs in [dataset] and would be ignored here"),
    ({"dataset": {"VFcache_dir": "a"}}, "vfcache_dir: there is no such key (did you mean VF_cache_dir?)"),
    ({"dataset": {"VF_something": 1}}, "vf_something: there is no such key"),
    ({"dataset": {"cache_dri": "a"}}, "cache_dri: there is no such key (did you mean cache_dir?)"),
    ({"dataset": {"cache_dir": 3}}, "cache_dir must be the name of a folder (./3 where that is its name), got 3"),
    ({"dataset": {"cache_dir": "~nobody_of_that_name/x"}}, "cache_dir must not begin with ~ and a name"),
    ({"dataset": {"VF_cache_max_gib": 3}}, "VF_cache_max_gib needs cache_dir, got 3"),
    ({"dataset": {"VF_cache_dir": ["a"], "cache_max_gib": 3}}, "VF_cache_dir must be the name of a folder, got ['a']"),
    ({"dataset": {"max_bad_fraction": "few"}}, "max_bad_fraction must be a number from 0 to 1, got 'few'"),
    ({"training": {"loss_type": ["DiceLos"], "loss_weight": [1]}}, "no loss DiceLos (did you mean DiceLoss?)"),
    ({"training": {"loss_weight": [1]}}, "loss_weight must have a weight for each loss of loss_type"),
    ({"training": {"optimizer": "Adma"}}, "optimizer must be one of Adam, SGD"),
    ({"testing": {"sliding_window_inferer": "fats"}}, "must be one of stock, fast (did you mean fast?), got 'fats'"),
    (
        {
            "dataset": {"patch_size": [16, 16]},
            "testing": {"sliding_window_inferer": "fast", "sliding_window_enable": True},
        },
        "[dataset] patch_size must be a list of 3 whole numbers of at least 1",
    ),
]


@pytest.mark.parametrize(("change", "message"), PRETRAINING_MISTAKES)
def test_pretraining_mistake(scans: Path, tmp_path: Path, change: dict, message: str):
    with pytest.raises(ConfigError) as caught:
        check_pretraining(parsed(tmp_path / "a.cfg", pretraining(scans, tmp_path, **change)))
    assert len(caught.value.mistakes) == 1, caught.value
    assert message in caught.value.mistakes[0]


def test_a_right_config_passes(scans: Path, tmp_path: Path):
    plan = check_pretraining(parsed(tmp_path / "a.cfg", pretraining(scans, tmp_path)))
    assert len(plan.train_scans) == 4
    check_pretraining(parsed(tmp_path / "b.cfg", pretraining(scans, tmp_path, training={"random_seed": 2**32 - 1})))
    assert plan.valid_scans is None
    assert plan.crop_size == (16, 32, 32) and plan.method.settings.patch_size_max == (8, 16, 16)


def test_keys_of_other_methods_are_logged(scans: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    config = parsed(tmp_path / "a.cfg", pretraining(scans, tmp_path, dataset={"MIM_mask_ratio": 0.5}))
    with caplog.at_level(logging.INFO):
        check_pretraining(config)
    assert caplog.messages == ["[dataset] MIM_mask_ratio: of another method than Volume Fusion, not read"]


def test_a_home_folder_is_what_it_is_to_a_shell(scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    config = parsed(tmp_path / "a.cfg", pretraining(scans, tmp_path, dataset={"VF_cache_dir": "~/x"}))
    assert check_pretraining(config).dataset["cache_dir"] == tmp_path / "x"


MIM = {
    "dataset": {"task_type": "rec", "train_transform": None, "MIM_block_size": [4, 8, 8]},
    "self_supervised_learning": {"method_name": "MIM"},
    "network": {"class_num": 1, "multiscale_pred": False},
    "training": {"loss_type": "MAELoss", "loss_weight": None, "deep_supervise": None},
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"network": {"multiscale_pred": True}},
            "multiscale_pred must be False where [training] deep_supervise = False",
        ),
        ({"network": {"class_num": 5}}, "class_num must be 1 for Masked image modelling (channel 0), got 5"),
        ({"dataset": {"MIM_mask_ratio": 0.001}}, "MIM_mask_ratio = 0.001 must hide at least one and leave one"),
        ({"dataset": {"MIM_preset": "paper"}}, "MIM_preset must be one of original, pymic, got 'paper'"),
        ({"dataset": {"train_transform": ["MIM", "RandomFlip"]}}, "train_transform must end with MIM"),
        ({"dataset": {"train_transform": ["VF"]}}, "train_transform must have MIM exactly once"),
        ({"training": {"loss_type": "MSELoss"}}, "loss_type must be MAELoss, the one that weights voxels"),
        ({"training": {"loss_type": "DiceLoss"}}, "there is no loss DiceLoss"),
        ({"training": {"loss_type": ["MAELoss"], "loss_weight": [1]}}, "loss_type must be one name"),
        ({"training": {"deep_supervise": True}}, "deep_supervise must not be True"),
        ({"training": {"loss_acti_func": "softmax"}}, "loss_acti_func must be None, tanh or sigmoid"),
    ],
)
def test_mistakes_of_a_reconstruction(scans: Path, tmp_path: Path, change: dict, message: str):
    changes = {name: {**MIM.get(name, {}), **change.get(name, {})} for name in {*MIM, *change}}
    flip = {f"RandomFlip_flip_{axis}": False for axis in ("depth", "height", "width")}
    changes["dataset"] = {**flip, **changes["dataset"]}
    with pytest.raises(ConfigError) as caught:
        check_pretraining(parsed(tmp_path / "a.cfg", pretraining(scans, tmp_path, **changes)))
    assert len(caught.value.mistakes) == 1, caught.value
    assert message in caught.value.mistakes[0]


def test_a_reconstruction_of_one_scan_is_enough(scans: Path, tmp_path: Path):
    (tmp_path / "one.csv").write_text("image\nscan_0.nii.gz\n")
    changes = {**MIM, "dataset": {**MIM["dataset"], "train_csv": tmp_path / "one.csv"}}
    plan = check_pretraining(parsed(tmp_path / "a.cfg", pretraining(scans, tmp_path, **changes)))
    assert len(plan.train_scans) == 1 and plan.train.before == plan.train.after == ()
    fusion = pretraining(scans, tmp_path, dataset={"train_csv": tmp_path / "one.csv"})
    with pytest.raises(ConfigError, match="a sample needs 2 different scans, this file has 1"):
        check_pretraining(parsed(tmp_path / "b.cfg", fusion))


@pytest.mark.parametrize("method", ["ModelGenesis", "PatchSwapping", "VolumeFusion"])
def test_methods_of_pymic_are_not_ours_to_check(scans: Path, tmp_path: Path, method: str):
    config = parsed(tmp_path / "a.cfg", pretraining(scans, tmp_path, self_supervised_learning={"method_name": method}))
    assert method_name_of(config) is None and not is_supervised(config)
    check_network(config)
    with pytest.raises(ConfigError, match="window_sizes"):
        check_network({"network": {**config["network"], "window_sizes": 5}})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dataset": {"train_csv": "gone.csv"}}, "gone.csv: there is no such csv file"),
        ({"dataset": {"train_transform": ["Rescale", "LabelToProbability"]}}, "Rescale_output_size is missing"),
        ({"dataset": {"valid_csv": "gone.csv"}}, "gone.csv: there is no such csv file"),
        ({"network": {"resolution_mode": 3}}, "resolution_mode"),
        (
            {"testing": {"sliding_window_inferer": "fats"}},
            "must be one of stock, fast (did you mean fast?), got 'fats'",
        ),
        ({"training": {"weight_decay": None}}, "weight_decay is missing"),
        ({"training": {"iter_max": 3, "iter_valid": 2}}, "iter_max must be a multiple of iter_valid = 2"),
        # one mistake, though training, validation and test read these keys
        ({"testing": {"tta_mode": 3}}, "[testing] tta_mode must be a whole number of at least 0 and at most 2, got 3"),
        ({"testing": {"sliding_window_stride": [8, 0, 16]}}, "sliding_window_stride must be a list of 3 whole numbers"),
        (
            {"testing": {"sliding_window_inferer": "fast", "tta_mode": 3}},
            "[testing] tta_mode must be a whole number of at least 0 and at most 2, got 3",
        ),
        ({"training": {"random_seed": -1}}, "random_seed must be a whole number of at least 0 and at most 4294967295"),
        ({"network": {"precision": "bf61"}}, "precision must be one of fp32, bf16 (did you mean bf16?), got 'bf61'"),
        ({"training": {"ckpt_dir": 5}}, "ckpt_dir must be the name of a folder"),
        ({"dataset": {"train_csv": 5}}, "train_csv must be the name of a csv file"),
    ],
)
def test_supervised_mistake(scans: Path, tmp_path: Path, change: dict, message: str):
    with pytest.raises(ConfigError) as caught:
        check_supervised(parsed(tmp_path / "a.cfg", finetuning(scans, tmp_path, **change)), "train")
    assert len(caught.value.mistakes) == 1, caught.value
    assert message in caught.value.mistakes[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"testing": {"sliding_window_size": [16, 32]}}, "[testing] sliding_window_size must be a list of 3 whole"),
        ({"testing": {"sliding_window_enable": "yes"}}, "sliding_window_enable must be True or False, got 'yes'"),
        ({"dataset": {"patch_size": [16, "None", 32]}}, "[dataset] patch_size must have entries of at least 2"),
        ({"dataset": {"valid_batch_size": 0}}, "valid_batch_size must be a whole number of at least 1, got 0"),
        ({"dataset": {"train_dir": 5}}, "train_dir must be the name of a folder"),
        ({"dataset": {"train_dir": "gone"}}, "[dataset] train_dir = gone: there is no such folder"),
    ],
)
def test_a_mistake_that_several_stages_share_is_one(scans: Path, tmp_path: Path, change: dict, message: str):
    config = finetuning(scans, tmp_path, **change)
    config["dataset"] = {"valid_csv": scans / "labelled.csv", **config["dataset"]}
    with pytest.raises(ConfigError) as caught:
        check_supervised(parsed(tmp_path / "a.cfg", config), "train")
    assert len(caught.value.mistakes) == 1, caught.value
    assert message in caught.value.mistakes[0]


@pytest.mark.parametrize(
    "testing",
    [
        {"tta_mode": 2},
        {"sliding_window_size": ["None", 32, 32], "sliding_window_stride": ["None", 32, 32]},  # there is no valid_csv
        {"sliding_window_enable": False, "sliding_window_size": 5},
        {"sliding_window_inferer": "fast", "sliding_window_batch": 2},
    ],
)
def test_a_right_supervised_config_passes(scans: Path, tmp_path: Path, testing: dict):
    changes = {"testing": testing, "dataset": {"valid_batch_size": "a"}}  # which nothing reads without valid_csv
    config = parsed(tmp_path / "a.cfg", finetuning(scans, tmp_path, **changes))
    check_supervised(config, "train")
    check_supervised(config, "test")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"testing": {"tta_mode": 3}}, "[testing] tta_mode must be a whole number of at least 0 and at most 2, got 3"),
        ({"testing": {"sliding_window_stride": [8, 16]}}, "sliding_window_stride must be a list of 3 whole numbers"),
        ({"training": {"random_seed": "abc"}}, "random_seed must be a whole number"),
        ({"training": {"ckpt_dir": 5}}, "ckpt_dir must be the name of a folder"),
        ({"dataset": {"test_csv": 5}}, "test_csv must be the name of a csv file"),
        ({"dataset": {"test_dir": 5}}, "test_dir must be the name of a folder"),
    ],
)
def test_mistake_of_a_test(scans: Path, tmp_path: Path, change: dict, message: str):
    with pytest.raises(ConfigError) as caught:
        check_supervised(parsed(tmp_path / "a.cfg", finetuning(scans, tmp_path, **change)), "test")
    assert len(caught.value.mistakes) == 1, caught.value
    assert message in caught.value.mistakes[0]


def test_pretraining_leaves_the_testing_of_pymic_alone(scans: Path, tmp_path: Path):
    changes = {"testing": {"sliding_window_enable": "yes", "tta_mode": 3}}
    check_pretraining(parsed(tmp_path / "a.cfg", pretraining(scans, tmp_path, **changes)))


def test_supervised_csv_without_labels_or_files(scans: Path, tmp_path: Path):
    (tmp_path / "a.csv").write_text("image\nscan_0.nii.gz\ngone.nii.gz\n")
    config = finetuning(scans, tmp_path, dataset={"train_csv": tmp_path / "a.csv", "test_csv": tmp_path / "a.csv"})
    with pytest.raises(ConfigError) as caught:
        check_supervised(parsed(tmp_path / "a.cfg", config), "train")
    assert "has no column 'label'; its columns are ['image']" in caught.value.mistakes[0]
    assert "gone.nii.gz (line 3)" in caught.value.mistakes[1]
    with pytest.raises(ConfigError, match=r"gone\.nii\.gz \(line 3\)"):
        check_supervised(parsed(tmp_path / "b.cfg", config), "test")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three good scans and room for a bad one; the csv names all four."""
    (tmp_path / "volumes").mkdir()
    for index in range(3):
        write_volume(tmp_path / "volumes" / f"{index}.nii.gz", make_scan(index)[0])
    pd.DataFrame({"image": ["0.nii.gz", "1.nii.gz", "2.nii.gz", "bad.nii.gz"]}).to_csv(tmp_path / "pretrain.csv")
    return tmp_path


def agent_fails(folder: Path, message: str) -> None:
    with pytest.raises(UserError, match=message):
        pretraining_agent(parsed(folder / "a.cfg", pretraining(folder, folder))).create_dataset()


def test_a_damaged_scan_is_named_before_training(folder: Path):
    good = (folder / "volumes" / "0.nii.gz").read_bytes()
    (folder / "volumes" / "bad.nii.gz").write_bytes(good[: len(good) // 2])
    agent_fails(folder, r"(?s)1 of 4 scans.*bad\.nii\.gz")


def test_a_scan_with_nan_is_named_before_training(folder: Path):
    voxels = make_scan(3)[0].astype(np.float32)
    voxels[3, 4, 5] = np.nan
    write_volume(folder / "volumes" / "bad.nii.gz", voxels)
    agent_fails(folder, r"bad\.nii\.gz: 1 voxels are NaN or infinite")


def test_a_scan_with_two_channels_is_named_before_training(folder: Path):
    import SimpleITK as sitk

    two = sitk.GetImageFromArray(np.stack([make_scan(3)[0]] * 2), isVector=False)
    sitk.WriteImage(two, str(folder / "volumes" / "bad.nii.gz"))
    agent_fails(folder, r"bad\.nii\.gz: 2 channels, where \[network\] in_chns = 1")


def test_transforms_that_fail_are_named_before_training(scans: Path, tmp_path: Path):
    # RandomCrop asks for a larger crop than there is
    change = {"train_transform": ["RandomCrop", "VF", "LabelToProbability"], "RandomCrop_output_size": [99, 99, 99]}
    config = parsed(tmp_path / "a.cfg", pretraining(scans, tmp_path, dataset=change))
    with pytest.raises(UserError, match=r"train_transform|crop_size"):
        pretraining_agent(config).create_dataset()
