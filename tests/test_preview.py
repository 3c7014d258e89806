"""The preview before and after training."""

from __future__ import annotations

from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from matplotlib.image import imread

import pymic_vf
from pymic_vf.cli import main
from pymic_vf.demo import preview
from pymic_vf.host.agents import pretraining_agent

from conftest import parsed, pretraining, write_cfg

pymic_vf.register()

REC = {
    "dataset": {"task_type": "rec", "train_transform": None, "MIM_block_size": [4, 8, 8]},
    "self_supervised_learning": {"method_name": "MIM"},
    "network": {"class_num": 1, "multiscale_pred": False},
    "training": {"loss_type": "MAELoss", "loss_weight": None, "deep_supervise": False},
}


def drawn(cfg: Path, out: Path, *options: str) -> tuple[int, list]:
    """The exit status and the panels that were drawn, which go into the real picture."""
    with mock.patch.object(preview, "draw_sample", wraps=preview.draw_sample) as draw:
        status = main(["preview", str(cfg), "--out", str(out), "--sample", "0", *options])
    return status, draw.call_args.args[0] if draw.called else []


@pytest.mark.parametrize("changes", [{}, REC], ids=["segmentation", "reconstruction"])
def test_the_answer_is_drawn_after_training(scans: Path, tmp_path: Path, caplog, changes: dict):
    caplog.set_level("INFO")
    config = pretraining(scans, tmp_path, **{**changes, "dataset": {**changes.get("dataset", {}), "num_worker": 0}})
    cfg = write_cfg(tmp_path / "a.cfg", config)
    status, before = drawn(cfg, tmp_path / "before.png")
    assert status == 0 and "without the network's answer: no checkpoint" in caplog.text
    pretraining_agent(parsed(tmp_path / "b.cfg", config)).run()
    status, after = drawn(cfg, tmp_path / "after.png")
    saved = tmp_path / "pretrain" / "pretrain_2.pt"
    assert status == 0 and f"with the network's answer, by the weights of {saved}" in caplog.text
    assert [panel.title for panel in after] == [*(panel.title for panel in before), "network's answer"]
    assert after[-1].formula == "iteration 2"
    assert imread(tmp_path / "after.png").shape[1] > imread(tmp_path / "before.png").shape[1]
    agent = pretraining_agent(parsed(tmp_path / "c.cfg", config))
    agent.create_network()
    agent.net.load_state_dict(torch.load(saved, weights_only=False)["model_state_dict"])
    image = agent.get_stage_dataset_from_config("train").method_sample(0)["image"]
    with torch.no_grad():
        outputs = agent.net.eval()(torch.from_numpy(image)[None])
    if changes:
        np.testing.assert_allclose(after[-1].image, outputs[0, 0].numpy(), rtol=1e-4, atol=1e-5)
    else:
        assert np.array_equal(after[-1].image, image[0])
        assert (after[-1].label == outputs[0][0].argmax(0).numpy()).mean() > 0.999  # but for ties of rounding


def test_a_checkpoint_of_another_network_is_named(scans: Path, tmp_path: Path, caplog, capsys):
    caplog.set_level("INFO")
    cfg = write_cfg(tmp_path / "a.cfg", pretraining(scans, tmp_path, dataset={"num_worker": 0}))
    other = tmp_path / "pretrain" / "pretrain_2.pt"
    other.parent.mkdir()
    torch.save({"iteration": 2, "model_state_dict": {"a": torch.zeros(1)}}, other)
    message = "its weights are not of the network of this config: 0 have another shape, "
    assert drawn(cfg, tmp_path / "a.png", "--ckpt", str(other)) == (1, [])
    assert message in capsys.readouterr().err and not (tmp_path / "a.png").exists()
    (tmp_path / "pretrain" / "pretrain_latest.txt").write_text("2")
    status, panels = drawn(cfg, tmp_path / "a.png")  # nobody asked for it: the rest is drawn
    assert status == 0 and len(panels) == 5 and message in caplog.text
    assert main(["preview", str(cfg), "--out", str(tmp_path / "b.png"), "--ckpt", str(tmp_path / "none.pt")]) == 1
    assert "no checkpoint" in capsys.readouterr().err


def test_without_a_number_one_that_shows_many_classes(scans: Path, tmp_path: Path, capsys):
    config = pretraining(scans, tmp_path, dataset={"VF_patch_number": [1, 9]})
    assert main(["preview", str(write_cfg(tmp_path / "a.cfg", config)), "--out", str(tmp_path / "a.png")]) == 0
    number = int(capsys.readouterr().out.split("sample ")[1].split()[0])
    samples = pretraining_agent(parsed(tmp_path / "a.cfg", config)).get_stage_dataset_from_config("train")
    classes = [len(np.unique(samples.method_sample(k)["label"])) for k in range(preview.LOOKED_AT)]
    assert classes[number] == max(classes) > min(classes)
