"""PyMIC's ``.h5`` volumes: the dataset ``image``, when it is one and the file has all of it."""

from __future__ import annotations

import math
from pathlib import Path

import h5py
import numpy as np

from pymic_vf.data.stored import DamagedScanError, require_memory


def read_h5(file: Path) -> np.ndarray:
    """The voxels of ``image``, in the file's type and axes.

    Raises:
        DamagedScanError: there is none, or it is not numbers of 3 or 4 axes, or the file does not have them all.
        OSError: no HDF5 file, or a damaged one.
    """
    with h5py.File(file, "r") as content:
        if "image" not in list(content):  # asking for the name itself would open the file that it may be a link to
            raise DamagedScanError(f"has no dataset 'image' (it has {sorted(content)[:9]})")
        link = content.get("image", getlink=True)
        if not isinstance(link, h5py.HardLink):
            target = getattr(link, "filename", None) or getattr(link, "path", "nothing")
            raise DamagedScanError(f"'image' is a link to {target}, not followed")
        image = content["image"]
        if not isinstance(image, h5py.Dataset):
            raise DamagedScanError(f"'image' is a {type(image).__name__.lower()} and not a dataset")
        _check(image)
        return image[()]


def _check(image: h5py.Dataset) -> None:
    if image.shape is None or image.ndim not in (3, 4) or not image.size:
        raise DamagedScanError(f"'image' has the shape {image.shape}: a volume has 3 axes, or 4 with channels")
    if image.dtype.kind not in "iufb":
        raise DamagedScanError(f"'image' has voxels of type {image.dtype}, which are not intensities")
    if image.is_virtual or image.external:
        raise DamagedScanError("'image' has its voxels in other files, which are not read")
    if image.chunks is None:
        stored, expected, unit = image.id.get_storage_size(), image.size * image.id.get_type().get_size(), "bytes"
    else:
        stored, unit = image.id.get_num_chunks(), "chunks"
        expected = math.prod(-(-n // chunk) for n, chunk in zip(image.shape, image.chunks, strict=True))
    if stored != expected:
        what = "cut off" if stored < expected else "damaged"
        raise DamagedScanError(f"{what}, {stored} {unit} of voxels where 'image' announces {expected}")
    require_memory(image.size * image.dtype.itemsize)
