from __future__ import annotations

from pathlib import Path

import pytest

from pymic_vf.data.scan_list import read_scan_list, read_table


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a.nii.gz", "b.nii.gz", "ü c.nii.gz"):
        (tmp_path / name).touch()
    return tmp_path


def read(folder: Path, text: str, modalities: int = 1):
    mistakes: list[str] = []
    (folder / "list.csv").write_text(text)
    return read_scan_list(folder / "list.csv", folder, modalities, mistakes, needed=2), mistakes


def test_files_in_order(folder: Path):
    scans, mistakes = read(folder, "label,image\nx,b.nii.gz\ny,ü c.nii.gz\n\n")
    assert not mistakes
    assert [scans.files(i) for i in range(len(scans))] == [[folder / "b.nii.gz"], [folder / "ü c.nii.gz"]]


def test_first_columns_are_modalities(folder: Path):
    scans, mistakes = read(folder, "t1,t2,label\na.nii.gz,b.nii.gz,x\nb.nii.gz,a.nii.gz,y\n", 2)
    assert not mistakes
    assert scans.files(0) == [folder / "a.nii.gz", folder / "b.nii.gz"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("images\na.nii.gz\nb.nii.gz\n", "has no column 'image' (did you mean images?); its columns are ['images']"),
        ("image\na.nii.gz\n", "a sample needs 2 different scans, this file has 1"),
        ("image\na.nii.gz\na.nii.gz\n", "a sample needs 2 different scans, this file has 1"),
        ("image\na.nii.gz\n./a.nii.gz\nsub/../a.nii.gz\n", "needs 2 different scans, this file has 1"),
        ("image,x\na.nii.gz,1\n,2\nb.nii.gz,3\n", "has no file name: line 3"),
        ('image,x\na.nii.gz,1\n"",2\nb.nii.gz,3\n', "has no file name: line 3"),
        ("image\na.nii.gz\nNA\nb.nii.gz\nnull\n", "names files that do not exist"),
        ("", "cannot be read as csv"),
    ],
)
def test_mistakes(folder: Path, text: str, message: str):
    _, mistakes = read(folder, text)
    assert len(mistakes) == 1 and message in mistakes[0] and "list.csv" in mistakes[0]


def test_missing_files_have_their_lines(folder: Path):
    rows = "".join(f"gone_{i}.nii.gz\n" for i in range(7))
    _, mistakes = read(folder, f"image\na.nii.gz\n\nb.nii.gz\n{rows}sub/x.nii.gz\n")
    assert len(mistakes) == 1
    assert "gone_0.nii.gz (line 5)" in mistakes[0] and mistakes[0].endswith("(line 9) and 3 more")


def test_missing_csv_and_folder(tmp_path: Path):
    mistakes: list[str] = []
    read_scan_list(tmp_path / "no.csv", tmp_path / "nowhere", 1, mistakes)
    assert len(mistakes) == 2
    assert any("no.csv: there is no such csv file" in m for m in mistakes)
    assert any("train_dir" in m and "nowhere: there is no such folder" in m for m in mistakes)


@pytest.mark.parametrize("name", ["NA", "null", "nan", "None"])
def test_a_scan_may_have_a_name_that_pandas_takes_for_nothing(folder: Path, name: str):
    (folder / name).touch()
    scans, mistakes = read(folder, f"image\na.nii.gz\n\n{name}\n")
    assert not mistakes
    assert [scans.files(i) for i in range(len(scans))] == [[folder / "a.nii.gz"], [folder / name]]


def test_empty_lines_and_cells_of_a_table(folder: Path):
    (folder / "list.csv").write_text("image,label\nNA,null\n\n,b.nii.gz\n")
    table = read_table(folder / "list.csv", [])
    assert list(table.index) == [2, 4]
    assert table.isna().to_numpy().tolist() == [[False, False], [True, False]]


def test_one_scan_by_several_names_counts_once(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(folder.parent)
    rows = f"./a.nii.gz\nb.nii.gz\na.nii.gz\n{folder}//a.nii.gz\n"
    for root in (folder, Path(folder.name)):
        scans, mistakes = read(root, f"image\n{rows}")
        assert not mistakes
        assert [scans.files(i) for i in range(len(scans))] == [[root / "a.nii.gz"], [root / "b.nii.gz"]]
