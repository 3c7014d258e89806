"""Phantoms are seeded, look like CT, and make a data folder that PyMIC reads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk
from scipy import ndimage

from pymic_vf.demo.phantom import DEFAULT_SIZE, ORGANS, make_phantom, usual_spacing, write_phantoms
from pymic_vf.demo.phantom_anatomy import Piece, tube
from pymic_vf.errors import UserError

FEW = {"pretrain": 3, "train": 1, "test": 2}
SMALL = (24, 32, 40)


@pytest.fixture(scope="module")
def phantoms():
    return [make_phantom(seed) for seed in range(20)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_phantoms(tmp_path_factory.mktemp("phantoms") / "data", FEW, seed=3, size=SMALL)


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted((folder / "volumes").iterdir())}


def dice(one: np.ndarray, other: np.ndarray) -> float:
    return 2 * (one & other).sum() / (one.sum() + other.sum())


def test_same_seed_same_voxels_and_another_seed_another_patient(phantoms):
    image, label = make_phantom(1)
    assert image.shape == label.shape == DEFAULT_SIZE
    assert (image.dtype, label.dtype) == (np.int16, np.uint8)
    np.testing.assert_array_equal(image, phantoms[1][0])
    np.testing.assert_array_equal(label, phantoms[1][1])
    assert dice(label > 0, phantoms[2][1] > 0) < 0.9


def test_densities_are_those_of_ct(phantoms):
    others = []
    for image, label in phantoms:
        assert image.min() >= -1024 and image.max() <= 3071
        assert -1010 < np.median(image[:, :3]) < -990  # in front of the patient there is air
        assert 0.003 < (image > 300).mean() < 0.1  # bone
        assert 0.02 < ((image > -950) & (image < -650)).mean() < 0.3  # lungs
        medians = [np.median(image[label == organ]) for organ in (1, 2, 3)]  # with and without contrast medium
        assert 40 < medians[0] < 130 and 20 < medians[1] < 190 and 20 < medians[2] < 230
        low, high = np.percentile(image[label == 1], (10, 90))
        others.append((label[(image >= low) & (image <= high)] != 1).mean())
        assert 25 < high - low < 150  # noise and texture, strong enough to see and weak enough to see through
    # density alone does not identify the liver: most voxels with a density of it are something else
    assert min(others) > 0.4 and np.median(others) > 0.6


def test_every_organ_is_there_on_its_side(phantoms):
    middle = DEFAULT_SIZE[2] // 2
    voxels = np.array([np.bincount(label.ravel()) for _, label in phantoms])
    assert voxels.shape == (20, len(ORGANS) + 1) and (voxels > 400).all()
    assert (voxels[:, 1] > 1.5 * voxels[:, 2:].max(axis=1)).all()  # the liver is the largest
    assert (voxels[:, 1:].std(axis=0) > 0.1 * voxels[:, 1:].mean(axis=0)).all()  # of other size in other patients
    for _, label in phantoms:
        assert ndimage.label(label == 3, np.ones((3, 3, 3)))[1] == 1  # the aorta is in one piece
        assert (label[..., :middle] == 1).sum() > 2 * (label[..., middle:] == 1).sum()  # the patient's right
        assert (label[..., :middle] == 2).sum() > 150 and (label[..., middle:] == 2).sum() > 150  # a kidney each


def test_density_alone_does_not_identify_the_liver(phantoms):
    """Of all voxels with a density of the liver, half or more are something else in most patients."""
    others = []
    for image, label in phantoms:
        low, high = np.percentile(image[label == 1], (10, 90))
        others.append((label[(image >= low) & (image <= high)] != 1).mean())
    assert min(others) > 0.4 and np.median(others) > 0.6


def test_another_resolution_is_the_same_patient():
    coarse, fine = (32, 56, 56), (64, 112, 112)
    spacing = np.array(usual_spacing(coarse))
    _, label = make_phantom(2, coarse, spacing)
    _, finer = make_phantom(2, fine, spacing / 2)
    enlarged = label.repeat(2, 0).repeat(2, 1).repeat(2, 2)
    for organ in (1, 2, 3):
        assert dice(enlarged == organ, finer == organ) > 0.8


def test_distances_are_in_mm():
    points = [np.array([0.0, 10.0]), np.zeros(2), np.zeros(2)]
    ball = Piece(np.zeros(3), np.zeros(3), np.full(3, 4.0))
    np.testing.assert_allclose(ball.distance(points), [-4, 6])
    (stick,) = tube([np.array([0.0, 0, -5]), np.array([0.0, 0, 5])], 2, 4)
    np.testing.assert_allclose(stick.distance(points), [-3, 7], rtol=1e-6)  # 3 mm thick in the middle
    np.testing.assert_array_equal(stick.box(), [[-4, -4, -9], [4, 4, 9]])


def test_folder_has_what_its_csv_files_name(folder):
    listed = set()
    for name, count in FEW.items():
        table = pd.read_csv(folder / f"{name}.csv")
        assert list(table) == (["image"] if name == "pretrain" else ["image", "label"])
        assert len(table) == count
        listed |= set(table.to_numpy().ravel())
    assert listed == {file.name for file in (folder / "volumes").iterdir()}
    pairs, test = pd.read_csv(folder / "evaluation.csv"), pd.read_csv(folder / "test.csv")
    assert list(pairs) == ["ground_truth", "segmentation"]
    assert list(pairs["ground_truth"]) == list(test["label"])
    assert list(pairs["segmentation"]) == list(test["image"])  # what pymic_test calls its results
    assert not (folder / "valid.csv").exists()


def test_scans_differ_in_spacing_and_cover_the_same(folder):
    images = [sitk.ReadImage(str(folder / "volumes" / f"pretrain_00{number}.nii.gz")) for number in range(3)]
    assert len({image.GetSize() for image in images}) == 3
    assert images[0].GetSize() == SMALL[::-1]
    fields = [np.multiply(image.GetSize(), image.GetSpacing()) for image in images]
    np.testing.assert_allclose(fields, np.broadcast_to([450, 360, 300], (3, 3)), rtol=1e-5)
    image, label = (sitk.ReadImage(str(folder / "volumes" / f"test_001{end}.nii.gz")) for end in ("", "_lab"))
    assert image.GetSize() == label.GetSize() and image.GetSpacing() == label.GetSpacing()
    assert (image.GetPixelID(), label.GetPixelID()) == (sitk.sitkInt16, sitk.sitkUInt8)


def test_a_scan_does_not_depend_on_how_many_there_are(folder, tmp_path):
    more = contents(write_phantoms(tmp_path / "data", {"pretrain": 1, "valid": 1, "test": 1}, seed=3, size=SMALL))
    same = {name for name in more if contents(folder).get(name) == more[name]}
    assert same == {"pretrain_000.nii.gz", "test_000.nii.gz", "test_000_lab.nii.gz"}
    assert len(set(more.values())) == len(more)  # no two scans alike


def test_a_cut_short_run_is_resumed(folder, tmp_path):
    lines: list[str] = []
    again = write_phantoms(tmp_path / "data", FEW, seed=3, size=SMALL)
    (again / "volumes" / "test_001_lab.nii.gz").unlink()
    (again / "test.csv").unlink()
    write_phantoms(again, FEW, seed=3, size=SMALL, report=lines.append)
    assert contents(again) == contents(folder)
    assert (again / "test.csv").read_text() == (folder / "test.csv").read_text()
    assert [line.endswith("was there already") for line in lines] == [True] * 5 + [False]


def test_other_peoples_folders_are_left_alone(folder, tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    for out in (tmp_path, tmp_path / "thesis.txt"):
        with pytest.raises(UserError, match="holds no phantoms: choose a new or empty folder"):
            write_phantoms(out, FEW, size=SMALL)
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.txt"]
    with pytest.raises(UserError, match="seed = 3, not 4"):
        write_phantoms(folder, FEW, seed=4, size=SMALL)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda _: make_phantom(0, (4, 32, 32)), r"at least 8, got \[4, 32, 32\]"),
        (lambda _: make_phantom(0, (32, 32)), "three whole numbers"),
        (lambda _: make_phantom(0, (32, 32, 32), (1, 0, 1)), r"above 0, got \[1.0, 0.0, 1.0\]"),
        (lambda _: make_phantom(0, (32, 32, 32), (1, np.nan, 1)), "above 0"),
        (lambda out: write_phantoms(out, {"pretrian": 2}), r"no set 'pretrian' \(did you mean pretrain\?\)"),
        (lambda out: write_phantoms(out, {"train": -1}), "train phantoms must be at least 0, got -1"),
        (lambda out: write_phantoms(out, seed=-1), "seed must be at least 0, got -1"),
        (lambda out: write_phantoms(out, size=(8, 64, 64)), "at least 16"),
    ],
)
def test_wrong_arguments_are_named_before_anything_is_made(tmp_path, make, message):
    with pytest.raises(UserError, match=message):
        make(tmp_path / "data")
    assert not (tmp_path / "data").exists()
