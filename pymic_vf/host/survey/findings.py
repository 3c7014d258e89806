"""What a check found, line by line: PASS, WARN or FAIL, and the verdict of all."""

from __future__ import annotations

from dataclasses import dataclass, field

PASS, WARN, FAIL = "PASS", "WARN", "FAIL"
STATUS = {PASS: 0, WARN: 2, FAIL: 1}  # of the command


@dataclass
class Findings:
    """Lines as they are found, printed at once."""

    lines: list[tuple[str, str]] = field(default_factory=list)

    def add(self, level: str, text: str) -> None:
        """Note and print a line."""
        self.lines.append((level, text))
        print(f"{level}  {text}", flush=True)

    @property
    def verdict(self) -> str:
        """The worst of all lines."""
        return max((level for level, _ in self.lines), key=(PASS, WARN, FAIL).index, default=PASS)

    @property
    def status(self) -> int:
        """The exit status: 0 for PASS, 2 for WARN, 1 for FAIL."""
        return STATUS[self.verdict]
