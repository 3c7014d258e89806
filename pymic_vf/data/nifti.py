"""The voxels of a compressed NIfTI file by one pass over it.

SimpleITK reads such a file without looking at gzip's checksum or at its end, so it would have to be decompressed a
second time to know that it is whole; and that is most of what reading a scan costs.
"""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import SimpleITK as sitk

try:  # two to three times as fast, on the processors that it supports
    from isal.igzip import decompress
    from isal.isal_zlib import error as isal_error
except ImportError:
    from gzip import decompress

    isal_error = zlib.error

# NIfTI's codes of the voxel types that need no conversion
TYPES = {2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4"}
HEADER_BYTES = 348


def read_plain_nifti(file: Path, reader: sitk.ImageFileReader) -> np.ndarray | None:
    """The voxels of a 3D ``.nii.gz`` whose values are stored as they are; None for any other file.

    Args:
        file: the file.
        reader: SimpleITK's, which has read the file's header.

    Returns:
        [D, H, W], in the file's type; not to be written to.

    Raises:
        OSError, EOFError, zlib.error: the file is cut off or damaged.
    """
    if not file.name.lower().endswith(".nii.gz") or reader.GetNumberOfComponents() != 1:
        return None
    try:
        number = {key: float(reader.GetMetaData(key)) for key in ("dim[0]", "datatype", "scl_slope", "scl_inter")}
        offset = int(float(reader.GetMetaData("vox_offset")))
    except (RuntimeError, ValueError):  # a header that SimpleITK does not pass on, such as Analyze's
        return None
    dtype = TYPES.get(int(number["datatype"]))
    as_stored = number["scl_slope"] in (0, 1) and (number["scl_slope"] == 0 or number["scl_inter"] == 0)
    if dtype is None or not as_stored or number["dim[0]"] != 3:
        return None
    try:
        content = decompress(file.read_bytes())
    except isal_error as error:
        raise OSError(str(error)) from error
    order = "<" if int.from_bytes(content[:4], "little") == HEADER_BYTES else ">"
    size = reader.GetSize()[::-1]
    stored, expected = len(content) - offset, int(np.prod(size)) * int(dtype[1:])
    if stored < expected:
        raise EOFError(f"cut off, {stored} bytes of voxels where its header announces {expected}")
    voxels = np.frombuffer(content, order + dtype, count=expected // int(dtype[1:]), offset=offset).reshape(size)
    return voxels.astype(voxels.dtype.newbyteorder("="), copy=False)
