"""What `pymic_vf check` says of scans, each fault by its line and the exit status."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk

import pymic_vf
from pymic_vf.cli import main, read_config
from pymic_vf.host.settings.checks import check_pretraining, method_name_of
from pymic_vf.host.survey.data_check import DataCheck
from pymic_vf.host.survey.findings import FAIL, PASS, WARN, Findings

from conftest import finetuning, make_scan, pretraining, write_cfg, write_volume

pymic_vf.register()


def label_of(shape: tuple[int, ...], value: int = 1) -> np.ndarray:
    label = np.zeros(shape, np.uint8)
    label[2:8, 4:20, 4:20] = value
    return label


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four scans with labels, and their csv files; a test changes what it wants."""
    (tmp_path / "volumes").mkdir()
    names = [(f"{index}.nii.gz", f"{index}_lab.nii.gz") for index in range(4)]
    for index, (image, label) in enumerate(names):
        voxels, mask = make_scan(index)
        write_volume(tmp_path / "volumes" / image, voxels)
        write_volume(tmp_path / "volumes" / label, mask)
    pd.DataFrame(names, columns=["image", "label"]).to_csv(tmp_path / "labelled.csv", index=False)
    pd.DataFrame({"image": [image for image, _ in names]}).to_csv(tmp_path / "pretrain.csv", index=False)
    return tmp_path


def check(folder: Path, config: dict[str, Any]) -> Findings:
    parsed = read_config(write_cfg(folder / "a.cfg", config))
    plan = check_pretraining(parsed) if method_name_of(parsed) else None
    findings = Findings()
    DataCheck(parsed, plan, findings, jobs=2).run()
    return findings


def said(findings: Findings, level: str) -> str:
    return "\n".join(text for each, text in findings.lines if each == level)


def test_good_scans(folder: Path):
    for config in (pretraining(folder, folder), finetuning(folder, folder)):
        findings = check(folder, config)
        assert findings.verdict == PASS and findings.status == 0
        assert "sizes from [18, 36, 40] to [18, 36, 40]" in said(findings, PASS)
        assert "spacings from [2.5, 1.0, 1.0]" in said(findings, PASS)
    assert "labels of 4 scans hold [0, 1]" in said(findings, PASS)


def test_labels_beyond_class_num(folder: Path):
    write_volume(folder / "volumes" / "2_lab.nii.gz", label_of((18, 36, 40), value=3))
    findings = check(folder, finetuning(folder, folder))
    assert findings.status == 1
    line = said(findings, FAIL)
    assert "[network] class_num = 2 has 0 to 1" in line and "2_lab.nii.gz: [0, 3]" in line


def test_a_class_that_no_label_has(folder: Path):
    findings = check(folder, finetuning(folder, folder, network={"class_num": 3}))
    assert findings.status == 2 and "no label that was read has the classes [2]" in said(findings, WARN)


def test_a_converted_label_counts_as_it_will_be(folder: Path):
    write_volume(folder / "volumes" / "2_lab.nii.gz", label_of((18, 36, 40), value=3))
    change = {"train_transform": ["LabelConvert", "RandomCrop", "LabelToProbability"],
              "LabelConvert_source_list": [3], "LabelConvert_target_list": [1]}  # fmt: skip
    assert check(folder, finetuning(folder, folder, dataset=change)).verdict == PASS


def test_a_label_of_another_size_or_place(folder: Path):
    write_volume(folder / "volumes" / "1_lab.nii.gz", label_of((17, 36, 40)))
    write_volume(folder / "volumes" / "2_lab.nii.gz", label_of((18, 36, 40)), spacing=(1, 1, 5))
    findings = check(folder, finetuning(folder, folder))
    assert "1_lab.nii.gz: [17, 36, 40], the image [18, 36, 40]" in said(findings, FAIL)
    assert "2_lab.nii.gz" in said(findings, WARN)


def test_scans_smaller_than_the_crop(folder: Path):
    write_volume(folder / "volumes" / "3.nii.gz", make_scan(3, (12, 36, 40))[0])
    write_volume(folder / "volumes" / "3_lab.nii.gz", label_of((12, 36, 40)))
    findings = check(folder, pretraining(folder, folder))
    assert findings.status == 2
    assert "1 are smaller than crop_size = [16, 32, 32], padded by mirroring" in said(findings, WARN)
    findings = check(folder, finetuning(folder, folder))
    assert "1 are smaller than RandomCrop_output_size = [16, 32, 32], PyMIC's RandomCrop" in said(findings, FAIL)
    padded = {"train_transform": ["Pad", "RandomCrop", "LabelToProbability"], "Pad_output_size": [16, 32, 32]}
    assert check(folder, finetuning(folder, folder, dataset=padded)).verdict == PASS


def test_mixed_orientations_and_spacings(folder: Path):
    image = sitk.GetImageFromArray(make_scan(0)[0])
    image.SetSpacing((1, 1, 9))
    image.SetDirection((-1, 0, 0, 0, -1, 0, 0, 0, 1))
    sitk.WriteImage(image, str(folder / "volumes" / "0.nii.gz"))
    findings = check(folder, pretraining(folder, folder))
    lines = said(findings, WARN)
    assert "orientations LPS, RAS" in lines and "0.nii.gz is RAS" in lines
    assert "spacings from [2.5, 1.0, 1.0] to [9.0, 1.0, 1.0]" in lines and "Resample" in lines


def test_scans_that_cannot_be_used(folder: Path):
    (folder / "volumes" / "0.nii.gz").write_bytes(b"no image")
    voxels = np.zeros((18, 36, 40), np.float32)
    write_volume(folder / "volumes" / "1.nii.gz", voxels)
    findings = check(folder, pretraining(folder, folder))
    assert findings.status == 1
    lines = said(findings, FAIL)
    assert "0.nii.gz" in lines and "1.nii.gz: flat" in lines
    lenient = check(folder, pretraining(folder, folder, dataset={"max_bad_fraction": 0.5}))
    assert lenient.status == 2 and "0.nii.gz" in said(lenient, WARN)


def test_crops_of_air(folder: Path):
    for index in range(4):
        voxels = np.full((40, 80, 80), -1000, np.int16)
        voxels[:4, :8, :8] = 40
        write_volume(folder / "volumes" / f"{index}.nii.gz", voxels)
    findings = check(folder, pretraining(folder, folder))
    assert findings.status == 2
    assert "100.0% of 96 drawn crops are over 90% air" in said(findings, WARN)


def test_intensities_of_another_kind(folder: Path):
    voxels = make_scan(0)[0]
    voxels[0] = -1000
    write_volume(folder / "volumes" / "0.nii.gz", voxels)
    assert "some reach -900 as HU do, 3 do not" in said(check(folder, pretraining(folder, folder)), WARN)
    window = {"volume_transform": ["NormalizeWithMinMax"], "NormalizeWithMinMax_channels": [0],
              "NormalizeWithMinMax_threshold_lower": [5000], "NormalizeWithMinMax_threshold_upper": [6000],
              "max_bad_fraction": 1}  # fmt: skip
    assert check(folder, pretraining(folder, folder, dataset=window)).verdict != PASS


def test_the_command(folder: Path, capsys: pytest.CaptureFixture):
    """All of it: a batch and the forecast; and nothing is left in the folders of the run."""
    config = pretraining(folder, folder, dataset={"VF_cache_dir": folder / "cache", "num_worker": 2},
                         training={"iter_max": 1000, "iter_save": 100})  # fmt: skip
    before = sorted(folder.rglob("*"))
    cfg = write_cfg(folder / "a.cfg", config)
    status = main(["check", str(cfg)])
    assert sorted(folder.rglob("*")) == sorted([*before, cfg])
    out = capsys.readouterr().out
    assert status == 0, out
    for text in ("one batch forward and backward on", "loss ", "hours for 1000 iterations", "2 workers of about",
                 "10 checkpoints of", "disk of cache_dir: about", "nothing wrong found"):  # fmt: skip
        assert text in out
    assert "FAIL" not in out


def test_a_batch_that_fails(folder: Path, capsys: pytest.CaptureFixture):
    change = {"train_transform": ["RandomSlice", "LabelToProbability"], "RandomSlice_output_size": 30}
    assert main(["check", str(write_cfg(folder / "a.cfg", finetuning(folder, folder, dataset=change)))]) == 1
    assert "FAIL  one batch ends in" in capsys.readouterr().out
    quick = write_cfg(folder / "a.cfg", finetuning(folder, folder))
    assert main(["check", "--quick", str(quick)]) == 0
    assert "one batch" not in capsys.readouterr().out
