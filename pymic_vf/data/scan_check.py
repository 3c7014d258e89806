"""Every scan read once in parallel processes: which cannot be used, and what the cache will take."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from pymic_vf.data.cache_folder import GIB, CacheFolder
from pymic_vf.data.cached_reader import CachedVolumeReader
from pymic_vf.data.samples import Samples
from pymic_vf.data.scan import UnusableScanError
from pymic_vf.data.volume_reader import VolumeReader
from pymic_vf.data.workers import killed_workers_explained, set_up_worker
from pymic_vf.errors import UserError

log = logging.getLogger(__name__)
# Before a run: the first scans of each list, for at most so long; further ones are checked when they are first needed.
CHECKED_SCANS, CHECKED_SECONDS = 1000, 60


@dataclass(frozen=True)
class ScanCheck:
    """What reading one scan showed.

    Args:
        index: of the scan.
        stored_bytes: what it takes in the cache; 0 where it is not there.
        seconds: that it took.
        reason: why the scan cannot be used; empty where it can.
    """

    index: int
    stored_bytes: int = 0
    seconds: float = 0.0
    reason: str = ""


class _ScanChecks(Dataset):
    """Checks by index, made in a loader's workers. A user's mistake is a value here, as in the loader of samples."""

    def __init__(self, reader: VolumeReader, count: int) -> None:
        self.reader, self.count = reader, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> ScanCheck | UserError:
        start = time.monotonic()
        try:
            self.reader.shape(index)
            stored = self.reader.entry_bytes(index) if isinstance(self.reader, CachedVolumeReader) else 0
        except UnusableScanError as error:
            return ScanCheck(index, seconds=time.monotonic() - start, reason=str(error))
        except UserError as error:
            return error
        return ScanCheck(index, stored, time.monotonic() - start)


def check_each(reader: VolumeReader, count: int, jobs: int, title: str) -> Iterator[ScanCheck]:
    """Check the first `count` scans of a reader, with a progress line where the output is a terminal.

    Args:
        reader: of the scans; one with a cache fills it.
        count: how many of them.
        jobs: processes; 0 or 1 does it in this one.
        title: of the progress line.

    Raises:
        UserError: the cache cannot be written to, or a worker was killed.
    """
    loader = DataLoader(
        _ScanChecks(reader, count),
        batch_size=None,
        num_workers=jobs if jobs > 1 else 0,
        collate_fn=_as_it_is,
        worker_init_fn=set_up_worker,
        generator=torch.Generator(),  # checks take nothing from the draws of the training that follows
    )
    with killed_workers_explained():
        # disable=None: no line where the output is no terminal
        for check in tqdm(loader, title, count, disable=None, leave=False, unit="scan"):
            if isinstance(check, UserError):
                raise check
            yield check


def _as_it_is(check: ScanCheck | UserError) -> ScanCheck | UserError:
    return check


def check_before_training(sets: Sequence[Samples], jobs: int) -> None:
    """Check the first scans of each list, name all that cannot be used, and forecast the cache.

    Args:
        sets: the training samples and, if there are any, those of the validation.
        jobs: processes.

    Raises:
        UnusableScanError: more scans than allowed cannot be used; with the files and the reasons.
        UserError: the cache cannot be written to, or a worker was killed.
    """
    checks: list[ScanCheck] = []
    for samples in sets:
        start, bad = time.monotonic(), {}
        for check in check_each(samples.reader, min(len(samples.reader), CHECKED_SCANS), jobs, "checking scans"):
            checks.append(check)
            if check.reason:
                bad[check.index] = check.reason
            if time.monotonic() - start > CHECKED_SECONDS:
                break
        samples.bad_scans.report(bad)
    _forecast(sets, checks)


def _forecast(sets: Sequence[Samples], checks: Sequence[ScanCheck]) -> None:
    scans = sum(len(samples.reader) for samples in sets)
    if isinstance(sets[0].reader, CachedVolumeReader):
        sizes = [check.stored_bytes for check in checks if check.stored_bytes]
        if sizes:
            _forecast_size(sets[0].reader.folder, sum(sizes) / len(sizes) * scans, len(sizes), scans)
        return
    seconds = sum(check.seconds for check in checks) / max(len(checks), 1)
    log.info(
        "cache_dir is not set: a sample decodes %d of the scans, about %.2f s here. With it each scan is decoded once, "
        "and a crop then takes milliseconds",
        sets[0].method.scans_per_sample, sets[0].method.scans_per_sample * seconds,
    )  # fmt: skip


def _forecast_size(folder: CacheFolder, size: float, known: int, scans: int) -> None:
    folder.remove_leftovers()
    used, free = folder.used_bytes(), folder.free_bytes()
    log.info(
        "cache_dir = %s: %d scans will take about %.4g GiB (by %d of them); it has %.4g GiB, the disk %.4g GiB free",
        folder.path, scans, size / GIB, known, used / GIB, free / GIB,
    )  # fmt: skip
    wanted = size if folder.max_bytes is None else min(size, folder.max_bytes)
    if wanted - used > free:
        log.warning("cache_dir: the disk will be full before all scans are there; cache_max_gib sets a cap")
