"""CT-like phantoms: scans of patients who never were, for trying things where there are no scans.

Every voxel follows from a seed. The plan of the trunk is the same in all (see :mod:`pymic_vf.demo.phantom_anatomy`);
place, shape, size, density, texture, noise and voxel spacing differ. Nothing here claims to be good enough to learn
medicine from: it is for tests, demonstrations and measurements of speed.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from scipy import ndimage

from pymic_vf.demo.phantom_anatomy import ORGANS, Patient
from pymic_vf.demo.phantom_shapes import Structure, rotation
from pymic_vf.errors import UserError, did_you_mean
from pymic_vf.files import whole_file

__all__ = ["DEFAULT_COUNTS", "DEFAULT_SIZE", "ORGANS", "make_phantom", "usual_spacing", "write_phantoms"]

LOG = logging.getLogger(__name__)
DEFAULT_SIZE = (48, 72, 72)
SMALLEST_SIDE = 16
# scans by what they are for; those of the first two have no label
DEFAULT_COUNTS = {"pretrain": 24, "pretrain_valid": 4, "train": 3, "valid": 2, "test": 6}
UNLABELLED = ("pretrain", "pretrain_valid")
# (z, in-plane) spacing of the scans by turns, in units of the usual one: what three hospitals may do
PROTOCOLS = ((1.0, 1.0), (1.25, 0.9), (0.8, 1.15))
MARKER, GENERATOR = "phantoms.json", 1  # the number changes when the same seed gives other voxels
AIR, LOWEST, HIGHEST = -1000, -1024, 3071  # HU; the last two are the range of a 12-bit scanner
SLAB_VOXELS = 1 << 21  # painted at a time: what bounds the memory of large volumes
GRAIN = 7.0  # mm, the size of the organs' inner texture


@dataclass(frozen=True)
class Pose:
    """How the patient lies in the scanner: turned, scaled, moved, and bent by a few slow waves.

    Args:
        turn: 3x3 rotation.
        scale: of the patient's frame per mm of the scanner's.
        shift: (z, y, x) in mm.
        waves: [3 (component), waves, 3 (axis)] wave numbers in 1/mm.
        phases: of the same shape, in radians.
        height: of every wave, in mm.
    """

    turn: np.ndarray
    scale: float
    shift: np.ndarray
    waves: np.ndarray
    phases: np.ndarray
    height: float

    @classmethod
    def draw(cls, rng: np.random.Generator, half: np.ndarray, waves: int = 2) -> Pose:
        """A pose for a field of view of which `half` (mm) is the half."""
        lengths = half * rng.uniform(1.2, 2.5, (3, waves, 3))
        return cls(
            turn=rotation(rng.normal(0, (0.06, 0.03, 0.03))),
            scale=rng.uniform(0.88, 1.04),
            shift=rng.normal(0, (0.08, 0.02, 0.02)) * half,
            waves=2 * np.pi / lengths,
            phases=rng.uniform(0, 2 * np.pi, (3, waves, 3)),
            height=0.02 * half.min(),
        )

    def to_patient(self, axes: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The patient's z, y, x (mm) of every voxel of the grid that the scanner's `axes` (mm) span."""
        grid = np.ix_(*[(axis - shift).astype(np.float32) for axis, shift in zip(axes, self.shift, strict=True)])
        points = []
        for component in range(3):
            point = sum(np.float32(w * self.scale) * g for w, g in zip(self.turn[component], grid, strict=True))
            for wave, phase in zip(self.waves[component], self.phases[component], strict=True):
                ripple = [np.sin(np.float32(k) * g + np.float32(p)) for k, g, p in zip(wave, grid, phase, strict=True)]
                point += (np.float32(self.height) * ripple[0]) * ripple[1] * ripple[2]
            points.append(point)
        return points

    def to_scanner(self, low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """A box in the scanner (mm) that is sure to hold the patient's box from `low` to `high`."""
        slack = self.height * self.waves.shape[1]
        corners = np.stack(np.meshgrid(*zip(low - slack, high + slack, strict=True)), axis=-1).reshape(-1, 3)
        corners = np.clip(corners, -1e6, 1e6) @ self.turn / self.scale + self.shift  # the turn's inverse, on rows
        return corners.min(axis=0), corners.max(axis=0)


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
        UserError: a size or spacing that cannot be.
    """
    _check_size(size, 8)
    spacing = np.array(usual_spacing(size) if spacing is None else spacing, float)
    if spacing.shape != (3,) or not (np.isfinite(spacing).all() and (spacing > 0).all()):
        raise UserError(f"a phantom's spacing must be three lengths in mm above 0, got {spacing.tolist()}")
    rng = np.random.default_rng(seed)
    half = np.array(size) * spacing / 2
    structures = Patient(rng, half).structures()
    pose = Pose.draw(rng, half)
    noise = rng.uniform(14, 30)  # HU
    image, label = np.empty(size, np.int16), np.empty(size, np.uint8)
    axes = [(np.arange(n) + 0.5) * step - h for n, step, h in zip(size, spacing, half, strict=True)]
    grains = _grain(rng, size, spacing)
    for slab in _slabs(size):
        density, texture, label[slab] = _paint(structures, pose, [axes[0][slab], *axes[1:]], spacing, half)
        density += texture * np.stack([next(grains) for _ in range(len(density))])
        density += noise * _noise(rng, density)
        image[slab] = np.rint(np.clip(density, LOWEST, HIGHEST))
    return image, label


def usual_spacing(size: Sequence[int]) -> tuple[float, float, float]:
    """(z, y, x) in mm with which `size` voxels cover 300 mm of a trunk, 360 mm wide."""
    depth, height, width = size
    in_plane = 360 / min(height, width)
    return 300 / depth, in_plane, in_plane


def _check_size(size: Sequence[int], smallest: int) -> None:
    if len(size) != 3 or any(int(side) != side or side < smallest for side in size):
        raise UserError(f"a phantom's size must be three whole numbers of at least {smallest}, got {list(size)}")


def _slabs(size: Sequence[int]) -> Iterator[slice]:
    step = max(1, SLAB_VOXELS // (size[1] * size[2]))
    return (slice(first, min(first + step, size[0])) for first in range(0, size[0], step))


def _paint(
    structures: Sequence[Structure], pose: Pose, axes: Sequence[np.ndarray], spacing: np.ndarray, half: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Density (HU), standard deviation of the texture (HU) and label of the voxels that `axes` (mm) span.

    A surface goes through a voxel gradually, over its width (partial volume); the label changes in the middle.
    """
    shape = tuple(len(axis) for axis in axes)
    density, texture = np.full(shape, AIR, np.float32), np.zeros(shape, np.float32)
    label = np.zeros(shape, np.uint8)
    _paint_table(density, axes, half)
    points = pose.to_patient(axes)
    width = np.float32(1.2 * spacing.mean())
    for structure in structures:
        for part in structure.parts:
            box = _box(axes, *pose.to_scanner(*part.bounds()), margin=width)
            if box is None:
                continue
            distance = part.distance([p[box] for p in points])
            share = np.clip(0.5 - distance / width, 0, 1)
            density[box] += share * (np.float32(structure.density) - density[box])
            texture[box] += share * (np.float32(structure.texture) - texture[box])
            label[box][distance < 0] = structure.label
    return density, texture, label


def _box(axes: Sequence[np.ndarray], low: np.ndarray, high: np.ndarray, margin: float) -> tuple[slice, ...] | None:
    """Where on `axes` the box lies; None where it misses them."""
    ranges = [np.searchsorted(a, (lo - margin, hi + margin)) for a, lo, hi in zip(axes, low, high, strict=True)]
    return None if any(first == last for first, last in ranges) else tuple(slice(*ends) for ends in ranges)


def _paint_table(density: np.ndarray, axes: Sequence[np.ndarray], half: np.ndarray) -> None:
    """A hollow, slightly curved table top under the patient, the same along z."""
    y, x = axes[1][:, None], axes[2][None, :]
    reach = half[1:].min()
    depth = (y - 0.8 * reach + 0.12 * x**2 / reach) / reach
    inside = (np.abs(depth) < 0.07) & (np.abs(x) < 0.75 * reach)
    shell = inside & (np.abs(depth) > 0.035)
    density[:, inside], density[:, shell] = -920, -350


def _grain(rng: np.random.Generator, size: Sequence[int], spacing: np.ndarray) -> Iterator[np.ndarray]:
    """Slices of a smooth random field, float32 [H, W], mean 0 and variance 1, related along z as within the plane."""
    sigma = np.maximum(GRAIN / spacing[1:] / 2, 0.6)
    gain = np.float32(
        2 * np.sqrt(np.pi) * np.sqrt(sigma.prod())
    )  # a Gaussian of width s leaves 1/(2 sqrt(pi) s) a axis
    keep = np.float32(np.exp(-spacing[0] / GRAIN))
    own, field = rng.spawn(1)[0], None
    while True:
        fresh = gain * ndimage.gaussian_filter(
            own.standard_normal(size[1:], np.float32), sigma, mode="wrap", truncate=3.0
        )
        field = fresh if field is None else keep * field + np.sqrt(1 - keep**2) * fresh
        yield field


def _noise(rng: np.random.Generator, density: np.ndarray) -> np.ndarray:
    """Noise of about unit strength, less in air, related between neighbours in the plane."""
    white = rng.standard_normal(density.shape, np.float32)
    smooth = ndimage.uniform_filter(white, (0, 2, 2), mode="wrap") * np.float32(0.9) + white * np.float32(0.8)
    return smooth * np.where(density < -950, np.float32(0.5), np.float32(1))


def write_phantoms(
    out_dir: str | Path,
    counts: Mapping[str, int] = DEFAULT_COUNTS,
    seed: int = 0,
    size: Sequence[int] = DEFAULT_SIZE,
    report: Callable[[str], None] = LOG.info,
) -> Path:
    """Make a data folder: ``volumes/NAME.nii.gz``, ``volumes/NAME_lab.nii.gz`` and the csv files that name them.

    There is a csv file for each part of `counts`, with the columns ``image`` and, where there are labels, ``label``,
    and for the part ``test`` also ``evaluation.csv`` with ``ground_truth,segmentation``, as pymic_eval_seg reads it.
    Names in them are relative to ``volumes``. A scan depends on the seed, its part and its number in it alone. A run
    that was cut short is taken up again where it ended.

    Args:
        out_dir: a new or empty folder, or one made earlier with the same arguments.
        counts: number of scans for each part of :data:`DEFAULT_COUNTS`; parts left out get none.
        seed: a whole number of at least 0.
        size: [D, H, W] of every third scan, in voxels; the others cover the same field of view with other spacings.
        report: gets a line of text for every scan.

    Returns:
        The folder.

    Raises:
        UserError: arguments that cannot be, or a folder with something else in it.
    """
    out = Path(out_dir)
    _check_size(size, SMALLEST_SIDE)
    if seed < 0:
        raise UserError(f"a phantom's seed must be at least 0, got {seed}")
    for part, count in counts.items():
        if part not in DEFAULT_COUNTS:
            raise UserError(f"phantoms have no part {part!r}{did_you_mean(part, DEFAULT_COUNTS)}: {[*DEFAULT_COUNTS]}")
        if count < 0:
            raise UserError(f"the number of {part} phantoms must be at least 0, got {count}")
    counts = {part: counts[part] for part in DEFAULT_COUNTS if counts.get(part)}
    _claim(out, {"generator": GENERATOR, "seed": seed, "size": [int(side) for side in size], "counts": counts})
    for place, part in enumerate(DEFAULT_COUNTS):
        for number in range(counts.get(part, 0)):
            _write_scan(out / "volumes", part, number, np.random.SeedSequence([seed, place, number]), size, report)
    for part, count in counts.items():
        names = [(_image_name(part, number), _label_name(part, number)) for number in range(count)]
        columns = ("image",) if part in UNLABELLED else ("image", "label")
        _write_csv(out / f"{part}.csv", columns, names)
        if part == "test":
            _write_csv(out / "evaluation.csv", ("ground_truth", "segmentation"), [pair[::-1] for pair in names])
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
    with whole_file(marker) as temporary:
        temporary.write_text(json.dumps(made_with) + "\n")


def _image_name(part: str, number: int) -> str:
    return f"{part}_{number:03d}.nii.gz"


def _label_name(part: str, number: int) -> str:
    return f"{part}_{number:03d}_lab.nii.gz"


def _write_scan(
    folder: Path,
    part: str,
    number: int,
    seed: np.random.SeedSequence,
    size: Sequence[int],
    report: Callable[[str], None],
) -> None:
    usual, protocol = np.array(usual_spacing(size)), np.array(PROTOCOLS[number % len(PROTOCOLS)])[[0, 1, 1]]
    voxels = np.rint(np.array(size) / protocol).astype(int).tolist()
    spacing = usual * size / voxels
    files = [folder / _image_name(part, number)]
    if part not in UNLABELLED:
        files.append(folder / _label_name(part, number))
    if all(file.is_file() for file in files):
        report(f"{files[0]} was there already")
        return
    for file, array in zip(files, make_phantom(seed, voxels, spacing), strict=False):
        image = sitk.GetImageFromArray(array)
        image.SetSpacing(spacing[::-1].tolist())
        with whole_file(file) as temporary:
            sitk.WriteImage(image, str(temporary))
    report(f"{files[0]} written, {'x'.join(map(str, voxels))}")


def _write_csv(file: Path, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    lines = [",".join(row[: len(columns)]) for row in [columns, *rows]]
    with whole_file(file) as temporary:
        temporary.write_text("\n".join(lines) + "\n")
