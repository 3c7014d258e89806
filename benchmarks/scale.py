"""Does the data path cost more with 110,000 scans than with 1,000?

    python benchmarks/scale.py                        # a few small phantoms under 110,000 names
    python benchmarks/scale.py --samples 2000         # a quicker look at the memory

Each row of the csv is a name of its own (a hard link) of one of a few small files, so every scan is decoded, cached and
found again like any other. Every measurement runs in a process of its own.
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch
from machine import machine
from pymic import TaskType
from pymic.transform.trans_dict import TransformDict

from pymic_vf.data.cache_folder import CacheFolder
from pymic_vf.data.cached_reader import CachedVolumeReader
from pymic_vf.data.loader import SampleLoader, SampleNumbers
from pymic_vf.data.samples import Samples, SampleTransforms
from pymic_vf.data.scan_list import read_scan_list
from pymic_vf.data.volume_transform import VolumeTransform
from pymic_vf.demo.phantom import make_phantom
from pymic_vf.methods.volume_fusion import VolumeFusion

CROP, SIZE = (16, 32, 32), (24, 48, 48)
PARAMS = {
    "task": TaskType.SEGMENTATION,
    "normalizewithminmax_channels": [0],
    "normalizewithminmax_threshold_lower": [-1000],
    "normalizewithminmax_threshold_upper": [1000],
}
FUSION = {"VF_foreground_classes": 4, "VF_patch_number": (10, 40), "VF_patch_size_min": (2, 4, 4),
          "VF_patch_size_max": (10, 20, 20)}  # fmt: skip
CLASSES, BATCH = 5, 4


def make_rows(folder: Path, rows: int, files: int = 8) -> Path:
    """A csv of `rows` scans under names of their own, in folders of 10,000."""
    volumes = folder / "volumes"
    if not volumes.is_dir():
        volumes.mkdir(parents=True)
        for index in range(files):
            sitk.WriteImage(sitk.GetImageFromArray(make_phantom(index, SIZE)[0]), str(volumes / f"real_{index}.nii.gz"))
    names = [f"{row // 10000:02d}/patient_{row:06d}.nii.gz" for row in range(rows)]
    for row, name in enumerate(names):
        (volumes / name).parent.mkdir(exist_ok=True)
        if not (volumes / name).exists():
            os.link(volumes / f"real_{row % files}.nii.gz", volumes / name)
    csv = folder / f"{rows}.csv"
    csv.write_text("\n".join(["image", *names]) + "\n")
    return csv


def samples_of(csv: Path) -> Samples:
    mistakes: list[str] = []
    scans = read_scan_list(csv, csv.parent / "volumes", 1, mistakes)
    if mistakes:
        raise SystemExit("\n".join(mistakes))
    transform = VolumeTransform([TransformDict["NormalizeWithMinMax"](PARAMS)])
    reader = CachedVolumeReader(scans, transform, CacheFolder(csv.parent / "cache"))
    return Samples(reader, CROP, VolumeFusion(FUSION), SampleTransforms(), seed=0)


def loader_of(samples: Samples, count: int | None, workers: int) -> SampleLoader:
    return SampleLoader(samples, SampleNumbers(count=count), BATCH, workers, CLASSES)


def in_process(work: Callable, *arguments: Any) -> Any:
    """The result of a function in a process of its own, which inherits nothing that was measured before."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, initializer=fork_workers) as pool:
        return pool.submit(work, *arguments).result()


def fork_workers() -> None:
    """Workers of this process are forked, as those of a training are."""
    multiprocessing.set_start_method("fork", force=True)


def time_to_first_batch(csv: Path, workers: int) -> tuple[float, float]:
    """Seconds for reading the csv and looking for its files, and from there to the first batch."""
    start = time.perf_counter()
    samples = samples_of(csv)
    read = time.perf_counter()
    loader = loader_of(samples, None, workers)
    next(iter(loader))
    end = time.perf_counter()
    return read - start, end - read


def list_bytes(csv: Path) -> float:
    """Bytes a row that the list of scans and all that goes with it take, once the csv is read."""
    samples = samples_of(csv)
    return samples.reader.scans._names.nbytes / len(samples.reader)


def memory_of(pids: list[int], field: str) -> list[float]:
    """RSS or PSS of processes, in MiB."""
    values = []
    for pid in pids:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        values += [int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{field}:")]
    return values


def memory_over_time(csv: Path, samples: int, workers: int) -> None:
    """Print the memory of each worker as the samples go by; the first tenth is warming up."""
    loader = loader_of(samples_of(csv), samples, workers)
    marks = [samples // BATCH * tenth // 10 for tenth in range(1, 11)]
    history = []
    for batch, _ in enumerate(loader, start=1):
        if batch in marks:
            pids = [process.pid for process in multiprocessing.active_children()]
            history.append([max(memory_of(pids, field)) for field in ("Rss", "Pss")])
            print(f"  after {batch * BATCH:6d} samples: largest worker RSS {history[-1][0]:.0f}, PSS "
                  f"{history[-1][1]:.0f} MiB", flush=True)  # fmt: skip
    growth = [last / first - 1 for first, last in zip(history[0], history[-1], strict=True)]
    print(f"  growth from a tenth to the end: RSS {growth[0]:+.1%}, PSS {growth[1]:+.1%}")


def same_stream(csv: Path, count: int = 24) -> bool:
    """Whether 0, 1 and 8 workers, and a stream taken up in the middle, give the same batches."""
    samples = samples_of(csv)
    streams = [list(loader_of(samples, count, workers)) for workers in (0, 1, 8)]
    resumed = loader_of(samples, count // 2, 1)
    resumed.numbers.start = count // 2
    streams.append(streams[0][: count // 2 // BATCH] + list(resumed))
    return all(
        len(stream) == len(streams[0])
        and all(torch.equal(a[key], b[key]) for a, b in zip(stream, streams[0], strict=True) for key in a)
        for stream in streams
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=110_000, help="(default: %(default)s)")
    parser.add_argument("--samples", type=int, default=20_000, help="for the memory (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=2, help="(default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=5, help="of the time to the first batch (default: %(default)s)")
    parser.add_argument("--folder", type=Path, help="where scans and cache stay; default: a temporary one")
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    print(machine())
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        few, many = make_rows(folder, 1000), make_rows(folder, options.rows)
        times = {csv: [] for csv in (few, many)}
        for _ in range(options.repeats):
            for csv in times:
                times[csv].append(in_process(time_to_first_batch, csv, options.workers))
        for csv, values in times.items():
            read, first = np.median(values, axis=0)
            print(f"{csv.stem:>8} rows: csv read and files found in {read:.2f} s, first batch {first:.2f} s later")
        ratio = statistics.median(v[1] for v in times[many]) / statistics.median(v[1] for v in times[few])
        print(f"time to the first batch beyond the csv: {ratio:.2f} x")
        print(f"the list of scans: {in_process(list_bytes, many):.0f} bytes a row, shared by all workers")
        print(f"memory, {options.rows} rows, {options.workers} workers:")
        in_process(memory_over_time, many, options.samples, options.workers)
        print(f"0, 1 and 8 workers and a resumed stream give the same samples: {in_process(same_stream, few)}")


if __name__ == "__main__":
    main()
