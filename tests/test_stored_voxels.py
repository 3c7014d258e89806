from __future__ import annotations

import numpy as np
import pytest

from pymic_vf.data.stored_voxels import Coding, encode, encode_numbers

RNG = np.random.default_rng(0)
SCAN = RNG.integers(-1024, 3071, (2, 6, 7, 8)).astype(np.int16)
ALL = (slice(None),) * 4


@pytest.mark.parametrize(
    "voxels",
    [
        SCAN,
        SCAN.astype(np.float64),
        SCAN.astype(np.float32) + 40000,  # beyond int16
        SCAN.astype(np.int32) * 4000,  # beyond uint16, not beyond 2^24
        (SCAN > 0),
        SCAN.astype(np.uint8),
    ],
    ids=["int16", "float64", "uint16", "int32", "bool", "uint8"],
)
def test_whole_numbers_are_exact(voxels: np.ndarray):
    stored = encode(voxels, voxels)
    assert stored.numbers.dtype.kind in "iu" and stored.coding == Coding()
    assert np.array_equal(stored.read(ALL), voxels.astype(np.float32))


@pytest.mark.parametrize("dtype", [np.int16, np.int8, np.float32])
def test_values_that_follow_from_the_scan_are_exact(dtype: type):
    scan = (SCAN // 32).astype(dtype)
    voxels = ((np.clip(scan, -40, 60).astype(np.float32) + 3.3) / 7.7).astype(np.float32)
    voxels[1] *= 2  # each channel has a window of its own
    stored = encode(voxels, scan)
    assert stored.numbers.dtype == np.uint16 and stored.coding.table is not None
    assert np.array_equal(stored.read(ALL), voxels)
    box = (slice(None), slice(1, 4), slice(2, 3), slice(0, 5))
    assert np.array_equal(stored.read(box), voxels[box])


def window(low: int, high: int, channels: int = 2) -> np.ndarray:
    """The table of an intensity window, computed as PyMIC does, for SCAN's numbers."""
    numbers = np.arange(-1024, 3071).astype(np.float32)
    values = 2.0 * (np.clip(numbers, low, high) - low) / (high - low) - 1.0
    return np.stack([values] * channels)


@pytest.mark.parametrize("limits", [(-1000, 1000), (-200, 300), (-7, 24)])
def test_a_window_is_a_division_and_an_addition_to_the_last_bit(limits: tuple[int, int]):
    table = window(*limits)
    stored = encode_numbers(SCAN, -1024, table)
    assert stored.coding.scale is not None
    assert stored.numbers.max() == limits[1] - limits[0]  # what the window makes equal is one number
    assert np.array_equal(stored.read(ALL), table[0][SCAN.astype(int) + 1024])


@pytest.mark.parametrize(
    "bend",
    [
        lambda table: table**3,
        lambda table: -table,
        lambda table: np.stack([table[0], window(-200, 300)[0] * 1.7 + 0.3]),
        lambda table: np.stack([table[0], np.zeros_like(table[0])]),
        lambda table: np.nextafter(table, np.float32(2)),
    ],
    ids=["cubic", "falling", "channels differ", "a flat channel", "a bit more"],
)
def test_any_table_gives_its_own_values(bend):
    table = bend(window(-1000, 1000)).astype(np.float32)
    stored = encode_numbers(SCAN, -1024, table)
    expected = np.stack([row[channel.astype(int) + 1024] for row, channel in zip(table, SCAN, strict=True)])
    assert np.array_equal(stored.read(ALL), expected)


def test_one_number_with_two_values_is_no_table():
    voxels = SCAN / np.float32(7)
    assert encode(voxels, SCAN).coding.table is not None
    voxels[1, 5, 6, 7] = np.nextafter(voxels[1, 5, 6, 7], np.float32(1e6))
    twice = SCAN.copy()
    twice[1, 0, 0, 0] = SCAN[1, 5, 6, 7]
    voxels[1, 0, 0, 0] = SCAN[1, 5, 6, 7] / np.float32(7)
    assert encode(voxels, twice).coding.table is None


@pytest.mark.parametrize("scan", [SCAN, SCAN[:, :3]], ids=["same shape", "resampled"])
def test_other_voxels_are_rounded_by_half_a_level_at_most(scan: np.ndarray):
    voxels = RNG.normal(size=SCAN.shape).astype(np.float32)
    voxels[1] = voxels[1] * 1e4 - 7
    stored = encode(voxels, scan)
    assert stored.coding.scale is not None
    error = np.abs(stored.read(ALL).astype(float) - voxels).max(axis=(1, 2, 3))
    low, high = voxels.min(axis=(1, 2, 3)).astype(float), voxels.max(axis=(1, 2, 3)).astype(float)
    # half a level, and two roundings of float32 for each of step * level and + lowest
    assert (error <= (high - low) / 65535 / 2 + 4 * 2**-24 * np.maximum(-low, high)).all()
    assert error[0] > 0


def test_a_flat_channel_stays_what_it_is():
    voxels = RNG.normal(size=SCAN.shape).astype(np.float32)
    voxels[0] = 0.3
    assert (encode(voxels, SCAN).read(ALL)[0] == np.float32(0.3)).all()


def test_coding_survives_a_file():
    coding = Coding(table=RNG.normal(size=(2, 5)).astype(np.float32))
    again = Coding.from_bytes(coding.to_bytes())
    assert again.scale is None and np.array_equal(again.table, coding.table)
