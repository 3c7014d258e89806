"""Where a ``.nrrd`` file has its voxels, by its own header."""

from __future__ import annotations

from pathlib import Path

from pymic_vf.data.stored import DamagedScanError, Stored, beside

HEADER_BYTES = 1 << 24  # some tools copy all that DICOM says into it
CODECS = {"raw": "raw", "gz": "gzip", "gzip": "gzip"}
SPATIAL_KINDS = {"domain", "space", "time"}
FIELDS = {"datafile": "data file", "lineskip": "line skip", "byteskip": "byte skip"}


def locate(file: Path) -> Stored:
    """Where the voxels are.

    Raises:
        DamagedScanError: the header is none, contradicts itself, or names data elsewhere.
    """
    fields, end = _header(file)
    codec = CODECS.get(fields.get("encoding", "").lower(), "other")
    lines, skip = (_number(fields, f"{unit} skip") for unit in ("line", "byte"))
    data, start = (beside(file, fields["data file"]), 0) if "data file" in fields else (file, end)
    if lines < 0 or skip < -1 or (skip == -1 and codec != "raw"):
        raise DamagedScanError(f"line skip = {lines}, byte skip = {skip} in its header: not that of {codec} data")
    if lines:
        start = _after_lines(data, start, lines)
    order = ">" if fields.get("endian", "little").lower() == "big" else "<"
    # an axis of channels may be any, SimpleITK moves it
    is_plain = set(fields.get("kinds", "").lower().split()) <= SPATIAL_KINDS
    return Stored(data, codec, -1 if skip == -1 else start, skip=max(skip, 0), order=order, is_plain=is_plain)


def _header(file: Path) -> tuple[dict[str, str], int]:
    """The fields until the empty line, and the byte after it."""
    fields: dict[str, str] = {}
    with file.open("rb") as content:
        if not content.readline(64).startswith(b"NRRD000"):
            raise DamagedScanError("is no NRRD file: it does not begin with NRRD000")
        while line := content.readline(HEADER_BYTES).decode(errors="surrogateescape").rstrip("\r\n"):
            if content.tell() > HEADER_BYTES:
                raise DamagedScanError(f"its header does not end within {HEADER_BYTES} bytes")
            name, sign, value = line.partition(": ")
            if not sign or line.startswith("#"):  # a comment, or key:=value
                continue
            name = FIELDS.get(name.strip().lower(), name.strip().lower())
            if name in fields:
                raise DamagedScanError(f"its header has {name!r} twice")
            fields[name] = value.strip()
        return fields, content.tell()


def _number(fields: dict[str, str], name: str) -> int:
    try:
        return int(fields.get(name, 0))
    except ValueError:
        raise DamagedScanError(f"{name}: {fields[name]} must be a whole number") from None


def _after_lines(data: Path, start: int, lines: int) -> int:
    with data.open("rb") as content:
        content.seek(start)
        for _ in range(lines):
            if not content.readline():
                raise DamagedScanError(f"cut off: it has no {lines} lines to skip")
        return content.tell()
