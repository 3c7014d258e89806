from __future__ import annotations

import logging
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pymic_vf.data.bad_scans import BadScans
from pymic_vf.data.cache_folder import CacheFolder
from pymic_vf.data.cached_reader import CachedVolumeReader
from pymic_vf.data.loader import SampleLoader, SampleNumbers
from pymic_vf.data.prepare import prepare
from pymic_vf.data.samples import Samples, SampleTransforms
from pymic_vf.data.scan import UnusableScanError
from pymic_vf.data.scan_check import check_before_training
from pymic_vf.data.scan_list import ScanList
from pymic_vf.data.volume_reader import WholeVolumeReader
from pymic_vf.data.volume_transform import VolumeTransform
from pymic_vf.errors import UserError

from conftest import make_scan, write_volume

SIZE, CROP = (12, 14, 16), (8, 8, 8)
BAD = {3: "cannot be read", 5: "flat", 7: "too small", 8: "NaN or infinite"}
SCANS = 10


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Ten scans, four of them bad, each in another way."""
    for index in range(SCANS):
        write_volume(tmp_path / f"{index}.nii.gz", make_scan(index, SIZE)[0])
    (tmp_path / "3.nii.gz").write_bytes(b"not a scan")
    write_volume(tmp_path / "5.nii.gz", np.full(SIZE, -1000, np.int16))
    write_volume(tmp_path / "7.nii.gz", make_scan(7, SIZE)[0][:1])
    write_volume(tmp_path / "8.nii.gz", np.where(make_scan(8, SIZE)[1] > 0, np.nan, 1).astype(np.float32))
    return tmp_path


def scan_list(folder: Path) -> ScanList:
    return ScanList(folder, np.array([[f"{i}.nii.gz".encode()] for i in range(SCANS)]))


class Both:
    """In the stead of a method: both crops stay to be seen."""

    scans_per_sample = 2

    def sample(self, crops, _rng) -> dict:
        return {"image": crops[0], "label": (crops[0] > crops[1]).astype(np.uint8)}


def made_of(folder: Path, share: float = 0.5, cache: bool = False) -> Samples:
    scans, transform = scan_list(folder), VolumeTransform((), smallest=(2, 2, 2))
    reader = WholeVolumeReader(scans, transform)
    if cache:
        reader = CachedVolumeReader(scans, transform, CacheFolder(folder / "cache"))
    bad_scans = BadScans(scans, share, folder / "out" / "unusable_scans.csv")
    return Samples(reader, CROP, Both(), SampleTransforms(), 0, bad_scans=bad_scans)


def named(folder: Path) -> list[int]:
    return [int(Path(name).name[0]) for name in pd.read_csv(folder / "out" / "unusable_scans.csv").image]


def test_sample_does_not_depend_on_what_is_known(folder: Path):
    forward, backward, alone = made_of(folder), made_of(folder), [made_of(folder)[k] for k in range(12)]
    ordered = [forward[k] for k in range(12)]
    reversed_ = [backward[k] for k in reversed(range(12))][::-1]
    knowing = [forward[k] for k in range(12)]
    for others in (ordered, reversed_, knowing):
        assert all(np.array_equal(a["image"], b["image"]) for a, b in zip(others, alone, strict=True))
        assert all(np.array_equal(a["label"], b["label"]) for a, b in zip(others, alone, strict=True))
        assert [s.get("bad_scans") for s in others] == [s.get("bad_scans") for s in alone]
    assert set().union(*(s.get("bad_scans", {}) for s in alone)) <= set(BAD)


def test_the_pair_still_differs(folder: Path):
    samples = made_of(folder)
    for k in range(40):
        crops, _ = samples._read(k, [3, 5], np.zeros((2, 3)))
        assert not np.array_equal(*crops)


@pytest.mark.parametrize("workers", [0, 2])
def test_loader_names_each_bad_scan_once(folder: Path, caplog: pytest.LogCaptureFixture, workers: int):
    loader = SampleLoader(made_of(folder), SampleNumbers(count=30), 3, workers, classes=2)
    expected = made_of(folder)
    with caplog.at_level(logging.WARNING):
        batches = list(loader)
    assert len(batches) == 10 and set(batches[0]) == {"image", "label_prob"}
    for n, batch in enumerate(batches):
        for i in range(3):
            assert np.array_equal(batch["image"][i], expected[3 * n + i]["image"])
    assert sorted(named(folder)) == sorted(BAD)
    lines = [line for line in caplog.messages if "left out" in line]
    assert len(lines) == len(BAD)
    for index, reason in BAD.items():
        assert sum(f"{index}.nii.gz" in line and reason in line for line in lines) == 1


@pytest.mark.parametrize("workers", [0, 1])
def test_too_many_bad_scans_stop_the_run(folder: Path, workers: int):
    loader = SampleLoader(made_of(folder, share=0.25), SampleNumbers(count=60), 2, workers, classes=2)
    message = r"[34] of 10 scans cannot be used, more than max_bad_fraction = 0\.25 allows:(\n  - .*nii\.gz.*){3,4}$"
    with pytest.raises(UnusableScanError, match=message):
        list(loader)
    assert len(named(folder)) >= 3


def test_no_two_scans_left(tmp_path: Path):
    for index in range(SCANS):
        (tmp_path / f"{index}.nii.gz").write_bytes(b"")
    write_volume(tmp_path / "4.nii.gz", make_scan(4, SIZE)[0])
    with pytest.raises(UnusableScanError, match="9 of 10 scans cannot be used"):
        made_of(tmp_path, share=1.0)[0]


@pytest.mark.parametrize("cache", [False, True])
def test_check_before_training_names_all_before_the_run(folder: Path, cache: bool):
    samples = made_of(folder, share=0.05, cache=cache)
    with pytest.raises(UnusableScanError) as caught:
        check_before_training([samples], jobs=1)
    assert "4 of 10 scans cannot be used" in str(caught.value)
    for index, reason in BAD.items():
        assert re.search(rf"{index}\.nii\.gz.*{reason}", str(caught.value))
    assert named(folder) == sorted(BAD)


def test_check_before_training_forecasts_the_cache(folder: Path, caplog: pytest.LogCaptureFixture):
    samples = made_of(folder, cache=True)
    with caplog.at_level(logging.INFO):
        check_before_training([samples], jobs=0)
    assert "10 scans will take about" in caplog.text and "(by 6 of them)" in caplog.text
    caplog.clear()
    without = made_of(folder)
    with caplog.at_level(logging.INFO):
        check_before_training([without], jobs=0)
    assert "cache_dir is not set: a sample decodes 2 of the scans" in caplog.text


def test_forecast_warns_of_a_full_disk(folder: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(CacheFolder, "free_bytes", lambda _: 100)
    samples = made_of(folder, cache=True)
    check_before_training([samples], jobs=0)
    assert "the disk will be full before all scans are there" in caplog.text


@pytest.mark.parametrize("jobs", [1, 2])
def test_prepare_fills_the_cache_and_reports(folder: Path, jobs: int):
    samples = made_of(folder, cache=True)
    report = prepare([samples], jobs)
    assert (report.volumes, report.left_out, report.too_many) == (6, 0, False)
    assert report.bytes == samples.reader.folder.used_bytes() > 0
    assert len(report.unusable) == 4
    text = str(report)
    assert "6 volumes are in the cache" in text and "4 scans cannot be used:" in text
    assert all(re.search(rf"  - .*{index}\.nii\.gz.*{reason}", text) for index, reason in BAD.items())
    assert sorted(named(folder)) == sorted(BAD)


def test_prepare_goes_on_where_it_was_stopped(folder: Path, monkeypatch: pytest.MonkeyPatch):
    samples = made_of(folder, cache=True)
    for index in (0, 1):
        samples.reader.shape(index)
    decoded = []
    decode = VolumeTransform.decode
    monkeypatch.setattr(VolumeTransform, "decode", lambda *a: decoded.append(a[1][0].name) or decode(*a))
    again = made_of(folder, share=0.1, cache=True)
    report = prepare([again], jobs=1)
    assert decoded == [file.name for index in range(2, SCANS) for file in again.reader.scans.files(index)]
    assert report.volumes == 6 and report.too_many
    assert "more than max_bad_fraction allows" in str(report)


def test_prepare_needs_a_cache(folder: Path):
    samples = made_of(folder)
    with pytest.raises(UserError, match="cache_dir is missing"):
        prepare([samples], 1)


def test_lines_of_earlier_runs_stay_and_are_not_repeated(folder: Path):
    for _ in range(2):
        BadScans(scan_list(folder), 1.0, folder / "out" / "unusable_scans.csv").report({3: "a", 5: "b"})
    assert named(folder) == [3, 5]
