from __future__ import annotations

import pytest

from pymic_vf import keys
from pymic_vf.keys import Key, Section

CASES = [
    (keys.whole(1), [1, 7], [0, True, 1.0, "1", None], "a whole number of at least 1"),
    (keys.whole(0, 3), [0, 3], [4, -1], "a whole number of at least 0 and at most 3"),
    (keys.number(0, 1), [0, 0.5, 1], [1.1, True, "a", float("nan")], "a number from 0 to 1"),
    (keys.number(0, 1, below=True), [0, 0.9], [1], "a number from 0 to below 1"),
    (keys.number(0), [0, 1e9], [-1, float("inf")], "a number of at least 0"),
    (keys.number(), [-1e9], [float("inf"), float("-inf"), float("nan"), "x"], "a number"),
    (keys.flag(), [True, False], [1, "yes"], "True or False"),
    (keys.one_of(0, 1), [0, 1], [True, 2, "0"], "one of 0, 1"),
    (keys.name_of("Adam", "SGD"), ["adam", "SGD"], ["Adma", 3], "one of Adam, SGD"),
    (keys.path("a folder"), ["a/b", "./5"], [5, ["a"]], "the name of a folder"),
    (keys.names(), ["a", ["a", "b"], []], [5, [1]], "a list of names"),
    (keys.list_of(keys.whole(1), 3), [[1, 2, 3]], [[1, 2], [1, 2, 0], 5], "a list of 3 whole numbers of at least 1"),
    (keys.list_of(keys.whole(0)), [[0], [1, 2]], [[], 0], "a list of whole numbers of at least 0"),
    (keys.either(keys.whole(1), keys.list_of(keys.whole(1))), [4, [4, 8]], [0, [0]],
     "a whole number of at least 1 or a list of whole numbers of at least 1"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "good", "bad", "rule"), CASES, ids=[case[3] for case in CASES])
def test_kinds(kind, good, bad, rule):
    assert kind.rule == rule
    assert all(kind.fits(value) for value in good)
    assert not any(kind.fits(value) for value in bad)


def section(**values) -> Section:
    return Section({name.lower(): value for name, value in values.items()}, "dataset", [])


SIZE = Key("crop_size", keys.list_of(keys.whole(1), 3), "size of a crop", (64, 128, 128), former="VF_crop_size")


def test_a_value_its_default_and_its_mistake():
    assert section(crop_size=[1, 2, 3]).read_key(SIZE) == (1, 2, 3)
    assert section().read_key(SIZE) == (64, 128, 128)
    wrong = section(crop_size=[1, 2])
    assert wrong.read_key(SIZE) == (64, 128, 128)
    assert wrong.mistakes == ["[dataset] crop_size must be a list of 3 whole numbers of at least 1, got [1, 2]"]


def test_a_former_name_goes_on_working():
    assert section(VF_crop_size=[1, 2, 3]).read_key(SIZE) == (1, 2, 3)
    wrong = section(VF_crop_size=5)
    wrong.read_key(SIZE)
    assert wrong.mistakes == ["[dataset] VF_crop_size must be a list of 3 whole numbers of at least 1, got 5"]
    both = section(VF_crop_size=[1, 2, 3], crop_size=[1, 2, 3])
    both.read_key(SIZE)
    assert "VF_crop_size is the former name of crop_size, which is there too" in both.mistakes[0]


def test_required_keys_and_none():
    key = Key("train_dir", keys.path("a folder"), "the folder of the scans", required=True)
    for values in ({}, {"train_dir": None}):
        missing = section(**values)
        assert missing.read_key(key) is None
        assert missing.mistakes == ["[dataset] train_dir is missing: the folder of the scans"]
    seed = Key("random_seed", keys.whole(0), "the seed", 1, none_is_absent=False)
    assert section().read_key(seed) == 1
    wrong = section(random_seed=None)
    wrong.read_key(seed)
    assert wrong.mistakes == ["[dataset] random_seed must be a whole number of at least 0, got None"]


def test_hints():
    folder = section(a=2018)
    folder.read_key(Key("a", keys.path("a folder"), ""))
    assert folder.mistakes == ["[dataset] a must be the name of a folder (./2018 where that is its name), got 2018"]
    choice = section(a="bf61")
    choice.read_key(Key("a", keys.one_of("fp32", "bf16"), ""))
    assert choice.mistakes == ["[dataset] a must be one of fp32, bf16 (did you mean bf16?), got 'bf61'"]


def test_misspelt_keys_are_named_and_those_of_others_are_not():
    known = [SIZE, Key("VF_patch_number", keys.whole(1), ""), Key("cache_dir", keys.path("a folder"), "")]
    wrong = section(vf_patchnumber=1, crop_sise=1, fv_crop_size=1, cachedir=1, cache_dir="x")
    keys.misspelt(wrong, known)
    meant = ("VF_patch_number", "crop_size", "VF_crop_size", "cache_dir")
    assert len(wrong.mistakes) == 4
    for mistake, name in zip(wrong.mistakes, meant, strict=True):
        assert f"there is no such key (did you mean {name}?); it would be ignored" in mistake
    others = section(patch_size=1, patchmix_patch_size_min=1, volumefusion_patchsize_max=1, valid_batch_size=1,
                     train_dir=1, randomcrop_output_size=1, pad_output_size=1)  # fmt: skip
    keys.misspelt(others, known)
    assert not others.mistakes


def test_tables():
    assert keys.markdown_table([SIZE]).splitlines()[2] == (
        "| `crop_size` | a list of 3 whole numbers of at least 1 | `[64, 128, 128]` | size of a crop |"
    )
    assert keys.text_table([SIZE]).splitlines()[0] == "  crop_size = [64, 128, 128]"
