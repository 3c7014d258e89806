"""Phantoms are seeded, look like CT, and make a data folder that PyMIC reads."""

from __future__ import annotations

import gzip
import json

import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk
from scipy import ndimage

from pymic_vf.demo.phantom import DEFAULT_SIZE, ORGANS, make_phantom, usual_spacing, write_phantoms
from pymic_vf.demo.phantom_shapes import Capsule, Ellipsoid, Layer, rotation
from pymic_vf.errors import UserError

FEW = {"pretrain": 3, "train": 1, "test": 2}
SMALL = (24, 32, 40)


@pytest.fixture(scope="module")
def phantoms():
    return [make_phantom(seed) for seed in range(4)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_phantoms(tmp_path_factory.mktemp("phantoms") / "data", FEW, seed=3, size=SMALL)


def contents(folder):
    return {file.name: file.read_bytes() for file in sorted((folder / "volumes").iterdir())}


def test_shape_and_type(phantoms):
    for image, label in phantoms:
        assert image.shape == label.shape == DEFAULT_SIZE
        assert (image.dtype, label.dtype) == (np.int16, np.uint8)
        assert image.min() >= -1024 and image.max() <= 3071


def test_same_seed_same_voxels_and_another_seed_another_patient(phantoms):
    image, label = make_phantom(1)
    np.testing.assert_array_equal(image, phantoms[1][0])
    np.testing.assert_array_equal(label, phantoms[1][1])
    overlap = (label > 0) & (phantoms[2][1] > 0)
    assert overlap.sum() < 0.9 * (label > 0).sum()


def test_densities_are_those_of_ct(phantoms):
    for image, label in phantoms:
        assert -1010 < np.median(image[:, :3]) < -990  # in front of the patient there is air
        assert 0.005 < (image > 300).mean() < 0.1  # bone
        chest = image[-8:, 20:45]
        assert 0.1 < ((chest < -650) & (chest > -950)).mean() < 0.9  # lungs
        assert 40 < np.median(image[label == 1]) < 130  # the liver, with and without contrast medium
        assert 20 < np.median(image[label == 2]) < 180
        assert 20 < np.median(image[label == 3]) < 230


def test_every_organ_is_there_in_one_piece_or_two(phantoms):
    for _, label in phantoms:
        voxels = np.bincount(label.ravel(), minlength=len(ORGANS) + 1)
        assert len(voxels) == len(ORGANS) + 1
        assert voxels[1] > 1.5 * voxels[2:].max()  # the liver is the largest
        assert (voxels[1:] > 400).all()
        _, pieces = ndimage.label(label == 3, np.ones((3, 3, 3)))
        assert pieces == 1  # the aorta
        middle = label.shape[2] // 2
        assert (label[..., :middle] == 2).any() and (label[..., middle:] == 2).any()  # a kidney on either side
        assert (label[..., :middle] == 1).sum() > (label[..., middle:] == 1).sum()  # the liver on the patient's right


def test_density_alone_does_not_tell_the_liver(phantoms):
    """There is more other tissue of the liver's density than liver: a threshold finds mostly the rest."""
    for image, label in phantoms:
        low, high = np.percentile(image[label == 1], (10, 90))
        alike = (image >= low) & (image <= high)
        assert (alike & (label != 1)).sum() > 1.3 * (alike & (label == 1)).sum()


def test_noise_is_there():
    """Neighbouring voxels of a smooth organ differ by the noise; its strength is drawn from 14 to 30 HU times 0.9."""
    image, label = make_phantom(5, (20, 160, 160))
    inside = ndimage.binary_erosion(label == 1, iterations=3)
    pairs = inside[..., 2:] & inside[..., :-2]
    difference = (image[..., 2:].astype(float) - image[..., :-2])[pairs]
    assert pairs.sum() > 1000
    assert 10 < difference.std() / np.sqrt(2) < 40


def test_another_resolution_is_the_same_patient():
    coarse, fine = (24, 40, 40), (24, 80, 80)
    spacing = np.array(usual_spacing(coarse))
    _, label = make_phantom(2, coarse, spacing)
    _, finer = make_phantom(2, fine, spacing / (1, 2, 2))
    blocks = finer.reshape(24, 40, 2, 40, 2).transpose(0, 1, 3, 2, 4).reshape(24, 40, 40, 4)
    for organ in (1, 2, 3):
        share = (blocks == organ).mean(axis=-1)
        # a voxel of the coarse one has an organ where most of its four fine ones have it
        assert (label == organ)[share == 1].mean() > 0.97
        assert (label == organ)[share == 0].mean() < 0.003


def test_slabs_do_not_show(monkeypatch):
    """The anatomy does not depend on how many slices are painted at a time."""
    whole, label = make_phantom(1, SMALL)
    monkeypatch.setattr("pymic_vf.demo.phantom.SLAB_VOXELS", 5 * SMALL[1] * SMALL[2])
    parts, label_of_parts = make_phantom(1, SMALL)
    np.testing.assert_array_equal(label, label_of_parts)
    np.testing.assert_array_equal(whole, parts)


@pytest.mark.parametrize(
    ("size", "spacing", "message"),
    [
        ((4, 32, 32), None, r"at least 8, got \[4, 32, 32\]"),
        ((32, 32), None, "three whole numbers"),
        ((32, 32, 32), (1, 0, 1), r"above 0, got \[1.0, 0.0, 1.0\]"),
        ((32, 32, 32), (1, np.nan, 1), "above 0"),
    ],
)
def test_wrong_arguments_are_named(size, spacing, message):
    with pytest.raises(UserError, match=message):
        make_phantom(0, size, spacing)


def test_distances_are_in_mm():
    points = [np.array([0.0, 10.0]), np.array([0.0, 0.0]), np.array([0.0, 0.0])]
    ball = Ellipsoid(np.zeros(3), np.full(3, 4.0))
    np.testing.assert_allclose(ball.distance(points)[1], 6)
    stick = Capsule(np.array([0.0, 0, -5]), np.array([0.0, 0, 5]), 2.0, 2.0)
    np.testing.assert_allclose(stick.distance(points), [-2, 8])
    trunk = Layer(np.array([20.0, 20.0]), depth=3.0)
    across = [np.zeros(2), np.array([20.0, 17.0]), np.zeros(2)]
    np.testing.assert_allclose(trunk.distance(across), [3, 0], atol=1e-6)


def test_bounds_hold_the_shape():
    """A tilted ellipsoid touches its box and does not leave it."""
    ellipsoid = Ellipsoid(np.array([1.0, 2, 3]), np.array([9.0, 4, 2]), rotation((0.5, -0.4, 0.3)))
    low, high = ellipsoid.bounds()
    grid = np.meshgrid(*[np.linspace(lo - 3, hi + 3, 60) for lo, hi in zip(low, high, strict=True)], indexing="ij")
    inside = ellipsoid.distance(grid) < 0
    for axis, lo, hi in zip(grid, low, high, strict=True):
        step = axis.max() / 30
        assert lo <= axis[inside].min() < lo + 1 + step and hi - 1 - step < axis[inside].max() <= hi


def test_folder_has_what_its_csv_files_name(folder):
    listed = set()
    for part, count in FEW.items():
        table = pd.read_csv(folder / f"{part}.csv")
        assert list(table) == (["image"] if part == "pretrain" else ["image", "label"])
        assert len(table) == count
        listed |= set(table.to_numpy().ravel())
    assert listed == {file.name for file in (folder / "volumes").iterdir()}
    pairs = pd.read_csv(folder / "evaluation.csv")
    test = pd.read_csv(folder / "test.csv")
    assert list(pairs) == ["ground_truth", "segmentation"]
    assert list(pairs["ground_truth"]) == list(test["label"])
    assert list(pairs["segmentation"]) == list(test["image"])  # what pymic_test calls its results
    assert not (folder / "valid.csv").exists()


def test_scans_differ_in_spacing_but_not_in_what_they_cover(folder):
    images = [sitk.ReadImage(str(folder / "volumes" / f"pretrain_00{number}.nii.gz")) for number in range(3)]
    assert len({image.GetSize() for image in images}) == 3
    assert images[0].GetSize() == SMALL[::-1]
    fields = [np.multiply(image.GetSize(), image.GetSpacing()) for image in images]
    np.testing.assert_allclose(fields, np.broadcast_to([450, 360, 300], (3, 3)), rtol=1e-5)


def test_a_label_fits_its_image(folder):
    image, label = (sitk.ReadImage(str(folder / "volumes" / f"test_001{end}.nii.gz")) for end in ("", "_lab"))
    assert image.GetSize() == label.GetSize() and image.GetSpacing() == label.GetSpacing()
    assert (image.GetPixelIDTypeAsString(), label.GetPixelIDTypeAsString()) == (
        "16-bit signed integer",
        "8-bit unsigned integer",
    )
    assert set(np.unique(sitk.GetArrayViewFromImage(label))) == {0, 1, 2, 3}


def test_a_scan_does_not_depend_on_how_many_there_are(folder, tmp_path):
    more = contents(write_phantoms(tmp_path / "data", {"pretrain": 1, "valid": 1, "test": 1}, seed=3, size=SMALL))
    made = contents(folder)
    same = {name for name in more if made.get(name) == more[name]}
    assert same == {"pretrain_000.nii.gz", "test_000.nii.gz", "test_000_lab.nii.gz"}
    assert len(set(more.values())) == len(more)  # no two scans alike


def test_compresses_like_a_scan(folder):
    stored = (folder / "volumes" / "pretrain_000.nii.gz").read_bytes()
    assert 0.35 < len(stored) / len(gzip.decompress(stored)) < 0.65


def test_a_cut_short_run_is_taken_up_again(folder, tmp_path):
    again = tmp_path / "data"
    lines: list[str] = []
    write_phantoms(again, FEW, seed=3, size=SMALL)
    (again / "volumes" / "test_001_lab.nii.gz").unlink()
    (again / "test.csv").unlink()
    write_phantoms(again, FEW, seed=3, size=SMALL, report=lines.append)
    assert contents(again) == contents(folder)
    assert (again / "test.csv").read_text() == (folder / "test.csv").read_text()
    assert [line.endswith("was there already") for line in lines] == [True] * 5 + [False]


def test_a_crash_leaves_no_half_file(tmp_path, monkeypatch):
    def half_written(_, name):
        with open(name, "wb") as file:  # noqa: PTH123
            file.write(b"half")
        raise RuntimeError("disk full")

    monkeypatch.setattr("SimpleITK.WriteImage", half_written)
    with pytest.raises(RuntimeError, match="disk full"):
        write_phantoms(tmp_path / "data", FEW, size=SMALL)
    assert [file.name for file in (tmp_path / "data").rglob("*") if file.is_file()] == ["phantoms.json"]


def test_other_peoples_folders_are_left_alone(folder, tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="holds no phantoms: choose a new or empty folder"):
        write_phantoms(tmp_path, FEW, size=SMALL)
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.txt"]
    with pytest.raises(UserError, match="holds no phantoms"):
        write_phantoms(tmp_path / "thesis.txt", FEW, size=SMALL)
    with pytest.raises(UserError, match="seed = 3, not 4"):
        write_phantoms(folder, FEW, seed=4, size=SMALL)
    assert json.loads((folder / "phantoms.json").read_text())["seed"] == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"counts": {"pretrian": 2}}, "no part 'pretrian' \\(did you mean pretrain\\?\\)"),
        ({"counts": {"train": -1}}, "train phantoms must be at least 0, got -1"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
        ({"size": (8, 64, 64)}, "at least 16"),
    ],
)
def test_wrong_folder_arguments_are_named_before_anything_is_made(tmp_path, arguments, message):
    with pytest.raises(UserError, match=message):
        write_phantoms(tmp_path / "data", **arguments)
    assert not (tmp_path / "data").exists()
