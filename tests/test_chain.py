"""The product, by PyMIC's untouched commands: pretrain, fine-tune, test, evaluate; and what they say to mistakes."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd
import pytest
import SimpleITK as sitk
import torch

from pymic_vf.networks.pct_net import PCTNet

from conftest import NETWORK, REAL_DATA, finetuning, pretraining, write_cfg

# a network of PyMIC's own
UNET = {
    "net_type": "UNet",
    "dimension": 3,
    "in_chns": 1,
    "feature_chns": [2, 4, 8, 16, 16],
    "dropout": [0, 0, 0, 0, 0],
    "multiscale_pred": False,
}


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("chain")


@pytest.fixture(scope="module")
def pretrained(run, scans: Path, out: Path):
    """Pretraining with a validation set: writes pretrain_best.pt, whose valid_pred is a numpy scalar."""
    config = pretraining(scans, out, dataset={"valid_csv": scans / "pretrain.csv", "valid_samples": 3})
    return run("pymic_train", write_cfg(out / "pretrain.cfg", config))


@pytest.fixture(scope="module")
def finetuned(run, scans: Path, out: Path, pretrained):
    """Fine-tuning from the last checkpoint, without a validation set."""
    changes = {"ckpt_init_name": "../pretrain/latest"}
    return run("pymic_train", write_cfg(out / "finetune.cfg", finetuning(scans, out, training=changes)))


def test_pretraining_reports_and_saves(out: Path, pretrained):
    text = pretrained.stdout
    assert "Volume Fusion of 4 scans, 3 samples of 4 others to validate; crops [16, 32, 32]; outputs 0/4, 1/4" in text
    assert len(re.findall(r"valid dice by class  0/4: [\d.]+  1/4: .*4/4: [\d.]+\n", text)) == 2
    if not torch.cuda.is_available():
        assert text.count("*** No CUDA device: running on the CPU") == 1
    assert "pretraining:" not in pretrained.stderr  # no progress line where the output is no terminal
    saved = torch.load(out / "pretrain" / "pretrain_2.pt", weights_only=False)
    assert saved["iteration"] == 2
    assert saved["optimizer_state_dict"]["param_groups"][0]["initial_lr"] == 1.5e-3
    assert not list((out / "pretrain").glob(".incomplete*"))


def test_finetuning_reports_what_it_loaded(out: Path, finetuned):
    text = finetuned.stdout
    rows = {row: int(n) for row, n in re.findall(r"^  (loaded|mis-shaped|missing|unused) +(\d+)$", text, re.M)}
    # class_num 5 and 2: the four output convolutions, each with weight and bias
    assert rows["mis-shaped"] == 8 and rows["missing"] == 0 and rows["unused"] == 0
    assert rows["loaded"] == len(PCTNet(NETWORK).state_dict()) - 8
    reason = "class_num is 5 in the file and 2 here, new heads start from random weights"
    assert f"  mis-shaped: 8 weights, pyramid_ct.out_conv2.conv.2.weight and others: {reason}\n" in text
    assert "Initializing the following" not in text and "\nembeddings.1.proj.weight\n" not in text
    file = (out / "finetune" / "weights_loaded.txt").read_text()
    assert "  pred_heads.1.out_conv0.conv.2.weight: (5, 2, 1, 1, 1) in the file, (2, 2, 1, 1, 1) in the network" in file
    assert len(file.splitlines()) > len(PCTNet(NETWORK).state_dict())


def test_segmentation_and_evaluation(run, scans: Path, out: Path, finetuned):
    run("pymic_test", out / "finetune.cfg")
    image = sitk.ReadImage(str(out / "result" / "scan_0.nii.gz"))
    original = sitk.ReadImage(str(scans / "volumes" / "scan_0.nii.gz"))
    assert (image.GetSize(), image.GetSpacing()) == (original.GetSize(), original.GetSpacing())
    fast = {"sliding_window_inferer": "fast", "output_dir": out / "fast"}
    run("pymic_test", write_cfg(out / "fast.cfg", finetuning(scans, out, testing=fast)))
    label, stock_label = (
        sitk.GetArrayFromImage(sitk.ReadImage(str(out / n / "scan_0.nii.gz"))) for n in ("fast", "result")
    )
    assert (label != stock_label).mean() < 1e-3
    evaluation = {
        "metric_list": ["dice", "assd"],
        "label_list": [1],
        "ground_truth_folder": scans / "volumes",
        "segmentation_folder": out / "result",
        "evaluation_image_pair": scans / "evaluation.csv",
    }
    run("pymic_eval_seg", "--cfg", write_cfg(out / "evaluation.cfg", {"evaluation": evaluation}))
    for metric in ("dice", "assd"):
        assert pd.read_csv(out / "result" / f"eval_{metric}.csv")["image"].tolist()[-2:] == ["mean", "std"]


def test_released_style_weights(run, scans: Path, out: Path, tmp_path: Path):
    """A state dict with all three embeddings and heads, by an absolute ckpt_init_name."""
    weights: dict[str, torch.Tensor] = {}
    for mode in (0, 1, 2):
        weights |= PCTNet({**NETWORK, "resolution_mode": mode}).state_dict()
    torch.save({"model_state_dict": weights}, tmp_path / "released.pt")
    training = {"ckpt_init_name": tmp_path / "released.pt", "iter_max": 1}
    done = run("pymic_train", write_cfg(tmp_path / "a.cfg", finetuning(scans, tmp_path, training=training)))
    assert re.search(r"unused: \d+ weights, embeddings\.0\.\S+ and others: of resolution_mode 0, 1 here", done.stdout)
    assert re.search(r"mis-shaped +8\n  missing +0\n", done.stdout)


def test_weights_of_another_network_are_an_error(run, scans: Path, tmp_path: Path):
    torch.save({"model_state_dict": {"encoder.weight": torch.ones(3)}}, tmp_path / "other.pt")
    config = finetuning(scans, tmp_path, training={"ckpt_init_name": tmp_path / "other.pt"})
    done = run("pymic_train", write_cfg(tmp_path / "a.cfg", config), status=1)
    assert "none of its 1 weights fits PCTNet" in done.stderr and "Traceback" not in done.stderr
    assert "unused: encoder.weight" in done.stdout
    assert not list((tmp_path / "finetune").glob("*.pt"))


def test_a_stock_config_trains_as_before(run, scans: Path, tmp_path: Path):
    config = finetuning(scans, tmp_path, training={"deep_supervise": False})
    config["network"] = {**UNET, "class_num": 2}
    config["dataset"]["valid_csv"] = scans / "labelled.csv"
    run("pymic_train", write_cfg(tmp_path / "a.cfg", config))
    assert (tmp_path / "finetune" / "finetune_best.pt").is_file()


def test_without_autoload_by_module(run, scans: Path, out: Path, pretrained):
    config = finetuning(scans, out, training={"iter_max": 1, "ckpt_dir": out / "module"})
    off = {"TORCH_DEVICE_BACKEND_AUTOLOAD": "0"}
    run("python", "-m", "pymic_vf", "train", write_cfg(out / "module.cfg", config), env=off)
    run("python", "-m", "pymic_vf", "test", out / "module.cfg", env=off)


def test_mistakes_end_in_one_message(run, scans: Path, tmp_path: Path):
    config = pretraining(scans, tmp_path, dataset={"train_csv": tmp_path / "gone.csv", "VF_patchnumber": [1, 2]},
                         network={"class_num": 4}, training={"lr_gamma": None})  # fmt: skip
    done = run("pymic_train", write_cfg(tmp_path / "a.cfg", config), status=1)
    assert "Traceback" not in done.stderr
    for message in (
        "4 mistakes in the configuration",
        "vf_patchnumber: there is no such key (did you mean VF_patch_number?)",
        "gone.csv: there is no such csv file",
        "[network] class_num must be 5 for Volume Fusion (0/4, 1/4, 2/4, 3/4, 4/4), got 4",
        "[training] lr_gamma is missing: lr_scheduler = StepLR needs it",
    ):
        assert message in done.stderr
    assert not list((tmp_path / "pretrain").glob("*.pt"))


def test_what_pymic_itself_misses(run, scans: Path, tmp_path: Path):
    config = pretraining(scans, tmp_path, self_supervised_learning={"method_name": "VFF"})
    done = run("pymic_train", write_cfg(tmp_path / "a.cfg", config), status=1)
    assert "(did you mean VF?), got 'VFF'" in done.stderr and "Traceback" not in done.stderr


def test_testing_before_training(run, scans: Path, tmp_path: Path):
    done = run("pymic_test", write_cfg(tmp_path / "a.cfg", finetuning(scans, tmp_path)), status=1)
    assert "finetune_latest.txt" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.real_data
def test_left_atrium(run, tmp_path: Path):
    folder = REAL_DATA / "left_atrium"
    config = pretraining(folder, tmp_path, dataset={"train_csv": folder / "train.csv", "VF_crop_size": [16, 48, 48]})
    done = run("pymic_train", write_cfg(tmp_path / "a.cfg", config))
    assert "Volume Fusion of 28 scans" in done.stdout


@pytest.mark.cuda
def test_cuda_trains(run, scans: Path, tmp_path: Path):
    done = run("pymic_train", write_cfg(tmp_path / "a.cfg", pretraining(scans, tmp_path)))
    assert "running on the CPU" not in done.stdout
