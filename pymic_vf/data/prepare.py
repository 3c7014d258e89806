"""Look at every scan in parallel processes: what the cache lacks is made, and what cannot be used is found."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from pymic_vf.data.cache_folder import GIB
from pymic_vf.data.cached_reader import CachedVolumeReader as ChunkedVolumeReader
from pymic_vf.data.scan import UnusableScanError
from pymic_vf.data.set_aside import SetAside
from pymic_vf.data.volume_reader import VolumeReader
from pymic_vf.data.workers import outlive_workers, set_up_worker
from pymic_vf.errors import UserError

Part = tuple[VolumeReader, SetAside]


@dataclass(frozen=True)
class Look:
    """What a look at one scan found.

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


class _Looks(Dataset):
    """Looks by index, made in a loader's workers. A user's mistake is a value here, see the loader of samples."""

    def __init__(self, reader: VolumeReader, count: int) -> None:
        self.reader, self.count = reader, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Look | UserError:
        start = time.monotonic()
        try:
            self.reader.shape(index)
            stored = self.reader.entry_bytes(index) if isinstance(self.reader, ChunkedVolumeReader) else 0
        except UnusableScanError as error:
            return Look(index, seconds=time.monotonic() - start, reason=str(error))
        except UserError as error:
            return error
        return Look(index, stored, time.monotonic() - start)


def look_at(reader: VolumeReader, count: int, jobs: int, title: str) -> Iterator[Look]:
    """Look at the first `count` scans of a reader, with a progress line where the output is a terminal.

    Args:
        reader: of the scans.
        count: how many of them.
        jobs: processes; 0 or 1 does it in this one.
        title: of the progress line.

    Raises:
        UserError: the cache cannot be written to.
    """

    def looks_from(done: int) -> Iterator[Look | UserError]:
        loader = DataLoader(
            _Looks(reader, count),
            batch_size=None,
            sampler=range(done, count),
            num_workers=jobs if jobs > 1 else 0,
            collate_fn=_as_it_is,
            worker_init_fn=set_up_worker,
            generator=torch.Generator(),  # a look takes nothing from the draws of the training that follows
        )
        return iter(loader)

    # disable=None: no line where the output is no terminal
    looks = outlive_workers(looks_from, stop=lambda: None)  # they end with their iterator
    for look in tqdm(looks, title, count, disable=None, leave=False, unit="scan"):
        if isinstance(look, UserError):
            raise look
        yield look


def _as_it_is(look: Look) -> Look:
    return look


@dataclass
class PrepareReport:
    """What is in the cache now.

    Args:
        volumes: scans that are in the cache.
        bytes: what they take.
        left_out: scans that ``VF_cache_max_gib`` left out.
        seconds: that it took, by the clock.
        unusable: the reason of each scan that cannot be used, complete with its file.
        too_many: more scans are unusable than ``VF_max_bad_fraction`` allows: a run with this config would stop.
    """

    volumes: int = 0
    bytes: int = 0
    left_out: int = 0
    seconds: float = 0.0
    unusable: list[str] = field(default_factory=list)
    too_many: bool = False

    def __str__(self) -> str:
        lines = [f"{self.volumes} volumes are in the cache, {self.bytes / GIB:.3f} GiB; it took {self.seconds:.0f} s"]
        if self.left_out:
            lines.append(f"{self.left_out} volumes were left out: VF_cache_max_gib is reached")
        if self.unusable:
            lines.append(f"{len(self.unusable)} scans cannot be used:")
            lines.extend(f"  - {reason}" for reason in self.unusable)
        if self.too_many:
            lines.append("these are more than VF_max_bad_fraction allows: a run with this config would stop")
        return "\n".join(lines)


def prepare(parts: Sequence[Part], jobs: int) -> PrepareReport:
    """Fill the cache with every scan. What is there already is only looked at, so it can be stopped and started again.

    Args:
        parts: of each list of scans, a reader with a cache and the scans set aside.
        jobs: processes.

    Raises:
        UserError: a reader without a cache, or a cache that cannot be written to.
    """
    if not all(isinstance(reader, ChunkedVolumeReader) for reader, _ in parts):
        raise UserError("[dataset] VF_cache_dir is missing: the folder to prepare")
    report, start = PrepareReport(), time.monotonic()
    for reader, set_aside in parts:
        reader.folder.remove_leftovers()
        bad = {}
        for look in look_at(reader, len(reader), jobs, "preparing"):
            if look.reason:
                bad[look.index] = look.reason
                report.unusable.append(look.reason)
            elif look.stored_bytes:
                report.volumes += 1
                report.bytes += look.stored_bytes
            else:
                report.left_out += 1
        try:
            set_aside.tell(bad)
        except UnusableScanError:  # the report names them all
            report.too_many = True
    report.seconds = time.monotonic() - start
    return report
