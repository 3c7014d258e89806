"""Before a run: are the scans of use, and what will reading them cost?"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

from pymic_vf.data.cache_folder import GIB, CacheFolder
from pymic_vf.data.cached_reader import CachedVolumeReader as ChunkedVolumeReader
from pymic_vf.data.prepare import Look, Part, look_at

log = logging.getLogger(__name__)
# The first scans of each list, for at most so long; further ones are looked at when they are first needed.
CHECKED_SCANS, CHECKED_SECONDS = 1000, 60


def check_scans(parts: Sequence[Part], jobs: int) -> None:
    """Look at the first scans of each list, name all that cannot be used, and forecast the cache.

    Args:
        parts: of each list of scans, its reader and its scans set aside.
        jobs: processes.

    Raises:
        UnusableScanError: more scans than allowed cannot be used; with the files and the reasons.
        UserError: the cache cannot be written to.
    """
    looks: list[Look] = []
    for reader, set_aside in parts:
        start = time.monotonic()
        bad = {}
        for look in look_at(reader, min(len(reader), CHECKED_SCANS), jobs, "checking scans"):
            looks.append(look)
            if look.reason:
                bad[look.index] = look.reason
            if time.monotonic() - start > CHECKED_SECONDS:
                break
        set_aside.tell(bad)
    _forecast(parts, looks)


def _forecast(parts: Sequence[Part], looks: Sequence[Look]) -> None:
    scans = sum(len(reader) for reader, _ in parts)
    folders = [reader.folder for reader, _ in parts if isinstance(reader, ChunkedVolumeReader)]
    if folders:
        sizes = [look.stored_bytes for look in looks if look.stored_bytes]
        if sizes:
            _forecast_size(folders[0], sum(sizes) / len(sizes) * scans, len(sizes), scans)
        return
    seconds = sum(look.seconds for look in looks) / max(len(looks), 1)
    log.info(
        "VF_cache_dir is not set: a sample decodes two scans, about %.2f s here. With it each scan is decoded once, "
        "and a crop then takes milliseconds",
        2 * seconds,
    )


def _forecast_size(folder: CacheFolder, size: float, known: int, scans: int) -> None:
    folder.remove_leftovers()
    used, free = folder.used_bytes(), folder.free_bytes()
    log.info(
        "VF_cache_dir = %s: %d scans will take about %.4g GiB (by %d of them); it has %.4g GiB, the disk %.4g GiB free",
        folder.path, scans, size / GIB, known, used / GIB, free / GIB,
    )  # fmt: skip
    wanted = size if folder.max_bytes is None else min(size, folder.max_bytes)
    if wanted - used > free:
        log.warning("VF_cache_dir: the disk will be full before all scans are there; VF_cache_max_gib sets a cap")
