"""Scans that cannot be used are set aside, so that one of 110,000 does not end a run of days; too many of them do."""

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


class SetAside:
    """The scans of a list that are not used, as far as they are known, and why.

    Each process keeps its own: a worker remembers what it met and sends it along with its samples, and the process of
    the training tells.

    Args:
        scans: the list.
        max_fraction: ``VF_max_bad_fraction``, the share of bad scans up to which a run goes on.
        report: the csv file that names them, made with the first; lines of earlier runs stay. None for none.
        tells: whether this process is the one that logs and writes; another only keeps what it is to tell.
    """

    def __init__(self, scans: ScanList, max_fraction: float, report: Path | None = None, tells: bool = True) -> None:
        self.scans, self.max_fraction, self.report, self.tells = scans, max_fraction, report, tells
        self.reasons: dict[int, str] = {}
        self._told: set[int] = set()

    def remember(self, index: int, reason: str) -> None:
        """Note a bad scan in this process.

        Raises:
            UnusableScanError: there are no two scans left to make a sample of.
        """
        self.reasons[index] = reason
        if len(self.reasons) > len(self.scans) - 2:
            raise UnusableScanError(self._listing("so that no two are left to make a sample of"))

    def tell(self, reasons: Mapping[int, str]) -> None:
        """Log and write down the bad scans that were not told before, one line each.

        Raises:
            UnusableScanError: they are more than the share allowed; all of them are written down nevertheless.
        """
        new = {index: reason for index, reason in reasons.items() if index not in self._told}
        self.reasons.update(new)
        if not new or not self.tells:
            return
        self._told.update(new)
        self._write(new)
        if len(self.reasons) > self.max_fraction * len(self.scans):
            rule = f"more than VF_max_bad_fraction = {self.max_fraction} allows"
            raise UnusableScanError(self._listing(rule))
        for reason in new.values():
            log.warning("a scan is set aside: %s", reason)

    def _listing(self, rule: str) -> str:
        reasons = list(self.reasons.values())
        listed = "".join(f"\n  - {reason}" for reason in reasons[: 4 * SHOWN])
        rest = len(reasons) - 4 * SHOWN
        more = f"\n  and {rest} more, see {self.report}" if rest > 0 else ""
        return f"{len(reasons)} of {len(self.scans)} scans cannot be used, {rule}:{listed}{more}"

    def _write(self, new: Mapping[int, str]) -> None:
        if self.report is None:
            return
        try:
            self._append(new)
        except OSError as error:  # the log has them too
            log.warning("%s: cannot be written (%s)", self.report, error.strerror)

    def _append(self, new: Mapping[int, str]) -> None:
        self.report.parent.mkdir(parents=True, exist_ok=True)
        rows = [(str(self.scans.files(index)[0]), reason) for index, reason in new.items()]
        known = set()
        if self.report.is_file():
            with self.report.open(newline="") as file:
                known = {tuple(row) for row in csv.reader(file)}
        with self.report.open("a", newline="") as file:
            csv.writer(file).writerows(row for row in (COLUMNS, *rows) if row not in known)
