from __future__ import annotations

from pathlib import Path

import pytest

from pymic_vf.host.config import ReadingSettings, Section, check_vf_keys, parse_reading


def parsed(**values) -> tuple[ReadingSettings, list[str]]:
    mistakes: list[str] = []
    return parse_reading(Section({k.lower(): v for k, v in values.items()}, "dataset", mistakes)), mistakes


def test_defaults():
    assert parsed() == (ReadingSettings(None, None, 0.05), [])


def test_values():
    settings, mistakes = parsed(VF_cache_dir="cache", VF_cache_max_gib=3, VF_max_bad_fraction=0)
    assert settings == ReadingSettings(Path("cache"), 3.0, 0.0) and not mistakes


def test_a_home_folder_is_what_it_is_to_a_shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert parsed(VF_cache_dir="~/x") == (ReadingSettings(tmp_path / "x"), [])


def test_a_wrong_folder_is_not_a_missing_one():
    _, mistakes = parsed(VF_cache_dir=["a"], VF_cache_max_gib=3)
    assert mistakes == ["[dataset] VF_cache_dir must be the name of a folder, got ['a']"]


@pytest.mark.parametrize(
    ("values", "mistake"),
    [
        (
            {"VF_cache_dir": 3},
            "[dataset] VF_cache_dir must be the name of a folder (./3 where that is its name), got 3",
        ),
        (
            {"VF_cache_dir": "~nobody_of_that_name/x"},
            "[dataset] VF_cache_dir must not begin with ~ and the name of a user that there is not, "
            "got '~nobody_of_that_name/x'",
        ),
        ({"VF_cache_max_gib": 3}, "[dataset] VF_cache_max_gib needs VF_cache_dir, got 3"),
        ({"VF_max_bad_fraction": 5}, "[dataset] VF_max_bad_fraction must be a number from 0 to 1, got 5"),
        ({"VF_max_bad_fraction": "5%"}, "[dataset] VF_max_bad_fraction must be a number from 0 to 1, got '5%'"),
    ],
)
def test_mistakes(values: dict, mistake: str):
    assert parsed(**values)[1] == [mistake]


@pytest.mark.parametrize(
    ("section", "key", "mistake"),
    [
        ("training", "vf_cache_dir", "VF_cache_dir belongs in [dataset] and would be ignored here, got 5"),
        (
            "training",
            "vfcache_dir",
            "vfcache_dir: there is no such key (did you mean VF_cache_dir?); it would be ignored, and such keys belong "
            "in [dataset], got 5",
        ),
        *(
            ("dataset", key, f"{key}: there is no such key (did you mean {meant}?); it would be ignored, got 5")
            for key, meant in (
                ("vfcache_dir", "VF_cache_dir"),
                ("vf-cache-dir", "VF_cache_dir"),
                ("cache_dir", "VF_cache_dir"),
                ("fv_crop_size", "VF_crop_size"),
                ("vf_patchnumber", "VF_patch_number"),
            )
        ),
    ],
)
def test_keys_that_would_be_ignored(section: str, key: str, mistake: str):
    mistakes: list[str] = []
    check_vf_keys({"dataset": {"vf_crop_size": [8, 8, 8]}, section: {key: 5}}, mistakes)
    assert mistakes == [f"[{section}] {mistake}"]


def test_keys_of_others_are_left_alone():
    names = ("patch_size", "patchmix_patch_size_min", "volumefusion_patchsize_max", "valid_batch_size", "train_dir")
    mistakes: list[str] = []
    check_vf_keys({"dataset": dict.fromkeys(names, 5), "network": {"crop_size": 5}}, mistakes)
    assert not mistakes
