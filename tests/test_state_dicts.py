from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch

from pymic_vf.errors import UserError
from pymic_vf.host.weights.state_dicts import count_parameters, non_finite, with_weights, without_outer_name

W = torch.ones(2, 3)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "a.pt"
    file.write_bytes(bytes(100))
    return file


@pytest.mark.parametrize("entry", ["model_state_dict", "state_dict", "network_weights", "model"])
def test_weights_are_found_and_it_is_said(path: Path, caplog, entry: str):
    caplog.set_level(logging.INFO)
    found = with_weights({entry: {"w": W}, "epoch": 3}, path)
    assert found["model_state_dict"] == {"w": W} and found["epoch"] == 3
    assert (f"the weights are its entry {entry!r}" in caplog.text) == (entry != "model_state_dict")


def test_wrappers_of_torch_are_left_out_where_all_have_them(path: Path, caplog):
    caplog.set_level(logging.INFO)
    assert list(with_weights({"module._orig_mod.w": W, "module._orig_mod.b": W}, path)["model_state_dict"]) == [
        "w",
        "b",
    ]
    assert caplog.text.count("which is left out") == 2
    assert list(with_weights({"module.w": W, "b": W}, path)["model_state_dict"]) == ["module.w", "b"]


def test_extra_state_of_a_module_may_be_anything(path: Path):
    assert "a._extra_state" in with_weights({"state_dict": {"w": W, "a._extra_state": [1]}}, path)["model_state_dict"]


def test_what_is_there_instead_is_named(path: Path):
    content = {f"entry{n}": n for n in range(9)}
    with pytest.raises(UserError, match=r"it holds 'entry0' \(int\), .*'entry5' \(int\) and 3 more"):
        with_weights(content, path)


def test_finite_values_of_every_type():
    nan = torch.tensor([0, float("nan")])
    weights = {"a": nan, "b": nan.half(), "c": nan.to(torch.float8_e5m2), "d": nan.cfloat(), "e": W, "f": W.long()}
    assert non_finite(weights) == ["a", "b", "c", "d"]
    assert count_parameters({"a": W, "b": torch.tensor(1), "c": None}) == 7


def test_outer_names():
    assert without_outer_name({"net.a": W, "net.b": W}, ["a"]) == {"a": W, "b": W}
    given = {"net.a": W, "other.b": W}
    assert without_outer_name(given, ["a"]) is given
    assert without_outer_name(given, ["net.a"]) is given
