from __future__ import annotations

import re

import pytest

from pymic_vf.host.settings.inference_settings import INFERENCE_KEYS, InferenceSettings, parse_inference
from pymic_vf.keys import markdown_table

FAST = {"sliding_window_inferer": "fast", "sliding_window_enable": True,
        "sliding_window_size": [8, 16, 16], "sliding_window_stride": [4, 8, 8]}  # fmt: skip
STOCK = {**FAST, "sliding_window_inferer": "stock"}


def parsed(testing: dict, stage: str = "test", dataset: dict | None = None, **options):
    mistakes: list[str] = []
    return parse_inference({"testing": testing, "dataset": dataset or {}}, stage, mistakes, **options), mistakes


@pytest.mark.parametrize("stage", ["valid", "test"])
@pytest.mark.parametrize("testing", [{}, {**STOCK, "tta_mode": 9}, {"sliding_window_inferer": None}])
def test_stock_configs_are_left_to_pymic(testing, stage):
    assert parsed(testing, stage) == (None, [])


def test_without_a_section():
    assert parse_inference({}, "valid", []) is None


def test_settings_of_a_test():
    testing = {**FAST, "sliding_window_batch": 8, "tta_mode": 1}
    assert parsed(testing) == (InferenceSettings((8, 16, 16), (4, 8, 8), 8, 1), [])
    assert parsed({**testing, "sliding_window_enable": False}) == (InferenceSettings(tta_mode=1), [])
    assert parsed({**FAST, "sliding_window_size": [None, 16, 16]})[0].window == (None, 16, 16)


def test_settings_of_a_validation():
    testing = {**FAST, "sliding_window_batch": 8, "tta_mode": 1}
    expected = InferenceSettings((6, 5, 1), (3, 2, 1), 8, result_on_image_device=True)
    assert parsed(testing, "valid", {"patch_size": [6, 5, 1]}) == (expected, [])
    assert parsed(testing, "valid")[0].window == (8, 16, 16)
    assert parsed({**testing, "sliding_window_enable": False}, "valid")[0].window is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sliding_window_inferer": "fats"}, r"must be one of stock, fast \(did you mean fast\?\), got 'fats'"),
        ({"sliding_window_inferrer": "fast"}, r"sliding_window_inferrer.*did you mean sliding_window_inferer\?"),
        ({"sliding_window_size": None}, "sliding_window_size is missing"),
        ({"sliding_window_size": [8, 16.5, 16]}, r"sliding_window_size must be .* got \[8, 16.5, 16\]"),
        ({"sliding_window_size": [True, 16, 16]}, r"sliding_window_size must be .* got \[True, 16, 16\]"),
        ({"sliding_window_stride": [4, 0, 8]}, r"sliding_window_stride must be .* got \[4, 0, 8\]"),
        ({"sliding_window_stride": [4, 8]}, r"sliding_window_stride must have 3 entries.* got \[4, 8\]"),
        ({"sliding_window_batch": 0}, "sliding_window_batch must be .* got 0"),
        ({"tta_mode": 3}, "tta_mode must be .* got 3"),
        ({"sliding_window_enable": "yes"}, "sliding_window_enable must be True or False, got 'yes'"),
    ],
)
def test_a_mistake_is_named(changes, message):
    mistakes = parsed({**FAST, **changes})[1]
    assert len(mistakes) == 1 and re.search(message, mistakes[0])


def test_a_wrong_inferer_does_not_hide_the_other_mistakes():
    changes = {"sliding_window_inferer": "fats", "sliding_window_enable": "yes", "sliding_window_stride": [4, 0, 8]}
    settings, mistakes = parsed({**FAST, **changes, "tta_mode": 9})
    assert settings is None
    assert {m.split()[1] for m in mistakes} == {*changes, "tta_mode"}


@pytest.mark.parametrize("key", ["sliding_window_size", "sliding_window_stride", "patch_size"])
def test_the_number_of_axes_where_it_is_known(key):
    section, stage = ("dataset", "valid") if key == "patch_size" else ("testing", "test")
    sections = {"testing": dict(FAST), "dataset": {}}
    sections[section][key] = [8, 8]
    _, mistakes = parsed(sections["testing"], stage, sections["dataset"], axes=3)
    rule = "must be a list of 3 whole numbers of at least 1 (None: the whole axis), got [8, 8]"
    assert mistakes == [f"[{section}] {key} {rule}"]


@pytest.mark.parametrize(
    ("changes", "stage", "message"),
    [
        ({"tta_mode": 3}, "test", "tta_mode must be .* at most 2, got 3"),
        ({"tta_mode": None}, "test", "tta_mode must be .* got None"),
        ({"sliding_window_stride": [8, 0, 16]}, "test", r"sliding_window_stride must be .* got \[8, 0, 16\]"),
        ({"sliding_window_stride": None}, "test", "sliding_window_stride is missing"),
        ({"sliding_window_batch": None}, "test", "sliding_window_batch must be .* got None"),
        ({"sliding_window_enable": "yes"}, "valid", "sliding_window_enable must be True or False"),
        ({"sliding_window_size": [None, 16, 16]}, "valid", "sliding_window_size must have entries of at least 2"),
        ({"sliding_window_size": [1, 16, 16]}, "valid", "sliding_window_size must have entries of at least 2"),
    ],
)
def test_what_fails_in_pymics_own_inferer(changes, stage, message):
    settings, mistakes = parsed({**STOCK, **changes}, stage, axes=3, stock_too=True)
    assert settings is None
    assert len(mistakes) == 1 and re.search(message, mistakes[0])


@pytest.mark.parametrize(
    "changes",
    [
        *({"tta_mode": tta_mode} for tta_mode in (0, 1, 2)),
        {"sliding_window_size": [None, 16, 16], "sliding_window_stride": [None, 8, 8]},
        {"sliding_window_enable": False, "sliding_window_size": 3, "sliding_window_batch": 0},
        {"sliding_window_enable": None},
    ],
)
def test_what_pymics_own_inferer_takes(changes):
    assert parsed({**STOCK, **changes}, axes=3, stock_too=True) == (None, [])


def test_the_table_of_the_keys():
    rows = markdown_table(INFERENCE_KEYS).splitlines()[2:]
    assert rows[0].startswith("| `sliding_window_inferer` | one of stock, fast | `stock` |")
    assert "| a list of whole numbers of at least 1 (None: the whole axis) | none |" in rows[2]
