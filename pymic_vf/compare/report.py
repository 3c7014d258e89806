"""The report of a comparison: report.md, report.html, scores.csv and pictures, from the results of its runs alone."""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from pymic_vf.compare.blocks import Block, Code, Details, Heading, Items, Picture, Table, Text, to_html, to_markdown
from pymic_vf.compare.config_text import value_of
from pymic_vf.compare.figures import draw_cases, draw_curves, draw_differences, draw_labels, looks_of
from pymic_vf.compare.plan import FINETUNING, PRETRAINING, SEGMENTATIONS, Run
from pymic_vf.compare.progress import duration
from pymic_vf.compare.results import all_scores, finished_runs, learning_curve
from pymic_vf.compare.settings import Settings
from pymic_vf.compare.statistics import MEAN, by_case, compare_pairs, holm, with_means
from pymic_vf.compare.verdict import METRIC, Metric, Pair, cautions, p_text, verdict
from pymic_vf.data.scan import read_scan
from pymic_vf.demo.pictures import draw_overlays
from pymic_vf.errors import UserError
from pymic_vf.files import whole_file

TITLE = "Does the pretraining help?"
SHOWN_MISSING = 8


@dataclass
class _Material:
    """Everything that the report is made of."""

    settings: Settings
    runs: Sequence[Run]
    results: Mapping[str, dict[str, Any]]
    scores: pd.DataFrame  # with the means over the classes
    folder: Path

    def __post_init__(self) -> None:
        classes = [name for name in dict.fromkeys(self.scores["class"]) if name != MEAN]
        self.classes = [*classes, MEAN] if len(classes) > 1 else classes
        self.metrics = [METRIC[name] for name in self.settings.metrics if name in set(self.scores["metric"])]
        self.looks = looks_of([arm.name for arm in self.settings.arms])
        self.arms = [arm.name for arm in self.settings.arms if arm.name in set(self.scores["arm"])]
        self.labels = sorted(int(number) for number in self.scores["labels"].unique())
        self.seeds = sorted(int(seed) for seed in self.scores["seed"].unique())

    def of(self, metric: Metric, of_class: str, labels: int | None = None, arm: str | None = None) -> pd.DataFrame:
        scores = self.scores[(self.scores["metric"] == metric.name) & (self.scores["class"] == of_class)]
        scores = scores if labels is None else scores[scores["labels"] == labels]
        return scores if arm is None else scores[scores["arm"] == arm]

    def pairs(self, metric: Metric, classes: Iterable[str]) -> list[Pair]:
        """Every arm beside its baseline; Holm's correction is for all of them."""
        found = []
        for labels in self.labels:
            for arm in self.settings.arms:
                for of_class in classes if arm.baseline else ():
                    sides = [self.of(metric, of_class, labels, name) for name in (arm.name, arm.baseline)]
                    result = compare_pairs(*sides)
                    if result is not None:
                        found.append((arm, labels, of_class, result))
        corrected = holm([result.p for *_rest, result in found])
        return [
            Pair(arm.name, arm.baseline, labels, metric, of_class, result, p)
            for (arm, labels, of_class, result), p in zip(found, corrected, strict=True)
        ]


def write_report(settings: Settings, runs: Sequence[Run], folder: Path | None = None) -> Path:
    """Write the report of what is done into a folder, by default the comparison's; the HTML file is returned.

    Raises:
        UserError: no fine-tuning is done.
    """
    folder = folder or settings.out
    results = finished_runs(runs, settings.out)
    scores = all_scores(runs, results)
    if scores.empty:
        raise UserError(f"{settings.out}: no fine-tuning is done yet, so there is nothing to report")
    folder.mkdir(parents=True, exist_ok=True)
    with whole_file(folder / "scores.csv") as temporary:
        scores.to_csv(temporary, index=False)
    material = _Material(settings, runs, results, with_means(scores), folder)
    main = material.classes[-1]  # the mean over the classes, or the one class
    blocks: list[Block] = [
        Heading(TITLE, 1),
        Text(_summary(material)),
        *_missing(material),
        *_in_words(material, main),
        *_differences(material, main),
        *_tables(material),
        *_pictures(material, main),
        *_overlays(material, main),
        *_provenance(material),
    ]
    with whole_file(folder / "report.md") as temporary:
        temporary.write_text(to_markdown(blocks))
    with whole_file(folder / "report.html") as temporary:
        temporary.write_text(to_html(blocks, TITLE, folder))
    return folder / "report.html"


def _summary(material: _Material) -> str:
    cases = material.scores["case"].nunique()
    numbers = ", ".join(map(str, material.labels))
    return (
        f"{len(material.arms)} arms ({', '.join(material.arms)}), fine-tuned on {numbers} labelled scans with "
        f"{len(material.seeds)} seeds ({', '.join(map(str, material.seeds))}) and tested on {cases} scans that none of "
        f"them has seen. Made on {time.strftime('%Y-%m-%d %H:%M')} by pymic_vf compare."
    )


def _missing(material: _Material) -> list[Block]:
    missing = [run.name for run in material.runs if run.name not in material.results]
    if not missing:
        return []
    more = f" and {len(missing) - SHOWN_MISSING} more" if len(missing) > SHOWN_MISSING else ""
    names = ", ".join(missing[:SHOWN_MISSING])
    return [
        Text(
            f"Not complete: {len(missing)} of {len(material.runs)} runs are not done ({names}{more}). Arms are "
            "compared by the seeds and cases that both have."
        )
    ]


def _in_words(material: _Material, main: str) -> list[Block]:
    pairs = material.pairs(material.metrics[0], [main])
    if not pairs:
        return [Text("There is no arm to compare with its baseline yet.")]
    own = set(material.settings.pretrain_seeds) >= set(material.settings.seeds)
    has_pretraining = any(run.kind == PRETRAINING for run in material.runs)
    notes = cautions(pairs, len(material.seeds), own or not has_pretraining)
    for arm in (arm for arm in material.settings.arms if arm.weights):
        notes.append(f"Whether {arm.weights}, where {arm.name} starts, has seen test scans cannot be checked.")
    blocks = [Heading("What may be concluded"), Items([verdict(pair) for pair in pairs])]
    return [*blocks, Heading("And what not", 3), Items([*notes, *_mixed(material)])]


def _mixed(material: _Material) -> list[str]:
    """Whether the runs were made by different versions or devices."""
    notes = []
    results = material.results.values()
    for package in sorted({name for result in results for name in result["versions"]}):
        versions = sorted({result["versions"].get(package, "none") for result in results})
        if len(versions) > 1:
            notes.append(f"The runs are of different versions of {package}: {', '.join(versions)}.")
    devices = sorted({result["machine"]["device"] for result in results})
    if len(devices) > 1:
        notes.append(f"The runs were made on different devices ({', '.join(devices)}): compare no times.")
    return notes


def _differences(material: _Material, main: str) -> list[Block]:
    blocks: list[Block] = [Heading("Differences from the baseline")]
    for metric in material.metrics:
        pairs = material.pairs(metric, [main])
        if not pairs:
            continue
        better = "more" if metric.higher_is_better else "less"
        caption = f"{metric.title}, {main}: each arm minus its baseline, {better} is better"
        blocks.append(_pair_table(pairs, caption))
        if metric is material.metrics[0]:
            name = "differences.png"
            scaled = [_scaled(pair) for pair in pairs]
            draw_differences(scaled, f"{metric.title}: difference, {metric.unit}", material.folder / name)
            blocks.append(Picture(name, "Mean differences with 95 % intervals; grey where 0 is in the interval"))
    blocks.append(
        Text(
            "The differences are paired: for each test case the mean over the seeds. n counts the cases. The interval "
            "is a bootstrap's (BCa, 9,999 resamples of the cases, a fixed seed); p is of Wilcoxon's signed-rank test, "
            "and then by Holm for all rows of its table."
        )
    )
    if len(material.classes) > 1:
        inner = [
            _pair_table(pairs, f"{metric.title}, each class")
            for metric in material.metrics
            if (pairs := material.pairs(metric, [name for name in material.classes if name != MEAN]))
        ]
        if inner:
            blocks.append(Details("Each class", inner))
    return blocks


def _pair_table(pairs: Sequence[Pair], caption: str) -> Table:
    several = len({pair.of_class for pair in pairs}) > 1
    head = ["arm", "against", *(["class"] if several else []), "labels", "difference", "95 % interval", "n"]
    numbers = list(dict.fromkeys(seed for pair in pairs for seed in pair.result.by_seed))
    head += ["higher in", f"by seed ({', '.join(map(str, numbers))})", "Wilcoxon p", "after Holm"]
    rows = []
    for pair in pairs:
        metric, result = pair.metric, pair.result
        seeds = ", ".join(metric.signed(result.by_seed[n]) if n in result.by_seed else "none" for n in numbers)
        rows.append(
            [
                pair.arm, pair.baseline, *([pair.of_class] if several else []), str(pair.labels),
                metric.signed(result.mean), f"{metric.signed(result.low)} to {metric.signed(result.high)}",
                str(result.cases), f"{result.higher} of {result.cases}", seeds, p_text(result.p), p_text(pair.p),
            ]
        )  # fmt: skip
    return Table(head, rows, caption)


def _scaled(pair: Pair) -> tuple[str, float, float, float]:
    scale, result = pair.metric.scale, pair.result
    return f"{pair.arm}, {pair.labels}", result.mean * scale, result.low * scale, result.high * scale


def _tables(material: _Material) -> list[Block]:
    """Mean and deviation of each class and arm, as Tables 2 to 6 of the paper."""
    blocks: list[Block] = [Heading("Scores")]
    for labels in material.labels:
        for metric in material.metrics:
            rows = []
            for arm in material.arms:
                scores = material.of(metric, material.classes[0], labels, arm)
                if not scores.empty:
                    cells = [_mean(material.of(metric, each, labels, arm), metric) for each in material.classes]
                    rows.append([arm, *cells, str(scores["case"].nunique()), str(scores["seed"].nunique())])
            caption = f"{metric.title}, labelled scans: {labels}"
            blocks.append(Table(["arm", *material.classes, "n", "seeds"], rows, caption))
    blocks.append(
        Text(
            "Mean ± standard deviation over the n test cases, each with its mean over the seeds; for one seed these "
            "are the figures of pymic_eval_seg, which counts a structure that one of truth and segmentation lacks as "
            "ASSD 20 mm, and clips ASSD there and HD95 at 50 mm."
            + (" Classes that a truth lacks are left out." if material.settings.absent == "left_out" else "")
        )
    )
    return blocks


def _mean(scores: pd.DataFrame, metric: Metric) -> str:
    values = by_case(scores)
    return f"{metric.value(values.mean())} ± {metric.value(values.std(ddof=0))}"


def _pictures(material: _Material, main: str) -> list[Block]:
    metric, blocks = material.metrics[0], []
    if len(material.labels) > 1:
        draw_labels(
            _in_units(material.of(metric, main), metric), material.looks, metric.title, material.folder / "labels.png"
        )
        blocks.append(Picture("labels.png", f"{metric.title} against the number of labelled scans"))
    for labels in material.labels:
        name = f"cases_{labels}.png"
        scores = material.of(metric, main, labels)
        draw_cases(_in_units(scores, metric), material.looks, metric.title, material.folder / name)
        blocks.append(Picture(name, f"Each test case, {metric.title}, {main}; labelled scans: {labels}"))
    for kind, labels in [(PRETRAINING, None), *((FINETUNING, number) for number in material.labels)]:
        curves: dict[str, list[pd.DataFrame]] = {}
        for run in material.runs:
            if run.kind == kind and run.labels == labels and run.name in material.results:
                curves.setdefault(run.arm, []).append(learning_curve(material.settings.out / run.name))
        for value in ("loss", "dice"):
            name = f"curves_{kind}{f'_{labels}' if labels else ''}_{value}.png"
            title = "Pretraining" if labels is None else f"Fine-tuning, labelled scans: {labels}"
            if curves and draw_curves(curves, material.looks, value, title, material.folder / name):
                note = "; the losses of different methods are not to be compared" if kind == PRETRAINING else ""
                blocks.append(Picture(name, f"{title}: {value} while training; thin lines are seeds{note}"))
    return [Heading("Pictures"), *blocks]


def _in_units(scores: pd.DataFrame, metric: Metric) -> pd.DataFrame:
    return scores.assign(value=scores["value"] * metric.scale)


def _overlays(material: _Material, main: str) -> list[Block]:
    """The cases with the best, the median and the worst difference of the arm that gained most."""
    metric = material.metrics[0]
    pairs = [pair for pair in material.pairs(metric, [main]) if pair.labels == material.labels[-1]]
    if not pairs:
        return []
    sign = 1 if metric.higher_is_better else -1
    pair = max(pairs, key=lambda pair: sign * pair.result.mean)
    sides = [by_case(material.of(metric, main, pair.labels, name)) for name in (pair.arm, pair.baseline)]
    order = (sign * (sides[0] - sides[1])).dropna().sort_values()
    places = {"largest gain": -1, "median": (len(order) - 1) // 2, "largest loss": 0}
    blocks: list[Block] = [Heading("The segmentations")]
    seed = next(iter(pair.result.by_seed))
    for title, place in places.items():
        case = order.index[place]
        name = f"overlay_{title.replace(' ', '_')}.png"
        problem = _draw_case(material, pair, seed, case, material.folder / name)
        text = f"{case}, {title}: {metric.signed(sign * order.iloc[place])} {metric.unit} over all seeds, shown: {seed}"
        blocks.append(Picture(name, text) if problem is None else Text(f"{text} ({problem})"))
    return blocks


def _draw_case(material: _Material, pair: Pair, seed: int, case: str, path: Path) -> str | None:
    """Draw one case of both arms; why it cannot be drawn, or None."""
    runs = {
        run.arm: run
        for run in material.runs
        if run.kind == FINETUNING and run.labels == pair.labels and run.seed == seed
    }
    run = runs[pair.arm]
    images = Path(value_of(run.config, "dataset", "test_dir") or value_of(run.config, "dataset", "train_dir"))
    truths = Path(run.evaluation["evaluation"]["ground_truth_folder"])
    try:
        row = run.pairs.set_index("segmentation").loc[case]
        scan = read_scan([images / row["image"]])
        truth = read_scan([truths / row["ground_truth"]]).voxels[0]
        folder = material.settings.out
        segmentations = {
            name: read_scan([folder / runs[name].name / SEGMENTATIONS / case]).voxels[0]
            for name in (pair.baseline, pair.arm)
        }
        classes = [name for name in material.classes if name != MEAN]
        draw_overlays(scan.voxels[0], truth, segmentations, classes, path, scan.spacing, scan.direction)
    except (KeyError, OSError, ValueError) as error:
        return f"cannot be drawn: {str(error).splitlines()[0]}"
    return None


def _provenance(material: _Material) -> list[Block]:
    rows = []
    for kind in (PRETRAINING, FINETUNING):
        for arm in material.settings.arms:
            done = [material.results[r.name] for r in material.runs
                    if r.kind == kind and r.arm == arm.name and r.name in material.results]  # fmt: skip
            if done:
                seconds = [sum(result["seconds"].values()) for result in done]
                rows.append([arm.name, kind, str(len(done)), duration(sum(seconds)), duration(max(seconds))])
    result = next(iter(material.results.values()))
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    machines = sorted({f"{r['machine']['device']}, {r['machine']['cores']} cores" for r in material.results.values()})
    commands = [
        shlex.join(command)
        for run in material.runs
        if run.name in material.results
        for command in material.results[run.name]["commands"].values()
    ]
    return [
        Heading("How it was made"),
        Table(["arm", "what", "runs", "time of all", "longest"], rows, "Time spent"),
        Text(f"Versions: {versions}. Devices: {'; '.join(machines)}."),
        Text(
            "Every run's config, log, checkpoints and segmentations are in its folder. No test scan is in a list of a "
            "pretraining or a fine-tuning, by its file and by its content: that was checked before the first run. (A "
            "copy that was resampled, or saved in another format, is not found by such a check.)"
        ),
        Details("The commands", [Text(f"In {result['working_folder']}:"), Code("\n".join(commands))]),
    ]
