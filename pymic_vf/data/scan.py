"""Read one scan from its file or files, and know when what was read is not what was written."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import SimpleITK as sitk

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
    image = reader.Execute()
    if file.name.lower().endswith((".nii", ".nii.gz")):
        _verify_nifti(file, reader)
    voxels = sitk.GetArrayFromImage(image)
    if image.GetNumberOfComponentsPerPixel() > 1:
        voxels = np.moveaxis(voxels, -1, 0)
    voxels = _channels_first(voxels, file)
    spacing = image.GetSpacing()[2::-1]
    if image.GetDimension() != 3:
        return Scan(voxels, spacing, image.GetOrigin()[:3])
    return Scan(voxels, spacing, image.GetOrigin(), image.GetDirection())


def _channels_first(voxels: np.ndarray, file: Path) -> np.ndarray:
    if voxels.ndim == 3:
        voxels = voxels[None]
    if voxels.ndim != 4 or 0 in voxels.shape:
        raise UnusableScanError(f"{file}: a volume has 3 axes, or 4 with channels, not {voxels.ndim} of {voxels.shape}")
    if voxels.dtype.kind not in "iufb":
        raise UnusableScanError(f"{file}: voxels of type {voxels.dtype} are not intensities")
    return voxels


def _verify_nifti(file: Path, reader: sitk.ImageFileReader) -> None:
    """Raise where the file is shorter than its header says or its checksum is wrong.

    SimpleITK reads a cut-off or damaged NIfTI file without a word and fills in what was in memory.
    """
    try:
        values = [int(reader.GetMetaData(f"dim[{axis}]")) for axis in range(1, int(reader.GetMetaData("dim[0]")) + 1)]
        bits = int(reader.GetMetaData("bitpix"))
        expected = int(float(reader.GetMetaData("vox_offset"))) + int(np.prod(values)) * bits // 8
    except RuntimeError:  # a header that SimpleITK does not pass on, such as Analyze's: nothing to compare with
        return
    stored = _length_of_gzip(file) if file.suffix.lower() == ".gz" else file.stat().st_size
    if stored < expected:
        raise UnusableScanError(f"{file}: cut off, {stored} bytes of the {expected} that its header announces")


def _length_of_gzip(file: Path) -> int:
    """The length of what a gzip file holds; reading to its end also compares the checksum."""
    length = 0
    with gzip.open(file, "rb") as content:
        while block := content.read(1 << 22):
            length += len(block)
    return length


def _reason(error: Exception) -> str:
    """The last, most telling line of a library's message, without the addresses of its objects."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
