"""A built wheel has what a checkout has."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path

PROJECT = Path(__file__).parents[1]


def test_wheel_is_complete(run, tmp_path: Path):
    source = tmp_path / "source"
    source.mkdir()
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(PROJECT / name, source)
    for name in ("pymic_vf", "config_examples"):
        shutil.copytree(PROJECT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    run("python", "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path, source)
    wheel = zipfile.ZipFile(next(tmp_path.glob("*.whl")))
    names = set(wheel.namelist())
    modules = {str(file.relative_to(PROJECT)) for file in (PROJECT / "pymic_vf").rglob("*.py")}
    configs = {f"pymic_vf/{file.relative_to(PROJECT)}" for file in (PROJECT / "config_examples").rglob("*.cfg")}
    assert modules | configs <= names
    assert "pymic_vf/compare/templates/report.html" in names
    assert not [name for name in names if not name.startswith("pymic_vf")]
    entry_points = next(name for name in names if name.endswith("entry_points.txt"))
    assert "[torch.backends]\npymic_vf = pymic_vf.plugin:autoload" in wheel.read(entry_points).decode()
