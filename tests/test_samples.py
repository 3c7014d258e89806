from __future__ import annotations

import random
from collections import Counter

import numpy as np
import pytest
import torch

from pymic_vf.data.samples import Samples, SampleTransforms
from pymic_vf.data.scan import UnusableScanError
from pymic_vf.data.seeds import VALID, seeded
from pymic_vf.errors import UserError

CROP = (4, 5, 6)


class Volumes:
    """A reader of made-up volumes: each voxel tells its volume and its place."""

    def __init__(self, *shapes: tuple[int, int, int]) -> None:
        self.volumes = [
            np.arange(np.prod(shape), dtype=np.float32).reshape(1, *shape) + 1e4 * i for i, shape in enumerate(shapes)
        ]

    def __len__(self) -> int:
        return len(self.volumes)

    def shape(self, index: int) -> tuple[int, ...]:
        return self.volumes[index].shape

    def read(self, index: int, start, size) -> np.ndarray:
        assert all(s >= 0 and s + n <= limit for s, n, limit in zip(start, size, self.shape(index)[1:], strict=True))
        return self.volumes[index][(slice(None), *(slice(s, s + n) for s, n in zip(start, size, strict=True)))].copy()


class Both:
    """In the stead of a method: both crops stay to be seen."""

    scans_per_sample = 2

    def sample(self, crops, rng) -> dict:
        return {"image": crops[0], "other": crops[1], "draw": rng.random()}


def samples(reader: Volumes, before=(), after=(), seed: int = 0, method=None, **options) -> Samples:
    return Samples(reader, CROP, method or Both(), SampleTransforms(before, after), seed, **options)


def volume_of(voxels: np.ndarray) -> int:
    return int(voxels.flat[0] // 1e4)


def test_the_two_scans_always_differ_and_all_are_used():
    data = samples(Volumes(*[(6, 7, 8)] * 3))
    pairs = [(volume_of(s["image"]), volume_of(s["other"])) for s in (data[k] for k in range(600))]
    assert all(a != b for a, b in pairs)
    assert [sorted(a for a, _ in pairs[i : i + 3]) for i in range(0, 600, 3)] == [[0, 1, 2]] * 200
    # 6 ordered pairs, each with probability 1/6 in 600 draws: 5 standard deviations of 9.1
    assert all(abs(count - 100) < 46 for count in Counter(pairs).values())


def test_crops_reach_every_place():
    data = samples(Volumes((6, 5, 6), (4, 5, 7)))
    crops = [data[k] for k in range(200)]
    first_of_a = {float(c["image"].flat[0]) for c in crops if volume_of(c["image"]) == 0}
    assert first_of_a == {0.0, 30.0, 60.0}  # z = 0, 1, 2 of 6 - 4
    assert all(c["image"].shape == (1, *CROP) and c["image"].dtype == np.float32 for c in crops)


def test_small_volume_is_mirrored():
    data = samples(Volumes((2, 5, 6), (4, 5, 6)))
    small = next(s["image"] for s in (data[k] for k in range(9)) if volume_of(s["image"]) == 0)
    planes = [int(small[0, z, 0, 0]) // 30 for z in range(4)]
    # a window of 4 planes into 1 0 | 0 1 | 1 0: the volume whole, its mirror image around it
    assert planes in ([1, 0, 0, 1], [0, 0, 1, 1], [0, 1, 1, 0])


def test_sample_depends_on_seed_stream_and_number_alone():
    def noise(sample):
        sample["image"] = sample["image"] + np.random.normal(size=CROP) + random.random() + torch.rand(1).numpy()
        return sample

    data = samples(Volumes((9, 9, 9), (9, 9, 9)), before=[noise])
    alone = data[7]
    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    for k in (3, 100, 2):
        assert not np.array_equal(data[k]["image"], alone["image"])
    again = data[7]
    assert np.array_equal(again["image"], alone["image"])
    assert np.array_equal(again["other"], alone["other"])
    others = samples(data.reader, [noise], seed=1)[7], samples(data.reader, [noise], stream=VALID)[7]
    assert not any(np.array_equal(other["image"], alone["image"]) for other in others)


def test_crops_draw_for_themselves():
    def constant(sample):
        sample["image"] = np.full_like(sample["image"], random.random())
        return sample

    sample = samples(Volumes((9, 9, 9), (9, 9, 9)), before=[constant])[0]
    assert sample["image"].flat[0] != sample["other"].flat[0]


def test_the_process_goes_on_as_if_no_sample_had_been_made():
    def draws() -> list[float]:
        return [random.random(), np.random.rand(), torch.rand(1).item()]

    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    expected = draws()
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    with seeded(0, 1, 2):
        draws()
    assert draws() == expected


def test_transforms_that_change_the_size_are_named():
    def shrink(sample):
        return {**sample, "image": sample["image"][:, 1:]}

    with pytest.raises(UserError, match=r"must leave crops of crop_size = \[4, 5, 6\], they leave \[3, 5, 6\]"):
        samples(Volumes((9, 9, 9), (9, 9, 9)), before=[shrink])[0]


class Shrinking(Volumes):
    """Whose first volume becomes smaller after its size was asked for, `times` times."""

    def __init__(self, times: int, *shapes: tuple[int, int, int]) -> None:
        super().__init__(*shapes)
        self.times = times

    def read(self, index: int, start, size) -> np.ndarray:
        if index == 0 and self.times:
            self.times -= 1
            self.volumes[0] = self.volumes[0][..., :-1]
        box = (slice(None), *(slice(s, s + n) for s, n in zip(start, size, strict=True)))
        return self.volumes[index][box].copy()


def test_a_scan_replaced_by_a_smaller_one_while_it_is_read():
    position = np.full(3, 0.999)  # at the far end, where the smaller one has nothing
    data = samples(Shrinking(2, (4, 5, 9), (4, 5, 9)))
    assert data._crop(0, position).shape == (1, *CROP)
    assert data.reader.shape(0) == (1, 4, 5, 7)
    with pytest.raises(UnusableScanError, match="changes its size again and again"):
        samples(Shrinking(9, (4, 5, 20), (4, 5, 9)))._crop(0, position)


def test_a_sample_of_three_scans_takes_three_different_ones():
    class Three(Both):
        scans_per_sample = 3

        def sample(self, crops, _rng) -> dict:
            return {"image": crops[0], "scans": tuple(volume_of(crop) for crop in crops)}

    data = samples(Volumes(*[(6, 7, 8)] * 4), method=Three())
    counts = Counter(data[k]["scans"] for k in range(960))
    assert all(len(set(scans)) == 3 for scans in counts) and len(counts) == 24
    # 24 ordered triples, each with probability 1/24 in 960 draws: 5 standard deviations of 6.2
    assert all(abs(count - 40) < 31 for count in counts.values())


def test_the_crops_of_a_sample_and_what_the_method_made_of_them():
    def double(sample):
        return {**sample, "image": 2 * sample["image"]}

    data = samples(Volumes((9, 9, 9), (9, 9, 9)), after=[double])
    crops, made, whole = data.crops(5), data.method_sample(5), data[5]
    assert np.array_equal(crops[0], made["image"]) and np.array_equal(crops[1], made["other"])
    assert np.array_equal(2 * made["image"], whole["image"]) and made["draw"] == whole["draw"]
