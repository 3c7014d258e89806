"""Read one scan from its file or files, and know when what was read is not what was written."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import h5py
import numpy as np
import SimpleITK as sitk

from pymic_vf.data.nifti import read_plain_nifti
from pymic_vf.errors import UserError

SUFFIXES = (".nii", ".nii.gz", ".mha", ".nrrd", ".h5")


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
    direction: tuple[float, ...] = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)


def read_scan(files: Sequence[Path], channels: int | None = None) -> Scan:
    """Read a scan whose channels lie in one file, or in one file each.

    Args:
        files: ``.nii``, ``.nii.gz``, ``.mha`` or ``.nrrd`` through SimpleITK, or PyMIC's ``.h5`` (key ``image``).
        channels: how many channels there must be in all; None takes what comes.

    Raises:
        UnusableScanError: unreadable, cut off or damaged, not 3D, NaN or infinite voxels, other channels.
    """
    parts = [_read_file(Path(file)) for file in files]
    shapes = {part.voxels.shape[1:] for part in parts}
    if len(shapes) > 1:
        raise UnusableScanError(f"{files[0]}: its modalities differ in size: {sorted(shapes)}")
    voxels = parts[0].voxels if len(parts) == 1 else np.concatenate([part.voxels for part in parts])
    names = ", ".join(map(str, files))
    if channels is not None and voxels.shape[0] != channels:
        raise UnusableScanError(f"{names}: {voxels.shape[0]} channels, where [network] in_chns = {channels}")
    if voxels.dtype.kind == "f":
        bad = voxels.size - int(np.isfinite(voxels).sum())
        if bad:
            raise UnusableScanError(f"{names}: {bad} voxels are NaN or infinite")
    return Scan(voxels, parts[0].spacing, parts[0].origin, parts[0].direction)


def read_size(file: Path) -> tuple[int, ...]:
    """(D, H, W) of a file that SimpleITK reads, by its header.

    Raises:
        UnusableScanError: the header cannot be read.
    """
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(file))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise UnusableScanError(f"{file}: cannot be read ({_reason(error)})") from error
    return tuple(reader.GetSize()[2::-1])


def _read_file(file: Path) -> Scan:
    if not file.name.lower().endswith(SUFFIXES):
        raise UnusableScanError(f"{file}: not a volume that can be read ({', '.join(SUFFIXES)})")
    try:
        return _read_h5(file) if file.suffix.lower() == ".h5" else _read_with_simpleitk(file)
    except (RuntimeError, OSError, EOFError, KeyError, zlib.error) as error:
        raise UnusableScanError(f"{file}: cannot be read ({_reason(error)})") from error


def _read_h5(file: Path) -> Scan:
    with h5py.File(file, "r") as content:
        if "image" not in content:
            raise UnusableScanError(f"{file}: has no dataset 'image' (it has {sorted(content)})")
        return Scan(_channels_first(content["image"][()], file))


def _read_with_simpleitk(file: Path) -> Scan:
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(file))
    reader.ReadImageInformation()
    voxels = read_plain_nifti(file, reader)
    if voxels is None:
        voxels = sitk.GetArrayFromImage(reader.Execute())
        if file.name.lower().endswith((".nii", ".nii.gz")):
            _verify_nifti(file, reader)
    if reader.GetNumberOfComponents() > 1:
        voxels = np.moveaxis(voxels, -1, 0)
    voxels = _channels_first(voxels, file)
    spacing = reader.GetSpacing()[2::-1]
    if reader.GetDimension() != 3:
        return Scan(voxels, spacing, reader.GetOrigin()[:3])
    return Scan(voxels, spacing, reader.GetOrigin(), reader.GetDirection())


def _channels_first(voxels: np.ndarray, file: Path) -> np.ndarray:
    if voxels.ndim == 3:
        voxels = voxels[None]
    if voxels.ndim != 4 or 0 in voxels.shape:
        raise UnusableScanError(f"{file}: a volume has 3 axes, or 4 with channels, not {voxels.ndim} of {voxels.shape}")
    if voxels.dtype.kind not in "iufb":
        raise UnusableScanError(f"{file}: voxels of type {voxels.dtype} are not intensities")
    return voxels


def _verify_nifti(file: Path, reader: sitk.ImageFileReader) -> None:
    """Raise where a NIfTI file is cut off or damaged, or has NaN or infinite voxels.

    SimpleITK reads all of these without a word: it leaves what was in memory where the file ends, and makes zeros of
    what is not finite.
    """
    try:
        axes = int(reader.GetMetaData("dim[0]"))
        count = int(np.prod([int(reader.GetMetaData(f"dim[{axis + 1}]")) for axis in range(axes)]))
        bits, kind = int(reader.GetMetaData("bitpix")), int(reader.GetMetaData("datatype"))
        offset = int(float(reader.GetMetaData("vox_offset")))
    except RuntimeError:  # a header that SimpleITK does not pass on, such as Analyze's: nothing to compare with
        return
    compressed = file.suffix.lower() == ".gz"
    dtype = {16: "f4", 64: "f8"}.get(kind)
    if not compressed and dtype is None:
        stored, bad = file.stat().st_size - offset, 0
    else:
        with gzip.open(file, "rb") if compressed else file.open("rb") as content:
            stored, bad = _read_through(content, offset, dtype)
    expected = count * bits // 8
    if stored < expected:
        raise UnusableScanError(f"{file}: cut off, {stored} bytes of voxels where its header announces {expected}")
    if bad:
        raise UnusableScanError(f"{file}: {bad} voxels are NaN or infinite")


def _read_through(content: IO[bytes], offset: int, dtype: str | None) -> tuple[int, int]:
    """The bytes of voxels in an open NIfTI file, and how many voxels are not finite if they are of float type `dtype`.

    Reading a gzip file to its end also compares its checksum.
    """
    order = "<" if content.read(offset)[:4] == (348).to_bytes(4, "little") else ">"
    stored = bad = 0
    while block := content.read(1 << 22):
        stored += len(block)
        if dtype is not None:
            voxels = np.frombuffer(block, order + dtype, count=len(block) // int(dtype[1:]))
            bad += voxels.size - int(np.isfinite(voxels).sum())
    return stored, bad


def _reason(error: Exception) -> str:
    """The last, most telling line of a library's message, without the addresses of its objects."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
