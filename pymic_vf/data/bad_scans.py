"""Scans that cannot be used are left out, so that one of 110,000 does not end a run of days; too many of them do."""

from __future__ import annotations

import csv
import logging
from collections.abc import Mapping
from pathlib import Path

from pymic_vf.data.scan import UnusableScanError
from pymic_vf.data.scan_list import SHOWN, ScanList

log = logging.getLogger(__name__)
FILE = "unusable_scans.csv"
COLUMNS = ("image", "reason")


class BadScans:
    """The scans of a list that are not used, as far as they are known, and why.

    Each process keeps its own: a worker adds what it meets and sends it along with its samples, and the process of the
    training reports it.

    Args:
        scans: the list.
        max_fraction: ``max_bad_fraction``, the share of bad scans up to which a run goes on.
        file: the csv file that names them, made with the first; lines of earlier runs stay. None for none.
        reports: whether this process logs and writes; another only keeps what it is to hand on.
    """

    def __init__(self, scans: ScanList, max_fraction: float, file: Path | None = None, reports: bool = True) -> None:
        self.scans, self.max_fraction, self.file, self.reports = scans, max_fraction, file, reports
        self.reasons: dict[int, str] = {}
        self._reported: set[int] = set()

    def add(self, index: int, reason: str, needed: int) -> None:
        """Note a bad scan in this process.

        Raises:
            UnusableScanError: fewer than `needed` scans are left, the number that a sample takes.
        """
        self.reasons[index] = reason
        if len(self.reasons) > len(self.scans) - needed:
            raise UnusableScanError(self._listing(f"and a sample needs {needed}"))

    def report(self, reasons: Mapping[int, str]) -> None:
        """Log and write down the bad scans that were not reported before, one line each.

        Raises:
            UnusableScanError: they are more than the share allowed; all of them are written down nevertheless.
        """
        new = {index: reason for index, reason in reasons.items() if index not in self._reported}
        self.reasons.update(new)
        if not new or not self.reports:
            return
        self._reported.update(new)
        self._write(new)
        if len(self.reasons) > self.max_fraction * len(self.scans):
            raise UnusableScanError(self._listing(f"more than max_bad_fraction = {self.max_fraction} allows"))
        for reason in new.values():
            log.warning("a scan is left out: %s", reason)

    def _listing(self, rule: str) -> str:
        reasons = list(self.reasons.values())
        listed = "".join(f"\n  - {reason}" for reason in reasons[: 4 * SHOWN])
        rest = len(reasons) - 4 * SHOWN
        more = f"\n  and {rest} more, see {self.file}" if rest > 0 else ""
        return f"{len(reasons)} of {len(self.scans)} scans cannot be used, {rule}:{listed}{more}"

    def _write(self, new: Mapping[int, str]) -> None:
        if self.file is None:
            return
        try:
            self._append(new)
        except OSError as error:  # the log has them too
            log.warning("%s: cannot be written (%s)", self.file, error.strerror)

    def _append(self, new: Mapping[int, str]) -> None:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        rows = [(str(self.scans.files(index)[0]), reason) for index, reason in new.items()]
        known = set()
        if self.file.is_file():
            with self.file.open(newline="", errors="surrogateescape") as file:
                known = {tuple(row) for row in csv.reader(file)}
        with self.file.open("a", newline="", errors="surrogateescape") as file:
            csv.writer(file).writerows(row for row in (COLUMNS, *rows) if row not in known)
