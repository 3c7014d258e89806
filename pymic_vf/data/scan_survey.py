"""A data set before days of training: the headers of its scans and labels, and the voxels of a few.

Bounded in number and in time, whatever the size of the data set; what was left out is said. Nothing is written.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from pymic_vf.data.scan import UnusableScanError
from pymic_vf.data.scan_header import ScanHeader, joined_header, read_header
from pymic_vf.sizes import Size

MOST_HEADERS, HEADER_SECONDS = 5000, 60
MOST_VOLUMES, VOLUME_SECONDS = 24, 60
AIR_HU, LOWEST_OF_CT = -500, -900  # a volume with voxels below the latter is taken for a CT
DARK = 0.05  # of the range of another volume: what is darker is air
CROPS = 24  # of a volume


@dataclass(frozen=True)
class Entry:
    """What is listed of one scan: its image files and its label's, if there is one."""

    images: tuple[Path, ...]
    label: Path | None = None


@dataclass(frozen=True)
class Headers:
    """Of one scan: its header, its label's, or why it cannot be used."""

    entry: Entry
    image: ScanHeader | None = None
    label: ScanHeader | None = None
    reason: str = ""


@dataclass
class VolumeFacts:
    """What the voxels of one scan show.

    Args:
        entry: the scan.
        lowest, highest: the intensities of all channels together.
        seconds: that reading it took.
        classes: the values of the label; empty without one.
        air: the share of air of each drawn crop.
        extra: what else the caller found out.
        reason: why it cannot be used.
    """

    entry: Entry
    lowest: float = 0.0
    highest: float = 0.0
    seconds: float = 0.0
    classes: tuple[float, ...] = ()
    air: list[float] = field(default_factory=list)
    extra: Any = None
    reason: str = ""


def sampled(count: int, most: int, seed: int = 0) -> list[int]:
    """`most` of `count` numbers in random order, the same each time; all of them where there are no more."""
    return np.random.default_rng(seed).permutation(count)[:most].tolist()


def in_threads(work: Callable[[Any], Any], items: Sequence[Any], jobs: int, seconds: float) -> Iterator[Any]:
    """The results of `work` for each item, in the order of the items, until the time is over."""
    start, queue = time.monotonic(), iter(items)
    with ThreadPoolExecutor(max_workers=max(jobs, 1)) as pool:
        waiting = [pool.submit(work, item) for item in islice(queue, 2 * max(jobs, 1))]
        while waiting:
            yield waiting.pop(0).result()
            if time.monotonic() - start < seconds:
                waiting.extend(pool.submit(work, item) for item in islice(queue, 1))


def read_headers(entries: Sequence[Entry], jobs: int) -> list[Headers]:
    """The headers of scans and labels, of at most so many scans and for at most so long."""
    chosen = [entries[index] for index in sampled(len(entries), MOST_HEADERS)]
    return list(in_threads(_headers, chosen, jobs, HEADER_SECONDS))


def _headers(entry: Entry) -> Headers:
    try:
        image = joined_header(entry.images)
        return Headers(entry, image, None if entry.label is None else read_header(entry.label))
    except UnusableScanError as error:
        return Headers(entry, reason=str(error))


def read_volumes(
    entries: Sequence[Entry], read: Callable[[Entry], VolumeFacts], jobs: int, most: int = MOST_VOLUMES
) -> list[VolumeFacts]:
    """What `read` says of some scans, of at most so many and for at most so long."""
    chosen = [entries[index] for index in sampled(len(entries), most)]
    return list(in_threads(read, chosen, jobs, VOLUME_SECONDS))


def air_of_crops(voxels: np.ndarray, crop_size: Size, seed: int = 0) -> list[float]:
    """The share of air in random crops of a volume, anywhere with the same probability.

    Args:
        voxels: [C, D, H, W]; the first channel counts. Of a CT air is below -500 HU, of another volume what is darker
            than its darkest 5 %.
        crop_size: (D, H, W).
        seed: of the places.
    """
    channel = voxels[0]
    dark = channel < air_threshold(channel)
    rng, shares = np.random.default_rng(seed), []
    for _ in range(CROPS):
        box = []
        for side, crop in zip(dark.shape, crop_size, strict=True):
            start = int(rng.integers(max(side - crop, 0) + 1))
            box.append(slice(start, start + crop))
        shares.append(float(dark[tuple(box)].mean()))
    return shares


def air_threshold(channel: np.ndarray) -> float:
    """Below it a voxel is air."""
    lowest = float(channel.min())
    if lowest <= LOWEST_OF_CT:
        return AIR_HU
    thinned = channel[:: max(1, channel.shape[0] // 32), ::4, ::4]
    return lowest + DARK * (float(np.percentile(thinned, 99.5)) - lowest)


def spread(values: Iterable[Sequence[float]]) -> tuple[list[float], list[float], list[float]]:
    """The smallest, the median and the largest value of each axis."""
    array = np.array(list(values), float)
    return array.min(0).tolist(), np.median(array, axis=0).tolist(), array.max(0).tolist()
