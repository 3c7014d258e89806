"""Files of weights, read without executing anything: PyTorch's archives and their former format, and safetensors.

What a file announces is compared with what it has before it is read, since it may come from anybody: archives are
uncompressed as torch writes them, and their own checksums, which torch does not compare, must be right.
"""

from __future__ import annotations

import hashlib
import mmap
import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch

from pymic_vf.errors import UserError
from pymic_vf.host.weights.pickle_cost import is_too_costly

LARGEST_PICKLE = 2**25  # bytes; names and places of 400 weights and of their optimizer are 150,000
LEGACY_PICKLES = 5  # a magic number, a version, the machine, the content, the keys of the storages
ARCHIVE, TORCH_SCRIPT = b"PK\x03\x04", "/constants.pkl"
METADATA, CHECKSUM = "safetensors_metadata", "weights_sha256"
# what else people have: how it begins, and what to say
OTHER_FILES = {
    b"\x1f\x8b": "compressed by gzip: unpack it first",
    b"BZh": "compressed by bzip2: unpack it first",
    b"\xfd7zXZ": "compressed by xz: unpack it first",
    b"(\xb5/\xfd": "compressed by zstd: unpack it first",
    b"7z\xbc\xaf": "a 7z archive: unpack it first",
    b"\x89HDF": "an HDF5 file, and not of PyTorch",
    b"\x93NUMPY": "an array of numpy, and not of PyTorch",
    **{bytes([0x80, protocol]): "a pickle of Python, which can be code; not loaded" for protocol in (3, 4, 5)},
    b"<": "a text such as a web page: was the download an error page?",
    b"version https://git-lfs": "a pointer of git lfs: fetch the file itself",
}


def read_file(path: Path, map_location: Any = None) -> Mapping[Any, Any]:
    """The dict in a file of weights: tensors and plain values alone.

    Args:
        path: a regular file.
        map_location: as in `torch.load`.

    Raises:
        UserError: it is empty, damaged, of another kind, or it holds code or anything else than a dict.
    """
    try:
        with path.open("rb") as file:
            start = file.read(512)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    if not start:
        raise UserError(f"{path}: not a checkpoint, the file is empty")
    if path.suffix == ".safetensors" or start[8:9] == b"{":
        return _read_safetensors(path, map_location)
    for magic, what in OTHER_FILES.items():
        if start.startswith(magic):
            raise UserError(f"{path}: not a checkpoint but {what}")
    if start[257:262] == b"ustar":
        raise UserError(f"{path}: a tar archive, as unpacked or saved before PyTorch 0.1.10; not loaded")
    if start.startswith(ARCHIVE):
        _check_archive(path)
    else:
        _check_legacy(path)
    return _read_torch(path, map_location)


def _check_archive(path: Path) -> None:
    """Bounds and checksums of an archive of `torch.save`.

    Raises:
        UserError: it is damaged, has more than its size can hold, or is another program's.
    """
    size = path.stat().st_size
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            names = [entry.filename for entry in entries]
            if any(name.endswith(TORCH_SCRIPT) for name in names):
                raise UserError(
                    f"{path}: this file contains code (a TorchScript program); not loaded. Its weights can be: "
                    "torch.save(model.state_dict(), FILE), where you trust it"
                )
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
                raise UserError(f"{path}: a compressed archive, which torch.save never writes; not loaded")
            if (announced := sum(entry.file_size for entry in entries)) > size:
                raise UserError(f"{path}: announces {announced} bytes and has {size}; not loaded")
            if len(set(names)) < len(names):
                raise UserError(f"{path}: has two entries of the same name; not loaded")
            if not any(name.endswith("/data.pkl") for name in names):
                raise UserError(f"{path}: a zip archive, but not of torch.save: it has no data.pkl")
            if any(entry.file_size > LARGEST_PICKLE for entry in entries if entry.filename.endswith(".pkl")):
                raise UserError(f"{path}: more than {LARGEST_PICKLE} bytes of it are no weights; not loaded")
            damaged = archive.testzip()
            if not damaged:
                for name in (name for name in names if name.endswith(".pkl")):
                    with archive.open(name) as file:
                        _check_cost(path, file)
    except UserError:
        raise
    except Exception as error:  # a hostile archive makes zipfile raise whatever it likes
        raise UserError(f"{path}: not a checkpoint that can be loaded, damaged or cut off ({_said(error)})") from error
    if damaged:
        raise UserError(f"{path}: damaged, the checksum of {damaged} in it is wrong; not loaded")


def _check_legacy(path: Path) -> None:
    """The pickles at the start of a file of torch before 1.6.

    Raises:
        UserError: they are none, or take too long.
    """
    try:
        # mapped, since a file that is asked for the terabytes that a pickle announces makes room for them first
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            for _ in range(LEGACY_PICKLES):
                _check_cost(path, content)
    except UserError:
        raise
    except (ValueError, IndexError, KeyError):  # no pickle from here on: torch, which comes as far, says what it is
        return


def _check_cost(path: Path, file: IO[bytes]) -> None:
    if is_too_costly(file):
        raise UserError(f"{path}: its tuples are nested so that reading them would take for ever; not loaded")


def _read_torch(path: Path, map_location: Any) -> Mapping[Any, Any]:
    allow_numpy_scalars()
    try:
        content = torch.load(path, map_location=map_location, weights_only=True)
    except torch.OutOfMemoryError as error:
        raise UserError(f"{path}: there is not enough memory on the device for it ({_said(error)})") from error
    except Exception as error:  # a hostile pickle makes torch raise whatever it likes
        if named := re.search(r"GLOBAL ([\w.]+)|Trying to (?:call|instantiate)|Can only build", str(error)):
            what = f" ({named[1]})" if named[1] else ""
            raise UserError(f"{path}: this file contains code{what}; not loaded") from error
        if isinstance(error, pickle.UnpicklingError):
            raise UserError(f"{path}: not a checkpoint that can be loaded; it is of another kind or damaged") from error
        raise UserError(f"{path}: not a checkpoint that can be loaded ({_said(error)})") from error
    if not isinstance(content, Mapping):
        raise UserError(f"{path}: a checkpoint is a dict of weights, this file holds a {type(content).__name__}")
    return content


def _read_safetensors(path: Path, map_location: Any) -> Mapping[str, Any]:
    """The weights, and the file's own texts under `METADATA`. Ours have a checksum there, which the format lacks."""
    from safetensors import safe_open

    try:
        with safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except Exception as error:
        raise UserError(f"{path}: not a safetensors file that can be loaded ({_said(error)})") from error
    if metadata.get(CHECKSUM, "") not in ("", checksum(weights)):
        raise UserError(f"{path}: damaged, the checksum of its weights is wrong; not loaded")
    if isinstance(map_location, (str, torch.device)):
        weights = {name: weight.to(map_location) for name, weight in weights.items()}
    return {"model_state_dict": weights, METADATA: metadata}


def checksum(weights: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 of names, types, shapes and bytes of weights in memory of the CPU, in the order of their names."""
    total = hashlib.sha256()
    for name in sorted(weights):
        weight = weights[name].detach().contiguous()
        total.update(f"{name} {weight.dtype} {list(weight.shape)}\n".encode())
        total.update(weight.flatten().view(torch.uint8).numpy().data if weight.numel() else b"")
    return total.hexdigest()


def allow_numpy_scalars() -> None:
    """Let ``weights_only=True`` load numpy's float scalars, which PyMIC writes as ``valid_pred``: those types alone."""
    torch.serialization.add_safe_globals(
        [
            # numpy 2 and numpy 1 pickle the same function under two module names
            (_float_scalar, "numpy._core.multiarray.scalar"),
            (_float_scalar, "numpy.core.multiarray.scalar"),
            np.dtype,
            type(np.dtype(np.float32)),
            type(np.dtype(np.float64)),
        ]
    )


def _float_scalar(kind: Any, value: Any) -> np.floating:
    """What numpy's own function of that name gives for the bytes of one float; that one also takes objects."""
    if not (isinstance(kind, np.dtype) and kind.kind == "f" and isinstance(value, bytes)):
        raise ValueError("a numpy value that is no float")
    if len(value) != kind.itemsize:
        raise ValueError("a numpy float that is cut off")
    return np.frombuffer(value, kind)[0]


def _said(error: BaseException) -> str:
    """The first line of an error, unless it is torch's advice to switch the protection off."""
    first = (str(error).strip().splitlines() or [""])[0][:200]
    return first if first and "weights_only" not in first else type(error).__name__
