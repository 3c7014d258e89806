from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk

from pymic_vf.cli import main
from pymic_vf.errors import ConfigError, UserError
from pymic_vf.host.nnunet_export import export_nnunet

from conftest import make_scan, write_cfg, write_volume

LABELLED = ["image", "label"]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two scans to train, one to validate, one to test: one of them .mha, one in a folder of its own."""
    (tmp_path / "volumes" / "b").mkdir(parents=True)
    for index, name in enumerate(("a.nii.gz", "b/scan.nii.gz", "c.mha", "d.nii.gz")):
        for voxels, part in zip(make_scan(index), ("", "_lab"), strict=True):
            stem, ending = name.split(".", 1)
            write_volume(tmp_path / "volumes" / f"{stem}{part}.{ending}", voxels)
    write_csv(tmp_path / "train.csv", ("a.nii.gz", "a_lab.nii.gz"), ("b/scan.nii.gz", "b/scan_lab.nii.gz"))
    write_csv(tmp_path / "valid.csv", ("c.mha", "c_lab.mha"))
    write_csv(tmp_path / "test.csv", ("d.nii.gz", "d_lab.nii.gz"))
    return tmp_path


def write_csv(path: Path, *rows: tuple[str, ...], columns: list[str] = LABELLED) -> None:
    pd.DataFrame(rows, columns=columns).to_csv(path, index=False)


def config(data: Path, **dataset: Any) -> dict[str, dict[str, Any]]:
    given = {
        "train_dir": str(data / "volumes"),
        **{f"{s}_csv": str(data / f"{s}.csv") for s in ("train", "valid", "test")},
    }
    given |= {"task_type": "seg", "tensor_type": "float"}
    return {"dataset": {**given, **dataset}, "network": {"class_num": 2}}


def files(folder: Path) -> list[str]:
    return sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())


def voxels(path: Path) -> np.ndarray:
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


def test_the_dataset_has_the_split_of_the_config(data: Path, capsys):
    cfg = write_cfg(data / "a.cfg", config(data))
    out = data / "raw" / "Dataset007_Boxes"
    assert main(["export-nnunet", str(cfg), str(out), "--channel-names", "CT", "--class-names", "box"]) == 0
    assert "2 to train, 1 to valid, 1 to test" in capsys.readouterr().out
    assert files(out) == [
        "dataset.json",
        "evaluation.csv",
        *(f"imagesTr/{name}_0000.nii.gz" for name in ("a", "b_scan", "c")),
        "imagesTs/d_0000.nii.gz",
        *(f"labelsTr/{name}.nii.gz" for name in ("a", "b_scan", "c")),
        "splits_final.json",
    ]
    assert json.loads((out / "splits_final.json").read_text()) == [{"train": ["a", "b_scan"], "val": ["c"]}]
    assert json.loads((out / "dataset.json").read_text()) == {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, "box": 1},
        "numTraining": 3,
        "file_ending": ".nii.gz",
    }
    table = pd.read_csv(out / "evaluation.csv")
    assert Path(table["label"][0]).samefile(data / "volumes" / "d_lab.nii.gz")
    assert list(table["segmentation"]) == ["d.nii.gz"]
    for source, copy in (("a.nii.gz", "imagesTr/a_0000"), ("c.mha", "imagesTr/c_0000"), ("c_lab.mha", "labelsTr/c")):
        before, after = (sitk.ReadImage(str(f)) for f in (data / "volumes" / source, out / f"{copy}.nii.gz"))
        assert np.array_equal(sitk.GetArrayFromImage(before), sitk.GetArrayFromImage(after))
        assert before.GetSpacing() == pytest.approx(after.GetSpacing())
    assert (out / "imagesTr" / "a_0000.nii.gz").samefile(data / "volumes" / "a.nii.gz")  # linked, not copied
    assert [path.name for path in out.parent.iterdir()] == [out.name]


def test_several_channels_have_numbers_and_a_test_needs_no_labels(data: Path):
    two = ("t1", "t2", "label")
    write_csv(data / "train.csv", ("a.nii.gz", "b/scan.nii.gz", "a_lab.nii.gz"), columns=list(two))
    write_csv(data / "test.csv", ("d.nii.gz", "c.mha"), columns=["t1", "t2"])
    export_nnunet(config(data, modal_num=2, valid_csv=None), data / "Dataset001_Two")
    assert files(data / "Dataset001_Two") == [
        "dataset.json",
        "imagesTr/a_0000.nii.gz",
        "imagesTr/a_0001.nii.gz",
        "imagesTs/d_0000.nii.gz",
        "imagesTs/d_0001.nii.gz",
        "labelsTr/a.nii.gz",
    ]
    assert np.array_equal(voxels(data / "Dataset001_Two/imagesTs/d_0001.nii.gz"), voxels(data / "volumes" / "c.mha"))
    names = json.loads((data / "Dataset001_Two" / "dataset.json").read_text())
    assert names["channel_names"] == {"0": "channel_0", "1": "channel_1"}
    assert names["labels"] == {"background": 0, "label_1": 1}


def test_all_that_is_wrong_is_named_and_nothing_written(data: Path):
    label = voxels(data / "volumes" / "a_lab.nii.gz")
    write_volume(data / "volumes" / "a_lab.nii.gz", label * 3)
    write_volume(data / "volumes" / "b" / "scan_lab.nii.gz", label[:, 1:])
    write_volume(data / "volumes" / "c_lab.mha", voxels(data / "volumes" / "c_lab.mha"), spacing=(1.0, 1.0, 3.0))
    (data / "volumes" / "d.nii.gz").write_bytes(b"no image")
    with pytest.raises(ConfigError) as caught:
        export_nnunet(config(data), data / "raw" / "Dataset001_Wrong")
    first, second, third, fourth = caught.value.mistakes
    assert first.endswith("a_lab.nii.gz: labels must be whole numbers from 0 to class_num - 1 = 1, has [3]")
    assert second.endswith("scan_lab.nii.gz: size must be that of scan.nii.gz, (40, 36, 18), is (40, 35, 18)")
    assert third.endswith("c_lab.mha: spacing must be that of c.mha, (1.0, 1.0, 2.5), is (1.0, 1.0, 3.0)")
    assert "d.nii.gz: cannot be read as an image" in fourth
    assert not (data / "raw").exists()


@pytest.mark.parametrize(
    ("changes", "names", "message"),
    [
        ({"train_csv": None}, (), "[dataset] train_csv is missing: the list of images and labels"),
        ({"train_csv": "there_is_none.csv"}, (), "there_is_none.csv: there is no such csv file"),
        ({"train_label_key": "mask"}, (), "needs 1 columns of images and one named 'mask'; its columns are"),
        ({}, ("box", "ball"), "--class-names must be 1 names, got 2: box ball"),
        ({}, ("background",), "--class-names must be different names, none of them background"),
    ],
)
def test_a_mistake_of_the_config_is_named(data: Path, changes: dict, names: tuple[str, ...], message: str):
    with pytest.raises(ConfigError) as caught:
        export_nnunet(config(data, **changes), data / "Dataset001_Wrong", class_names=names)
    assert len(caught.value.mistakes) == 1 and message in caught.value.mistakes[0]


def test_a_scan_in_two_sets_is_named(data: Path):
    write_csv(data / "test.csv", ("a.nii.gz", "a_lab.nii.gz"))
    with pytest.raises(ConfigError, match=r"two images would be the case a \(train and test\)"):
        export_nnunet(config(data), data / "Dataset001_Wrong")


def test_the_folder_is_new_and_has_a_name_that_nnunet_finds(data: Path):
    with pytest.raises(UserError, match="must be named Dataset, three digits, _ and a name"):
        export_nnunet(config(data), data / "Organs")
    (data / "Dataset001_Full").mkdir()
    export_nnunet(config(data), data / "Dataset001_Full")
    before = files(data / "Dataset001_Full")
    with pytest.raises(UserError, match="must be new or empty"):
        export_nnunet(config(data), data / "Dataset001_Full")
    assert files(data / "Dataset001_Full") == before


def test_nothing_is_left_of_an_export_that_is_stopped(data: Path, monkeypatch):
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("pymic_vf.host.nnunet_export._write_json", stop)
    with pytest.raises(KeyboardInterrupt):
        export_nnunet(config(data), data / "raw" / "Dataset001_Half")
    assert list((data / "raw").iterdir()) == []


def test_a_pretraining_is_no_config_for_it(data: Path, capsys):
    unlabelled = config(data, supervise_type="self_sup")
    cfg = write_cfg(data / "a.cfg", unlabelled)
    assert main(["export-nnunet", str(cfg), str(data / "Dataset001_None")]) == 1
    assert "is no supervised config: nnU-Net learns from labels" in capsys.readouterr().err
