"""The patients behind the phantoms: one plan of a trunk, drawn anew for every seed.

Everything is given in the patient's frame: (z, y, x) in mm from the middle of the trunk, z towards the head, y towards
the back, x towards the patient's left, so that an array [D, H, W] shows the liver on the left of the picture as
radiologists see it. Lengths are drawn as fractions of the half field of view and turned into mm once, in `Patient`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pymic_vf.demo.phantom_shapes import Capsule, Ellipsoid, Layer, Structure, rotation

Vector = Sequence[float]
ORGANS = ("liver", "kidneys", "aorta")  # labels 1, 2, 3: large and low in contrast, paired, tubular
LIVER, KIDNEYS, AORTA = 1, 2, 3


class Patient:
    """Draws the structures of one patient, from the outside in.

    Args:
        rng: where all randomness comes from.
        half: (z, y, x) half of the field of view, in mm. In-plane lengths follow the smaller of y and x.
    """

    def __init__(self, rng: np.random.Generator, half: Vector) -> None:
        self.rng = rng
        plane = min(half[1], half[2])
        self.unit = np.array([half[0], plane, plane])
        self.plane = plane
        self.skin = np.array([rng.uniform(0.54, 0.68), rng.uniform(0.78, 0.92)])  # (y, x)
        self.fat = rng.uniform(0.04, 0.13)
        self.wall = rng.uniform(0.06, 0.09)  # of muscle and ribs
        self.inner = self.skin - self.fat - self.wall
        # one dose of contrast medium for the whole scan: a density alone does not tell an organ
        self.contrast = rng.uniform(0, 1)
        self.vessel_density = 45 + 170 * self.contrast

    def structures(self) -> list[Structure]:
        """Everything in the order of painting; later ones cover earlier ones."""
        return [
            *self._trunk(),
            *self._chest(),
            *self._bowel(),
            *self._upper_abdomen(),
            *self._spine(),
            *self._kidneys(),
            *self._vessels(),
        ]

    def _near(self, *fractions: float, by: float = 0.03) -> np.ndarray:
        """A place in mm: `fractions` of the half field of view, moved at random."""
        return (np.array(fractions) + self.rng.normal(0, by, 3).clip(-2 * by, 2 * by)) * self.unit

    def _about(self, value: float, by: float) -> float:
        return value * self.rng.uniform(1 - by, 1 + by)

    def _blob(self, center: Vector, radii: Vector, tilt: float = 0.25, ripple: float = 0.06) -> Ellipsoid:
        """A rippled ellipsoid of varied size and tilt; lengths as fractions."""
        radii = np.array(radii) * self.unit * self.rng.uniform(0.88, 1.12, 3)
        wave_lengths = radii.min() * self.rng.uniform(1.5, 3.5, (3, 1))
        direction = self.rng.normal(size=(3, 3))
        direction /= np.linalg.norm(direction, axis=1, keepdims=True)
        height = np.full((3, 1), ripple * radii.min())
        ripples = np.hstack([2 * np.pi * direction / wave_lengths, self.rng.uniform(0, 2 * np.pi, (3, 1)), height])
        return Ellipsoid(np.asarray(center), radii, rotation(self.rng.normal(0, tilt, 3)), ripples)

    def _tube(self, points: Sequence[np.ndarray], radii: Vector) -> tuple[Capsule, ...]:
        """A tube through `points` (mm), made smooth, with `radii` as fractions of the in-plane unit."""
        knots = np.linspace(0, len(points) - 1, 3 * (len(points) - 1) + 1)
        stops = np.arange(len(points))
        path = np.stack([_smooth_through(stops, np.array(points)[:, axis], knots) for axis in range(3)], axis=1)
        thick = np.interp(knots, stops, np.broadcast_to(radii, len(points))) * self.plane
        pieces = zip(path[:-1], path[1:], thick[:-1], thick[1:], strict=True)
        return tuple(Capsule(a, b, float(r), float(s)) for a, b, r, s in pieces)

    def _layer(self, depth: float, slope: float = 0.0) -> tuple[Layer]:
        return (Layer(self.skin * self.plane, depth * self.plane, slope),)

    def _trunk(self) -> list[Structure]:
        fat, muscle = self._about(-100, 0.1), self._about(55, 0.15)
        slope = self.rng.uniform(-0.06, 0.06)
        layers = [
            Structure(self._layer(0.0), 20),
            Structure(self._layer(0.012), fat, 10),
            Structure(self._layer(self.fat, slope), muscle, 15),
            Structure(self._layer(self.fat + self.wall, slope), self._about(-85, 0.2), 20),
        ]
        return layers + [self._rib(level, side) for level in np.arange(-0.05, 1.2, 0.22) for side in (-1, 1)]

    def _rib(self, level: float, side: int) -> Structure:
        """An arc within the wall, from the spine down and forward."""
        radii = self.skin - self.fat - 0.45 * self.wall
        angles = np.linspace(1.35, -0.9, 6)
        arc = [(level - 0.12 * (1.35 - a), radii[0] * np.sin(a), side * radii[1] * np.cos(a)) for a in angles]
        return Structure(self._tube([self._near(*p, by=0.006) for p in arc], [0.026]), self._about(520, 0.3), 60)

    def _chest(self) -> list[Structure]:
        inner_y, inner_x = self.inner
        floor = self.rng.uniform(0.02, 0.18)  # of the lungs: how far in the patient has breathed
        lungs = [
            Structure(
                (
                    self._blob(
                        self._near(floor + 0.66, 0, side * 0.52 * inner_x), (0.62, 0.86 * inner_y, 0.43 * inner_x)
                    ),
                    self._blob(
                        self._near(floor + 0.45, 0.1, side * 0.55 * inner_x), (0.42, 0.7 * inner_y, 0.36 * inner_x)
                    ),
                ),
                self._about(-830, 0.05),
                35,
            )
            for side in (-1, 1)
        ]
        heart = self._blob(self._near(floor + 0.3, -0.12, 0.09), (0.3, 0.22, 0.25))
        middle = Structure((self._blob(self._near(0.85, 0.05, 0.0), (0.7, 0.3, 0.11)),), self._about(-40, 0.4), 30)
        chambers = Structure((heart,), 40 + 0.6 * (self.vessel_density - 40), 12)
        branches = [self._lung_vessels(side, floor) for side in (-1, 1)]
        windpipe = Structure(self._tube([self._near(z, 0.06, 0.0, by=0.01) for z in (1.3, 0.9, 0.62)], [0.05]), -990, 0)
        gullet = self._tube([self._near(z, self.inner[0] - 0.3, 0.03, by=0.012) for z in (1.3, 0.8, 0.4, 0.15)], [0.04])
        return [*lungs, *branches, middle, chambers, windpipe, Structure(gullet, 40)]

    def _lung_vessels(self, side: int, floor: float) -> Structure:
        root = self._near(floor + 0.45, 0.03, side * 0.12)
        tubes = []
        for _ in range(7):
            tip = self._near(floor + self.rng.uniform(0.1, 1.0), self.rng.uniform(-0.25, 0.3), side * 0.5, by=0.06)
            middle = (root + tip) / 2 + self.rng.normal(0, 0.05, 3) * self.unit
            tubes.extend(self._tube([root, middle, tip], [0.035, 0.02, 0.008]))
        return Structure(tuple(tubes), 30, 10)

    def _upper_abdomen(self) -> list[Structure]:
        liver_density = self._about(62 + 45 * self.contrast, 0.1)
        top = self.rng.uniform(-0.06, 0.06)
        lobes = [
            self._blob(self._near(top, -0.04, -0.56 * self.inner[1]), (0.38, 0.36, 0.29)),
            self._blob(self._near(top + 0.08, -0.2, self.rng.uniform(-0.12, 0.06)), (0.19, 0.15, 0.3), tilt=0.15),
            self._blob(self._near(top - 0.28, -0.04, -0.7 * self.inner[1]), (0.3, 0.22, 0.15)),
        ]
        # the unlabelled neighbours of the liver have nearly its density: only place and shape tell them apart
        spleen = self._blob(self._near(0.06, 0.14, 0.6 * self.inner[1]), (0.24, 0.22, 0.11), tilt=0.35)
        stomach = self._tube(
            [
                self._near(0.2, 0.02, 0.3),
                self._near(0.1, -0.14, 0.4),
                self._near(-0.1, -0.24, 0.34),
                self._near(-0.2, -0.25, 0.12),
            ],
            [0.1, 0.16, 0.13, 0.06],
        )
        gas = self._blob(self._near(0.08, -0.22, 0.38), (0.1, 0.06, 0.09))
        gall = self._blob(self._near(top - 0.2, -0.18, -0.28), (0.1, 0.07, 0.06))
        return [
            Structure(stomach, self._about(45, 0.4), 18),
            Structure((gas,), -920, 0),
            Structure((spleen,), liver_density + self.rng.normal(0, 8), 7),
            Structure(tuple(lobes), liver_density, 8, LIVER),
            Structure((gall,), self._about(12, 0.5), 4),
        ]

    def _bowel(self) -> list[Structure]:
        """Loops from gas to contrast medium, some of a kidney's or a vessel's density."""
        loops = []
        for _ in range(self.rng.integers(5, 9)):
            place = np.array([self.rng.uniform(-0.9, -0.3), self.rng.uniform(-0.3, 0.0), self.rng.uniform(-0.4, 0.4)])
            path = [place * self.unit]
            for _ in range(5):
                place = np.clip(place + self.rng.normal(0, 0.17, 3), (-1.1, -0.34, -0.45), (-0.25, 0.06, 0.45))
                path.append(place * self.unit)
            loops.append(Structure(self._tube(path, [self.rng.uniform(0.045, 0.085)]), self._bowel_density(), 25))
        for side in (-1, 1):
            path = [self._near(z, 0.08, side * 0.74 * self.inner[1], by=0.035) for z in (-0.2, -0.45, -0.7, -1.1)]
            loops.append(Structure(self._tube(path, [self.rng.uniform(0.06, 0.1)]), self._bowel_density(), 40))
        return loops

    def _bowel_density(self) -> float:
        return float(self.rng.choice([-700, 30, 50, 90, self._kidney_density(), self.vessel_density]))

    def _kidney_density(self) -> float:
        return 38 + 130 * self.contrast

    def _spine(self) -> list[Structure]:
        y = self.inner[0] - 0.11
        spike = 0.6 * (self.fat + self.wall)
        pitch = self._about(0.21, 0.1)
        bend = self.rng.normal(0, 0.02)
        bones: list[Structure] = []
        for level in np.arange(-1.3, 1.4, pitch):
            center = self._near(level, y, bend * np.sin(2 * level), by=0.004)
            back = center + np.array([-0.03, 0.14, 0]) * self.unit
            body = Ellipsoid(center, np.array([0.42 * pitch, 0.1, 0.13]) * self.unit)
            marrow = Ellipsoid(center, body.radii * 0.82)
            spine_process = self._tube([back, back + np.array([-0.06, spike, 0]) * self.unit], [0.03, 0.015])
            wings = [center + np.array([-0.02, 0.1, side * 0.19]) * self.unit for side in (-1, 1)]
            wings = self._tube([wings[0], back, wings[1]], [0.02, 0.04, 0.02])
            bones.append(Structure((body, *spine_process, *wings), self._about(560, 0.1), 40))
            bones.append(Structure((marrow,), self._about(210, 0.2), 30))
        canal = [self._near(z, y + 0.135, bend * np.sin(2 * z), by=0.0) for z in (-1.3, -0.6, 0, 0.6, 1.3)]
        psoas = [
            self._tube(
                [self._near(z, y - 0.03, side * x, by=0.01) for z, x in ((0.0, 0.14), (-0.5, 0.19), (-1.2, 0.26))],
                [0.03, 0.08, 0.1],
            )
            for side in (-1, 1)
        ]
        return [Structure((*psoas[0], *psoas[1]), 55, 10), *bones, Structure(self._tube(canal, [0.035]), 25, 5)]

    def _kidneys(self) -> list[Structure]:
        return [part for side, level in ((-1, -0.44), (1, -0.28)) for part in self._kidney(side, level)]

    def _kidney(self, side: int, level: float) -> list[Structure]:
        """A bean, hollow towards the spine, where fat and urine fill it."""
        place = self._near(level, self.inner[0] * 0.52, side * self._about(0.33, 0.08), by=0.035)
        length, bow = self.rng.uniform(0.17, 0.26), side * self.rng.uniform(0.03, 0.07)
        tip = np.array([length, 0.03, -bow]) * self.unit
        foot = np.array([-length, -0.03, -bow * self.rng.uniform(0.3, 1)]) * self.unit
        width = self.rng.uniform(0.1, 0.14)
        bean = self._tube([place + tip, place, place + foot], [0.75 * width, width, 0.8 * width])
        hollow = place - np.array([0, 0.02, side * 0.095]) * self.unit
        return [
            Structure(bean, self._kidney_density() + self.rng.normal(0, 4), 12, KIDNEYS),
            Structure((self._blob(hollow, (0.08, 0.035, 0.045)),), self._about(-60, 0.3), 15),
            Structure((self._blob(hollow, (0.05, 0.02, 0.025)),), self._about(15, 0.5), 5),
        ]

    def _vessels(self) -> list[Structure]:
        """The aorta from its arch to its fork, and the vein beside it, of nearly the same density."""
        y, left = self.inner[0] - 0.24, self.rng.uniform(0.05, 0.11)
        fork = self.rng.uniform(-0.85, -0.65)
        radius = self.rng.uniform(0.06, 0.08)
        arch = [self._near(0.62, -0.12, -0.02), self._near(0.82, -0.04, 0.0), self._near(0.82, 0.07, 0.06)]
        down = [self._near(z, y, left, by=0.015) for z in (0.6, 0.3, 0.0, -0.35, fork)]
        legs = [self._tube([down[-1], self._near(-1.25, y - 0.06, side * 0.24)], [0.65 * radius]) for side in (-1, 1)]
        aorta = (*self._tube([*arch, *down], [radius] * 5 + [0.85 * radius] * 3), *legs[0], *legs[1])
        vein = [self._near(z, y - 0.02, -0.12, by=0.015) for z in (-1.2, -0.7, -0.3, 0.05)] + [
            self._near(0.3, -0.02, -0.06)
        ]
        side_vein = [self._near(-0.28, y - 0.02, x, by=0.015) for x in (0.26, 0.1, -0.1)]  # crosses before the aorta
        side_vein[1] -= np.array([0, radius + 0.04, 0]) * self.unit
        density = self.vessel_density - self.rng.uniform(-5, 35) * self.contrast
        return [
            Structure(self._tube(vein, [self.rng.uniform(0.055, 0.085)]), density, 6),
            Structure(aorta, self.vessel_density, 5, AORTA),
            Structure(self._tube(side_vein, [0.028]), density, 6),
        ]


def _smooth_through(stops: np.ndarray, values: np.ndarray, at: np.ndarray) -> np.ndarray:
    """A Catmull-Rom curve through `values` at the whole numbers `stops`."""
    ends = np.concatenate([[2 * values[0] - values[1]], values, [2 * values[-1] - values[-2]]])
    piece = np.minimum(at.astype(int), len(stops) - 2)
    t = at - piece
    a, b, c, d = (ends[piece + shift] for shift in range(4))
    return 0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3)
