"""What the header of a scan says, without its voxels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import SimpleITK as sitk

from pymic_vf.data.orientation import letters
from pymic_vf.data.scan import SUFFIXES, UnusableScanError
from pymic_vf.sizes import Size

GEOMETRY_TOLERANCE = 1e-3  # relative, of spacings; in voxels of origins; of direction cosines


@dataclass(frozen=True)
class ScanHeader:
    """The header of one file.

    Args:
        size: (D, H, W) in voxels.
        channels: of a voxel.
        bytes: what the voxels take in memory, in the file's own type.
        spacing: (z, y, x) in mm; None where the format has none.
        origin: (x, y, z) in mm.
        direction: the 3x3 direction cosines, row by row.
    """

    size: Size
    channels: int
    bytes: int
    spacing: tuple[float, ...] | None = None
    origin: tuple[float, ...] = ()
    direction: tuple[float, ...] = ()

    @property
    def orientation(self) -> str:
        """The anatomical direction in which each array axis (x, y, z) grows, such as LPS."""
        return letters(self.direction)

    def same_place(self, other: ScanHeader) -> bool:
        """Whether voxels of both lie at the same places of the patient; true where one of them does not say."""
        if self.spacing is None or other.spacing is None:
            return True
        pairs = [(self.spacing, other.spacing), (self.direction, other.direction)]
        steps = zip(self.origin, other.origin, self.spacing[::-1], strict=False)
        return all(
            math.isclose(a, b, rel_tol=GEOMETRY_TOLERANCE, abs_tol=GEOMETRY_TOLERANCE)
            for one, two in pairs
            for a, b in zip(one, two, strict=False)
        ) and all(abs(a - b) <= max(abs(step), 1e-6) / 2 for a, b, step in steps)


def read_header(file: Path) -> ScanHeader:
    """The header of one file of a scan or a label.

    Raises:
        UnusableScanError: there is none that can be read, or not of a 3D volume.
    """
    if not file.name.lower().endswith(SUFFIXES):
        raise UnusableScanError(f"{file}: not a volume that can be read ({', '.join(SUFFIXES)})")
    if not file.is_file():
        raise UnusableScanError(f"{file}: there is no such file")
    try:
        return _of_h5(file) if file.suffix.lower() == ".h5" else _of_image(file)
    except (RuntimeError, OSError, KeyError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise UnusableScanError(f"{file}: its header cannot be read ({lines[-1] if lines else error!r})") from error


def joined_header(files: Sequence[Path]) -> ScanHeader:
    """The header of a scan whose channels lie in one file, or in one file each.

    Raises:
        UnusableScanError: one of them cannot be read, or they differ in size.
    """
    headers = [read_header(file) for file in files]
    if len({header.size for header in headers}) > 1:
        raise UnusableScanError(f"{files[0]}: its modalities differ in size: {[list(h.size) for h in headers]}")
    first = headers[0]
    channels, size = sum(header.channels for header in headers), sum(header.bytes for header in headers)
    return ScanHeader(first.size, channels, size, first.spacing, first.origin, first.direction)


def _of_h5(file: Path) -> ScanHeader:
    with h5py.File(file, "r") as content:
        image = content.get("image")
        if not isinstance(image, h5py.Dataset) or image.ndim not in (3, 4):
            raise UnusableScanError(f"{file}: has no volume 'image'")
        shape = (1, *image.shape)[-4:]
        return ScanHeader(tuple(shape[1:]), shape[0], int(np.prod(shape)) * image.dtype.itemsize)


def _of_image(file: Path) -> ScanHeader:
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(file))
    reader.ReadImageInformation()
    size = reader.GetSize()
    if len(size) not in (3, 4) or 0 in size:
        raise UnusableScanError(f"{file}: a volume has 3 axes, or 4 with channels, not {len(size)} of {list(size)}")
    channels = reader.GetNumberOfComponents() * (size[3] if len(size) == 4 else 1)
    width = sitk.Image([1, 1], reader.GetPixelID()).GetSizeOfPixelComponent()
    geometry = (reader.GetOrigin(), reader.GetDirection()) if len(size) == 3 else ((), ())
    voxels = math.prod(size) * reader.GetNumberOfComponents()
    return ScanHeader(size[2::-1], channels, voxels * width, reader.GetSpacing()[2::-1], *geometry)
