"""The whole job on phantoms, by PyMIC's own commands: what the pretraining is worth on very few labels."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd

from pymic_vf.data.scan import read_scan
from pymic_vf.demo.phantom import DEFAULT_COUNTS, write_phantoms
from pymic_vf.demo.pictures import draw_overlays
from pymic_vf.errors import UserError

RUNS = {"scratch": "from scratch", "finetune": "pretrained"}
METRICS = {"dice": "Dice", "assd": "ASSD (mm)"}


def run_demo(out: Path, configs: Path | None = None, counts: Mapping[str, int] = DEFAULT_COUNTS) -> None:
    """Make phantoms, pretrain, fine-tune from the pretrained weights and from scratch, segment, evaluate, draw.

    Args:
        out: a new or empty folder; everything is left in it: data, configs, logs, checkpoints, results, pictures.
        configs: a folder with other configs of the same names and paths; None takes those of the quickstart.
        counts: how many phantoms of each part.

    Raises:
        UserError: `out` is not empty, or a command fails; its log is named.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} is not an empty folder: name a new one with --out")
    out.mkdir(parents=True, exist_ok=True)
    (out / "logs").mkdir()
    for cfg in sorted((configs or example_configs("quickstart")).glob("*.cfg")):
        shutil.copy(cfg, out)
    start = time.monotonic()
    print("phantoms: CT-like volumes, most of them without labels", flush=True)
    write_phantoms(out / "data", counts)
    # two commands at a time, each on its share of the processor
    with ThreadPoolExecutor(2) as pool:
        scratch = pool.submit(_train_and_test, out, "scratch")
        _run(out, "pretrain", "Volume Fusion pretraining, no labels", "pymic_train", "pretrain_vf.cfg")
        preview = "preview", "a fused sample", "pymic_vf", "preview", "pretrain_vf.cfg", "--out", "fused_sample.png"
        drawn = pool.submit(_run, out, *preview)
        _train_and_test(out, "finetune")
        scratch.result(), drawn.result()
    _run(out, "evaluation", "evaluation", "pymic_eval_seg", "--cfg", "evaluation.cfg")
    print(f"\n{_scores(out)}\n", flush=True)
    _draw_segmentations(out)
    print(f"{out / 'fused_sample.png'}: a fused sample, what the pretraining has to take apart")
    print(f"{out / 'segmentations.png'}: both runs beside the truth")
    print(f"the whole demo took {time.monotonic() - start:.0f} s; its configs, logs and results are in {out}")


def _train_and_test(out: Path, name: str) -> None:
    """One of `RUNS`: its training, and the segmentation of the test scans."""
    _run(out, f"train_{name}", f"training on few labels, {RUNS[name]}", "pymic_train", f"{name}.cfg")
    _run(out, f"test_{name}", f"segmentation, {RUNS[name]}", "pymic_test", f"{name}.cfg")


def example_configs(folder: str) -> Path:
    """A folder of the example configs: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).parents[1]
    for parent in (package, package.parent):
        if (parent / "config_examples" / folder).is_dir():
            return parent / "config_examples" / folder
    raise UserError(f"the example configs of {folder} are not installed: install the package again")


def _run(out: Path, name: str, text: str, command: str, *arguments: str) -> None:
    """Run a command in `out`, its output in a log; the command beside this Python, wherever PATH points."""
    start = time.monotonic()
    executable = shutil.which(command, path=str(Path(sys.executable).parent)) or command
    log, threads = out / "logs" / f"{name}.txt", str(max(1, (os.cpu_count() or 2) // 2))
    with log.open("w") as stream:
        done = subprocess.run(
            [executable, *arguments], cwd=out, stdout=stream, stderr=subprocess.STDOUT,
            env={"OMP_NUM_THREADS": threads, **os.environ},
        )  # fmt: skip
    print(f"{text}: {command} {' '.join(arguments)} ({time.monotonic() - start:.0f} s)", flush=True)
    if done.returncode:
        tail = "\n".join(log.read_text().splitlines()[-15:])
        raise UserError(
            f"{command} {' '.join(arguments)} ended with status {done.returncode}; the end of {log}:\n{tail}"
        )


def _scores(out: Path) -> str:
    """The table of both runs from what pymic_eval_seg wrote: mean and standard deviation over the test volumes."""
    lines = []
    for metric, title in METRICS.items():
        for run, text in RUNS.items():
            scores = pd.read_csv(out / "result" / run / f"eval_{metric}.csv").set_index("image")
            scale, digits = (100, 1) if metric == "dice" else (1, 2)
            cells = [
                f"{scale * scores.loc['mean', organ]:.{digits}f} ± {scale * scores.loc['std', organ]:.{digits}f}"
                for organ in scores.columns
            ]
            if not lines:
                lines.append("".join(f"{cell:>16}" for cell in ["", "", *scores.columns]))
            unit = f"{title} (%)" if metric == "dice" else title
            lines.append("".join(f"{cell:>16}" for cell in [unit, text, *cells]))
    return "\n".join(lines)


def _draw_segmentations(out: Path) -> None:
    pairs = pd.read_csv(out / "data" / "evaluation.csv")
    truth_name, image_name = pairs.iloc[0, 0], pairs.iloc[0, 1]
    scan = read_scan([out / "data" / "volumes" / image_name])
    truth = read_scan([out / "data" / "volumes" / truth_name]).voxels[0]
    results = {text: read_scan([out / "result" / run / image_name]).voxels[0] for run, text in RUNS.items()}
    scores = pd.read_csv(out / "result" / "scratch" / "eval_dice.csv")
    names = [name for name in scores.columns if name not in ("image", "average")]
    draw_overlays(scan.voxels[0], truth, results, names, out / "segmentations.png", scan.spacing)
