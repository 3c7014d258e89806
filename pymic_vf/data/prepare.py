"""The cache filled beforehand: ``pymic_vf prepare``."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from pymic_vf.data.cache_folder import GIB
from pymic_vf.data.cached_reader import CachedVolumeReader
from pymic_vf.data.samples import Samples
from pymic_vf.data.scan import UnusableScanError
from pymic_vf.data.scan_check import check_each
from pymic_vf.errors import UserError


@dataclass
class PrepareReport:
    """What is in the cache now.

    Args:
        volumes: scans that are in the cache.
        bytes: what they take.
        left_out: scans that ``cache_max_gib`` left out.
        seconds: that it took, by the clock.
        unusable: the reason of each scan that cannot be used, complete with its file.
        too_many: more scans are unusable than ``max_bad_fraction`` allows: a run with this config would stop.
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
            lines.append(f"{self.left_out} volumes were left out: cache_max_gib is reached")
        if self.unusable:
            lines.append(f"{len(self.unusable)} scans cannot be used:")
            lines.extend(f"  - {reason}" for reason in self.unusable)
        if self.too_many:
            lines.append("these are more than max_bad_fraction allows: a run with this config would stop")
        return "\n".join(lines)


def prepare(sets: Sequence[Samples], jobs: int) -> PrepareReport:
    """Fill the cache with every scan. What is there already is only opened, so it can be stopped and started again.

    Args:
        sets: the training samples and, if there are any, those of the validation.
        jobs: processes.

    Raises:
        UserError: there is no cache, or it cannot be written to, or a worker was killed.
    """
    if not all(isinstance(samples.reader, CachedVolumeReader) for samples in sets):
        raise UserError("[dataset] cache_dir is missing: the folder to prepare")
    report, start = PrepareReport(), time.monotonic()
    for samples in sets:
        samples.reader.folder.remove_leftovers()
        bad = {}
        for check in check_each(samples.reader, len(samples.reader), jobs, "preparing"):
            if check.reason:
                bad[check.index] = check.reason
                report.unusable.append(check.reason)
            elif check.stored_bytes:
                report.volumes += 1
                report.bytes += check.stored_bytes
            else:
                report.left_out += 1
        try:
            samples.bad_scans.report(bad)
        except UnusableScanError:  # the report names them all
            report.too_many = True
    report.seconds = time.monotonic() - start
    return report
