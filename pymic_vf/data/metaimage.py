"""Where a MetaImage (``.mha``) has its voxels, by its own header.

SimpleITK's reader says nothing of how they are stored, and gives wrong voxels for what is compressed and damaged,
compressed without ``CompressedDataSize``, or spread over several files.
"""

from __future__ import annotations

from pathlib import Path

from pymic_vf.data.stored import DamagedScanError, Stored, beside

HEADER_BYTES = 1 << 20  # a header is some hundred bytes


def locate(file: Path) -> Stored:
    """Where the voxels are.

    Raises:
        DamagedScanError: the header is none, contradicts itself, or names data elsewhere.
    """
    fields, end = _header(file)
    binary, compressed = _flag(fields, "BinaryData", True), _flag(fields, "CompressedData", False)
    msb = _flag(fields, "BinaryDataByteOrderMSB", False) or _flag(fields, "ElementByteOrderMSB", False)
    start, axes = _number(fields, "HeaderSize", 0), _number(fields, "NDims", 0)
    if axes not in (2, 3, 4):  # SimpleITK takes memory for as many as there are said to be
        raise DamagedScanError(f"NDims = {axes} in its header: a volume has 3 axes, or 4 with channels")
    name = fields["ElementDataFile"]
    if name.upper() == "LOCAL":
        if start > 0:
            raise DamagedScanError(f"HeaderSize = {start} where the voxels follow the header")
        data, start = file, start or end
    else:
        data = beside(file, name)
    if start < -1 or (start == -1 and compressed):
        raise DamagedScanError(f"HeaderSize = {start} must not be negative here")
    codec = "other" if not binary else "zlib" if compressed else "raw"
    length = _number(fields, "CompressedDataSize", 0) if compressed else 0
    if length < 0:
        raise DamagedScanError(f"CompressedDataSize = {length} must not be negative")
    return Stored(data, codec, start, length or None, order=">" if msb else "<")


def _header(file: Path) -> tuple[dict[str, str], int]:
    """The fields, of which ElementDataFile is the last, and the byte after them."""
    fields: dict[str, str] = {}
    with file.open("rb") as content:
        while "ElementDataFile" not in fields:
            line = content.readline(HEADER_BYTES).decode(errors="surrogateescape")
            name, sign, value = line.partition("=")
            if not sign or content.tell() > HEADER_BYTES:
                raise DamagedScanError(f"is no MetaImage: no line ElementDataFile before {line[:20]!r}")
            if name.strip() in fields:
                raise DamagedScanError(f"its header has {name.strip()} twice")
            fields[name.strip()] = value.strip()
        if not fields["ElementDataFile"]:
            raise DamagedScanError("ElementDataFile is empty in its header")
        return fields, content.tell()


def _flag(fields: dict[str, str], name: str, default: bool) -> bool:
    value = fields.get(name, str(default))
    if value.upper() not in ("TRUE", "T", "1", "FALSE", "F", "0"):
        raise DamagedScanError(f"{name} = {value} must be True or False")
    return value.upper() in ("TRUE", "T", "1")


def _number(fields: dict[str, str], name: str, default: int) -> int:
    try:
        return int(fields.get(name, default))
    except ValueError:
        raise DamagedScanError(f"{name} = {fields[name]} must be a whole number") from None
