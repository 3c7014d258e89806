"""The patients behind the phantoms: one plan of a trunk, drawn anew for every seed.

The patient's frame is (z, y, x) in mm from the middle of the trunk: z towards the head, y towards the back, x towards
the patient's left, so that an array [D, H, W] shows the liver on the left of the picture, as radiologists see it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

ORGANS = ("liver", "kidneys", "aorta")  # labels 1, 2, 3: large and low in contrast, paired, tubular
LIVER, KIDNEYS, AORTA = 1, 2, 3
TRUNK = np.array([150.0, 180.0, 180.0])  # half of the field of view for which the lengths below are meant
SIDES = (-1, 1)  # the patient's right and left
ENDLESS = 1e4


class Piece(NamedTuple):
    """An ellipsoid with `radii` drawn from `start` to `end`, where it is `taper` times as thick."""

    start: np.ndarray
    end: np.ndarray
    radii: np.ndarray
    taper: float = 1.0

    def box(self) -> tuple[np.ndarray, np.ndarray]:
        """Its lowest and highest corner."""
        reach = self.radii * max(1, self.taper)
        return np.minimum(self.start, self.end) - reach, np.maximum(self.start, self.end) + reach

    def distance(self, points: Sequence[np.ndarray]) -> np.ndarray:
        """About the distance (mm) of points (arrays of z, y, x) from the surface, negative inside."""
        offsets = [(p - np.float32(s)) / np.float32(r) for p, s, r in zip(points, self.start, self.radii, strict=True)]
        along = (self.end - self.start) / self.radii
        steps = np.float32(along / max(along @ along, 1e-6))
        share = sum(s * o for s, o in zip(steps, offsets, strict=True)).clip(0, 1) if along.any() else np.float32(0)
        squares = sum((o - np.float32(a) * share) ** 2 for o, a in zip(offsets, along, strict=True))
        return (np.sqrt(squares) - 1 - np.float32(self.taper - 1) * share) * np.float32(self.radii.min())


class Structure(NamedTuple):
    """An organ or something beside it, painted over what is there; texture is a standard deviation, both in HU."""

    density: float
    texture: float
    pieces: list[Piece]
    label: int = 0


def tube(path: Sequence[np.ndarray], *radii: float) -> list[Piece]:
    """Straight pieces between the points of `path`; one radius for all points, or one for each."""
    at = np.broadcast_to(radii, len(path))
    return [Piece(path[i], path[i + 1], np.full(3, at[i]), at[i + 1] / at[i]) for i in range(len(path) - 1)]


def draw_patient(rng: np.random.Generator) -> Iterator[Structure]:
    """Everything inside one patient in the order of painting; later structures cover earlier ones."""

    def near(z: float, y: float, x: float, by: float = 5) -> np.ndarray:
        return np.array([z, y, x]) + rng.normal(0, by, 3).clip(-2 * by, 2 * by)

    def about(value: float, by: float) -> float:
        return value * rng.uniform(1 - by, 1 + by)

    def blob(z: float, y: float, x: float, radii: Sequence[float]) -> Piece:
        center = near(z, y, x)
        return Piece(center, center, radii * rng.uniform(0.85, 1.15, 3))

    # one dose of contrast medium for the whole scan: a density alone does not identify an organ
    contrast = rng.uniform(0, 1)
    vessel, vein, kidney = 45 + 170 * contrast, 45 + rng.uniform(140, 175) * contrast, 38 + 130 * contrast
    liver = about(62 + 45 * contrast, 0.1)

    skin = np.array([rng.uniform(97, 122), rng.uniform(140, 166)])  # (y, x)
    muscle = skin - rng.uniform(7, 23)
    inner = muscle - rng.uniform(11, 16)
    back, side = inner
    for radii, density, texture in ((skin, -100, 10), (muscle, 55, 15), (inner, -85, 20)):
        yield Structure(about(density, 0.15), texture, [Piece(np.zeros(3), np.zeros(3), np.array([ENDLESS, *radii]))])
    for level in range(-8, 180, 33):  # ribs: from the spine down and forward
        for s in SIDES:
            y, x = (inner + muscle) / 2
            arc = [near(level - 18 * t, y * np.cos(t), s * x * np.sin(t), 1) for t in np.linspace(0.2, 2.5, 8)]
            yield Structure(about(520, 0.3), 60, tube(arc, 4.7))

    floor = rng.uniform(3, 27)  # where the lungs end: how far in the patient has breathed
    for s in SIDES:
        yield Structure(about(-830, 0.05), 35, [blob(floor + 90, 4, s * 0.53 * side, (90, 0.86 * back, 0.43 * side))])
        for z in (20, 45, 70, 95, 120):  # vessels of the lung
            yield Structure(30, 10, tube([near(floor + 67, 5, s * 22), near(floor + z, 4, s * 85, 18)], 6, 1.5))
    yield Structure(about(-40, 0.4), 30, [blob(128, 9, 0, (105, 54, 20))])
    yield Structure(16 + 0.6 * vessel, 12, [blob(floor + 45, -22, 16, (45, 40, 45))])  # heart
    yield Structure(-990, 0, tube([near(195, 11, 0), near(93, 11, 0)], 9))  # windpipe
    yield Structure(40, 6, tube([near(z, back - 54, 5, 2) for z in (195, 100, 22)], 7))  # gullet

    # bowel: loops of anything from gas to contrast medium, some of a kidney's or a vessel's density
    loops = [[near(z, 14, s * 0.74 * side) for z in (-30, -67, -105, -165)] for s in SIDES]
    for _ in range(rng.integers(5, 9)):
        steps = rng.uniform((-135, -54, -72), (-45, 0, 72)) + rng.normal(0, (25, 30, 30), (6, 3)).cumsum(axis=0)
        loops.append(steps.clip((-165, -61, -81), (-37, 11, 81)))
    for loop in loops:
        yield Structure(rng.choice([-700, 30, 50, 90, kidney, vessel]), 25, tube(loop, rng.uniform(8, 16)))
    stomach = [near(30, 4, 54), near(15, -25, 72), near(-15, -43, 61), near(-30, -45, 22)]
    yield Structure(about(45, 0.4), 18, tube(stomach, 18, 29, 23, 11))
    yield Structure(-920, 0, [blob(12, -40, 68, (15, 11, 16))])  # gas in the stomach

    # the spleen has about the liver's density: only position, shape and texture set them apart
    yield Structure(liver + rng.normal(0, 8), 6, [blob(9, 25, 0.6 * side, (36, 43, 20))])
    right = blob(0, -7, -0.56 * side, (57, 65, 52))
    left = blob(12, -36, rng.uniform(-22, 11), (28, 27, 54))
    tip = blob(-42, -7, -0.7 * side, (45, 40, 27))
    yield Structure(liver, 9, [right, left, tip], LIVER)
    yield Structure(about(12, 0.5), 4, [blob(-30, -32, -50, (15, 13, 11))])  # gall bladder

    for s in SIDES:  # psoas
        yield Structure(55, 10, tube([near(0, back - 25, s * 25), near(-180, back - 25, s * 47)], 6, 18))
    for level in np.arange(-195, 210, about(31, 0.1)):  # spine
        center = near(level, back - 20, 0, 1)
        arch = [near(level - 3, back - 2, -34, 1), near(level - 4, back + 5, 0, 1), near(level - 3, back - 2, 34, 1)]
        yield Structure(about(560, 0.1), 40, [Piece(center, center, np.array([13, 18, 23])), *tube(arch, 4, 9, 4)])
        yield Structure(about(210, 0.2), 30, [Piece(center, center, np.array([11, 15, 19]))])

    for s, level in zip(SIDES, (-66, -42), strict=True):  # kidneys: beans, hollow towards the spine
        z, y, x = center = near(level, 0.52 * back, s * about(59, 0.08))
        length, bow, width = rng.uniform((27, 5, 20), (41, 13, 27))
        bean = [near(z + length, y + 5, x - s * bow, 1), center, near(z - length, y - 5, x - s * bow, 1)]
        yield Structure(kidney + rng.normal(0, 4), 14, tube(bean, 0.75 * width, width, 0.8 * width), KIDNEYS)
        yield Structure(about(-60, 0.3), 15, [blob(z, y - 4, x - 17 * s, (13, 6, 8))])

    # the aorta from its arch to its fork, and the vein beside it, of nearly the same density
    y, x, radius = back - 43, rng.uniform(9, 20), rng.uniform(11, 14)
    yield Structure(vein, 6, tube([near(z, y - 4, -22, 2.5) for z in (-180, -105, -45, 8)], rng.uniform(10, 15)))
    arch = [near(93, -22, -4), near(123, -7, 0), near(123, 13, 11)]
    down = [near(z, y, x, 2.5) for z in (90, 45, 0, -52, rng.uniform(-127, -97))]
    legs = [tube([down[-1], near(-187, y - 11, s * 43)], 0.65 * radius) for s in SIDES]
    yield Structure(vessel, 5, [*tube([*arch, *down], radius), *legs[0], *legs[1]], AORTA)
