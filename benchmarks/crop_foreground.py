"""What do crops hold with ``crop_min_foreground`` and without it, and what does it cost?

    python benchmarks/crop_foreground.py DATA/pretrain.csv DATA/volumes

Crops of 32x64x64 from a cache that is full, two a sample. Body is what is above -500 (HU), counted in the crops
themselves. The first pass also makes the maps of the volumes; times are CPU time of this process.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from machine import machine

from pymic_vf.data.cache_folder import CacheFolder
from pymic_vf.data.cached_reader import CachedVolumeReader
from pymic_vf.data.foreground import Foreground
from pymic_vf.data.samples import Samples, SampleTransforms
from pymic_vf.data.scan_list import read_scan_list
from pymic_vf.data.volume_transform import VolumeTransform

CROP, AIR = (32, 64, 64), -500
CASES = {
    "without": None,
    "0.25, -500": Foreground(0.25, AIR),
    "0.5, -500": Foreground(0.5, AIR),
    "0.25, otsu": Foreground(0.25, None),
}


class Pair:
    """In the stead of a method: only its crops are looked at."""

    scans_per_sample = 2

    def sample(self, crops: Sequence[np.ndarray], _rng: np.random.Generator) -> dict:
        return {"image": crops[0]}


def milliseconds(samples: Samples, count: int) -> float:
    start = time.process_time()
    for number in range(count):
        samples.crops(number)
    return (time.process_time() - start) / count * 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("csv", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--samples", type=int, default=300)
    arguments = parser.parse_args()
    mistakes: list[str] = []
    scans = read_scan_list(arguments.csv, arguments.folder, 1, mistakes, needed=2)
    if mistakes:
        parser.error("; ".join(mistakes))
    print(machine())
    with tempfile.TemporaryDirectory() as folder:
        reader = CachedVolumeReader(scans, VolumeTransform(()), CacheFolder(Path(folder)))
        for index in range(len(scans)):
            reader.shape(index)
        for name, foreground in CASES.items():
            samples = Samples(reader, CROP, Pair(), SampleTransforms(), 0, foreground=foreground)
            first, later = milliseconds(samples, arguments.samples), milliseconds(samples, arguments.samples)
            body = np.array([(c > AIR).mean() for k in range(arguments.samples) for c in samples.crops(k)])
            print(
                f"{name:10}: {np.mean(body < 0.1):6.1%} of crops over 90 % air, {np.mean(body < 0.24):6.1%} with less "
                f"than 24 % body, mean {body.mean():.2f}; {later:.2f} ms a sample ({first:.2f} at first)"
            )
        maps = [file.stat().st_size for file in Path(folder).rglob("*.body")]
        print(f"a map takes {np.mean(maps) / 1024:.1f} KiB")


if __name__ == "__main__":
    main()
