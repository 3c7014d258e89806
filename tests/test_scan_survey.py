from __future__ import annotations

import time
from pathlib import Path

import h5py
import numpy as np
import pytest

from pymic_vf.data.scan import UnusableScanError
from pymic_vf.data.scan_header import joined_header, read_header
from pymic_vf.data.scan_survey import MOST_HEADERS, Entry, air_of_crops, in_threads, read_headers, sampled, spread

from conftest import write_volume


def test_headers(tmp_path: Path):
    file = write_volume(tmp_path / "a.nii.gz", np.zeros((4, 5, 6), np.int16), spacing=(1, 2, 3))
    header = read_header(file)
    assert (header.size, header.channels, header.bytes) == ((4, 5, 6), 1, 240)
    assert header.spacing == (3, 2, 1) and header.orientation == "LPS"
    with h5py.File(tmp_path / "a.h5", "w") as content:
        content["image"] = np.zeros((2, 4, 5, 6), np.float32)
    h5 = read_header(tmp_path / "a.h5")
    assert (h5.size, h5.channels, h5.bytes, h5.orientation) == ((4, 5, 6), 2, 960, "unknown")
    assert joined_header([file, tmp_path / "a.h5"]).channels == 3 and header.same_place(h5)


@pytest.mark.parametrize("name", ["gone.nii.gz", "text.nii.gz", "text.h5", "a.txt", ""])
def test_no_header(tmp_path: Path, name: str):
    for text in ("text.nii.gz", "text.h5"):
        (tmp_path / text).write_text("no image")
    with pytest.raises(UnusableScanError):
        read_header(tmp_path / name)


def test_places(tmp_path: Path):
    voxels = np.zeros((4, 5, 6), np.int16)
    one = read_header(write_volume(tmp_path / "a.nii.gz", voxels, spacing=(1, 1, 2)))
    same = read_header(write_volume(tmp_path / "b.mha", voxels, spacing=(1, 1, 2.0001)))
    other = read_header(write_volume(tmp_path / "c.nii.gz", voxels, spacing=(1, 1, 2.1)))
    assert one.same_place(same) and not one.same_place(other)


def test_a_sample_is_bounded_and_repeatable(tmp_path: Path):
    assert sorted(sampled(5, 10)) == [0, 1, 2, 3, 4]
    assert sampled(100_000, 3) == sampled(100_000, 3) and len(set(sampled(100_000, 50))) == 50
    gone = [Entry((tmp_path / f"{index}.nii.gz",)) for index in range(MOST_HEADERS + 1)]
    headers = read_headers(gone, jobs=2)
    assert len(headers) == MOST_HEADERS == len({each.entry for each in headers})
    assert "there is no such file" in headers[0].reason


def test_time_is_bounded():
    done = list(in_threads(lambda n: (time.sleep(0.02), n)[1], range(10_000), jobs=2, seconds=0.1))
    assert done == list(range(len(done))) and 4 <= len(done) < 1000


def test_air():
    voxels = np.full((1, 20, 20, 20), -1000, np.int16)
    voxels[:, 10:] = 40
    shares = air_of_crops(voxels, (10, 20, 20))
    assert min(shares) >= 0 and max(shares) <= 1 and 0.2 < np.mean(shares) < 0.8
    assert set(air_of_crops(voxels, (20, 20, 20))) == {0.5}
    magnitudes = np.zeros((1, 20, 20, 20), np.float32)
    magnitudes[:, :5] = 700
    assert set(air_of_crops(magnitudes, (40, 20, 20))) == {0.75}


def test_spread():
    assert spread([(1, 2), (3, 2), (8, 2)]) == ([1, 2], [3, 2], [8, 2])
