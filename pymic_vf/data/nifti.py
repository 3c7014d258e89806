"""Where a NIfTI-1 file has its voxels, by a header in which every field that matters is checked.

SimpleITK takes the byte order from ``dim[0]``, reads from inside the header where ``vox_offset`` says so, and has no
word for a type that contradicts ``bitpix``: each gives wrong voxels. Fields: nifti1.h of the NIfTI-1 standard.
"""

from __future__ import annotations

import math
import struct
from pathlib import Path

import numpy as np

from pymic_vf.data.stored import DamagedScanError, Stored, gzip

HEADER_BYTES, NIFTI_2_BYTES = 348, 540
# codes of the voxel types with their bits; by numpy's name where the values may be taken as they are
BITS = {2: 8, 4: 16, 8: 32, 16: 32, 32: 64, 64: 64, 128: 24, 256: 8, 512: 16, 768: 32, 1024: 64, 1280: 64, 1536: 128,
        1792: 128, 2048: 256, 2304: 32}  # fmt: skip
TYPES = {2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4", 1024: "i8", 1280: "u8"}


def locate(file: Path) -> Stored:
    """Where the voxels of a ``.nii`` or ``.nii.gz`` are.

    Raises:
        DamagedScanError: no NIfTI-1 header, or one that contradicts itself.
        LIBRARY_ERRORS: what is compressed is damaged.
    """
    compressed = file.name.lower().endswith(".gz")
    with file.open("rb") as content:
        is_gzip = content.read(2) == b"\x1f\x8b"
    if is_gzip != compressed:
        raise DamagedScanError(
            f"cannot be read (it is {'' if is_gzip else 'not '}compressed by gzip, where its name says otherwise)"
        )
    with gzip.open(file, "rb") if compressed else file.open("rb") as content:
        header = content.read(HEADER_BYTES)
    if len(header) < HEADER_BYTES:
        raise DamagedScanError(f"cut off, {len(header)} bytes where a NIfTI header has {HEADER_BYTES}")
    order = _byte_order(header)

    def field(kind: str, offset: int) -> tuple:
        return struct.unpack_from(order + kind, header, offset)

    dim, (code, bits) = field("8h", 40), field("2h", 70)
    pixdim, (offset, slope, inter) = field("8f", 76), field("3f", 108)
    if header[344:348] != b"n+1\0":
        raise DamagedScanError(f"magic = {header[344:348]!r} in its header, where a NIfTI-1 file has b'n+1\\x00'")
    if not 1 <= dim[0] <= 7 or min(dim[1 : dim[0] + 1]) < 1:
        raise DamagedScanError(f"dim = {list(dim)} in its header: not the number of axes and a size for each")
    if BITS.get(code) != bits:
        expected = f"{BITS[code]} bits" if code in BITS else "no type of voxels"
        raise DamagedScanError(f"bitpix = {bits} and datatype = {code} in its header, which is {expected}")
    if not all(0 < step < np.inf for step in pixdim[1 : min(dim[0], 3) + 1]):
        raise DamagedScanError(f"pixdim = {[f'{step:g}' for step in pixdim[1:4]]} in its header: no spacing in mm")
    if not HEADER_BYTES + 4 <= offset < 2**31 or offset % 1:
        raise DamagedScanError(f"vox_offset = {offset:g} in its header: not behind its {HEADER_BYTES + 4} bytes")
    if not np.isfinite([slope, inter]).all():
        raise DamagedScanError(f"scl_slope = {slope:g} and scl_inter = {inter:g} in its header: not finite")
    is_plain = code in TYPES and dim[0] == 3 and (slope == 0 or (slope, inter) == (1, 0))
    return Stored(
        file,
        "gzip" if compressed else "raw",
        start=0 if compressed else int(offset),
        skip=int(offset) if compressed else 0,
        order=order,
        dtype=np.dtype(TYPES.get(code, f"V{bits // 8}")),
        count=math.prod(dim[1 : dim[0] + 1]),
        is_plain=is_plain,
    )


def _byte_order(header: bytes) -> str:
    """``<`` or ``>``, by the size of the header, which is its first field."""
    size = header[:4]
    for order, name in (("<", "little"), (">", "big")):
        if int.from_bytes(size, name) == HEADER_BYTES:
            return order
        if int.from_bytes(size, name) == NIFTI_2_BYTES:
            raise DamagedScanError("is NIfTI-2, which SimpleITK does not read: save it as NIfTI-1")
    found = int.from_bytes(size, "little", signed=True)
    raise DamagedScanError(f"sizeof_hdr = {found} where a NIfTI-1 file has {HEADER_BYTES}")
