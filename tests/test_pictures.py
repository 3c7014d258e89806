"""The two pictures show what they are given, and appear whole or not at all."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import numpy as np
import pytest
from matplotlib import colormaps
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.image import imread

from pymic_vf.demo import pictures
from pymic_vf.demo.pictures import ORGAN_COLOURS, dice_per_class, draw_overlays, draw_sample
from pymic_vf.errors import UserError
from pymic_vf.methods.method import Panel
from pymic_vf.methods.volume_fusion import VolumeFusion

SHAPE = (12, 20, 24)


def blocks():
    """Two structures: label 1 in slices 2..5, label 2 in 4..7."""
    truth = np.zeros(SHAPE, np.uint8)
    truth[2:6, 2:9, 3:10] = 1
    truth[4:8, 10:16, 12:20] = 2
    return truth


def share_of(file, colour, tolerance=0.02):
    """The share of a picture's pixels that have a colour."""
    pixels = imread(file)[..., :3]
    return (np.abs(pixels - to_rgb(colour)).max(axis=-1) < tolerance).mean()


@pytest.fixture
def fusion():
    """The panels of a fused sample, and its label."""
    rng = np.random.default_rng(0)
    crops = list(rng.normal(size=(2, 1, *SHAPE)).astype(np.float32))
    values = (4, (10, 20), (2, 4, 4), (6, 10, 10))
    method = VolumeFusion({key.name: value for key, value in zip(VolumeFusion.keys, values, strict=True)})
    sample = method.sample(crops, rng)
    return method.panels(crops, sample), sample["label"][0]


NAMES = ["0/4", "1/4", "2/4", "3/4", "4/4"]


def test_a_sample_shows_every_class_in_its_colour(fusion, tmp_path):
    panels, label = fusion
    draw_sample(panels, NAMES, tmp_path / "fused.png", "Volume Fusion")
    images = [panel.image for panel in panels if panel.image is not None]
    index = pictures._busiest(images, label, pictures.AXIAL)
    shown = np.bincount(label[index].ravel(), minlength=5) > 0
    assert shown.sum() > 2
    for k, colour in enumerate(colormaps["viridis"](np.linspace(0, 1, 5))):
        # the swatch in the legend is a thousandth of the picture at most, the map a tenth
        assert share_of(tmp_path / "fused.png", colour) > (0.001 if shown[k] else 0.0002)


def test_a_sample_without_labels_is_drawn_where_there_is_most_to_see(tmp_path):
    image = np.zeros(SHAPE, np.float32)
    image[7, ::2] = 1
    assert pictures._busiest([image], None, pictures.AXIAL) == 7
    draw_sample([Panel("crop", image=image), Panel("again", image=image)], [], tmp_path / "a.png", "crops")
    assert share_of(tmp_path / "a.png", (1, 1, 1)) > 0.1


def test_overlays_show_every_structure_in_its_colour(tmp_path):
    truth = blocks()
    image = np.where(truth > 0, 100, 0) + np.random.default_rng(0).normal(0, 5, SHAPE)
    nothing = np.zeros_like(truth)
    draw_overlays(image, truth, {"good": truth, "none": nothing}, ["a", "b"], tmp_path / "both.png")
    draw_overlays(image, truth, {"none": nothing, "none too": nothing}, ["a", "b"], tmp_path / "none.png")
    for colour in ORGAN_COLOURS[:2]:
        with_it, without = (share_of(tmp_path / name, colour) for name in ("both.png", "none.png"))
        assert with_it > 1.1 * without > 0
    assert share_of(tmp_path / "both.png", ORGAN_COLOURS[2]) == 0


@pytest.mark.parametrize(("spacing", "height"), [((1, 1, 1), 12 + 20), ((3, 1, 1), 36 + 20), ((3, 2, 2), 18 + 20)])
def test_overlays_keep_the_proportions(tmp_path, spacing, height):
    """The two rows are as high as H and D in mm, where W, in mm, is a panel wide."""
    truth = blocks()
    draw_overlays(truth * 1.0, truth, {"x": truth}, ["a", "b"], tmp_path / "x.png", spacing)
    text = 0.65 + 0.7 + 0.06  # inches over, under and between the panels
    expected = (text + pictures.PANEL * height / 24) * pictures.DPI
    assert imread(tmp_path / "x.png").shape[0] == pytest.approx(expected, abs=2)


def test_scans_that_lie_in_another_way_are_drawn_upright(fusion, tmp_path):
    """Both pictures of a scan, and of the same one with x to the right, y to the head and z to the back."""
    direction = (-1, 0, 0, 0, 0, 1, 0, 1, 0)

    def lying(volume):
        return None if volume is None else volume.transpose(1, 0, 2)[:, :, ::-1]

    truth = blocks()
    image = np.random.default_rng(0).normal(size=SHAPE)
    draw_overlays(image, truth, {"x": truth}, ["a", "b"], tmp_path / "a.png", (3.0, 2.0, 1.0))
    draw_overlays(
        lying(image), lying(truth), {"x": lying(truth)}, ["a", "b"], tmp_path / "b.png", (2.0, 3.0, 1.0), direction
    )
    assert np.array_equal(imread(tmp_path / "a.png"), imread(tmp_path / "b.png"))
    panels = fusion[0]
    draw_sample(panels, NAMES, tmp_path / "c.png", "", (3.0, 2.0, 1.0))
    turned = [dataclasses.replace(each, image=lying(each.image), label=lying(each.label)) for each in panels]
    draw_sample(turned, NAMES, tmp_path / "d.png", "", (2.0, 3.0, 1.0), direction)
    assert np.array_equal(imread(tmp_path / "c.png"), imread(tmp_path / "d.png"))


def test_overlays_name_the_dice(tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr(pictures, "_save", lambda figure, _: written.append(figure))
    truth = blocks()
    half = np.where(truth == 1, 1, 0)
    draw_overlays(truth * 1.0, truth, {"half": half}, ["a", "b"], tmp_path / "x.png")
    texts = [text.get_text() for panel in written[0].axes for text in panel.texts]
    assert texts == ["mean Dice 0.500", "1.000", "0.000"]


@pytest.mark.parametrize("truth", [np.zeros(SHAPE, np.uint8), np.ones(SHAPE, np.uint8)])
def test_overlays_of_nothing_and_of_everything(tmp_path, truth):
    draw_overlays(np.zeros(SHAPE), truth, {"x": truth}, ["a"], tmp_path / "x.png")
    assert (tmp_path / "x.png").stat().st_size > 0


def test_slices_are_those_that_show_most():
    assert pictures._fullest(blocks(), pictures.AXIAL, 2) == 4  # the first that cuts both
    label = np.zeros(SHAPE, np.uint8)
    label[3, 4:8, 4:8] = 2
    label[7:9] = np.arange(24) % 2  # stripes
    assert pictures._busiest([], label, pictures.AXIAL) == 7
    empty_there = np.zeros(SHAPE, np.float32)
    empty_there[:8] = np.random.default_rng(0).normal(size=(8, *SHAPE[1:]))
    label[8, ::2] = 1 - label[8, ::2]  # longer borders, where the image shows nothing
    assert pictures._busiest([], label, pictures.AXIAL) == 8
    assert pictures._busiest([empty_there], label, pictures.AXIAL) == 7
    label[6] = np.arange(24) // 5  # fewer borders, but all classes
    assert pictures._busiest([empty_there], label, pictures.AXIAL) == 6


def test_coronal_slices_have_the_head_on_top():
    volume = np.arange(24).reshape(2, 3, 4)
    np.testing.assert_array_equal(pictures._view(volume, pictures.CORONAL, 1), volume[[1, 0], 1])


def test_dice():
    truth, other = np.array([[[0, 1, 1, 2]]]), np.array([[[1, 1, 0, 2]]])
    np.testing.assert_allclose(dice_per_class(truth, other, 3), [0.5, 1, np.nan])
    assert dice_per_class(truth, np.zeros_like(truth), 1)[0] == 0


def test_shapes_that_differ_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"one shape, got .*'truth': \(12, 20, 23\)"):
        draw_overlays(np.zeros(SHAPE), np.zeros(SHAPE)[..., 1:], {}, [], tmp_path / "x.png")
    with pytest.raises(ValueError, match="one shape"):
        draw_sample(
            [Panel("a", image=np.zeros(SHAPE)), Panel("b", image=np.zeros((2, 3, 4)))], [], tmp_path / "x.png", ""
        )
    assert not list(tmp_path.iterdir())


def test_a_crash_leaves_the_old_picture(fusion, tmp_path, monkeypatch):
    path = tmp_path / "x.png"
    path.write_bytes(b"the old one")

    def half_written(_, name, **__):
        name.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(Figure, "savefig", half_written)
    with pytest.raises(UserError, match=r"x\.png cannot be written \(disk full\)"):
        draw_sample(fusion[0], NAMES, path, "Volume Fusion")
    assert path.read_bytes() == b"the old one"
    assert [file.name for file in tmp_path.iterdir()] == ["x.png"]


def test_pyplot_is_left_alone():
    code = "import sys, pymic_vf.demo.pictures; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
