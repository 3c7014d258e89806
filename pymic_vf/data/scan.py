"""Read one scan from its file or files, and know when what was read is not what was written."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import SimpleITK as sitk

from pymic_vf.data import metaimage, nifti, nrrd
from pymic_vf.data.h5 import read_h5
from pymic_vf.data.orientation import LPS
from pymic_vf.data.stored import LIBRARY_ERRORS, DamagedScanError, Stored, require_regular, stored_bytes
from pymic_vf.errors import UserError, one_line

# by suffix: SimpleITK's reader, and what finds the voxels in the file
FORMATS = {
    ".nii": ("NiftiImageIO", nifti.locate),
    ".nii.gz": ("NiftiImageIO", nifti.locate),
    ".mha": ("MetaImageIO", metaimage.locate),
    ".nrrd": ("NrrdImageIO", nrrd.locate),
}
SUFFIXES = (*FORMATS, ".h5")
LARGEST_HEADER = 1 << 16  # bytes of a header whose voxels lie in another file; a volume has more
# what PyMIC itself reads and writes (pymic/io/image_read_write.py), volumes by these letters and no capitals
PYMIC_SUFFIXES = (".nii", ".nii.gz", ".mha", ".h5", ".jpg", ".jpeg", ".tif", ".png")


class UnusableScanError(UserError):
    """A scan that cannot be trained on; the message has the file and the reason."""


@dataclass(frozen=True)
class Scan:
    """A whole volume.

    Args:
        voxels: [C, D, H, W], in the file's own type.
        spacing: (z, y, x) in mm; 1 where the format has none.
        origin: (x, y, z) in mm, as SimpleITK has it.
        direction: the 3x3 direction cosines, row by row.
    """

    voxels: np.ndarray
    spacing: tuple[float, ...] = (1.0, 1.0, 1.0)
    origin: tuple[float, ...] = (0.0, 0.0, 0.0)
    direction: tuple[float, ...] = LPS


def read_scan(files: Sequence[Path], channels: int | None = None) -> Scan:
    """Read a scan whose channels lie in one file, or in one file each.

    Args:
        files: ``.nii``, ``.nii.gz``, ``.mha`` or ``.nrrd`` through SimpleITK, or PyMIC's ``.h5`` (key ``image``).
        channels: how many channels there must be in all; None takes what comes.

    Raises:
        UnusableScanError: unreadable, cut off or damaged, not 3D, too large for memory, NaN, voxels that
            are infinite as float32, other channels than those asked for.
    """
    with in_memory(files):
        return _read_parts([Path(file) for file in files], channels)


@contextmanager
def in_memory(files: Sequence[Path]) -> Iterator[None]:
    """A lack of memory in the block becomes a reason why the scan cannot be used."""
    try:
        yield
    except MemoryError as error:
        raise _unusable(files[0], f"too large for the memory that is left ({_reason(error)})") from error


def _read_parts(files: Sequence[Path], channels: int | None) -> Scan:
    parts = [_read_file(file) for file in files]
    shapes = {part.voxels.shape[1:] for part in parts}
    if len(shapes) > 1:
        raise _unusable(files[0], f"its modalities differ in size: {sorted(shapes)}")
    voxels = parts[0].voxels if len(parts) == 1 else np.concatenate([part.voxels for part in parts])
    if channels is not None and voxels.shape[0] != channels:
        names = ", ".join(map(str, files))
        raise _unusable(names, f"{voxels.shape[0]} channels, where [network] in_chns = {channels}")
    return Scan(voxels, parts[0].spacing, parts[0].origin, parts[0].direction)


def _unusable(file: Path | str, reason: str) -> UnusableScanError:
    return UnusableScanError(f"{one_line(file, 4096)}: {one_line(reason)}")


def _read_file(file: Path) -> Scan:
    suffix = next((each for each in SUFFIXES if file.name.lower().endswith(each)), None)
    if suffix is None:
        raise _unusable(file, f"not a volume that can be read ({', '.join(SUFFIXES)})")
    try:
        require_regular(file)
        scan = Scan(_channels_first(read_h5(file))) if suffix == ".h5" else _read_image(file, *FORMATS[suffix])
        if scan.voxels.dtype.kind == "f":
            _check_finite(scan.voxels)
        return scan
    except DamagedScanError as error:
        raise _unusable(file, str(error)) from error
    except (RuntimeError, KeyError, ValueError, TypeError, *LIBRARY_ERRORS) as error:  # SimpleITK's and HDF5's too
        raise _unusable(file, f"cannot be read ({_reason(error)})") from error


def _read_image(file: Path, image_io: str, locate: Callable[[Path], Stored]) -> Scan:
    """A scan whose geometry is SimpleITK's to tell, and whose voxels are read and compared with the header here."""
    try:
        name = str(file).encode().decode()
    except UnicodeError:  # SimpleITK ends the process at once
        raise DamagedScanError("cannot be read (its name is not UTF-8)") from None
    stored = locate(file)
    reader = sitk.ImageFileReader()
    reader.SetImageIO(image_io)  # or it takes any format for any name
    reader.SetFileName(name)
    reader.ReadImageInformation()
    _check_geometry(reader)
    channels = reader.GetNumberOfComponents()
    shape = (*reader.GetSize()[::-1], *[channels] * (channels > 1))
    if stored.dtype is None:
        stored = replace(stored, dtype=_type_of(reader), count=math.prod(shape))
    voxels = _stored_voxels(stored)
    if voxels is None:
        before = file.stat()
        with _without_namesake(file) as path:
            reader.SetFileName(str(path))
            voxels = sitk.GetArrayFromImage(reader.Execute())
        after = file.stat()
        if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
            raise DamagedScanError("is being written to while it is read")
    voxels = voxels.reshape(shape)
    if channels > 1:
        voxels = np.moveaxis(voxels, -1, 0)
    voxels = _channels_first(voxels)
    spacing = reader.GetSpacing()[2::-1]
    if reader.GetDimension() != 3:
        return Scan(voxels, spacing, reader.GetOrigin()[:3])
    return Scan(voxels, spacing, reader.GetOrigin(), reader.GetDirection())


def files_of(file: Path) -> list[Path]:
    """The file, and the one that has its voxels where it is but a header; itself where that cannot be told."""
    if file.suffix.lower() not in (".mha", ".nrrd") or file.stat().st_size > LARGEST_HEADER:
        return [file]
    with suppress(DamagedScanError, *LIBRARY_ERRORS):
        require_regular(file)
        _, locate = FORMATS[file.suffix.lower()]
        return list(dict.fromkeys([file, locate(file).file]))
    return [file]


@contextmanager
def _without_namesake(file: Path) -> Iterator[Path]:
    """A path by which SimpleITK reads this file: beside an ``a.nii`` it takes the voxels of ``a.nii.gz`` from that."""
    if not file.name.lower().endswith(".nii.gz") or not file.with_suffix("").exists():
        yield file
        return
    with TemporaryDirectory() as folder:
        link = Path(folder) / "scan.nii.gz"
        link.symlink_to(file.absolute())
        yield link


def _stored_voxels(stored: Stored) -> np.ndarray | None:
    """The voxels as they are stored, in this machine's order of bytes; None where SimpleITK has to make them of that.

    SimpleITK makes zeros of what is not finite, so that is looked for before.
    """
    count = stored.count * stored.dtype.itemsize
    if stored.codec == "other":  # numbers as text
        if count > 8 * stored.file.stat().st_size:
            raise DamagedScanError(f"cut off, its header announces {count} bytes of voxels")
        return None
    voxels = stored_bytes(stored, count).view(stored.dtype.newbyteorder(stored.order))
    if stored.is_plain:
        return voxels.astype(stored.dtype, copy=False)
    if voxels.dtype.kind == "f":
        _check_finite(voxels)
    return None


def _type_of(reader: sitk.ImageFileReader) -> np.dtype:
    """The type of a voxel by SimpleITK's words for it, such as "vector of 16-bit signed integer"."""
    text = sitk.GetPixelIDValueAsString(reader.GetPixelID())
    found = re.search(r"(\d+)-bit (signed integer|unsigned integer|float)", text)
    if not found or "complex" in text:
        raise DamagedScanError(f"voxels of type {text} are not intensities")
    kind = {"signed integer": "i", "unsigned integer": "u", "float": "f"}[found[2]]
    return np.dtype(f"{kind}{int(found[1]) // 8}")


def _check_geometry(reader: sitk.ImageFileReader) -> None:
    spacing, origin, direction = reader.GetSpacing(), reader.GetOrigin(), reader.GetDirection()
    if not all(0 < step < math.inf for step in spacing[:3]):
        raise DamagedScanError(f"its spacing is {spacing[:3]} mm, which must be above 0")
    if not np.isfinite([*origin, *direction]).all():
        raise DamagedScanError(f"its origin {origin} or direction {direction} is not finite")


def _channels_first(voxels: np.ndarray) -> np.ndarray:
    if voxels.ndim == 3:
        voxels = voxels[None]
    if voxels.ndim != 4 or 0 in voxels.shape:
        raise DamagedScanError(f"a volume has 3 axes, or 4 with channels, not {voxels.ndim} of {voxels.shape}")
    if voxels.dtype.kind not in "iufb":
        raise DamagedScanError(f"voxels of type {voxels.dtype} are not intensities")
    return voxels


def _check_finite(voxels: np.ndarray) -> None:
    """Raise a DamagedScanError for NaN, and for numbers that are infinite here or as float32, which training takes."""
    largest = np.finfo(np.float32).max
    ends = np.array([voxels.min(), voxels.max()])  # either is NaN where a voxel is
    if not np.isfinite(ends).all():
        raise DamagedScanError(f"{voxels.size - int(np.isfinite(voxels).sum())} voxels are NaN or infinite")
    if voxels.dtype.itemsize > 4 and np.abs(ends).max() > largest:
        raise DamagedScanError(f"voxels from {ends[0]:g} to {ends[1]:g}, where float32 ends at {largest:g}")


def can_pymic_read(name: str) -> bool:
    """Whether PyMIC's own reader, which is that of supervised training and of tests, knows a file of this name.

    Its writer gives a segmentation the name of its image and knows no other formats.
    """
    is_picture = name.lower().endswith(PYMIC_SUFFIXES[4:])
    return is_picture or name.endswith(PYMIC_SUFFIXES[:4])


def _reason(error: Exception) -> str:
    """The last, most telling line of a library's message, without the addresses of its objects."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
