from __future__ import annotations

import json
import logging
import multiprocessing
import os
import resource
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import blosc2
import numpy as np
import pytest
import torch
from pymic.transform.trans_dict import TransformDict

from pymic_vf.data.cache_entry import CacheEntry
from pymic_vf.data.cache_folder import CacheFolder
from pymic_vf.data.cached_reader import CachedVolumeReader
from pymic_vf.data.scan import UnusableScanError
from pymic_vf.data.scan_list import ScanList
from pymic_vf.data.volume_reader import WholeVolumeReader
from pymic_vf.data.volume_transform import VolumeTransform
from pymic_vf.errors import UserError

from conftest import make_scan, write_volume

SIZE = (40, 70, 90)  # several blocks an axis, none of them whole at the end


class Window:
    """A PyMIC-like transform of intensities that nobody knows to be voxel-wise."""

    def __init__(self, width: float) -> None:
        self.width = width

    def __call__(self, sample: dict) -> dict:
        sample["image"] = np.clip(sample["image"] / np.float32(self.width), -1, 1)
        return sample


def pymics(name: str, **keys: Any) -> Callable:
    keys = {"channels": [0], **keys}
    return TransformDict[name]({"task": None, **{f"{name.lower()}_{key}": value for key, value in keys.items()}})


def hu_window(low: int, high: int) -> Callable:
    return pymics("NormalizeWithMinMax", threshold_lower=[low], threshold_upper=[high])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "volumes").mkdir()
    for index in range(3):
        write_volume(tmp_path / "volumes" / f"{index}.nii.gz", make_scan(index, SIZE)[0])
    return tmp_path


def scan_list(folder: Path) -> ScanList:
    return ScanList(folder / "volumes", np.array([[f"{i}.nii.gz".encode()] for i in range(3)]))


def reader(folder: Path, *transforms: Callable, max_bytes: int | None = None, **options: Any) -> CachedVolumeReader:
    cache = CacheFolder(folder / "cache", max_bytes)
    return CachedVolumeReader(scan_list(folder), VolumeTransform(transforms), cache, **options)


def whole(volumes: CachedVolumeReader | WholeVolumeReader, index: int = 0) -> np.ndarray:
    return volumes.read(index, (0, 0, 0), volumes.shape(index)[1:])


def entries(folder: Path) -> list[Path]:
    return sorted((folder / "cache").glob("*/*"))


def no_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(VolumeTransform, "decode", lambda *_: pytest.fail("decoded although it is in the cache"))


@pytest.mark.parametrize(
    "transforms",
    [
        (),
        (Window(150.0),),
        (hu_window(-50, 80),),
        (pymics("NormalizeWithMeanStd"),),
        (Window(150.0), pymics("NormalizeWithPercentiles"), pymics("NormalizeWithMeanStd")),
    ],
    ids=["as it is", "unknown", "window", "mean and std", "three"],
)
def test_same_voxels_as_from_whole_volumes(folder: Path, monkeypatch: pytest.MonkeyPatch, transforms: tuple):
    expected = WholeVolumeReader(scan_list(folder), VolumeTransform(transforms))
    first = reader(folder, *transforms)
    rng = np.random.default_rng(0)
    starts = [rng.integers(0, SIZE) for _ in range(100)]
    boxes = [(int(rng.integers(3)), start, rng.integers(1, SIZE - start, endpoint=True)) for start in starts]
    wanted = [expected.read(*box) for box in boxes]
    for box, voxels in zip(boxes, wanted, strict=True):
        crop = first.read(*box)
        assert crop.dtype == np.float32 and crop.flags.c_contiguous and crop.flags.writeable
        assert np.array_equal(crop, voxels)
    assert first.shape(1) == expected.shape(1) == (1, *SIZE)
    no_decoding(monkeypatch)
    again = reader(folder, *transforms)
    assert all(np.array_equal(again.read(*box), voxels) for box, voxels in zip(boxes, wanted, strict=True))


def test_no_larger_than_the_scan_files(folder: Path):
    volumes = reader(folder)
    for index in range(3):
        whole(volumes, index)
        # noise everywhere, and a volume of few blocks: of real scans, the cache takes less than the files
        assert volumes.entry_bytes(index) <= 1.02 * (folder / "volumes" / f"{index}.nii.gz").stat().st_size
    assert volumes.folder.used_bytes() == sum(map(volumes.entry_bytes, range(3)))


def test_scans_with_much_air_take_no_more_either(folder: Path):
    voxels = make_scan(0, SIZE)[0]
    voxels[:, 20:, 20:] = -1000
    voxels[:] = np.maximum.accumulate(voxels // 8, axis=2)  # smooth: what gzip is good at
    file = write_volume(folder / "volumes" / "0.nii.gz", voxels)
    volumes = reader(folder)
    assert np.array_equal(whole(volumes)[0], voxels)
    assert blosc2.open(str(entries(folder)[0]), mode="r").cparams.codec == blosc2.Codec.ZSTD
    assert volumes.entry_bytes(0) <= 2 * file.stat().st_size


def test_another_setting_gets_other_voxels(folder: Path):
    narrow, wide = whole(reader(folder, Window(100.0))), whole(reader(folder, Window(200.0)))
    assert len(entries(folder)) == 2
    assert not np.array_equal(narrow, wide)
    assert np.array_equal(whole(reader(folder, Window(100.0))), narrow)
    assert len(entries(folder)) == 2


def test_a_changed_window_needs_no_decoding(folder: Path, monkeypatch: pytest.MonkeyPatch):
    whole(reader(folder, hu_window(-100, 100)))
    assert len(entries(folder)) == 1  # with nothing to measure, there is no file of numbers
    no_decoding(monkeypatch)
    scan = make_scan(0, SIZE)[0].astype(np.float32)
    assert np.array_equal(whole(reader(folder))[0], scan)
    narrow = whole(reader(folder, hu_window(0, 50)))[0]
    assert np.array_equal(narrow, 2 * np.clip(scan, 0, 50) / 50 - 1)
    standardized = whole(reader(folder, pymics("NormalizeWithMeanStd")))[0]
    assert np.array_equal(standardized, (scan - scan.mean()) / (scan.std() + 1e-5))
    with pytest.raises(UnusableScanError, match=r"0\.nii\.gz: flat, every voxel is -1"):
        reader(folder, hu_window(2000, 3000)).shape(0)


def test_what_is_measured_is_kept(folder: Path, monkeypatch: pytest.MonkeyPatch):
    transforms = pymics("NormalizeWithPercentiles"), hu_window(0, 1)
    expected = whole(reader(folder, *transforms))
    (kept,) = (folder / "cache").glob("*/*.json")
    content = kept.read_bytes()
    assert len(json.loads(content)[0]) == 2 and kept.name[:40] == entries(folder)[-1].name[:40]
    with monkeypatch.context() as patch:
        patch.setattr(np, "percentile", lambda *_, **__: pytest.fail("measured although it is there"))
        assert np.array_equal(whole(reader(folder, *transforms)), expected)
    no_decoding(monkeypatch)
    for damaged in (b"", content[:-3], b"[1]", b"{}", content.replace(b".", b".1", 1)):
        kept.write_bytes(damaged)
        assert np.array_equal(whole(reader(folder, *transforms)), expected)
        assert kept.read_bytes() == content
    kept.unlink()
    assert np.array_equal(whole(reader(folder, *transforms)), expected) and kept.read_bytes() == content
    others = pymics("NormalizeWithPercentiles", percentile_upper=50), hu_window(0, 1)
    assert not np.array_equal(whole(reader(folder, *others)), expected)
    assert len(entries(folder)) == 3 and kept.read_bytes() == content


def test_changed_scan_gets_its_new_voxels_while_running(folder: Path):
    volumes = reader(folder)
    before = whole(volumes)
    file = folder / "volumes" / "0.nii.gz"
    stat = file.stat()
    write_volume(file, make_scan(9, SIZE)[0])
    after = whole(volumes)
    assert np.array_equal(after[0], make_scan(9, SIZE)[0]) and not np.array_equal(after, before)
    # even where only the time tells
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    assert np.array_equal(whole(volumes), after)
    assert len(entries(folder)) == 3


def test_scan_that_vanished_is_named(folder: Path):
    volumes = reader(folder)
    whole(volumes)
    (folder / "volumes" / "0.nii.gz").unlink()
    with pytest.raises(UnusableScanError, match=r"0\.nii\.gz: cannot be read \(No such file"):
        volumes.shape(0)


def test_scan_replaced_while_it_is_decoded(folder: Path, monkeypatch: pytest.MonkeyPatch):
    decode = VolumeTransform.decode
    calls = []

    def replaced_meanwhile(self, files):
        scan = decode(self, files)
        if not calls:
            write_volume(folder / "volumes" / "0.nii.gz", make_scan(9, SIZE)[0])
        calls.append(files)
        return scan

    monkeypatch.setattr(VolumeTransform, "decode", replaced_meanwhile)
    assert np.array_equal(whole(reader(folder))[0], make_scan(9, SIZE)[0])
    assert len(calls) == 2 and len(entries(folder)) == 1


DAMAGES = {
    "one bit": lambda c: c[: len(c) // 3] + bytes([c[len(c) // 3] ^ 4]) + c[len(c) // 3 + 1 :],
    "zeros": lambda c: c[: len(c) // 2] + bytes(500) + c[len(c) // 2 + 500 :],
    "cut off": lambda c: c[: len(c) // 2],
    "cut short": lambda c: c[:-1],
    "empty": lambda _: b"",
    "longer": lambda c: c + b"more",
    "other file": lambda _: b"something else altogether, longer than a trailer",
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
@pytest.mark.parametrize("running", [False, True], ids=["before the run", "while it runs"])
def test_damaged_entry_is_noticed_and_made_anew(
    folder: Path, caplog: pytest.LogCaptureFixture, damage: Callable, running: bool
):
    volumes = reader(folder)
    expected = whole(volumes)
    (path,) = entries(folder)
    intact = path.read_bytes()
    path.write_bytes(damage(bytearray(intact)))
    with caplog.at_level(logging.WARNING):
        assert np.array_equal(whole(volumes if running else reader(folder)), expected)
    assert len(caplog.messages) == 1
    assert f"{path} is damaged" in caplog.text and "0.nii.gz" in caplog.text
    assert path.read_bytes()[:-8] == intact[:-8]  # but for the time


@pytest.mark.parametrize("what", ["entry", "folder"])
def test_what_is_removed_while_running_is_made_anew(folder: Path, what: str):
    volumes = reader(folder)
    expected = whole(volumes)
    if what == "entry":
        entries(folder)[0].unlink()
    else:
        shutil.rmtree(folder / "cache")
    assert np.array_equal(whole(volumes), expected) and len(entries(folder)) == 1


def test_copied_cache_is_accepted(folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    expected = whole(reader(folder))
    os.utime(entries(folder)[0])  # what a copy does
    no_decoding(monkeypatch)
    assert np.array_equal(whole(reader(folder)), expected)
    assert not caplog.messages


def test_bad_scan_leaves_no_entry(folder: Path):
    (folder / "volumes" / "0.nii.gz").write_bytes(b"not a scan")
    write_volume(folder / "volumes" / "1.nii.gz", np.full(SIZE, 7, np.int16))
    volumes = CachedVolumeReader(
        scan_list(folder), VolumeTransform((), smallest=(40, 70, 91)), CacheFolder(folder / "cache")
    )
    for index, reason in enumerate((r"0\.nii\.gz: cannot be read", "too small", r"too small, \[40, 70, 90\] voxels")):
        with pytest.raises(UnusableScanError, match=reason):
            volumes.shape(index)
    with pytest.raises(UnusableScanError, match=r"1\.nii\.gz: flat, every voxel is 7"):
        reader(folder).shape(1)
    assert not entries(folder)
    whole(reader(folder), 2)
    with pytest.raises(UnusableScanError, match="too small"):  # of an entry, too
        volumes.shape(2)


def test_cap_keeps_further_volumes_out(folder: Path, caplog: pytest.LogCaptureFixture):
    transforms = Window(7.0), pymics("NormalizeWithMeanStd")
    one = reader(folder, *transforms)
    expected = [whole(one, index) for index in range(3)]
    cap = int(1.5 * one.entry_bytes(0))
    shutil.rmtree(folder / "cache")
    volumes = reader(folder, *transforms, max_bytes=cap)
    with caplog.at_level(logging.WARNING):
        for index in (0, 1, 2, 1):
            assert np.array_equal(whole(volumes, index), expected[index])
    assert len(list((folder / "cache").glob("*/*.b2nd"))) == 1
    assert len(caplog.messages) == 1 and "has reached cache_max_gib" in caplog.text
    assert volumes.entry_bytes(0) > 0 == volumes.entry_bytes(1)


def test_writers_together_do_not_exceed_the_cap(folder: Path):
    """Each with its own count of what there is, as processes have."""
    one = reader(folder)
    whole(one)
    size = one.entry_bytes(0)
    writers = [reader(folder, max_bytes=int(2.5 * size)) for _ in range(3)]
    for index, writer in enumerate(writers):
        whole(writer, index)
    assert one.folder.used_bytes() <= 2.5 * size and len(entries(folder)) == 2
    entries(folder)[0].unlink()
    whole(reader(folder, max_bytes=int(2.5 * size)), 2)  # what was deleted makes room
    assert len(entries(folder)) == 2


def test_an_entry_under_the_name_of_another_is_none(folder: Path):
    volumes = reader(folder)
    paths = []
    for index in (0, 1):
        whole(volumes, index)
        paths += [path for path in entries(folder) if path not in paths]
    paths[1].replace(paths[0])
    assert np.array_equal(whole(volumes, 0)[0], make_scan(0, SIZE)[0])
    assert np.array_equal(whole(reader(folder), 1)[0], make_scan(1, SIZE)[0])


def test_damage_with_the_time_put_back_that_cannot_be_decoded(folder: Path):
    """Size and time are as written, so that only the decoder notices."""
    volumes = reader(folder)
    whole(volumes, 0)
    (path,) = entries(folder)
    stat, content = path.stat(), bytearray(path.read_bytes())
    content[len(content) // 4 : 3 * len(content) // 4] = bytes(len(content) // 2)
    for each in (volumes, reader(folder)):
        path.write_bytes(content)
        os.utime(path, ns=(stat.st_mtime_ns, stat.st_mtime_ns))
        assert np.array_equal(whole(each, 0)[0], make_scan(0, SIZE)[0])


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """As near to a full disk as a test gets without mounting one."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_full_disk_is_a_clear_error(folder: Path):
    volumes = reader(folder)
    expected = whole(volumes, 0)
    before = {path: path.read_bytes() for path in entries(folder)}
    message = rf"cache_dir = {folder / 'cache'}: the disk is full .* set cache_max_gib"
    with largest_file(4096), pytest.raises(UserError, match=message) as caught:
        whole(volumes, 1)
    assert not isinstance(caught.value, UnusableScanError)  # the scan is not to blame
    assert {path: path.read_bytes() for path in entries(folder)} == before
    assert np.array_equal(whole(volumes, 0), expected)
    assert np.array_equal(whole(volumes, 1)[0], make_scan(1, SIZE)[0])  # when there is room again


def test_kill_in_the_middle_of_writing(folder: Path, monkeypatch: pytest.MonkeyPatch):
    with monkeypatch.context() as patch:
        # all is written, but not yet renamed
        patch.setattr(os, "utime", lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL))
        process = multiprocessing.get_context("fork").Process(target=lambda: whole(reader(folder)))
        process.start()
        process.join()
    assert process.exitcode == -signal.SIGKILL
    (left,) = entries(folder)
    assert left.name.startswith(".incomplete-")
    volumes = reader(folder)
    assert np.array_equal(whole(volumes)[0], make_scan(0, SIZE)[0])
    volumes.folder.remove_leftovers()
    assert left in entries(folder)  # it may be another machine's, still at work
    os.utime(left, (0, 0))
    volumes.folder.remove_leftovers()
    assert [path.name[0] for path in entries(folder)] != ["."] and len(entries(folder)) == 1


def _read_many(folder: Path, seed: int, results: multiprocessing.Queue) -> None:
    try:
        volumes = reader(folder)
        rng = np.random.default_rng(seed)
        for _ in range(20):
            index = int(rng.integers(3))
            assert np.array_equal(whole(volumes, index)[0], make_scan(index, SIZE)[0])
            if rng.random() < 0.3:  # as if nobody had written it yet
                for path in list((folder / "cache").glob("*/[!.]*"))[:1]:
                    path.unlink(missing_ok=True)
        results.put("")
    except BaseException as error:
        results.put(repr(error))


def test_many_writers_at_once(folder: Path):
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    processes = [context.Process(target=_read_many, args=(folder, seed, results)) for seed in range(3)]
    for process in processes:
        process.start()
    assert [results.get(timeout=120) for _ in processes] == [""] * 3
    for process in processes:
        process.join()
    assert not [path for path in entries(folder) if path.name.startswith(".")]


def test_open_volumes_and_files_are_bounded(folder: Path):
    volumes = reader(folder, memory_bytes=2 * CacheEntry.nbytes)
    for index in (0, 1, 2, 0, 1, 2):
        volumes.read(index, (0, 0, 0), (1, 1, 1))
        assert len(volumes._recent) <= 2
    held = [os.path.realpath(link) for link in Path("/proc/self/fd").iterdir()]
    assert len([path for path in held if str(folder) in path]) <= 2


def test_cannot_make_folder(folder: Path):
    with pytest.raises(UserError, match=r"cache_dir = .*0\.nii\.gz/cache: cannot be made"):
        CacheFolder(folder / "volumes" / "0.nii.gz" / "cache")


class Whole(torch.utils.data.Dataset):
    def __init__(self, volumes: CachedVolumeReader) -> None:
        self.volumes = volumes

    def __getitem__(self, index: int) -> np.ndarray:
        return whole(self.volumes, index)


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_reader_travels_to_workers(folder: Path, start: str):
    volumes = reader(folder, hu_window(-100, 100))
    expected = whole(volumes)
    loader = torch.utils.data.DataLoader(
        Whole(volumes), None, sampler=[0], num_workers=1, multiprocessing_context=start
    )
    assert [np.array_equal(batch, expected) for batch in loader] == [True]
