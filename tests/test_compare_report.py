"""The report of a comparison: what it says, from results whose truth is known."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pymic_vf.compare.blocks import Details, Heading, Picture, Table, Text, to_html, to_markdown
from pymic_vf.compare.figures import draw_cases, looks_of
from pymic_vf.compare.job import LOG, RESULT, machine, versions
from pymic_vf.compare.plan import FINETUNING, make_runs, write_json, write_run
from pymic_vf.compare.report import write_report
from pymic_vf.compare.results import learning_curve
from pymic_vf.compare.settings import read_settings
from pymic_vf.compare.statistics import Comparison
from pymic_vf.compare.verdict import METRIC, Pair, cautions, verdict
from pymic_vf.errors import UserError

from conftest import finetuning, make_scan, pretraining, write_cfg, write_volume

GAIN = {"scratch": 0.0, "VF": 0.1, "MIM": 0.0}
LOG_TEXT = """
2026-01-01 00:00:00 it 50
learning rate 0.001
train loss 0.9000, avg foreground dice 0.1000 [0.9 0.1]
valid loss 0.8000, avg foreground dice 0.2000 [0.9 0.2]

2026-01-01 00:00:00 it 100
train loss 0.7000, avg foreground dice 0.3000 [0.9 0.3]

2026-01-01 00:00:00 it 50
train loss 0.5000, avg foreground dice nan [0.9 0.3]
"""


@pytest.fixture(scope="module")
def comparison(scans: Path, tmp_path_factory: pytest.TempPathFactory):
    """A comparison of three arms, two numbers of labels and three seeds, all done: VF gains 10 points of Dice."""
    folder = tmp_path_factory.mktemp("report")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield _make(scans, folder)


def _make(scans: Path, folder: Path):
    shutil.copytree(scans / "volumes", folder / "volumes")
    names = []
    for index in range(10, 22):
        names.append((f"scan_{index}.nii.gz", f"scan_{index}_lab.nii.gz"))
        for name, voxels in zip(names[-1], make_scan(index), strict=True):
            write_volume(folder / "volumes" / name, voxels)
    pd.DataFrame(names, columns=["image", "label"]).to_csv("test.csv", index=False)
    shutil.copy(scans / "labelled.csv", "train.csv")
    shutil.copy(scans / "pretrain.csv", "pretrain.csv")
    write_cfg(Path("pretrain.cfg"), pretraining(Path(), Path()))
    lists = {"train_csv": "train.csv", "test_csv": "test.csv"}
    write_cfg(Path("finetune.cfg"), finetuning(Path(), Path(), dataset=lists, network={"class_num": 3}))
    Path("compare.cfg").write_text(
        "[compare]\nout = results\nfinetune = finetune.cfg\nlabels = [1, 2]\nclass_names = [heart, aorta]\n"
        "[arm:scratch]\n[arm:VF]\npretrain = pretrain.cfg\n"
        "[arm:MIM]\npretrain = pretrain.cfg\npretrain.training.learning_rate = 2e-3\n"
    )
    settings = read_settings(Path("compare.cfg"))
    runs = make_runs(settings)
    rng = np.random.default_rng(0)
    for run in runs:
        place = write_run(run, settings.out)
        (place / LOG).write_text(LOG_TEXT)
        result = {"fingerprint": run.fingerprint, "seconds": {"train": 60.0}, "machine": machine()}
        result |= {"versions": versions(), "commands": {"train": ["pymic_train", "x.cfg"]}, "working_folder": "here"}
        if run.kind == FINETUNING:
            scores = [
                {"case": image, "class": name, "metric": metric, "value": value}
                for number, (image, _label) in enumerate(names)
                for name in settings.class_names
                for metric, value in (
                    ("dice", 0.5 + 0.02 * number + GAIN[run.arm] + rng.normal(0, 0.02)),
                    ("assd", 5.0 - 0.2 * number - 10 * GAIN[run.arm] + rng.normal(0, 0.2)),
                )
            ]
            source = run.pretraining and str((settings.out / run.pretraining.name).absolute())
            result |= {"pretraining": source, "starts_from": source and "w", "scores": scores}
            (place / "segmentations").mkdir()
            for image, label in names:
                shutil.copy(Path("volumes") / label, place / "segmentations" / image)
        else:
            result |= {"pretraining": None, "weights": "w"}
        write_json(place / RESULT, result)
    return settings, runs, write_report(settings, runs)


def test_what_may_be_concluded(comparison):
    text = comparison[2].with_suffix(".md").read_text()
    (sentence,) = re.findall(r"- (VF against scratch with 2 labelled scans.*)", text)
    assert re.search(
        r"\+(9\.|10\.)\d\d points of Dice .*n = 12 cases, 3 seeds; Wilcoxon p = 0.002 after Holm", sentence
    )
    assert sentence.endswith("VF is better here.")
    (sentence,) = re.findall(r"- (MIM against scratch with 2 labelled scans.*)", text)
    assert "The interval has 0 in it: these runs do not say which of the two is better." in sentence
    assert "they are about other scans like these" in text and "seeds are averaged and not resampled" in text


def test_scores_are_those_of_the_runs(comparison):
    html = comparison[2]
    scores = pd.read_csv(html.with_name("scores.csv"))
    assert list(scores.columns) == ["arm", "labels", "seed", "case", "class", "metric", "value"]
    assert len(scores) == 3 * 2 * 3 * 12 * 2 * 2
    mine = scores.query("arm == 'VF' and labels == 2 and metric == 'dice'")
    values = mine[mine["class"] == "heart"].groupby("case")["value"].mean()
    text = html.with_suffix(".md").read_text()
    table = text[text.index("Dice (%), labelled scans: 2") :]
    (row,) = re.findall(r"^\| VF \|.*$", table.split("\n\n")[1], re.M)
    assert row.startswith(f"| VF | {100 * values.mean():.2f} ± {100 * values.std(ddof=0):.2f} |")
    assert row.endswith("| 12 | 3 |")


def test_the_page_needs_nothing_else(comparison):
    page = comparison[2].read_text()
    sources = re.findall(r'(?:src|href)="([^"]{0,30})', page)
    assert len(sources) >= 9 and all(source.startswith("data:image/png;base64,") for source in sources)
    assert '<meta name="viewport" content="width=device-width' in page and "overflow-x: auto" in page
    assert "http" not in page and "<script" not in page
    for name in ("largest_gain", "median", "largest_loss"):
        assert comparison[2].with_name(f"overlay_{name}.png").stat().st_size > 10_000


def test_a_report_of_half_a_comparison_says_so(comparison, tmp_path: Path):
    settings, runs, _html = comparison
    gone = [run for run in runs if run.kind == FINETUNING and run.arm == "VF" and run.seed == 3]
    hidden = [settings.out / run.name / RESULT for run in gone]
    for file in hidden:
        file.rename(file.with_suffix(".hidden"))
    try:
        text = write_report(settings, runs, tmp_path).with_suffix(".md").read_text()
    finally:
        for file in hidden:
            file.with_suffix(".hidden").rename(file)
    assert "Not complete: 2 of 24 runs are not done (finetuning/VF/labels_1/seed_3" in text
    assert "n = 12 cases, 2 seeds" in text and "With 2 seeds the training's luck is not averaged out" in text
    with pytest.raises(UserError, match="no fine-tuning is done yet"):
        write_report(settings, [run for run in runs if run.kind != FINETUNING], tmp_path)


def test_learning_curves_from_the_log(tmp_path: Path):
    (tmp_path / LOG).write_text(LOG_TEXT)
    curve = learning_curve(tmp_path)
    assert curve[["iteration", "stage", "loss"]].to_numpy().tolist() == [
        [50, "train", 0.5], [50, "valid", 0.8], [100, "train", 0.7]
    ]  # fmt: skip
    (tmp_path / LOG).write_text("\n2026-01-01 00:00:00 it 5\ntrain/valid loss 0.25/0.5000\n")
    assert learning_curve(tmp_path)["loss"].tolist() == [0.25, 0.5]
    assert learning_curve(tmp_path / "nowhere").empty


def pair(**changes) -> Pair:
    result = {"cases": 20, "mean": 0.02, "low": 0.01, "high": 0.03, "p": 0.01, "by_seed": {1: 0.02, 2: 0.03, 3: 0.01}}
    result |= {"higher": 15, "deviation": 0.02, **changes}
    p = result.pop("corrected", result["p"])
    metric = METRIC[result.pop("metric", "dice")]
    return Pair("VF", "scratch", 4, metric, "average", Comparison(**result), p)


def test_words_follow_the_figures():
    assert verdict(pair()).endswith("VF is better here.")
    assert verdict(pair(metric="assd")).endswith("VF is worse here.")
    assert "does not agree (p = 0.06)" in verdict(pair(corrected=0.06))
    luck = verdict(pair(by_seed={1: 0.02, 2: -0.03, 3: 0.01}))
    assert "The seeds disagree, from -3.00 to +2.00 points" in luck and "better here" not in luck
    unsure = verdict(pair(low=-0.01, deviation=0.06))
    # (1.96 + 0.84)^2 x 6^2 = 283 cases for one point
    assert "has 0 in it" in unsure and "about 283 test cases" in unsure
    assert "nothing can be concluded from one case" in verdict(pair(cases=1))
    floor = cautions([pair(cases=4)] * 3, 1, repeats_pretraining=False)
    assert "cannot fall below 0.12" in floor[0] and "not below 0.38" in floor[0]
    assert any(note.startswith("1 seed:") for note in floor) and "share pretrainings" in floor[-1]


def test_blocks_are_escaped(tmp_path: Path):
    scores = pd.DataFrame({"arm": ["a", "b"], "seed": 1, "case": "x", "value": [0.1, 0.2]})
    draw_cases(scores, looks_of(["a", "b"]), "Dice", tmp_path / "x.png")
    blocks = [Heading("<b>"), Text("a & b"), Table(["x|y", "z"], [["1", "<2"]]), Picture("x.png", "p")]
    page = to_html([*blocks, Details("more", blocks)], "t", tmp_path)
    assert "&lt;b&gt;" in page and "a &amp; b" in page and page.count("&lt;2") == 2
    assert "| x\\|y | z |\n|---|---:|\n| 1 | <2 |" in to_markdown(blocks)
