"""Samples from the cache are the ones that PyMIC makes; and a fine-tuning by PyMIC's agent on them."""

from __future__ import annotations

import copy
import logging
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk
import torch
from pymic.net_run.agent_seg import SegmentationAgent

import pymic_vf
from pymic_vf.cli import main, read_config
from pymic_vf.data.loader import one_hot
from pymic_vf.errors import ConfigError, UserError
from pymic_vf.host.cached_sets import cached_sets
from pymic_vf.host.processes import ENVIRONMENT

from conftest import finetuning, parsed, write_cfg, write_volume

pymic_vf.register()
logging.getLogger().setLevel(logging.INFO)

CROP = {"RandomCrop_output_size": [8, 16, 16], "RandomCrop_foreground_focus": True, "RandomCrop_foreground_ratio": 0.7}
WINDOW = {"NormalizeWithMinMax_channels": [0], "NormalizeWithMinMax_threshold_lower": [-100],
          "NormalizeWithMinMax_threshold_upper": [180]}  # fmt: skip
MEASURED = {"NormalizeWithMinMax_channels": [0], "NormalizeWithMinMax_threshold_lower": "None",
            "NormalizeWithMinMax_threshold_upper": [150]}  # fmt: skip
FLIP = {"RandomFlip_flip_depth": True, "RandomFlip_flip_height": True, "RandomFlip_flip_width": True}
ROTATE = {"RandomRotate_angle_range_d": [-30, 30], "RandomRotate_angle_range_h": [-20, 20],
          "RandomRotate_angle_range_w": None}  # fmt: skip
# train_transform without LabelToProbability at its end, and the keys
LISTS: dict[str, tuple[list[str], dict[str, Any]]] = {
    "our example": (["NormalizeWithMinMax", "Pad", "RandomCrop"],
                    {**WINDOW, **CROP, "Pad_output_size": [16, 24, 24]}),
    "MIS-FM's example": (["RandomCrop", "NormalizeWithMeanStd", "RandomFlip"],
                         {**CROP, **FLIP, "RandomCrop_foreground_focus": False}),
    "resized": (["Rescale", "NormalizeWithMeanStd", "RandomCrop", "RandomFlip"],
                {**CROP, **FLIP, "Rescale_output_size": [None, 30, 28], "RandomCrop_mask_label": [3]}),
    "augmented": (["Pad", "NormalizeWithMeanStd", "RandomCrop", "RandomRotate", "GammaCorrection", "GaussianNoise"],
                  {**CROP, **ROTATE, "Pad_output_size": [16, 24, 26], "Pad_ceil_mode": True,
                   "NormalizeWithMeanStd_mask_threshold": 20, "NormalizeWithMeanStd_set_background_to_random": False}),
    "converted labels": (["LabelConvert", "Pad", "NormalizeWithPercentiles", "RandomCrop", "RandomFlip"],
                         {**CROP, **FLIP, "LabelConvert_source_list": [1, 2, 3], "LabelConvert_target_list": [2, 1, 1],
                          "Pad_output_size": [20, 28]}),
    "resampled": (["Resample", "IntensityClip", "NormalizeWithMinMax", "RandomCrop"],
                  {**CROP, **MEASURED, "Resample_output_spacing": [2.0, 1.3, 1.3], "IntensityClip_channels": [0],
                   "IntensityClip_lower": [-90], "IntensityClip_upper": None}),
    "a box by a threshold": (["CropWithBoundingBox", "NormalizeWithMeanStd", "Pad", "RandomCrop", "RandomFlip"],
                             {**CROP, **FLIP, "CropWithBoundingBox_start": "None",
                              "CropWithBoundingBox_output_size": "None", "CropWithBoundingBox_threshold": 120,
                              "Pad_output_size": [16, 24, 24], "RandomCrop_mask_label": [1, 3]}),
    "resized crops": (["NormalizeWithMeanStd", "RandomResizedCrop", "RandomFlip"],
                      {**FLIP, "RandomResizedCrop_output_size": [12, 20, 20],
                       "RandomResizedCrop_resize_lower_bound": [0.7, 0.8, 0.8],
                       "RandomResizedCrop_resize_upper_bound": [1.6, 1.3, 1.2],
                       "RandomResizedCrop_foreground_ratio": 0.5}),
    "a crop at the centre": (["NormalizeWithMinMax", "CenterCrop", "RandomCrop", "RandomRescale", "Pad", "CenterCrop"],
                             {**CROP, **MEASURED, "CenterCrop_output_size": [10, 20, 18],
                              "Pad_output_size": [10, 20, 18],
                              "RandomRescale_lower_bound": [0.8, 0.8, 0.8],
                              "RandomRescale_upper_bound": [1.2, 1.2, 1.2]}),
    "random before the crop": (["NormalizeWithMeanStd", "RandomFlip", "RandomCrop"], {**CROP, **FLIP}),
    "no crop": (["NormalizeWithMeanStd", "CropWithBoundingBox", "RandomFlip"],
                {**FLIP, "CropWithBoundingBox_start": [1, 2, 0], "CropWithBoundingBox_output_size": [9, 20, 21]}),
}  # fmt: skip
SIZES = ((13, 29, 26), (18, 23, 31), (11, 40, 22))


def make_case(seed: int, size: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Noise with three organs, int16 like HU, and their label."""
    rng = np.random.default_rng(seed)
    image, label = rng.normal(0, 40, size), np.zeros(size, np.uint8)
    for organ in (1, 2, 3):
        start = [int(rng.integers(0, n // 2)) for n in size]
        label[tuple(slice(a, a + 2 + n // 4) for a, n in zip(start, size, strict=True))] = organ
    return (image + 70 * label).astype(np.int16), label


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """volumes/, labelled.csv (3 scans); for reading only."""
    folder = tmp_path_factory.mktemp("cases")
    (folder / "volumes").mkdir()
    rows = []
    for index, size in enumerate(SIZES):
        image, label = make_case(index, size)
        rows.append((f"{index}.nii.gz", f"{index}_lab.nii.gz"))
        write_volume(folder / "volumes" / rows[-1][0], image, (1.0, 1.1, 2.5))
        write_volume(folder / "volumes" / rows[-1][1], label, (1.0, 1.1, 2.5))
    pd.DataFrame(rows, columns=["image", "label"]).to_csv(folder / "labelled.csv", index=False)
    return folder


def cached(cases: Path, out: Path, names: list[str], **changes: Any) -> dict:
    """The sections of a supervised config with a cache."""
    dataset = {
        "train_transform": [*names, "LabelToProbability"],
        "num_worker": 0,
        "cache_dir": out / "cache",
        **changes.pop("dataset", {}),
    }
    config = finetuning(cases, out, dataset=dataset, **changes)
    config["network"] |= {"class_num": 4}
    return config


@pytest.mark.parametrize("name", LISTS)
def test_samples_are_pymics(cases: Path, tmp_path: Path, name: str, request: pytest.FixtureRequest):
    names, keys = LISTS[name]
    config = parsed(tmp_path / "a.cfg", cached(cases, tmp_path, names, dataset=keys))
    agent = SegmentationAgent(config)
    stock, ours, classes = agent.get_stage_dataset_from_config("train"), cached_sets(agent)["train"], 4
    for draw in range(102 if request.config.getoption("--long") else 12):
        index = draw % len(SIZES)
        results = []
        # some of PyMIC's objects remember the size of their first volume: new ones for each
        for make in (copy.deepcopy(stock).__getitem__, ours.sample):
            random.seed(draw)
            np.random.seed(draw)
            results.append((make(index), random.getstate(), np.random.get_state()[1:3]))
        (expected, state, np_state), (sample, our_state, our_np_state) = results
        assert sample["image"].shape == expected["image"].shape
        np.testing.assert_allclose(sample["image"], expected["image"], rtol=2e-6, atol=2e-6)
        assert np.array_equal(sample["label"], expected["label"])
        label = torch.as_tensor(sample["label"])[None]
        assert np.array_equal(one_hot(label, classes)[0].numpy(), expected["label_prob"])
        assert state == our_state and np.array_equal(np_state[0], our_np_state[0]) and np_state[1] == our_np_state[1]


UNET = {"net_type": "UNet", "dimension": 3, "feature_chns": [2, 4, 8, 16, 16], "dropout": [0] * 5,
        "multiscale_pred": False, "input_size": None, "num_heads": None, "resolution_mode": None}  # fmt: skip


def tuned(cases: Path, out: Path, caplog: pytest.LogCaptureFixture, **changes: Any) -> list[str]:
    """The losses that a small fine-tuning of PyMIC's UNet logs."""
    caplog.clear()
    names, keys = LISTS["our example"]
    changes["dataset"] = {**keys, "Pad_output_size": [16, 32, 32], "RandomCrop_output_size": [16, 32, 32],
                          **changes.get("dataset", {})}  # fmt: skip
    changes["training"] = {"deep_supervise": False, "lr_step": 100, **changes.get("training", {})}
    config = cached(cases, out, names, network=UNET, **changes)
    (out / "finetune").mkdir(exist_ok=True)  # as pymic_train does
    SegmentationAgent(parsed(out / "a.cfg", config)).run()
    return re.findall(r"train loss ([\d.]+)", caplog.text)


def test_a_fine_tuning_does_not_depend_on_workers_and_interruptions(cases: Path, tmp_path: Path, caplog):
    caplog.set_level(logging.INFO)
    whole = tuned(cases, tmp_path, caplog, training={"iter_max": 4})
    assert "Samples of 3 scans from cache_dir" in caplog.text
    assert len(re.findall(r"waited for data [\d.]+ % of the time", caplog.text)) == 4
    assert tuned(cases, tmp_path, caplog, training={"iter_max": 2}, dataset={"num_worker": 1}) == whole[:2]
    rest = {"iter_max": 4, "ckpt_init_name": "finetune_2.pt", "ckpt_init_mode": 1}
    assert tuned(cases, tmp_path, caplog, training=rest) == whole[2:]
    watched = {"iter_max": 4, "iter_valid": 2, "max_bad_steps": 3, "overwrite": True}  # an iteration at a time
    assert len(tuned(cases, tmp_path, caplog, training=watched)) == 2 == caplog.text.count("waited for data")


def test_validation_volumes_come_from_the_same_entries(cases: Path, tmp_path: Path, caplog):
    caplog.set_level(logging.INFO)
    valid = {
        "valid_csv": cases / "labelled.csv",
        "valid_transform": ["NormalizeWithMinMax", "Pad", "LabelToProbability"],
        "Pad_ceil_mode": True,
    }
    tuned(cases, tmp_path, caplog, dataset=valid, training={"iter_max": 1}, testing={"sliding_window_enable": False})
    assert "Samples of 3 scans from cache_dir, 3 others to validate" in caplog.text
    assert len(re.findall(r"valid loss [\d.]+", caplog.text)) == 1
    assert len(list((tmp_path / "cache").glob("*/*.b2nd"))) == 6  # an image and a label a scan, for both
    ours = SegmentationAgent(read_config(tmp_path / "a.cfg"))
    ours.create_dataset()
    stock = ours.get_stage_dataset_from_config("valid")
    for number, batch in enumerate(ours.valid_loader):
        expected = stock[number]
        np.testing.assert_allclose(batch["image"][0], expected["image"], rtol=2e-6, atol=2e-6)
        assert np.array_equal(batch["label_prob"][0], expected["label_prob"])
    assert number == 2


def test_prepare_and_check(cases: Path, tmp_path: Path, capsys):
    names, keys = LISTS["our example"]
    cfg = write_cfg(tmp_path / "a.cfg", cached(cases, tmp_path, names, dataset=keys, training={"iter_valid": 1}))
    assert main(["check", str(cfg)]) == 0
    assert main(["prepare", str(cfg), "--jobs", "1"]) == 0
    assert "3 volumes are in the cache" in capsys.readouterr().out
    assert len(list((tmp_path / "cache").glob("*/*.b2nd"))) == 6
    without = cached(cases, tmp_path, names, dataset={**keys, "cache_dir": None})
    assert main(["prepare", str(write_cfg(tmp_path / "b.cfg", without))]) == 1
    assert "cache_dir is missing: the folder to prepare" in capsys.readouterr().err


def test_all_mistakes_at_once(cases: Path, tmp_path: Path, monkeypatch):
    for name in ENVIRONMENT:
        monkeypatch.setenv(name, "2")
    wrong = {
        **FLIP,
        "cache_max_gib": -1,
        "max_bad_fraction": 2,
        "allow_missing_modal": True,
        "Resample_output_spacing": [1, 1, 1],
        "train_transform": ["RandomFlip", "Resample", "LabelToProbability"],
    }
    agent = SegmentationAgent(parsed(tmp_path / "a.cfg", cached(cases, tmp_path, [], dataset=wrong, network=UNET)))
    with pytest.raises(ConfigError) as error:
        agent.create_dataset()
    for message in (
        "cache_max_gib must be a number from 0",
        "max_bad_fraction must be a number from 0 to 1, got 2",
        "allow_missing_modal must be False",
        "Resample must come before all random transforms",
        "runs in one process, torchrun started 2",
    ):
        assert message in str(error.value)


def test_cache_max_gib_alone_is_a_mistake(cases: Path, tmp_path: Path):
    config = cached(cases, tmp_path, ["RandomCrop"], dataset={**CROP, "cache_dir": None, "cache_max_gib": 1})
    assert main(["check", str(write_cfg(tmp_path / "a.cfg", config))]) == 1


@pytest.mark.parametrize(
    ("names", "keys", "message"),
    [
        (["RandomFlip", "RandomCrop"], {}, "RandomFlip comes before RandomCrop and needs the whole scan"),
        (["RandomCrop", "NormalizeWithMeanStd"], {}, "NormalizeWithMeanStd after RandomCrop goes by the voxels of the"),
    ],
)
def test_what_is_named_once(cases: Path, tmp_path: Path, caplog, names: list[str], keys: dict, message: str):
    caplog.set_level(logging.INFO)
    config = cached(cases, tmp_path, names, dataset={**CROP, **FLIP, **keys}, network=UNET)
    SegmentationAgent(parsed(tmp_path / "a.cfg", config)).create_dataset()
    assert caplog.text.count(message) == 1


def copied(cases: Path, out: Path) -> Path:
    shutil.copytree(cases, out / "data")
    return out / "data"


def change_label(data: Path, name: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
    path = data / "volumes" / name
    label = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
    write_volume(path, change(label))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda label: label[1:], r"a label of \[17, 23, 31\] voxels, where its image .* has \[18, 23, 31\]"),
        (lambda label: label + np.float32(0.25), "values of a label are whole numbers, 12834 voxels have others"),
        (lambda label: np.where(label == 3, 0, label), r"mask_label = \[3\]: the label has no voxel of \[3\]"),
        (lambda label: label.astype(np.int32) * 100000, "1_lab.nii.gz: values from 0 to 300000 are no classes"),
    ],
)  # fmt: skip
def test_bad_labels_are_named(cases: Path, tmp_path: Path, caplog, change: Callable, message: str):
    data = copied(cases, tmp_path)
    change_label(data, "1_lab.nii.gz", change)
    keys = {**CROP, "RandomCrop_mask_label": [3], "max_bad_fraction": 0.5}
    agent = SegmentationAgent(
        parsed(tmp_path / "a.cfg", cached(data, tmp_path, ["RandomCrop"], dataset=keys, network=UNET))
    )
    agent.create_dataset()
    assert re.search(message, caplog.text)
    assert {number: sorted(agent.train_set[number]) for number in range(6)}  # goes on with the others
    assert (tmp_path / "finetune" / "unusable_scans.csv").is_file()
    strict = cached(data, tmp_path, ["RandomCrop"], dataset={**keys, "max_bad_fraction": 0.0}, network=UNET)
    with pytest.raises(UserError, match=r"more than max_bad_fraction = 0.0 allows"):
        SegmentationAgent(parsed(tmp_path / "a.cfg", strict)).create_dataset()


def test_a_scan_smaller_than_the_crop_is_named(cases: Path, tmp_path: Path):
    keys = {**CROP, "RandomCrop_output_size": [12, 16, 16], "max_bad_fraction": 0}
    config = cached(cases, tmp_path, ["RandomCrop"], dataset=keys, network=UNET)
    with pytest.raises(UserError, match=r"too small, \[11, 40, 22\] voxels where \[12, 16, 16\] are the least"):
        SegmentationAgent(parsed(tmp_path / "a.cfg", config)).create_dataset()


@pytest.mark.parametrize("name", ["our example", "resized"])
def test_a_changed_image_or_label_is_read_anew(cases: Path, tmp_path: Path, name: str):
    """Its entry has another name then: never voxels of before, nor a label of before."""
    data = copied(cases, tmp_path)
    names, keys = LISTS[name]
    config = parsed(tmp_path / "a.cfg", cached(data, tmp_path, names, dataset=keys))
    ours = cached_sets(SegmentationAgent(config))["train"]
    ours.sample(0)
    for changed in range(2):
        image, label = make_case(10 + changed, SIZES[1])
        write_volume(data / "volumes" / "0.nii.gz", image, (1.0, 1.1, 2.5))
        write_volume(data / "volumes" / "0_lab.nii.gz", label, (1.0, 1.1, 2.5))
        stock = SegmentationAgent(config).get_stage_dataset_from_config("train")
        samples = []
        for make in (stock.__getitem__, ours.sample):
            random.seed(changed)
            samples.append(make(0))
        assert np.array_equal(samples[1]["label"], samples[0]["label"])
        np.testing.assert_allclose(samples[1]["image"], samples[0]["image"], rtol=2e-6, atol=2e-6)


def test_a_full_cache_and_a_damaged_entry_change_nothing(cases: Path, tmp_path: Path, caplog):
    names, keys = LISTS["our example"]
    config = parsed(tmp_path / "a.cfg", cached(cases, tmp_path, names, dataset=keys))
    expected = [cached_sets(SegmentationAgent(config))["train"][number] for number in range(4)]
    capped = {**keys, "cache_max_gib": 1e-5, "cache_dir": tmp_path / "small"}
    samples = cached_sets(SegmentationAgent(parsed(tmp_path / "b.cfg", cached(cases, tmp_path, names, dataset=capped))))
    for entry in (tmp_path / "cache").glob("*/*.b2nd"):
        content = bytearray(entry.read_bytes())
        content[100] ^= 255
        entry.write_bytes(content)
    for anew in (samples["train"], cached_sets(SegmentationAgent(config))["train"]):
        for number, sample in enumerate(expected):
            assert all(np.array_equal(anew[number][key], sample[key]) for key in ("image", "label"))
    assert caplog.text.count("is damaged") == 6


def test_other_kinds_of_learning_and_no_key_are_left_alone(cases: Path, tmp_path: Path):
    config = cached(cases, tmp_path, ["RandomCrop"], dataset={**CROP, "cache_dir": None}, network=UNET)
    agent = SegmentationAgent(parsed(tmp_path / "a.cfg", config))
    agent.create_dataset()
    assert type(agent.train_loader) is torch.utils.data.DataLoader


def test_what_the_cache_would_save(cases: Path, tmp_path: Path, caplog):
    caplog.set_level(logging.INFO)
    config = cached(cases, tmp_path, ["RandomCrop"], dataset={**CROP, "cache_dir": None})
    SegmentationAgent(parsed(tmp_path / "a.cfg", config)).create_dataset()
    assert re.search(
        r"decodes its whole scan, about 0.00045 s .*\(13x29x26 voxels\); \[dataset\] cache_dir", caplog.text
    )


def test_whole_scans_of_other_sizes_make_no_batch(cases: Path, tmp_path: Path, caplog):
    with pytest.raises(UserError, match=r"samples of one batch differ in size, \[1, 1., .*\] and \[1, 1"):
        tuned(cases, tmp_path, caplog, dataset={"train_transform": ["LabelToProbability"]})


def test_a_transform_that_fails_is_named_with_the_file(cases: Path, tmp_path: Path):
    keys = {**FLIP, **CROP, "RandomCrop_output_size": [12, 16, 16]}
    config = parsed(tmp_path / "a.cfg", cached(cases, tmp_path, ["RandomFlip", "RandomCrop"], dataset=keys))
    samples = cached_sets(SegmentationAgent(config))["train"]
    with pytest.raises(
        UserError, match=r"2.nii.gz: the transforms RandomFlip, RandomCrop fail \(ValueError: empty range"
    ):
        [samples[number] for number in range(3)]


def test_a_semi_supervised_config_is_told_that_it_has_no_cache(cases: Path, tmp_path: Path, caplog):
    keys = {**CROP, "supervise_type": "semi_sup"}
    config = parsed(tmp_path / "a.cfg", cached(cases, tmp_path, ["RandomCrop"], dataset=keys, network=UNET))
    SegmentationAgent(config).create_dataset()
    assert "SegmentationAgent with supervise_type = semi_sup reads its own way, without a cache" in caplog.text


def test_several_modalities_and_partial_labels(cases: Path, tmp_path: Path):
    """Two images a scan, normalised one by one; unlabelled voxels have no weight."""
    (tmp_path / "two.csv").write_text("ct,mr,label\n0.nii.gz,0.nii.gz,0_lab.nii.gz\n2.nii.gz,2.nii.gz,2_lab.nii.gz\n")
    keys = {
        **CROP,
        "train_csv": tmp_path / "two.csv",
        "modal_num": 2,
        "train_transform": ["NormalizeWithMeanStd", "NormalizeWithMinMax", "RandomCrop", "PartialLabelToProbability"],
        "NormalizeWithMeanStd_channels": [1],
        **MEASURED,
    }
    config = parsed(tmp_path / "a.cfg", cached(cases, tmp_path, [], dataset=keys, network={**UNET, "in_chns": 2}))
    config["dataset"]["partiallabeltoprobability_class_num"] = 3  # 3: unlabelled
    agent = SegmentationAgent(config)
    stock, ours = agent.get_stage_dataset_from_config("train"), cached_sets(agent)["train"]
    for draw in range(6):
        results = []
        for make in (copy.deepcopy(stock).__getitem__, ours.sample):
            random.seed(draw)
            results.append(make(draw % 2))
        for key in ("image", "label", "label_prob", "pixel_weight"):
            np.testing.assert_allclose(results[1][key], results[0][key], rtol=2e-6, atol=2e-6)
    agent.create_dataset()
    batch = next(iter(agent.train_loader))
    shapes = {key: tuple(value.shape) for key, value in batch.items()}
    assert shapes == {"image": (2, 2, 8, 16, 16), "label_prob": (2, 3, 8, 16, 16), "pixel_weight": (2, 1, 8, 16, 16)}
