"""How fast are the samples of a fine-tuning made, against PyMIC's own dataset on the same scans?

    python benchmarks/finetune_throughput.py      # phantoms of 512x512x200 with labels, made on the spot (minutes)

The transforms are those of config_examples/finetune.cfg: a window of intensities, Pad, a crop of 64x128x128 around the
foreground half of the time, one-hot labels. Both sides in turns in one process on one core; times by the clock and as
CPU time of this process, mean of all samples. Every draw is made by both from the same state of the random generators
and compared.
"""

from __future__ import annotations

import argparse
import functools
import logging
import random
import statistics
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import SimpleITK as sitk
import torch
from machine import machine
from pymic import TaskType
from pymic.io.nifty_dataset import NiftyDataset
from pymic.transform.trans_dict import TransformDict
from sample_throughput import Stopwatch
from torchvision import transforms

from pymic_vf.data.bad_scans import BadScans
from pymic_vf.data.cache_folder import CacheFolder
from pymic_vf.data.labelled_reader import LabelledReader, LabelledScans
from pymic_vf.data.labelled_samples import LabelledSamples
from pymic_vf.data.labelled_transform import ImageTransform, split_at_random
from pymic_vf.data.loader import one_hot
from pymic_vf.data.random_crop import check_foreground
from pymic_vf.data.scan_list import ScanList
from pymic_vf.data.seeds import TRAIN
from pymic_vf.data.workers import set_up_worker
from pymic_vf.demo.phantom import make_phantom

CROP = [64, 128, 128]
PARAMS = {
    "task": TaskType.SEGMENTATION,
    "normalizewithminmax_channels": [0],
    "normalizewithminmax_threshold_lower": [-1000],
    "normalizewithminmax_threshold_upper": [1000],
    "pad_output_size": CROP,
    "randomcrop_output_size": CROP,
    "randomcrop_foreground_focus": True,
    "randomcrop_foreground_ratio": 0.5,
}
NAMES = ("NormalizeWithMinMax", "Pad", "RandomCrop", "LabelToProbability")


def make_scans(folder: Path, count: int, size: Sequence[int]) -> tuple[Path, int]:
    """Phantoms and their labels, kept where they are there already; their csv and the number of classes."""
    rows, classes = [], 1
    for index in range(count):
        rows.append((f"scan_{size[0]}_{index}.nii.gz", f"scan_{size[0]}_{index}_lab.nii.gz"))
        if not all((folder / name).is_file() for name in rows[-1]):
            print(f"making {rows[-1][0]}", flush=True)
            for name, voxels in zip(rows[-1], make_phantom(index, size), strict=True):
                sitk.WriteImage(sitk.GetImageFromArray(voxels), str(folder / name))
        classes = max(classes, 1 + int(sitk.GetArrayFromImage(sitk.ReadImage(str(folder / rows[-1][1]))).max()))
    csv = folder / "scans.csv"
    pd.DataFrame(rows, columns=["image", "label"]).to_csv(csv, index=False)
    return csv, classes


def chain(classes: int) -> list:
    return [TransformDict[name]({**PARAMS, "labeltoprobability_class_num": classes}) for name in NAMES]


def our_samples(folder: Path, csv: Path, cache: Path, classes: int) -> LabelledSamples:
    """Ours, as the agent makes them."""
    head, rest = split_at_random(chain(classes))
    table = pd.read_csv(csv)

    def listed(*columns: str) -> ScanList:
        return ScanList(folder, np.array([[name.encode() for name in row] for row in table[list(columns)].to_numpy()]))

    scans = LabelledScans(listed("image"), listed("label", "image"))
    check = functools.partial(check_foreground, rest[0])
    images = ImageTransform(head, "train_transform")
    reader = LabelledReader(scans, head, images, CacheFolder(cache), check)
    return LabelledSamples(reader, rest, 0, TRAIN, BadScans(scans.images, 0))


def seed(draw: int) -> None:
    random.seed(draw)
    np.random.seed(draw)


def difference(stock: dict[str, Any], ours: dict[str, Any], classes: int) -> float:
    """The largest difference of a voxel; infinite where the crops or labels differ."""
    label = one_hot(torch.as_tensor(ours["label"])[None], classes)[0].numpy()
    if ours["image"].shape != stock["image"].shape or not np.array_equal(label, stock["label_prob"]):
        return float("inf")
    return float(np.abs(ours["image"] - stock["image"]).max())


def measure(folder: Path, csv: Path, classes: int, repeats: int) -> None:
    stock = NiftyDataset(str(folder), str(csv), transform=transforms.Compose(chain(classes)))
    times = {name: Stopwatch() for name in ("stock", "ours, the epoch that fills the cache", "ours, warm")}
    worst = kept = 0.0

    def draw(name: str, number: int, make: Callable, index: int) -> dict[str, Any]:
        seed(number)
        made = []
        times[name](lambda: made.append(make(index)))
        return made[0]

    for turn in range(max(repeats // len(stock), 1)):
        with tempfile.TemporaryDirectory(dir=folder) as cache:
            ours = our_samples(folder, csv, Path(cache), classes)
            for index in range(len(stock)):
                number = turn * len(stock) + index
                expected = draw("stock", number, stock.__getitem__, index)
                filling = draw("ours, the epoch that fills the cache", number, ours.sample, index)
                worst = max(worst, difference(expected, filling, classes))
                worst = max(worst, difference(expected, draw("ours, warm", number, ours.sample, index), classes))
            for number in range(20 * len(stock)):
                draw("ours, warm", number, ours.sample, number % len(stock))
            kept = sum(ours.reader.entry_bytes(index) for index in range(len(stock)))
    for name, watch in times.items():
        print(f"a sample, {name:40}{watch.row(statistics.mean)}")
    warm, cold, plain = times["ours, warm"], times["ours, the epoch that fills the cache"], times["stock"]
    print(f"  {'warm, the slowest':48}{max(warm.clock):9.1f} ms")
    _goal("warm", statistics.mean(warm.cpu), "ms", "<= 20 ms")
    _goal("stock / warm", plain.over(warm, statistics.mean), "x", ">= 100 x")
    _goal("filling / stock", cold.over(plain, statistics.mean), "x", "<= 1 x")
    print(f"  {len(plain.cpu)} samples made by both: labels equal, voxels within {worst:.2g}")
    files = sum((folder / name).stat().st_size for name in pd.read_csv(csv).to_numpy().ravel())
    _goal("disk, cache / .nii.gz", kept / files, "x", "<= 1 x")


def _goal(name: str, value: float, unit: str, goal: str) -> None:
    print(f"  {name:48}{value:9.2f} {unit}   (goal {goal})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=2, help="phantoms to make (default: %(default)s)")
    parser.add_argument("--size", nargs=3, type=int, default=(200, 512, 512), help="of phantoms (default: 200 512 512)")
    parser.add_argument("--folder", type=Path, help="where phantoms and cache stay; default: a temporary one")
    parser.add_argument("--repeats", type=int, default=6, help="stock samples (default: %(default)s)")
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    set_up_worker(0)  # this process does what a worker does
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        csv, classes = make_scans(folder, options.count, options.size)
        print(machine())
        sizes = ", ".join(f"{(folder / name).stat().st_size / 1e6:.1f}" for name in pd.read_csv(csv)["image"])
        print(f"{len(pd.read_csv(csv))} scans of {'x'.join(map(str, options.size))}, {sizes} MB .nii.gz")
        measure(folder, csv, classes, options.repeats)


if __name__ == "__main__":
    main()
