from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pymic_vf.files import open_whole, remove_leftovers, whole_file


def test_file_appears_whole(tmp_path: Path):
    target = tmp_path / "a.nii.gz"
    with whole_file(target) as temporary:
        assert temporary.name.endswith(".nii.gz")  # writers go by the suffix
        temporary.write_bytes(b"new")
        assert not target.exists()
    assert target.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [target]


def test_failure_leaves_the_old_file(tmp_path: Path):
    target = tmp_path / "a.txt"
    target.write_text("old")
    with pytest.raises(RuntimeError), whole_file(target) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_kill_leaves_the_old_file(tmp_path: Path):
    target = tmp_path / "a.txt"
    target.write_text("old")
    script = (
        "import os, signal\nfrom pymic_vf.files import whole_file\n"
        f"with whole_file({str(target)!r}) as temporary:\n"
        "    temporary.write_text('half')\n    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == -9
    assert target.read_text() == "old"


def test_mode_is_that_of_any_file(tmp_path: Path):
    (tmp_path / "plain").touch()
    with whole_file(tmp_path / "whole"):
        pass
    assert (tmp_path / "whole").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_what_killed_writers_left_is_removed(tmp_path: Path):
    (tmp_path / ".incomplete-abc.pt").write_bytes(b"half")
    (tmp_path / "a.pt").write_bytes(b"whole")
    with whole_file(tmp_path / "b.pt") as living:
        living.write_bytes(b"in work")
        assert [path.name for path in remove_leftovers(tmp_path)] == [".incomplete-abc.pt"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.pt", "b.pt"]


def test_a_file_opened_whole_appears_when_it_is_closed(tmp_path: Path):
    file = open_whole(tmp_path / "a.txt", "w")
    file.write("12")
    assert not (tmp_path / "a.txt").exists()
    file.close()
    file.close()
    assert (tmp_path / "a.txt").read_text() == "12" and len(list(tmp_path.iterdir())) == 1
    with open_whole(tmp_path / "a.txt") as file:
        assert file.read() == "12"
