"""docs/adding_a_method.md, followed as it is written: in a copy of the package, by PyMIC's own command."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from pymic_vf.demo.phantom import write_phantoms

PROJECT = Path(__file__).parents[1]
PAGE = (PROJECT / "docs" / "adding_a_method.md").read_text()


def blocks(language: str) -> list[str]:
    """The page's fenced blocks in one language; "" for those that name none."""
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE, re.M | re.S)
    return [text for name, text in fenced if name == language]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a reader has after the first three steps."""
    out = tmp_path_factory.mktemp("method")
    shutil.copytree(PROJECT / "pymic_vf", out / "pymic_vf", ignore=shutil.ignore_patterns("__pycache__"))
    method, row, test = blocks("python")
    (out / "pymic_vf" / "methods" / "denoising.py").write_text(method)
    table = out / "pymic_vf" / "methods" / "__init__.py"
    before = table.read_text()
    new_row = next(line for line in row.splitlines() if "Denoising" in line)
    table.write_text(re.sub(r"(?ms)^(METHODS = \{.*?)^\}", rf"\1{new_row}\n}}", before))
    assert row.strip() in table.read_text()
    (out / "pretrain_denoising.cfg").write_text(blocks("ini")[0])
    (out / "test_denoising.py").write_text(test)
    write_phantoms(out / "data", {"pretrain": 2}, size=(24, 40, 40))
    return out


def test_the_page(run, folder: Path):
    """Its commands in their order, then its test."""
    here = {"PYTHONPATH": str(folder)}
    commands = [line.split() for line in blocks("")[0].splitlines()]
    assert [command[:2] for command in commands] == [
        ["pymic_vf", "check"], ["pymic_vf", "preview"], ["pymic_train", "pretrain_denoising.cfg"]
    ]  # fmt: skip
    for command in commands:
        done = run(*command, cwd=folder, env=here)
    assert "Denoising of 2 scans, no valid_csv; crops [16, 32, 32]" in done.stdout
    assert (folder / "denoising.png").read_bytes().startswith(b"\x89PNG")
    assert (folder / "model" / "denoising" / "denoising_4.pt").is_file()
    keys = run("pymic_vf", "keys", "Denoising", cwd=folder, env=here).stdout
    assert "Denoising_level = 0.5\n      standard deviation of the noise; a number from 0 to 10" in keys
    test = blocks("python")[2]
    name = re.search(r"def (test_\w+)", test)[1]
    run("python", "-c", f"import test_denoising; test_denoising.{name}()", cwd=folder, env=here)
