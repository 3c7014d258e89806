"""CT-like phantoms: scans of patients who never were, for trying things where there are no scans.

Every voxel follows from a seed. Nothing here claims to be good enough to learn medicine from: it is for tests,
demonstrations and measurements of speed.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from scipy import ndimage

from pymic_vf.demo.phantom_anatomy import ORGANS, TRUNK, Structure, draw_patient
from pymic_vf.errors import UserError, did_you_mean
from pymic_vf.files import check_volume, whole_file, written

__all__ = ["DEFAULT_COUNTS", "DEFAULT_SIZE", "ORGANS", "make_phantom", "usual_spacing", "write_phantoms"]

LOG = logging.getLogger(__name__)
DEFAULT_SIZE = (48, 72, 72)
DEFAULT_COUNTS = {"pretrain": 24, "pretrain_valid": 4, "train": 3, "valid": 2, "test": 6}  # scans of each set
UNLABELLED = ("pretrain", "pretrain_valid")
# (z, y, x) spacing of the scans by turns, in units of the usual one: what three hospitals may do
PROTOCOLS = ((1.0, 1.0, 1.0), (1.25, 0.9, 0.9), (0.8, 1.15, 1.15))
MARKER, GENERATOR = "phantoms.json", 2  # the number changes when the same seed gives other voxels
AIR, LOWEST, HIGHEST = -1000, -1024, 3071  # HU; the last two are the range of a 12-bit scanner


def make_phantom(
    seed: int | np.random.SeedSequence | np.random.Generator,
    size: Sequence[int] = DEFAULT_SIZE,
    spacing: Sequence[float] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """One scan and its labels.

    The anatomy depends on the seed and on the field of view (size times spacing) alone, so the same seed gives the
    same patient at another resolution.

    Args:
        seed: where all randomness comes from.
        size: [D, H, W] in voxels, each at least 8.
        spacing: (z, y, x) of the voxels in mm; None takes what :func:`usual_spacing` gives.

    Returns:
        image: int16 [D, H, W] in HU, from -1024 to 3071.
        label: uint8 [D, H, W], 1..3 for :data:`ORGANS`, 0 elsewhere.

    Raises:
        UserError: an impossible size or spacing.
    """
    _check_size(size, 8)
    spacing = np.array(usual_spacing(size) if spacing is None else spacing, float)
    if spacing.shape != (3,) or not (np.isfinite(spacing).all() and (spacing > 0).all()):
        raise UserError(f"a phantom's spacing must be three lengths in mm above 0, got {spacing.tolist()}")
    rng = np.random.default_rng(seed)
    half = np.array(size) * spacing / 2
    to_trunk = TRUNK / (half[0], half[1:].min(), half[1:].min())  # the patient fills the field of view
    spacing, half = spacing * to_trunk, half * to_trunk
    axes = [(np.arange(n) + 0.5) * step - h for n, step, h in zip(size, spacing, half, strict=True)]
    structures = list(draw_patient(rng))
    density, texture, label = _paint(structures, _pose(rng, axes, half), width=1.2 * spacing.mean())
    density += texture * _smooth_field(rng, axes, half, 3.5)
    # the filter, which relates neighbours in the plane, leaves about two thirds of the noise
    noise = rng.uniform(22, 46) * rng.standard_normal(size, np.float32)
    density += ndimage.gaussian_filter(noise, (0, 0.5, 0.5))
    return np.rint(density.clip(LOWEST, HIGHEST)).astype(np.int16), label


def usual_spacing(size: Sequence[int]) -> tuple[float, float, float]:
    """(z, y, x) in mm with which `size` voxels cover 300 mm of a trunk, 360 mm wide."""
    depth, height, width = size
    in_plane = 360 / min(height, width)
    return 300 / depth, in_plane, in_plane


def _check_size(size: Sequence[int], smallest: int) -> None:
    if len(size) != 3 or any(int(side) != side or side < smallest for side in size):
        raise UserError(f"a phantom's size must be three whole numbers of at least {smallest}, got {list(size)}")


def _smooth_field(rng: np.random.Generator, axes: Sequence[np.ndarray], half: np.ndarray, sigma: float) -> np.ndarray:
    """A random field of mean 0 and variance 1, float32 [D, H, W]: noise on a grid, seen through Gaussians.

    The grid depends on the field of view (twice `half`, mm) and on `sigma` (mm), not on the resolution of `axes`.
    """
    nodes = [np.arange(-h - 3 * sigma, h + 3 * sigma, sigma) for h in half]
    field = rng.standard_normal([len(node) for node in nodes], np.float32)
    for axis, node in zip(axes, nodes, strict=True):
        weights = np.exp(-(((axis[:, None] - node) / sigma) ** 2) / 2)
        weights /= np.linalg.norm(weights, axis=1, keepdims=True)
        field = np.tensordot(field, weights.astype(np.float32), axes=(0, 1))  # the next axis comes first
    return field


def _pose(rng: np.random.Generator, axes: Sequence[np.ndarray], half: np.ndarray) -> list[np.ndarray]:
    """Each voxel's z, y, x in the frame (mm) of a patient who is moved, scaled, turned about z, and bent."""
    shift, scale, angle = rng.normal(0, (12, 4, 4)), rng.uniform(0.9, 1.04), rng.normal(0, 0.06)
    z, y, x = np.ix_(*[np.float32(scale * (axis - by)) for axis, by in zip(axes, shift, strict=True)])
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    turned = (z, cos * y + sin * x, cos * x - sin * y)
    return [straight + np.float32(3.5) * _smooth_field(rng, axes, half, 25) for straight in turned]


def _paint(
    structures: Iterable[Structure], points: Sequence[np.ndarray], width: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Density (HU), standard deviation of the texture (HU) and label of the voxels at `points`.

    A surface goes through a voxel gradually, over `width` in mm (partial volume); the label changes in the middle.
    """
    density, texture = np.full(points[0].shape, AIR, np.float32), np.zeros(points[0].shape, np.float32)
    label = np.zeros(points[0].shape, np.uint8)
    others = ((1, 2), (0, 2), (0, 1))
    lowest = [point.min(axis=axes) for point, axes in zip(points, others, strict=True)]  # of each slice along an axis
    highest = [point.max(axis=axes) for point, axes in zip(points, others, strict=True)]
    for structure in structures:
        for piece in structure.pieces:
            ends = zip(lowest, highest, *piece.box(), strict=True)
            within = [np.flatnonzero((most > low - width) & (least < high + width)) for least, most, low, high in ends]
            if not all(indices.size for indices in within):
                continue
            box = tuple(slice(indices[0], indices[-1] + 1) for indices in within)
            distance = piece.distance([point[box] for point in points])
            share = np.clip(0.5 - distance / np.float32(width), 0, 1)
            density[box] += share * (np.float32(structure.density) - density[box])
            texture[box] += share * (np.float32(structure.texture) - texture[box])
            label[box][distance < 0] = structure.label
    return density, texture, label


def write_phantoms(
    out_dir: str | Path,
    counts: Mapping[str, int] = DEFAULT_COUNTS,
    seed: int = 0,
    size: Sequence[int] = DEFAULT_SIZE,
    report: Callable[[str], None] = LOG.info,
) -> Path:
    """Make and return a data folder: ``volumes/NAME.nii.gz``, ``NAME_lab.nii.gz`` and the csv files that name them.

    There is a csv file for each set of `counts`, with the columns ``image`` and, where there are labels, ``label``,
    and for ``test`` also ``evaluation.csv`` with ``ground_truth,segmentation``, as pymic_eval_seg reads it. Names in
    them are relative to ``volumes``. A scan depends on the seed, its set and its number in it alone. A run that was
    cut short is resumed where it ended.

    Args:
        out_dir: a new or empty folder, or one made earlier with the same arguments.
        counts: number of scans for each set of :data:`DEFAULT_COUNTS`; sets left out get none.
        seed: a whole number of at least 0.
        size: [D, H, W] of every third scan, in voxels; the others cover the same field of view with other spacings.
        report: gets a line of text for every scan.

    Raises:
        UserError: impossible arguments, or a folder with something else in it.
    """
    out = Path(out_dir)
    _check_size(size, 16)
    if seed < 0:
        raise UserError(f"a phantom's seed must be at least 0, got {seed}")
    for name, count in counts.items():
        if name not in DEFAULT_COUNTS:
            raise UserError(f"phantoms have no set {name!r}{did_you_mean(name, DEFAULT_COUNTS)}: {[*DEFAULT_COUNTS]}")
        if count < 0:
            raise UserError(f"the number of {name} phantoms must be at least 0, got {count}")
    counts = {name: counts[name] for name in DEFAULT_COUNTS if counts.get(name)}
    _claim(out, {"generator": GENERATOR, "seed": seed, "size": [int(side) for side in size], "counts": counts})
    for name, count in counts.items():
        labelled = name not in UNLABELLED
        pairs = [(f"{name}_{number:03d}.nii.gz", f"{name}_{number:03d}_lab.nii.gz") for number in range(count)]
        for number, pair in enumerate(pairs):
            scan_seed = np.random.SeedSequence([seed, list(DEFAULT_COUNTS).index(name), number])
            files = [out / "volumes" / file for file in pair[: 1 + labelled]]
            report(_write_scan(files, scan_seed, size, number))
        _write_csv(out / f"{name}.csv", [("image", "label"), *pairs], columns=1 + labelled)
        if name == "test":
            swapped = [(label, image) for image, label in pairs]
            _write_csv(out / "evaluation.csv", [("ground_truth", "segmentation"), *swapped], columns=2)
    return out


def _claim(out: Path, made_with: dict) -> None:
    """Make the folder and note in it what it is made with, or raise where it holds something else."""
    marker = out / MARKER
    if marker.is_file():
        before = json.loads(marker.read_text())
        if before != made_with:
            differing = ", ".join(f"{k} = {before.get(k)}, not {v}" for k, v in made_with.items() if before.get(k) != v)
            raise UserError(f"{out} holds phantoms made with other settings ({differing}): choose another folder")
        return
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} is there already and holds no phantoms: choose a new or empty folder")
    (out / "volumes").mkdir(parents=True)
    with written(marker), whole_file(marker) as temporary:
        temporary.write_text(json.dumps(made_with) + "\n")


def _write_scan(files: Sequence[Path], seed: np.random.SeedSequence, size: Sequence[int], number: int) -> str:
    """Write the image and, where `files` names one, the label; the text says what was done."""
    if all(file.is_file() for file in files):
        return f"{files[0]} was there already"
    voxels = np.rint(np.divide(size, PROTOCOLS[number % len(PROTOCOLS)])).astype(int).tolist()
    spacing = np.array(usual_spacing(size)) * size / voxels
    for file, array in zip(files, make_phantom(seed, voxels, spacing), strict=False):
        image = sitk.GetImageFromArray(array)
        image.SetSpacing(spacing[::-1].tolist())
        with written(file), whole_file(file) as temporary:
            sitk.WriteImage(image, str(temporary))
            check_volume(temporary, array.nbytes)
    return f"{files[0]} written, {'x'.join(map(str, voxels))}"


def _write_csv(file: Path, rows: Sequence[Sequence[str]], columns: int) -> None:
    with written(file), whole_file(file) as temporary:
        temporary.write_text("".join(",".join(row[:columns]) + "\n" for row in rows))
