"""The runs of a comparison: a config for each pretraining and each fine-tuning, and what makes two of them the same."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pymic.util.parse_config import parse_value_from_string

from pymic_vf.compare.config_text import ConfigText, changed, read_text, value_of, write_text
from pymic_vf.compare.settings import ALL, Arm, Settings
from pymic_vf.data.scan_list import read_table
from pymic_vf.errors import ConfigError, UserError
from pymic_vf.files import whole_file

PRETRAINING, FINETUNING = "pretraining", "finetuning"
MODEL, SEGMENTATIONS = "model", "segmentations"  # folders of a run
# Keys that say where files are or how fast it goes, and not what comes out. The lists of scans count by their content.
NO_MATTER = {
    "training": ("ckpt_dir", "ckpt_init_name", "ckpt_prefix", "gpus", "resume", "checkpoint_minutes", "iter_save"),
    "testing": ("gpus", "output_dir", "sliding_window_batch"),
    "dataset": ("num_worker", "cache_dir", "vf_cache_dir", "cache_max_gib", "vf_cache_max_gib", "train_dir",
                "valid_dir", "test_dir", "train_csv", "valid_csv", "test_csv"),
}  # fmt: skip
LISTS = ("train_csv", "valid_csv", "test_csv")


@dataclass
class Run:
    """One run.

    Args:
        name: its folder below the comparison's.
        kind: `PRETRAINING` or `FINETUNING`.
        arm: which it belongs to; a pretraining that several arms share belongs to the first.
        seed: [training] random_seed.
        config: PyMIC's, as text.
        labels: how many labelled scans; None for a pretraining.
        rows: the lines of its own train.csv; None where the config's is used.
        pretraining: the run from whose weights it starts; None for none.
        evaluation: the config of pymic_eval_seg; empty for a pretraining.
        leaves_out: whether classes that the truth lacks are not scored.
        pairs: the label file, the segmentation and the image of each test scan; pymic_eval_seg reads the first two.
    """

    name: str
    kind: str
    arm: str
    seed: int
    config: ConfigText
    labels: int | None = None
    rows: pd.DataFrame | None = None
    pretraining: Run | None = None
    evaluation: ConfigText = field(default_factory=dict)
    leaves_out: bool = False
    pairs: pd.DataFrame | None = None
    fingerprint: str = ""

    @property
    def cfg_name(self) -> str:
        return "pretrain.cfg" if self.kind == PRETRAINING else "finetune.cfg"


def make_runs(settings: Settings) -> list[Run]:
    """Every run, the pretrainings first, in the order in which their results are wanted: seed by seed.

    Raises:
        UserError: a config or a list of scans cannot be read.
        ConfigError: more labels are asked for than there are, or something that the runs would lack.
    """
    pretrainings: dict[tuple[str, int], Run] = {}
    by_content: dict[str, Run] = {}
    mistakes: list[str] = []
    for seed in dict.fromkeys(settings.pretrain_seed(seed) for seed in settings.seeds):
        for arm in settings.arms:
            if arm.pretrain is not None:
                run = _pretraining(settings, arm, seed)
                if settings.pretrained_checkpoint == "best" and not value_of(run.config, "dataset", "valid_csv"):
                    mistakes.append(
                        f"[compare] pretrained_checkpoint = best: {arm.pretrain} has no [dataset] valid_csv, so there "
                        "is no best one"
                    )
                # arms that differ in their fine-tuning alone share a pretraining
                pretrainings[arm.name, seed] = by_content.setdefault(run.fingerprint, run)
    finetunings: dict[str, Run] = {}
    for seed in settings.seeds:
        for wanted in settings.labels:
            for arm in settings.arms:
                pretraining = pretrainings.get((arm.name, settings.pretrain_seed(seed)))
                try:
                    run = _finetuning(settings, arm, wanted, seed, pretraining)
                except ConfigError as error:
                    mistakes += error.mistakes
                else:
                    finetunings[run.name] = run  # `all` may be a number that is there too
    if mistakes:
        raise ConfigError(mistakes)
    return [*by_content.values(), *finetunings.values()]


def _pretraining(settings: Settings, arm: Arm, seed: int) -> Run:
    name = f"{PRETRAINING}/{arm.name}/seed_{seed}"
    own = {
        **_of_every_training(settings.out / name, seed),
        # the pretraining of this arm begins with nothing
        ("training", "ckpt_init_name"): None,
        ("training", "ckpt_init_mode"): None,
    }
    config = changed(changed(read_text(arm.pretrain), arm.changes("pretrain")), own)
    run = Run(name, PRETRAINING, arm.name, seed, _resuming(config))
    run.fingerprint = _fingerprint(run, "")
    return run


def _finetuning(settings: Settings, arm: Arm, wanted: int | str, seed: int, pretraining: Run | None) -> Run:
    base = changed(read_text(arm.finetune), arm.changes("finetune"))
    rows = _labelled(base, wanted, settings.label_order, arm)
    name = f"{FINETUNING}/{arm.name}/labels_{len(rows)}/seed_{seed}"
    folder = settings.out / name
    own = {
        **_of_every_training(folder, seed),
        ("dataset", "train_csv"): str(folder / "train.csv"),
        ("training", "ckpt_init_name"): _initial_weights(settings, arm, pretraining, folder / MODEL),
        ("training", "ckpt_init_mode"): "0" if pretraining or arm.weights else None,
        ("testing", "output_dir"): str(folder / SEGMENTATIONS),
    }
    run = Run(name, FINETUNING, arm.name, seed, _resuming(changed(base, own)), len(rows), rows, pretraining)
    run.evaluation, run.pairs = _evaluation(settings, run, folder)
    run.leaves_out = settings.absent == "left_out"
    run.fingerprint = _fingerprint(run, _content(arm.weights) if arm.weights else "")
    return run


def _of_every_training(folder: Path, seed: int) -> dict[tuple[str, str], str | None]:
    return {
        ("training", "ckpt_dir"): str(folder / MODEL),
        ("training", "ckpt_prefix"): None,
        ("training", "random_seed"): str(seed),
    }


def _resuming(config: ConfigText) -> ConfigText:
    """The config with the key by which a training that was stopped goes on, where its author has not set it."""
    given = value_of(config, "training", "resume")
    return config if given else changed(config, {("training", "resume"): "auto"})


def _initial_weights(settings: Settings, arm: Arm, pretraining: Run | None, model: Path) -> str | None:
    """[training] ckpt_init_name, relative to `model`."""
    if arm.weights is not None:
        return os.path.relpath(arm.weights, model)
    if pretraining is None:
        return None
    file = "latest" if settings.pretrained_checkpoint == "last" else f"{MODEL}_best.pt"
    return os.path.relpath(settings.out / pretraining.name / MODEL / file, model)


def _labelled(config: ConfigText, wanted: int | str, order: int | str, arm: Arm) -> pd.DataFrame:
    """The labelled scans of a fine-tuning: the first `wanted` rows of its csv, in the csv's or in a drawn order."""
    table = _table(config, "train_csv", f"[arm:{arm.name}] {arm.finetune}")
    if wanted == ALL:
        return table
    if wanted > len(table):
        raise ConfigError([f"[compare] labels: {wanted} labelled scans, {arm.finetune} has {len(table)}"])
    if order == "csv":
        return table.iloc[:wanted]
    # sorted, so that the csv of a small number does not depend on how the drawing went
    return table.iloc[np.sort(np.random.default_rng(order).permutation(len(table))[:wanted])]


def _table(config: ConfigText, key: str, where: str) -> pd.DataFrame:
    name, mistakes = value_of(config, "dataset", key), []
    table = read_table(Path(name), mistakes) if name else None
    if table is None:
        raise ConfigError(mistakes or [f"{where}: [dataset] {key} is missing: a comparison needs it"])
    return table


def _evaluation(settings: Settings, run: Run, folder: Path) -> tuple[ConfigText, pd.DataFrame]:
    """The config of pymic_eval_seg for the test scans, and the pairs of its csv."""
    where = f"[arm:{run.arm}] {settings.arm(run.arm).finetune}"
    table, mistakes = _table(run.config, "test_csv", where), []
    label = value_of(run.config, "dataset", "test_label_key", "label")
    classes = value_of(run.config, "network", "class_num")
    if label not in table.columns:
        mistakes.append(f"{value_of(run.config, 'dataset', 'test_csv')}: has no column {label!r} to compare with")
    if not classes.isdecimal() or int(classes) < 2:
        mistakes.append(f"{where}: [network] class_num must be a whole number of at least 2, got {classes or None}")
    elif settings.class_names and len(settings.class_names) != int(classes) - 1:
        mistakes.append(
            f"[compare] class_names must name the {int(classes) - 1} labels of {where}, "
            f"got {list(settings.class_names)}"
        )
    if mistakes:
        raise ConfigError(mistakes)
    labels = range(1, int(classes))
    names = settings.class_names or [str(label) for label in labels]
    root = value_of(run.config, "dataset", "test_dir") or value_of(run.config, "dataset", "train_dir")
    # PyMIC names a segmentation after its image, without the folders or with _ for /
    keeps_folders = value_of(run.config, "testing", "ignore_dir", "True").lower() == "false"
    image = [str(name).replace("/", "_") if keeps_folders else str(name).split("/")[-1] for name in table.iloc[:, 0]]
    pairs = pd.DataFrame({"ground_truth": table[label], "segmentation": image, "image": table.iloc[:, 0]})
    if pairs["segmentation"].duplicated().any():
        twice = sorted(pairs["segmentation"][pairs["segmentation"].duplicated()].unique())
        raise ConfigError([f"{where}: test scans whose segmentations would have one name: {', '.join(twice[:5])}"])
    config = {
        "evaluation": {
            "metric_list": f"[{', '.join(settings.metrics)}]",
            "label_list": f"[{', '.join(map(str, labels))}]",
            "class_name_list": f"[{', '.join(names)}]",
            "ground_truth_folder": root,
            "segmentation_folder": str(folder / SEGMENTATIONS),
            "evaluation_image_pair": str(folder / "evaluation.csv"),
        }
    }
    return config, pairs


def _fingerprint(run: Run, weights: str) -> str:
    """A hash of what the result depends on: values (not how they are written), lists of scans, initial weights."""
    content: dict[str, Any] = {
        section: {
            key.lower(): parse_value_from_string(value)
            for key, value in sorted(values.items())
            if value and key.lower() not in NO_MATTER.get(section, ())
        }
        for section, values in sorted(run.config.items())
    }
    content["lists"] = {
        key: run.rows.to_csv(index=False) if key == "train_csv" and run.rows is not None else _content(Path(name))
        for key in LISTS
        if (name := value_of(run.config, "dataset", key)) and not (run.kind == PRETRAINING and key == "test_csv")
    }
    content["evaluation"] = {k: v for k, v in run.evaluation.get("evaluation", {}).items() if k.endswith("_list")}
    if run.leaves_out:
        content["absent"] = "left_out"
    content["starts from"] = run.pretraining.fingerprint if run.pretraining else weights
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def _content(file: Path) -> str:
    """A hash of a file."""
    try:
        return hashlib.sha256(file.read_bytes()).hexdigest()
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror})") from error


def write_run(run: Run, out: Path) -> Path:
    """Write what a run needs into its folder, which is returned: its configs, csv files, and run.json for the job."""
    folder = out / run.name
    folder.mkdir(parents=True, exist_ok=True)
    write_text(run.config, folder / run.cfg_name, f"made by pymic_vf compare: {run.name}")
    commands = {"train": ["pymic_train", str(folder / run.cfg_name)]}
    if run.kind == FINETUNING:
        _write_csv(run.rows, folder / "train.csv")
        _write_csv(run.pairs, folder / "evaluation.csv")
        write_text(run.evaluation, folder / "evaluation.cfg")
        commands["test"] = ["pymic_test", str(folder / run.cfg_name)]
        commands["evaluate"] = ["pymic_eval_seg", "--cfg", str(folder / "evaluation.cfg")]
    write_json(
        folder / "run.json",
        {
            "name": run.name,
            "kind": run.kind,
            "arm": run.arm,
            "seed": run.seed,
            "labels": run.labels,
            "leaves_out": run.leaves_out,
            "fingerprint": run.fingerprint,
            "pretraining": None if run.pretraining is None else str((out / run.pretraining.name).absolute()),
            "iterations": value_of(run.config, "training", "iter_max"),
            "working_folder": str(Path.cwd()),
            "commands": commands,
        },
    )
    return folder


def write_json(file: Path, content: Mapping[str, Any]) -> None:
    with whole_file(file) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n")


def read_json(file: Path) -> dict[str, Any] | None:
    """The content of a JSON file; None where there is none, or no whole one."""
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError):
        return None


def _write_csv(table: pd.DataFrame, file: Path) -> None:
    text = table.to_csv(index=False)
    if not file.is_file() or file.read_text() != text:
        with whole_file(file) as temporary:
            temporary.write_text(text)
