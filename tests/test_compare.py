"""`pymic_vf compare`: which runs a config asks for, what makes them the same, what is done and what is left."""

from __future__ import annotations

import dataclasses
import gzip
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from filelock import FileLock

from pymic_vf.compare.checks import check_runs
from pymic_vf.compare.command import overview
from pymic_vf.compare.config_text import read_text, value_of
from pymic_vf.compare.job import (
    DONE,
    FAILED,
    ITERATION,
    LOG,
    RESULT,
    STATE,
    finished,
    hash_of_weights,
    read_scores,
    run_job,
    versions,
    without_absent,
)
from pymic_vf.compare.plan import FINETUNING, PRETRAINING, make_runs, read_json, write_json, write_run
from pymic_vf.compare.pool import Pool, remove_checkpoints
from pymic_vf.compare.progress import LiveLine, begin_anew, duration, iteration, lost_pretrainings, stage, time_left
from pymic_vf.compare.settings import ARM_KEYS, COMPARE_KEYS, SLURM_KEYS, read_settings
from pymic_vf.compare.slurm import Cluster
from pymic_vf.compare.trial import time_trainings
from pymic_vf.errors import ConfigError, UserError
from pymic_vf.keys import markdown_table

from conftest import finetuning, make_scan, pretraining, write_cfg, write_volume

COMPARE = """
[compare]
out = results
finetune = finetune.cfg
seeds = [1, 2]
labels = [1, 2]
label_order = 3
class_names = [box]
[arm:scratch]
[arm:VF]
pretrain = pretrain.cfg
"""


@pytest.fixture
def folder(scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: configs, lists of two scans to pretrain on, three to fine-tune and two to test."""
    (tmp_path / "volumes").mkdir()
    for file in (scans / "volumes").iterdir():
        shutil.copy(file, tmp_path / "volumes")
    for index in range(4, 7):
        for ending, voxels in zip(("", "_lab"), make_scan(index), strict=True):
            write_volume(tmp_path / "volumes" / f"scan_{index}{ending}.nii.gz", voxels)
    for name, indices in {"pretrain": (0, 1), "train": (2, 3, 4), "test": (5, 6)}.items():
        rows = [{"image": f"scan_{index}.nii.gz", "label": f"scan_{index}_lab.nii.gz"} for index in indices]
        pd.DataFrame(rows).to_csv(tmp_path / f"{name}.csv", index=False)
    monkeypatch.chdir(tmp_path)
    here = Path()
    write_cfg(here / "pretrain.cfg", pretraining(here, here))
    changes = {"train_csv": "train.csv", "test_csv": "test.csv", "train_batch_size": 1}
    write_cfg(here / "finetune.cfg", finetuning(here, here, dataset=changes))
    Path("compare.cfg").write_text(COMPARE)
    return tmp_path


def planned(**changes: str):
    text = COMPARE
    for key, value in changes.items():
        text = re.sub(rf"(?m)^{key} = .*$", f"{key} = {value}", text)
    Path("compare.cfg").write_text(text)
    settings = read_settings(Path("compare.cfg"))
    return settings, make_runs(settings)


def add_arm(text: str):
    Path("compare.cfg").write_text(COMPARE + text)
    settings = read_settings(Path("compare.cfg"))
    return settings, make_runs(settings)


def by_name(runs):
    return {run.name: run for run in runs}


def test_every_run_has_its_config(folder: Path):
    settings, runs = planned()
    assert [run.name for run in runs[:3]] == [
        "pretraining/VF/seed_1",
        "pretraining/VF/seed_2",
        "finetuning/scratch/labels_1/seed_1",
    ]
    assert len(runs) == 2 + 2 * 2 * 2
    run = by_name(runs)["finetuning/VF/labels_2/seed_2"]
    write_run(run, settings.out)
    config = read_text(settings.out / run.name / "finetune.cfg")
    assert value_of(config, "training", "random_seed") == "2"
    assert value_of(config, "training", "resume") == "auto"
    start = Path(value_of(config, "training", "ckpt_dir")) / value_of(config, "training", "ckpt_init_name")
    assert os.path.normpath(start) == "results/pretraining/VF/seed_2/model/latest"
    assert value_of(by_name(runs)["finetuning/scratch/labels_2/seed_2"].config, "training", "ckpt_init_name") == ""
    check_runs(runs)


def test_few_labels_are_among_more_and_the_same_for_all(folder: Path):
    runs = by_name(planned()[1])
    few = runs["finetuning/VF/labels_1/seed_1"].rows["image"].tolist()
    more = runs["finetuning/VF/labels_2/seed_1"].rows["image"].tolist()
    assert len(few) == 1 and len(more) == 2 and set(few) < set(more)
    assert runs["finetuning/scratch/labels_2/seed_2"].rows["image"].tolist() == more
    first = by_name(planned(label_order="csv", labels="[2, all]")[1])
    assert first["finetuning/VF/labels_2/seed_1"].rows["image"].tolist() == ["scan_2.nii.gz", "scan_3.nii.gz"]
    assert len(first["finetuning/VF/labels_3/seed_1"].rows) == 3


def test_overrides_need_no_file_each(folder: Path):
    arms = "[arm:K1]\npretrain = pretrain.cfg\npretrain.dataset.VF_foreground_classes = 1\n"
    arms += "pretrain.network.class_num = 2\nnetwork.feature_chns = [4, 4, 8, 16, 32]\n"
    runs = by_name(add_arm(arms)[1])
    config = runs["pretraining/K1/seed_1"].config
    assert value_of(config, "dataset", "vf_foreground_classes") == "1"
    assert [value_of(runs[name].config, "network", "class_num") for name in
            ("pretraining/K1/seed_1", "finetuning/K1/labels_1/seed_1")] == ["2", "2"]  # fmt: skip
    assert value_of(runs["finetuning/K1/labels_1/seed_1"].config, "network", "feature_chns") == "[4, 4, 8, 16, 32]"
    check_runs(list(runs.values()))


def test_arms_with_one_pretraining_share_it(folder: Path):
    _settings, runs = add_arm("[arm:slow]\npretrain = pretrain.cfg\nfinetune.training.learning_rate = 1e-4\n")
    assert sum(run.kind == PRETRAINING for run in runs) == 2
    assert by_name(runs)["finetuning/slow/labels_1/seed_2"].pretraining.name == "pretraining/VF/seed_2"
    text = COMPARE.replace("seeds = [1, 2]", "seeds = [1, 2]\npretrain_seeds = [7]")
    Path("compare.cfg").write_text(text)
    runs = make_runs(read_settings(Path("compare.cfg")))
    assert [run.name for run in runs if run.kind == PRETRAINING] == ["pretraining/VF/seed_7"]


def test_a_fingerprint_is_of_what_matters(folder: Path):
    def prints() -> dict[str, str]:
        return {run.name: run.fingerprint for run in make_runs(read_settings(Path("compare.cfg")))}

    before = prints()
    pretrain, finetune = Path("pretrain.cfg"), Path("finetune.cfg")
    pretrain.write_text("# a comment\n" + pretrain.read_text().replace("num_worker = 1", "num_worker = 4"))
    finetune.write_text(finetune.read_text().replace("learning_rate = 1.5e-3", "learning_rate = 0.0015"))
    assert prints() == before
    finetune.write_text(finetune.read_text().replace("learning_rate = 0.0015", "learning_rate = 1e-3"))
    after = prints()
    assert {name for name in before if before[name] != after[name]} == {n for n in before if n.startswith(FINETUNING)}
    pretrain.write_text(pretrain.read_text().replace("iter_max = 2", "iter_max = 4"))
    last = prints()  # a fine-tuning depends on its pretraining
    assert {name for name in after if last[name] == after[name]} == {name for name in after if "/scratch/" in name}
    Path("pretrain.csv").write_text("image\nscan_1.nii.gz\nscan_0.nii.gz\n")
    assert prints()["pretraining/VF/seed_1"] != last["pretraining/VF/seed_1"]


def test_all_mistakes_of_a_comparison_at_once(folder: Path):
    Path("compare.cfg").write_text(
        "[compare]\nout = results\nfinetune = finetune.cfg\nsedes = [1]\nlabels = [0]\nseeds = [1, 1]\nbaseline = non\n"
        "metrics = [dise]\n[arm:none]\npretrane = x\n[arm:../VF]\npretrain = nowhere.cfg\nVF.x = 1\n"
        "pretrain.trainin.x = 1\nfinetune.x = 2\n[arms]\n"
    )
    with pytest.raises(ConfigError) as error:
        read_settings(Path("compare.cfg"))
    text = str(error.value)
    for part in (
        "[compare] sedes: there is no such key (did you mean seeds?)",
        "[compare] labels must be a list of numbers of scans, or all, got [0]",
        "[compare] seeds must not have a value twice, got [1, 1]",
        "there is no arm non (did you mean none?)",
        "metrics must be of dice, assd, hd95, iou (did you mean dice?)",
        "[arm:none] pretrane: there is no such key (did you mean pretrain?)",
        "[arm:../VF]: an arm's name names a folder",
        "[arm:../VF] pretrain = nowhere.cfg: there is no such file",
        "[arm:../VF] VF.x: there is no section VF",
        "[arm:../VF] pretrain.trainin.x: there is no section trainin (did you mean training?)",
        "[arm:../VF] finetune.x: there is no section finetune",
        "[arms]: no such section",
    ):
        assert part in text


def test_mistakes_of_the_configs_are_found_before_any_run(folder: Path):
    text = "[arm:K]\npretrain = pretrain.cfg\npretrain.dataset.VF_patch_numbr = 3\n"
    text += "[arm:L]\nfinetune.training.iter_max = none\n"
    _settings, runs = add_arm(text)
    with pytest.raises(ConfigError) as error:
        check_runs(runs)
    assert "arm K, pretraining: [dataset] vf_patch_numbr: there is no such key" in str(error.value)
    assert "arm L, finetuning: [training] iter_max" in str(error.value)
    with pytest.raises(ConfigError, match=r"labels: 9 labelled scans, finetune.cfg has 3"):
        planned(labels="[9]")
    with pytest.raises(ConfigError, match=r"best: pretrain.cfg has no \[dataset\] valid_csv"):
        planned(labels="[1]\npretrained_checkpoint = best")
    assert len(planned(labels="[3, all]")[1]) == 2 + 2 * 2  # all are three: one set of runs


def test_a_test_scan_in_a_training_list_is_found(folder: Path):
    _settings, runs = planned()
    with Path("pretrain.csv").open("a") as csv:
        csv.write("./../volumes/scan_5.nii.gz,\n")
    with pytest.raises(ConfigError, match=r"pretraining: pretrain.csv has the test scan .*scan_5.nii.gz"):
        check_runs(runs)
    # the same voxels under another name, compressed in another way
    plain = gzip.decompress(Path("volumes/scan_6.nii.gz").read_bytes())
    Path("volumes/copy.nii.gz").write_bytes(gzip.compress(plain, 1))
    Path("train.csv").write_text("image,label\ncopy.nii.gz,scan_6_lab.nii.gz\nscan_2.nii.gz,scan_2_lab.nii.gz\n")
    with pytest.raises(ConfigError, match=r"its labelled scans has .*copy.nii.gz, whose content is that of"):
        check_runs(planned(labels="[2]")[1])


def segmented(folder: Path):
    """A run of which only the evaluation is left: its segmentations are the truth of the wrong scans."""
    settings, runs = planned()
    run = by_name(runs)["finetuning/scratch/labels_1/seed_1"]
    place = write_run(run, settings.out)
    (place / "segmentations").mkdir()
    for index in (5, 6):
        shutil.copy(f"volumes/scan_{11 - index}_lab.nii.gz", place / "segmentations" / f"scan_{index}.nii.gz")
    state = {"fingerprint": run.fingerprint, "starts_from": None, "done": ["train", "test"], "seconds": {"train": 7.0}}
    write_json(place / "state.json", {**state, "begun": 0.0})
    return settings, run, place


def test_a_job_does_what_is_left_and_only_once(folder: Path):
    _settings, run, place = segmented(folder)
    hidden = place / "segmentations" / "scan_6.nii.gz"
    hidden.rename("aside.nii.gz")
    assert run_job(place) == FAILED
    assert not (place / RESULT).exists() and "scan_6.nii.gz" in (place / LOG).read_text()
    shutil.move("aside.nii.gz", hidden)
    assert run_job(place) == DONE
    result = finished(place, run.fingerprint)
    assert result["seconds"]["train"] == 7.0 and result["seconds"]["evaluate"] > 0
    assert result["versions"] == versions() and result["commands"]["evaluate"][0] == "pymic_eval_seg"
    scores = {(s["case"], s["metric"]): s["value"] for s in result["scores"]}
    assert len(scores) == 4 and {s["class"] for s in result["scores"]} == {"box"}
    csv = pd.read_csv(place / "segmentations" / "eval_dice.csv").set_index("image")["box"]
    assert scores["scan_5.nii.gz", "dice"] == csv["scan_5.nii.gz"] < 1
    log = (place / LOG).read_text()
    assert run_job(place) == DONE and (place / LOG).read_text() == log


def test_a_class_that_nobody_drew_may_be_left_out(folder: Path):
    empty = np.zeros((18, 36, 40), np.uint8)
    write_volume(Path("volumes/scan_6_lab.nii.gz"), empty)
    _settings, run, place = segmented(folder)
    assert run_job(place) == DONE
    assert {score["case"] for score in read_json(place / RESULT)["scores"]} == {"scan_5.nii.gz", "scan_6.nii.gz"}
    left = make_runs(dataclasses.replace(read_settings(Path("compare.cfg")), absent="left_out"))
    assert by_name(left)[run.name].fingerprint != run.fingerprint
    scores = without_absent(read_scores(place), place)
    assert {score["case"] for score in scores} == {"scan_5.nii.gz"} and len(scores) == 2


def test_other_settings_begin_anew_and_put_aside(folder: Path):
    settings, run, place = segmented(folder)
    assert run_job(place) == DONE
    finetune = Path("finetune.cfg")
    finetune.write_text(finetune.read_text().replace("learning_rate = 1.5e-3", "learning_rate = -1"))
    changed = by_name(make_runs(settings))[run.name]
    write_run(changed, settings.out)
    assert finished(place, changed.fingerprint) is None
    assert run_job(place) == FAILED  # the training, which is first again, refuses the rate
    assert "learning_rate must be a number of at least 0" in (place / LOG).read_text()
    assert (place / "before_1" / RESULT).is_file() and not (place / "segmentations").exists()


def test_a_fine_tuning_is_of_one_pretraining(folder: Path):
    settings, runs = planned()
    run = by_name(runs)["finetuning/VF/labels_1/seed_1"]
    place = write_run(run, settings.out)
    assert run_job(place) == FAILED and "has no result" in (place / LOG).read_text()
    source = write_run(run.pretraining, settings.out)
    write_json(source / RESULT, {"fingerprint": run.pretraining.fingerprint, "weights": "a", "pretraining": None})
    write_json(
        place / RESULT, {"fingerprint": run.fingerprint, "pretraining": str(source.absolute()), "starts_from": "a"}
    )
    assert finished(place, run.fingerprint)
    write_json(source / RESULT, {"fingerprint": run.pretraining.fingerprint, "weights": "b", "pretraining": None})
    assert finished(place, run.fingerprint) is None


def test_a_pool_goes_on_where_a_run_fails(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    """One run is evaluated; of another the pretraining is in somebody else's hands."""
    monkeypatch.setattr("pymic_vf.compare.pool.PRELOAD", ("pymic_vf.compare.job",))  # all else is slow to import
    settings, run, place = segmented(folder)
    other = by_name(make_runs(settings))["finetuning/VF/labels_1/seed_1"]
    source = write_run(other.pretraining, settings.out)
    with FileLock(source / ".lock"):
        failed = Pool([other.pretraining, run, other], settings, 1, ()).run_all()
    assert failed == {
        other.pretraining.name: "another pymic_vf compare is at it",
        other.name: f"its pretraining {other.pretraining.name} failed",
    }
    assert finished(place, run.fingerprint)
    text = capsys.readouterr().out
    assert "3 runs, 0 of them done already, 1 at once" in text and "labels_1/seed_1 is done" in text


def test_checkpoints_go_when_no_run_needs_them(folder: Path):
    settings, runs = planned(seeds="[1]", labels="[1]")
    settings = dataclasses.replace(settings, keep_checkpoints=False)
    pretraining, scratch, pretrained = runs
    for run in runs:
        (write_run(run, settings.out) / "model").mkdir()
        (settings.out / run.name / "model" / "model_2.pt").write_bytes(b"weights")

    def end(run, **result):
        base = {"fingerprint": run.fingerprint, "pretraining": None, "starts_from": None, "seconds": {"train": 60.0}}
        write_json(settings.out / run.name / RESULT, {**base, **result})
        remove_checkpoints(runs, settings)
        return [other.arm for other in runs if list((settings.out / other.name).glob("model/*.pt"))]

    assert end(pretraining, weights="w") == ["VF", "scratch", "VF"]
    assert end(scratch) == ["VF", "VF"]
    source = str((settings.out / pretraining.name).absolute())
    assert end(pretrained, pretraining=source, starts_from="w") == []
    assert finished(settings.out / pretrained.name, pretrained.fingerprint)
    # another number of labels starts from a pretraining whose weights are no longer there
    assert lost_pretrainings(runs, settings.out) == []
    more = planned(seeds="[1]", labels="[1, 2]")[1]
    assert [run.name for run in lost_pretrainings(more, settings.out)] == [pretraining.name]
    assert re.search(f"to do  {pretraining.name}\n", overview(settings, more, 1))
    begin_anew(pretraining, settings.out)
    assert finished(settings.out / pretraining.name, pretraining.fingerprint) is None
    write_json(settings.out / pretraining.name / RESULT,
               {"fingerprint": pretraining.fingerprint, "pretraining": None, "weights": "w"})  # fmt: skip
    assert finished(settings.out / pretrained.name, pretrained.fingerprint)  # of the same weights, it is not repeated


def test_weights_have_one_hash_whenever_they_were_made(tmp_path: Path):
    torch.serialization.clear_safe_globals()  # a job has no plug-in that has allowed PyMIC's numpy scalars

    def trained(name: str, value: float, made_at: str) -> str:
        (tmp_path / name).mkdir()
        weights = {"b": torch.tensor(value), "a": torch.full((2, 3), value, dtype=torch.bfloat16)}
        content = {"model_state_dict": weights, "made_at": made_at, "valid_pred": np.float64(0.5)}
        for which in ("5", "best"):
            torch.save(content, tmp_path / name / f"model_{which}.pt")
        (tmp_path / name / "model_latest.txt").write_text("5")
        (tmp_path / name / "model_best.txt").write_text("3")
        return hash_of_weights(tmp_path / name)

    first = trained("first", 1.0, "yesterday")
    assert trained("again", 1.0, "today") == first != trained("other", 2.0, "today")


def test_slurm_arrays_by_the_local_executor(folder: Path):
    settings, run, place = segmented(folder)
    assert Cluster(settings.out, settings.slurm, kind="local").run_all([run]) == {}
    assert finished(place, run.fingerprint)
    if shutil.which("srun") is None:
        with pytest.raises(UserError, match="slurm"):
            Cluster(settings.out, settings.slurm)


def test_progress_is_read_from_the_logs(folder: Path):
    settings, runs = planned(labels="[1]")
    pretrainings = [run for run in runs if run.kind == PRETRAINING]
    for run in runs:
        write_run(run, settings.out)
    log = settings.out / runs[0].name / LOG
    log.write_text("\n2026-01-01 00:00:00 it 1\nlearning rate 0.001\n")
    assert iteration(log.parent) == 1 and iteration(Path("nowhere")) == 0
    assert stage(runs[0], settings.out) == "1/2"
    # 100 s for 1 of 2 iterations: 100 s are left of it, 200 of the other
    assert time_left(pretrainings, runs, settings.out, {runs[0].name: 100.0}, 1) == pytest.approx(300)
    assert time_left(pretrainings, runs, settings.out, {runs[0].name: 100.0}, 2) == pytest.approx(150)
    assert time_left(runs, runs, settings.out, {runs[0].name: 100.0}, 1) is None  # of a fine-tuning nothing is known
    (log.parent / ITERATION).write_text("")  # a moment before its number is there
    assert iteration(log.parent) == 1
    (log.parent / ITERATION).write_text("2\n")
    assert stage(runs[0], settings.out) == "2/2"
    write_json(log.parent / STATE, {"done": ["train"], "seconds": {}})
    assert stage(runs[0], settings.out) == "testing"
    assert [duration(seconds) for seconds in (12, 95, 12000)] == ["12 s", "2 min", "3 h 20 min"]


def test_time_is_forecast_from_a_few_iterations(folder: Path):
    settings, runs = planned(labels="[2]")
    timed = time_trainings(runs, torch.get_num_threads())
    assert set(timed) == {(PRETRAINING, "VF"), (FINETUNING, "VF"), (FINETUNING, "scratch")}
    assert timed[FINETUNING, "VF"] == timed[FINETUNING, "scratch"]  # measured once
    # two pretrainings and four fine-tunings of two iterations
    expected = 2 * timed[PRETRAINING, "VF"] + 4 * timed[FINETUNING, "VF"]
    assert 0 < expected < 120 and time_left(runs, runs, settings.out, {}, 1, timed) == pytest.approx(expected)
    assert not settings.out.exists()


def test_a_live_line_needs_a_terminal():
    texts: list[str] = []
    line = LiveLine(texts.append, is_terminal=False)
    line.show("50 %")
    line.say("a run is done")
    assert len(texts) == 1 and texts[0].endswith("a run is done\n")
    line = LiveLine(texts.append, is_terminal=True)
    line.show("50 %")
    line.say("done")
    assert texts[1] == "50 %" and texts[2] == "\r    \r"


def test_the_page_has_the_keys():
    page = (Path(__file__).parents[1] / "docs" / "comparing.md").read_text()
    for keys in (COMPARE_KEYS, ARM_KEYS, SLURM_KEYS):
        assert markdown_table(keys) in page


@pytest.mark.long
def test_a_comparison_from_end_to_end(folder: Path, run):
    """Stopped by SIGTERM and by SIGKILL, begun again; its weights are those of PyMIC's own command."""
    text = COMPARE.replace("seeds = [1, 2]", "seeds = [1]").replace("labels = [1, 2]", "labels = [2]")
    Path("compare.cfg").write_text(text)
    pretrain = Path("pretrain.cfg").read_text()
    Path("pretrain.cfg").write_text(pretrain.replace("iter_max = 2", "iter_max = 40"))
    log = Path("results/pretraining/VF/seed_1") / LOG
    for number, status in ((signal.SIGTERM, 130), (signal.SIGKILL, -9)):
        command = [Path(sys.executable).parent / "pymic_vf", "compare", "compare.cfg"]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        before, end = iteration(log.parent), time.monotonic() + 200
        while iteration(log.parent) <= before and time.monotonic() < end and process.poll() is None:
            time.sleep(0.2)
        process.send_signal(number)
        assert process.wait(90) == status
        time.sleep(3)
        size = log.stat().st_size
        time.sleep(2)
        assert log.stat().st_size == size, "the training has gone on without the command"
        assert not (log.parent / RESULT).exists()
    done = run("pymic_vf", "compare", "compare.cfg")
    # the checkpoint that SIGTERM leaves is where each later start goes on
    assert len(re.findall(r" it 1$", log.read_text(), re.M)) == 1
    assert "3 of 3 done" in done.stdout and Path("results/report.html").is_file()
    assert run("pymic_vf", "compare", "compare.cfg").stdout.count("begins") == 0
    place = Path("results/finetuning/VF/labels_2/seed_1")
    again = (place / "finetune.cfg").read_text().replace("labels_2/seed_1/model", "labels_2/seed_1/by_hand")
    Path("by_hand.cfg").write_text(again)
    run("pymic_train", "by_hand.cfg")
    ours, theirs = (
        torch.load(file, weights_only=False)["model_state_dict"]
        for file in (place / "model" / "model_2.pt", place / "by_hand" / "by_hand_2.pt")
    )
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert read_scores(place) == read_json(place / RESULT)["scores"]
