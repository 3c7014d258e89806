from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np
import pytest
from pymic_vf.data.stored_voxels import encode
from pymic_vf.data.volume_file import VolumeFile, compress, write_entry

RNG = np.random.default_rng(0)
ALL = (slice(None),) * 4


def numbers(size: tuple[int, ...], dtype: type = np.int16) -> np.ndarray:
    return RNG.integers(0, 100, size).astype(dtype)


class MemoryInUse(ctypes.Structure):
    """glibc's struct mallinfo2."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks",
                     "keepcost")
    ]  # fmt: skip

    @classmethod
    def now(cls) -> int:
        function = ctypes.CDLL(None).mallinfo2
        function.restype = cls
        info = function()
        return info.uordblks + info.hblkhd


def test_volumes_of_all_kinds_in_turn(tmp_path: Path):
    """Large and small, of one channel and several, of every type: none leaves anything in the next."""
    sizes = [(1, 70, 140, 150), (2, 3, 4, 5), (1, 64, 128, 128), (3, 17, 33, 40), (1, 1, 200, 1), (1, 70, 140, 151)]
    for size in sizes:
        for dtype in (np.int16, np.uint8, np.uint16, np.int32):
            voxels = numbers(size, dtype)
            for budget in (0, 10**9):  # Zstandard and LZ4
                path = tmp_path / "volume.b2nd"
                write_entry(path, *compress(encode(voxels, voxels), budget))
                assert np.array_equal(VolumeFile(path).read(ALL), voxels)


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="tells memory by glibc's mallinfo2")
def test_no_memory_is_lost_with_a_volume():
    voxels = numbers((1, 20, 40, 40))
    stored, calls = encode(voxels, voxels), 400
    for _ in range(20):
        compress(stored, 0)
    before = MemoryInUse.now()
    for _ in range(calls):
        compress(stored, 0)
    assert MemoryInUse.now() - before < 50 * calls  # 400 bytes each where both arrays leak
