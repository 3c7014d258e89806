from __future__ import annotations

from pathlib import Path

import pytest

from pymic_vf.config import ReadingSettings, Section, parse_reading


def parsed(**values) -> tuple[ReadingSettings, list[str]]:
    mistakes: list[str] = []
    return parse_reading(Section({k.lower(): v for k, v in values.items()}, "dataset", mistakes)), mistakes


def test_defaults():
    assert parsed() == (ReadingSettings(None, None, 0.05), [])


def test_values():
    settings, mistakes = parsed(VF_cache_dir="cache", VF_cache_max_gib=3, VF_max_bad_fraction=0)
    assert settings == ReadingSettings(Path("cache"), 3.0, 0.0) and not mistakes


@pytest.mark.parametrize(
    ("values", "mistake"),
    [
        ({"VF_cache_dir": 3}, "[dataset] VF_cache_dir must be the name of a folder, got 3"),
        ({"VF_cache_max_gib": 3}, "[dataset] VF_cache_max_gib needs VF_cache_dir, got 3"),
        ({"VF_max_bad_fraction": 5}, "[dataset] VF_max_bad_fraction must be a number from 0 to 1, got 5"),
        ({"VF_max_bad_fraction": "5%"}, "[dataset] VF_max_bad_fraction must be a number from 0 to 1, got '5%'"),
    ],
)
def test_mistakes(values: dict, mistake: str):
    assert parsed(**values)[1] == [mistake]
