from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

from pymic_vf.data.scan_list import ScanList
from pymic_vf.data.volume_reader import WholeVolumeReader
from pymic_vf.data.volume_transform import VolumeTransform

from conftest import make_scan, write_volume

SIZE = (9, 10, 12)
BYTES = 2 * 9 * 10 * 12  # of a volume, as int16


@pytest.fixture
def scans(tmp_path: Path) -> ScanList:
    for index in range(3):
        write_volume(tmp_path / f"{index}.nii.gz", make_scan(index, SIZE)[0])
    return ScanList(tmp_path, np.array([[f"{i}.nii.gz".encode()] for i in range(3)]))


def test_reads_boxes(scans: ScanList):
    reader = WholeVolumeReader(scans, VolumeTransform(()))
    assert len(reader) == 3 and reader.shape(1) == (1, *SIZE)
    crop = reader.read(1, (1, 2, 3), (4, 5, 6))
    assert crop.dtype == np.float32 and np.array_equal(crop[0], make_scan(1, SIZE)[0][1:5, 2:7, 3:9])
    crop[:] = 0  # the caller's own
    assert reader.read(1, (1, 2, 3), (4, 5, 6)).any()


@pytest.mark.parametrize(("memory_bytes", "kept"), [(0, 1), (2 * BYTES, 2), (10 * BYTES, 3)])
def test_the_most_recent_volumes_stay(scans: ScanList, monkeypatch: pytest.MonkeyPatch, memory_bytes: int, kept: int):
    reader = WholeVolumeReader(scans, VolumeTransform(()), memory_bytes)
    for index in (0, 1, 2):
        reader.shape(index)
    decoded = []
    decode = VolumeTransform.decode
    monkeypatch.setattr(VolumeTransform, "decode", lambda *a: decoded.append(a[1][0].name) or decode(*a))
    for index in (2, 1, 0):
        reader.shape(index)
    assert len(decoded) == 3 - kept
    assert len(pickle.dumps(reader)) < BYTES  # another process begins without them
