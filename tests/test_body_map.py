from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pymic_vf.data.body_map import STRIDE, TRIES, LeastBody, first_with, packed_map, share_of_body, unpacked_map
from pymic_vf.data.cache_folder import CacheFolder
from pymic_vf.data.cached_reader import CachedVolumeReader
from pymic_vf.data.loader import SampleLoader, SampleNumbers
from pymic_vf.data.samples import Samples, SampleTransforms
from pymic_vf.data.scan_list import ScanList
from pymic_vf.data.volume_reader import WholeVolumeReader
from pymic_vf.data.volume_transform import VolumeTransform
from pymic_vf.errors import ConfigError

from conftest import parsed, pretraining, write_volume

SIZE, CROP, SCANS = (16, 48, 48), (8, 16, 16), 3
AIR, BODY = -1000, 40


def volume(index: int) -> np.ndarray:
    """Body in a third of the width, each scan at another place: 0 to 100 % of a crop of a third of the width."""
    rng = np.random.default_rng(index)
    voxels = rng.normal(AIR, 20, SIZE).astype(np.int16)
    voxels[:, :, 8 * index : 8 * index + 16] = rng.normal(BODY, 20, (*SIZE[:2], 16))
    return voxels


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scans")
    for index in range(SCANS):
        write_volume(folder / f"{index}.nii.gz", volume(index))
    return folder


class Both:
    """In the stead of a method: both crops stay to be seen."""

    scans_per_sample = 2

    def sample(self, crops, _rng) -> dict:
        return {"image": np.stack(crops).astype(np.float32), "label": (crops[0] > 0).astype(np.uint8)}


def samples(folder: Path, least_body: LeastBody | None, cache: Path | None = None) -> Samples:
    scans, transform = ScanList(folder, np.array([[f"{i}.nii.gz".encode()] for i in range(SCANS)])), VolumeTransform(())
    reader = CachedVolumeReader(scans, transform, CacheFolder(cache)) if cache else WholeVolumeReader(scans, transform)
    return Samples(reader, CROP, Both(), SampleTransforms(), 5, least_body=least_body)


def test_map_is_every_nth_voxel():
    voxels = np.stack([volume(0), np.full(SIZE, AIR, np.int16)])
    body = LeastBody(0.5, -500.0).body(voxels)
    assert np.array_equal(body, voxels[0, ::2, ::4, ::4] > -500) and body.shape == (8, 12, 12)
    assert np.array_equal(LeastBody(0.5, None).body(voxels[:1]), body)  # Otsu's threshold lies between the two
    assert np.array_equal(LeastBody(0.5, -500.0).body(voxels[::-1]), body)  # in any channel


@pytest.mark.parametrize("size", [(16, 48, 48), (5, 7, 9), (1, 1, 1)])
def test_map_in_a_file(size: tuple[int, int, int]):
    body = np.random.default_rng(0).random([-(-n // step) for n, step in zip(size, STRIDE, strict=True)]) > 0.5
    content = packed_map(body)
    assert np.array_equal(unpacked_map(content, size), body)
    assert unpacked_map(content[:-1], size) is None and unpacked_map(b"", size) is None
    assert unpacked_map(content[:-1] + bytes([content[-1] ^ 128]), size) is None
    assert unpacked_map(content, (99, 99, 99)) is None


def test_share_of_a_crop():
    body, volume = np.zeros((4, 4, 4), bool), (8, 16, 16)
    body[:, :, 2:] = True  # voxels from x = 8
    assert share_of_body(body, volume, (0, 0, 0), volume) == 0.5
    assert share_of_body(body, volume, (0, 0, 8), (8, 16, 8)) == 1
    assert share_of_body(body, volume, (2, 4, 0), (2, 4, 8)) == 0
    assert share_of_body(body, volume, (1, 1, 9), (1, 1, 2)) == 1
    assert share_of_body(body, volume, (0, 0, 0), (8, 16, 32)) == 0.5  # and its mirror image after it
    assert share_of_body(body, volume, (0, 0, -8), (8, 16, 16)) == 0
    assert share_of_body(body, volume, (0, 0, 8), (8, 16, 16)) == 1


@pytest.mark.parametrize("size", [(16, 48, 48), (5, 40, 9)])
def test_share_is_that_of_the_crop(size: tuple[int, int, int]):
    """Along x the map has every fourth voxel: a border of body is out by less than 4 of them, there are two."""
    voxels = np.full((1, *size), AIR, np.int16)
    voxels[..., size[2] // 3 : size[2] // 2] = BODY
    body, crop = LeastBody(0.5, -500.0).body(voxels), (8, 16, 16)
    margin = 16 if min(size) >= 16 else 5
    padded = np.pad(voxels[0], margin, mode="symmetric")
    for x in range(-5, size[2] + 5 - 16):
        exact = (padded[: crop[0], : crop[1], x + margin : x + margin + 16] > -500).mean()
        assert abs(share_of_body(body, size, (-margin, -margin, x), crop) - exact) <= 2 * 4 / 16


def test_first_that_holds_enough_or_the_best():
    shares = {0: 0.1, 1: 0.3, 2: 0.2, 3: 0.6, 4: 0.9}
    assert [first_with(wanted, shares, shares.get) for wanted in (0, 0.2, 0.4, 0.7, 1)] == [0, 1, 3, 4, 4]


def test_crops_hold_body(folder: Path):
    """Body is 16 of 48 voxels wide and so is a crop, which starts at 0 to 32: at least half of it is body for the 17
    starts (of 33) next to the body's own, fewer at the edge of scan 0 (9 of 33). The chance that none of 32 places is
    one of 9 in 33 is 4e-5, in 200 crops less than 1 %; seed and samples are fixed, so it never happens."""
    plain, chosen = samples(folder, None), samples(folder, LeastBody(0.5, -500.0))
    before = np.array([(crop > -500).mean() for k in range(100) for crop in plain.crops(k)])
    after = np.array([(crop > -500).mean() for k in range(100) for crop in chosen.crops(k)])
    # the map has every fourth voxel along x: a crop of 16 that starts between them may hold 3 voxels less
    assert after.min() >= 0.5 - 3 / 16 and (before < 0.25).mean() > 0.25
    kept = before >= 0.5 + 3 / 16  # enough by any count: the place without the key
    same = [np.array_equal(a, b) for k in range(100) for a, b in zip(plain.crops(k), chosen.crops(k), strict=True)]
    assert kept.sum() > 20 and np.array(same)[kept].all()


def test_places_stay_uniform_among_those_that_hold_enough(folder: Path):
    """Rejection leaves the distribution as it is among what is accepted. Depth starts at 0 to 8, whatever the body:
    each with 1/9 in 600 crops, 66.7 of them, 5 standard deviations of 7.7."""
    chosen = samples(folder, LeastBody(0.5, -500.0))
    starts = []
    read = chosen.reader.read
    chosen.reader.read = lambda index, start, size: starts.append(start) or read(index, start, size)
    for k in range(300):
        chosen.crops(k)
    counts = np.bincount([z for z, _, _ in starts], minlength=9)
    assert counts.sum() == 600 and abs(counts - 600 / 9).max() < 39
    assert len({y for _, y, _ in starts}) == 33


def test_nothing_holds_enough(folder: Path):
    crops = samples(folder, LeastBody(1.0, 5000.0)).crops(0)
    assert [crop.shape for crop in crops] == [(1, *CROP)] * 2
    assert TRIES == 32  # the README says so


def test_without_the_key_nothing_changes(folder: Path):
    plain, zero = samples(folder, None), samples(folder, LeastBody(0.0, -500.0))
    assert all(np.array_equal(plain[k]["image"], zero[k]["image"]) for k in range(10))


@pytest.mark.parametrize("threshold", [-500.0, None])
def test_same_with_cache_and_workers(folder: Path, tmp_path: Path, threshold: float | None):
    least_body = LeastBody(0.5, threshold)
    expected = [samples(folder, least_body)[k]["image"] for k in range(12)]
    for _ in range(2):  # the second time by the maps beside the entries
        cached = samples(folder, least_body, tmp_path)
        assert all(np.array_equal(cached[k]["image"], expected[k]) for k in range(12))
    maps = list(tmp_path.rglob("*.body"))
    assert len(maps) == SCANS
    maps[0].write_bytes(b"damaged")
    loader = SampleLoader(samples(folder, least_body, tmp_path), SampleNumbers(count=12), 2, 2, classes=2)
    images = [image for batch in loader for image in batch["image"].numpy()]
    assert np.array_equal(images, expected)
    assert maps[0].stat().st_size > 100  # made anew


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"crop_min_foreground": 0.2}, "crop_foreground_threshold is missing: crop_min_foreground = 0.2 needs it"),
        ({"crop_foreground_threshold": -500}, "crop_min_foreground is missing: crop_foreground_threshold = -500 needs"),
        ({"crop_min_foreground": 2}, "crop_min_foreground must be a number from 0 to 1, got 2"),
        ({"crop_min_foreground": 0.2, "crop_foreground_threshold": "otzu"}, "must be a number or one of otsu, got"),
        ({"crop_min_foregrund": 0.2}, "did you mean crop_min_foreground"),
    ],
)
def test_mistakes(scans: Path, tmp_path: Path, keys: dict, message: str):
    from pymic_vf.host.settings.checks import check_pretraining

    with pytest.raises(ConfigError, match=message):
        check_pretraining(parsed(tmp_path / "x.cfg", pretraining(scans, tmp_path, dataset=keys)))


def test_agent_takes_the_keys(scans: Path, tmp_path: Path):
    from pymic_vf.host.agents import pretraining_agent

    keys = {"crop_min_foreground": 0.25, "crop_foreground_threshold": "otsu"}
    agent = pretraining_agent(parsed(tmp_path / "x.cfg", pretraining(scans, tmp_path, dataset=keys)), "train")
    assert agent.get_stage_dataset_from_config("train").least_body == LeastBody(0.25, None)
