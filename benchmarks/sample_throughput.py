"""How fast are fused samples made, against PyMIC's own pipeline on the same volumes?

    python benchmarks/sample_throughput.py                       # phantoms of 512x512x200, made on the spot (minutes)
    python benchmarks/sample_throughput.py --volumes A.nii.gz B.nii.gz

Both sides window the intensities (NormalizeWithMinMax from -1000 to 1000 HU), crop, fuse and hand on the label, in
turns in one process on one core; crops alone are read without a window. Times are given by the clock and as CPU time of
this process, which other programs on the machine disturb less: the mean of all samples, since volumes differ and a
sample of an epoch that fills the cache decodes two scans, one or none; of crops the median.
"""

from __future__ import annotations

import argparse
import logging
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import SimpleITK as sitk
from machine import machine
from pymic import TaskType
from pymic.io.image_read_write import load_image_as_nd_array
from pymic.io.nifty_dataset import NiftyDataset
from pymic.transform.trans_dict import TransformDict
from torchvision import transforms

from pymic_vf.data.cache_folder import CacheFolder
from pymic_vf.data.cached_reader import CachedVolumeReader
from pymic_vf.data.loader import SampleLoader, SampleNumbers
from pymic_vf.data.samples import Samples, SampleTransforms
from pymic_vf.data.scan_list import ScanList
from pymic_vf.data.volume_transform import VolumeTransform
from pymic_vf.data.workers import set_up_worker
from pymic_vf.demo.phantom import make_phantom
from pymic_vf.methods.volume_fusion import VolumeFusion

CROP = (64, 128, 128)
CLASSES = 5
PARAMS = {
    "task": TaskType.SEGMENTATION,
    "crop4volumefusion_output_size": list(CROP),
    "labeltoprobability_class_num": CLASSES,
    "normalizewithminmax_channels": [0],
    "normalizewithminmax_threshold_lower": [-1000],
    "normalizewithminmax_threshold_upper": [1000],
}
WINDOW = "NormalizeWithMinMax"


class Stopwatch:
    """Times of repetitions, in ms: by the clock and of this process's CPU."""

    def __init__(self) -> None:
        self.clock: list[float] = []
        self.cpu: list[float] = []

    def __call__(self, work: Callable) -> None:
        clock, cpu = time.perf_counter(), time.process_time()
        work()
        self.cpu.append(1e3 * (time.process_time() - cpu))
        self.clock.append(1e3 * (time.perf_counter() - clock))

    def row(self, average: Callable) -> str:
        return f"{average(self.clock):9.1f} ms{average(self.cpu):9.1f} ms CPU"

    def over(self, other: Stopwatch, average: Callable) -> float:
        return average(self.cpu) / average(other.cpu)


def stock_samples(folder: Path, names: Sequence[str], augmentation: int) -> NiftyDataset:
    """PyMIC's own Volume Fusion, as its users run it; `augmentation` 3 is its default, 0 only crops and fuses."""
    csv = folder / "stock.csv"
    pd.DataFrame({"image": list(names)}).to_csv(csv, index=False)
    params = {**PARAMS, "crop4volumefusion_augentation_mode": augmentation}
    steps = [
        TransformDict[name](params) for name in (WINDOW, "Crop4VolumeFusion", "VolumeFusion", "LabelToProbability")
    ]
    return NiftyDataset(str(folder), str(csv), transform=transforms.Compose(steps))


def our_reader(folder: Path, names: Sequence[str], cache: Path, transforms: Sequence[str]) -> CachedVolumeReader:
    scans = ScanList(folder, np.array([[name.encode()] for name in names]))
    transform = VolumeTransform([TransformDict[name](PARAMS) for name in transforms])
    return CachedVolumeReader(scans, transform, CacheFolder(cache))


def volume_fusion() -> VolumeFusion:
    """With the paper's values."""
    return VolumeFusion({key.name: key.default for key in VolumeFusion.keys})


def our_samples(folder: Path, names: Sequence[str], cache: Path, one_hot: bool = False) -> Samples:
    """Ours, as the agent makes them; `one_hot` makes the label in the worker, as PyMIC does."""
    reader = our_reader(folder, names, cache, [WINDOW])
    after = (TransformDict["LabelToProbability"](PARAMS),) if one_hot else ()
    return Samples(reader, CROP, volume_fusion(), SampleTransforms((), after), seed=0)


def make_volumes(folder: Path, count: int, size: Sequence[int]) -> list[str]:
    """Phantoms of clinical size, kept where they are there already."""
    names = [f"phantom_{size[0]}_{index}.nii.gz" for index in range(count)]
    for index, name in enumerate(names):
        if not (folder / name).is_file():
            print(f"making {name}", flush=True)
            sitk.WriteImage(sitk.GetImageFromArray(make_phantom(index, size)[0]), str(folder / name))
    return names


def measure_samples(folder: Path, names: Sequence[str], repeats: int) -> None:
    """Whole samples: stock, ours with a cold cache, ours with a warm one."""
    stock, full = stock_samples(folder, names, 0), stock_samples(folder, names, 3)
    times = {name: Stopwatch() for name in ("stock", "stock, its augmentation", "cold", "warm")}
    warm = our_samples(folder, names, folder / "cache")
    for index in range(len(names)):
        warm.reader.shape(index)
    for turn in range(max(repeats // len(names), 1)):
        with tempfile.TemporaryDirectory(dir=folder) as cache:
            cold = our_samples(folder, names, Path(cache))  # an epoch of it: as many samples as scans
            for index in range(len(names)):
                number = turn * len(names) + index
                times["stock"](lambda i=index: stock[i])
                times["stock, its augmentation"](lambda i=index: full[i])
                times["cold"](lambda k=number, cold=cold: cold[k])
                for k in range(8):
                    times["warm"](lambda k=8 * number + k: warm[k])
    for name, watch in times.items():
        print(f"fused sample, {name:36}{watch.row(statistics.mean)}")
    for name in ("stock", "stock, its augmentation"):
        _ratio(f"{name} / warm", times[name].over(times["warm"], statistics.mean), ">= 100 x")
        _ratio(f"cold / {name}", times["cold"].over(times[name], statistics.mean), "<= 1 x")


def _ratio(name: str, value: float, goal: str) -> None:
    print(f"  {name:48}{value:9.2f} x   (goal {goal})")


def measure_reading(folder: Path, names: Sequence[str], repeats: int) -> None:
    """Crops alone: the whole volume decoded, an uncompressed memory map, ours."""
    reader = our_reader(folder, names, folder / "cache", [])
    reader.shape(0)
    times = {name: Stopwatch() for name in ("PyMIC decodes the volume", "memory map", "ours")}
    rng = np.random.default_rng(0)
    volume = load_image_as_nd_array(str(folder / names[0]))["data_array"].astype(np.int16)
    raw = folder / "volume.raw"
    volume.tofile(raw)
    mapped = np.memmap(raw, np.int16, "r", shape=volume.shape)
    crop = np.minimum(CROP, volume.shape[1:])
    for _ in range(max(repeats // 4, 1)):
        times["PyMIC decodes the volume"](lambda: load_image_as_nd_array(str(folder / names[0])))
    for _ in range(20 * repeats):
        start = rng.integers(0, np.array(volume.shape[1:]) - crop, endpoint=True)
        box = (slice(None), *(slice(s, s + n) for s, n in zip(start, crop, strict=True)))
        times["memory map"](lambda box=box: mapped[box].astype(np.float32))
        times["ours"](lambda start=start: reader.read(0, start.tolist(), crop.tolist()))
    for name, watch in times.items():
        print(f"a crop, {name:42}{watch.row(statistics.median)}")
    _ratio("ours / memory map", times["ours"].over(times["memory map"], statistics.median), "<= 3 x")
    files = sum((folder / name).stat().st_size for name in names)
    stored = sum(reader.entry_bytes(index) for index in range(len(names)))
    _ratio("disk, cache / .nii.gz", stored / files, "<= 1 x")


def measure_worker(folder: Path, names: Sequence[str], repeats: int) -> None:
    """One worker and what it sends: labels as bytes against one-hot labels."""
    count = 2 * max(20 * repeats // 2, 1)
    for one_hot in (False, True):
        samples = our_samples(folder, names, folder / "cache", one_hot)
        loader = SampleLoader(samples, SampleNumbers(count=count), 2, 1, CLASSES)
        before, clock, cpu = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter(), time.process_time()
        for _ in loader:
            pass
        clock, cpu = time.perf_counter() - clock, time.process_time() - cpu
        del loader  # and with it its worker, whose time the system counts at its end
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        worker = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        name = "one-hot labels" if one_hot else "labels as bytes"
        print(
            f"a sample by one worker, {name:26}{1e3 * clock / count:9.1f} ms{1e3 * worker / count:9.1f} ms CPU in the "
            f"worker, {1e3 * cpu / count:.1f} in the training process"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--volumes", nargs="+", type=Path, help="scans to use, in one folder; default: phantoms")
    parser.add_argument("--count", type=int, default=3, help="phantoms to make (default: %(default)s)")
    parser.add_argument("--size", nargs=3, type=int, default=(200, 512, 512), help="of phantoms (default: 200 512 512)")
    parser.add_argument("--folder", type=Path, help="where phantoms and cache stay; default: a temporary one")
    parser.add_argument("--repeats", type=int, default=12, help="stock samples (default: %(default)s)")
    options = parser.parse_args()
    logging.disable(logging.WARNING)  # PyMIC's, that the csv has no labels
    set_up_worker(0)  # this process does what a worker does
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        if options.volumes:
            names = [path.name for path in options.volumes]
            for path in options.volumes:
                if not (folder / path.name).exists():
                    (folder / path.name).symlink_to(path.absolute())
        else:
            names = make_volumes(folder, options.count, options.size)
        print(machine())
        measure_samples(folder, names, options.repeats)
        measure_reading(folder, names, options.repeats)
        measure_worker(folder, names, options.repeats)


if __name__ == "__main__":
    main()
