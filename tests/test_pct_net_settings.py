from __future__ import annotations

import logging

import pytest

from pymic_vf.errors import ConfigError
from pymic_vf.networks.pct_net import PCTNet
from pymic_vf.networks.pct_net_settings import parse_network_settings

GOOD = {"net_type": "PCTNet", "in_chns": 1, "class_num": 5, "input_size": [64, 128, 128], "resolution_mode": 1}

WHOLE, RATES = "whole numbers of at least 1", "numbers from 0 to below 1"


def mistakes_of(**changes) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse_network_settings(GOOD | changes)
    return caught.value.mistakes


def test_defaults_are_those_of_the_released_network():
    settings = parse_network_settings({"in_chns": 1, "class_num": 2, "input_size": [64, 128, 128]})
    assert settings.feature_chns == (32, 64, 128, 256, 512)
    assert settings.dropout == (0, 0, 0.2, 0.2, 0.2)
    assert settings.depths == (2, 2, 2)
    assert settings.num_heads == (4, 8, 16)
    assert settings.window_sizes == (6, 6, 6)
    assert (settings.multiscale_pred, settings.resolution_mode, settings.update_mode) == (False, 0, 0)


@pytest.mark.parametrize(
    ("mode", "strides"), [(0, [(2, 2, 2), (4, 4, 4)]), (1, [(1, 2, 2), (2, 4, 4)]), (2, [(1, 2, 2), (1, 4, 4)])]
)
def test_strides_follow_the_resolution_mode(mode, strides):
    settings = parse_network_settings(GOOD | {"resolution_mode": mode})
    assert settings.strides[:1] == ((1, 1, 1),)
    assert list(settings.strides[1:3]) == strides
    assert settings.strides[4] == tuple(4 * s for s in strides[1])


@pytest.mark.parametrize(
    ("size", "mode", "window"),
    [
        ([64, 128, 128], 1, (6, 3)),  # level 4 is 8 x 8 x 8
        ([48, 128, 128], 1, (6, 0)),  # 6 x 8 x 8: equality counts
        ([47, 128, 128], 1, (5, 0)),  # rounded down
        ([64, 128, 128], 0, (4, 0)),
        ([64, 80, 128], 1, (5, 0)),
    ],
)
def test_a_window_as_large_as_its_level_becomes_the_smallest_side_unshifted(size, mode, window):
    assert parse_network_settings(GOOD | {"input_size": size, "resolution_mode": mode}).window(4) == window


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"in_chns": None}, "[network] in_chns is missing: channels of the input"),
        ({"class_num": 0}, "[network] class_num must be a whole number of at least 1, got 0"),
        ({"class_num": True}, "[network] class_num must be a whole number of at least 1, got True"),
        ({"class_num": "five"}, "[network] class_num must be a whole number of at least 1, got 'five'"),
        (
            {"input_size": [64, 128]},
            f"[network] input_size must be a list of 3 {WHOLE} (D, H, W), got [64, 128]",
        ),
        (
            {"input_size": [64, 128, 15]},
            "[network] input_size must be at least [8, 16, 16] for the poolings of resolution_mode 1: axis W is 15",
        ),
        (
            {"feature_chns": [1, 2, 3]},
            f"[network] feature_chns must be a list of 5 {WHOLE} (levels 0 to 4), got",
        ),
        (
            {"feature_chns": 24},
            f"[network] feature_chns must be a list of 5 {WHOLE} (levels 0 to 4), got 24",
        ),
        (
            {"num_heads": [3, 8, 16]},
            "[network] num_heads must divide feature_chns level by level: at level 2, 3 heads do not divide 128",
        ),
        ({"dropout": [0, 0, 0, 0, 1]}, f"must be a list of 5 {RATES} (levels 0 to 4), got [0, 0, 0, 0, 1]"),
        (
            {"dropout": [0, 0, 0, 0, "a"]},
            f"must be a list of 5 {RATES} (levels 0 to 4), got [0, 0, 0, 0, 'a']",
        ),
        ({"window_sizes": [6, 6, 0]}, f"must be a list of 3 {WHOLE} (levels 2 to 4), got [6, 6, 0]"),
        ({"depths": [2, 2.5, 2]}, f"must be a list of 3 {WHOLE} (levels 2 to 4), got [2, 2.5, 2]"),
        ({"resolution_mode": 3}, "[network] resolution_mode must be one of 0, 1, 2, got 3"),
        ({"update_mode": 2}, "[network] update_mode must be one of 0, 1, got 2"),
        ({"multiscale_pred": 1}, "[network] multiscale_pred must be True or False, got 1"),
    ],
)
def test_a_mistake_is_named_with_key_rule_and_value(changes, message):
    mistakes = mistakes_of(**changes)
    assert len(mistakes) == 1
    assert message in mistakes[0]


def test_all_mistakes_are_reported_together():
    bad = {"class_num": -1, "dropout": 0.2, "num_heads": [5, 8, 16], "input_size": [4, 8, 128], "update_mode": 2}
    mistakes = mistakes_of(**bad)
    assert len(mistakes) == 6  # two axes of input_size
    with pytest.raises(ConfigError, match="6 mistakes in the configuration"):
        PCTNet(GOOD | bad)


def test_keys_that_nothing_reads_are_logged(caplog):
    with caplog.at_level(logging.WARNING):
        parse_network_settings(GOOD | {"precision": "bf16", "compile": True})
        assert not caplog.records
        parse_network_settings(GOOD | {"window_size": 6})
    assert caplog.messages == ["[network] window_size = 6 is not read by PCTNet (did you mean window_sizes?)"]
