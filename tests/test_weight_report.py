from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pymic_vf.errors import UserError
from pymic_vf.host.weights.weight_report import FILE, MOST_LINES, Misfit, WeightReport, compare_weights


def weights(**shapes: tuple[int, ...]) -> dict[str, torch.Tensor]:
    return {name.replace("_", "."): torch.zeros(shape) for name, shape in shapes.items()}


def test_counts_and_groups_by_reason():
    given = weights(a=(2,), b=(3,), x_0_p=(1,), x_0_q=(1,), x_0_r=(1,), y=(1,), z_0_p=(1,), z_0_q=(1,))
    wanted = weights(a=(2,), b=(4,), c=(1,))
    report = compare_weights(given, wanted, lambda name: "of another mode" if name.startswith("x") else None)
    assert report.table("Weights").splitlines() == [
        "Weights",
        "  loaded         1",
        "  mis-shaped     1",
        "  missing        1",
        "  unused         6",
        "  mis-shaped: b: (3,) in the file, (4,) in the network",
        "  missing: c",
        "  unused: 3 weights, x.0.p and others: of another mode",
        "  unused: y",
        "  unused: z.0.* (2 weights)",
    ]
    full = report.full_text("Weights").splitlines()
    assert "  x.0.q: of another mode" in full and "  a" in full and "missing (1)" in full


def test_new_heads_and_channels_are_explained():
    given = weights(head=(5, 8, 1, 1, 1), bias=(5,), first=(4, 1, 3, 3, 3), odd=(4, 2, 3, 3, 3))
    wanted = weights(head=(2, 8, 1, 1, 1), bias=(2,), first=(4, 3, 3, 3, 3), odd=(4, 3, 3, 3, 3))
    reasons = {m.name: m.reason for m in compare_weights(given, wanted, class_num=2, in_chns=3).mis_shaped}
    assert reasons["head"] == reasons["bias"]
    assert reasons["head"] == "class_num is 5 in the file and 2 here, new heads start from random weights"
    assert reasons["first"].startswith("in_chns is 1 in the file and 3 here; [network] in_chns_inflate = True would")
    assert reasons["odd"] == ""  # 2 channels do not make 3


def test_whole_numbers_are_no_weights_of_a_convolution():
    report = compare_weights({"w": torch.ones(2, dtype=torch.int8)}, {"w": torch.ones(2)})
    assert not report.loaded
    assert report.mis_shaped[0].reason == "int8 in the file, float32 in the network"
    assert compare_weights({"w": torch.ones(2).half()}, {"w": torch.ones(2)}).loaded == ["w"]


def test_the_table_is_short_and_the_file_is_not(tmp_path: Path):
    unused = [Misfit(f"part{n}.block.{side}") for n in range(50) for side in "ab"]
    report = WeightReport(["w"], [], [], unused, inflated=["w"])
    lines = report.table("Weights").splitlines()
    assert len(lines) == MOST_LINES
    assert lines[5] == "  inflated: w, repeated for more channels and divided"
    assert lines[-1] == "  unused: 42 more groups" and lines[-2] == "  unused: part7.block.* (2 weights)"
    both = WeightReport([], [], [Misfit(f"n{n}.a.b") for n in range(9)], unused).table("Weights").splitlines()
    assert len(both) == MOST_LINES and both[9:11] == ["  missing: 5 more groups", "  unused: part0.block.* (2 weights)"]
    path = report.write(tmp_path / "new", "Weights")
    assert path.name == FILE and [file.name for file in path.parent.iterdir()] == [FILE]
    assert path.read_text().count("part") == 100


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file/weights_loaded\.txt: cannot be written"):
        WeightReport([], [], [], []).write(tmp_path / "file", "Weights")
