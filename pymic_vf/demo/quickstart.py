"""The whole job on phantoms, by PyMIC's own commands: what the pretraining is worth on very few labels."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from pymic_vf.data.scan import read_scan
from pymic_vf.demo.phantom import DEFAULT_COUNTS, write_phantoms
from pymic_vf.demo.pictures import draw_overlays
from pymic_vf.errors import UserError

ARMS = {"scratch": "from scratch", "pretrained": "pretrained"}  # of the quickstart's compare.cfg
METRICS = {"dice": ("Dice (%)", 100, 1), "assd": ("ASSD (mm)", 1, 2)}  # title, unit, digits
ORGANS = ("liver", "kidneys", "aorta")


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
    for cfg in sorted((configs or example_configs("quickstart")).glob("*.cfg")):
        shutil.copy(cfg, out)
    start = time.monotonic()
    print("phantoms: CT-like volumes, most of them without labels", flush=True)
    write_phantoms(out / "data", counts)
    print("a fused sample, what the pretraining has to take apart", flush=True)
    _run(out, "preview", "pretrain_vf.cfg", "--out", "fused_sample.png")
    print("pretraining, fine-tuning and test, with three seeds, two runs at a time:", flush=True)
    _run(out, "compare", "compare.cfg", "--jobs", str(min(2, os.cpu_count() or 1)))
    scores = pd.read_csv(out / "result" / "scores.csv")
    print(f"\n{_table(scores)}\n", flush=True)
    _draw_segmentations(out, int(scores["labels"].iloc[0]))
    print(f"{out / 'fused_sample.png'}: a fused sample")
    print(f"{out / 'segmentations.png'}: both arms of the first seed beside the truth")
    print(f"{out / 'result' / 'report.html'}: the report, with intervals and what may be concluded")
    print(f"the whole demo took {time.monotonic() - start:.0f} s; its configs, logs and results are in {out}")


def example_configs(folder: str) -> Path:
    """A folder of the example configs: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).parents[1]
    for parent in (package, package.parent):
        if (parent / "config_examples" / folder).is_dir():
            return parent / "config_examples" / folder
    raise UserError(f"the example configs of {folder} are not installed: install the package again")


def _run(out: Path, *arguments: str) -> None:
    """Run a command of ours in `out`; the one beside this Python, wherever PATH points."""
    executable = shutil.which("pymic_vf", path=str(Path(sys.executable).parent)) or "pymic_vf"
    done = subprocess.run([executable, *arguments], cwd=out)
    if done.returncode:
        raise UserError(f"pymic_vf {' '.join(arguments)} ended with status {done.returncode}, see above")


def _table(scores: pd.DataFrame) -> str:
    """Both arms: the mean over the test volumes and seeds, and in brackets those of the worst and the best seed."""
    rows = [["", "", *ORGANS, "mean"]]
    for metric, (title, unit, digits) in METRICS.items():
        for arm, text in ARMS.items():
            these = scores[(scores["metric"] == metric) & (scores["arm"] == arm)]
            by_seed = unit * these.pivot_table("value", "seed", "class")[list(ORGANS)]
            by_seed["mean"] = by_seed.mean(axis=1)
            cells = (
                f"{each.mean():.{digits}f} ({each.min():.{digits}f}-{each.max():.{digits}f})"
                for _, each in by_seed.items()
            )
            rows.append([title, text, *cells])
    return "\n".join("".join(f"{cell:>21}" for cell in row) for row in rows)


def _draw_segmentations(out: Path, labels: int) -> None:
    pairs = pd.read_csv(out / "data" / "evaluation.csv")
    truth_name, image_name = pairs.iloc[0, 0], pairs.iloc[0, 1]
    scan = read_scan([out / "data" / "volumes" / image_name])
    truth = read_scan([out / "data" / "volumes" / truth_name]).voxels[0]
    results = {}
    for arm, text in ARMS.items():
        folder = out / "result" / "finetuning" / arm / f"labels_{labels}" / "seed_1" / "segmentations"
        results[text] = read_scan([folder / image_name]).voxels[0]
    draw_overlays(scan.voxels[0], truth, results, ORGANS, out / "segmentations.png", scan.spacing, scan.direction)
