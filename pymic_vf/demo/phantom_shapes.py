"""The shapes that phantoms are made of. Points, lengths and distances are in mm, axes in the order z, y, x."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class Ellipsoid:
    """An ellipsoid with a rippled surface.

    Args:
        center: (z, y, x) in mm.
        radii: in mm, along the rows of `axes`.
        axes: 3x3 rotation.
        ripples: rows of (wave number z, y, x in 1/mm, phase, height in mm).
    """

    center: np.ndarray
    radii: np.ndarray
    axes: np.ndarray = field(default_factory=lambda: np.eye(3))
    ripples: np.ndarray = field(default_factory=lambda: np.zeros((0, 5)))

    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """The corners of a box around it, in mm."""
        reach = np.sqrt(((self.axes * self.radii[:, None]) ** 2).sum(axis=0)) + np.abs(self.ripples[:, 4]).sum()
        return self.center - reach, self.center + reach

    def distance(self, points: Sequence[np.ndarray]) -> np.ndarray:
        """About the distance from the surface in mm, negative inside; `points` are arrays of z, y and x."""
        offsets = [p - np.float32(c) for p, c in zip(points, self.center, strict=True)]
        scaled = [
            sum(np.float32(weight / radius) * o for weight, o in zip(axis, offsets, strict=True) if weight)
            for axis, radius in zip(self.axes, self.radii, strict=True)
        ]
        distance = _from_scaled(scaled, self.radii)
        for *wave, phase, height in self.ripples.astype(np.float32):
            distance += height * np.sin(sum(k * p for k, p in zip(wave, points, strict=True)) + phase)
        return distance


@dataclass(frozen=True)
class Capsule:
    """A piece of tube from `start` to `end` (mm) whose radius goes evenly from `radius` to `end_radius` (mm)."""

    start: np.ndarray
    end: np.ndarray
    radius: float
    end_radius: float

    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """The corners of a box around it, in mm."""
        reach = max(self.radius, self.end_radius)
        return np.minimum(self.start, self.end) - reach, np.maximum(self.start, self.end) + reach

    def distance(self, points: Sequence[np.ndarray]) -> np.ndarray:
        """About the distance from the surface in mm, negative inside."""
        along = self.end - self.start
        offsets = [p - np.float32(s) for p, s in zip(points, self.start, strict=True)]
        steps = np.float32(along / max(along @ along, 1e-6))
        place = np.clip(sum(w * o for w, o in zip(steps, offsets, strict=True)), 0, 1)
        squares = sum((o - np.float32(a) * place) ** 2 for a, o in zip(along, offsets, strict=True))
        return np.sqrt(squares) - np.float32(self.radius) - np.float32(self.end_radius - self.radius) * place


@dataclass(frozen=True)
class Layer:
    """Everything deeper than a depth under the skin of a trunk, which is an elliptic cylinder along z.

    Args:
        radii: (y, x) of the skin in mm.
        depth: in mm.
        slope: how the depth grows towards the back, in mm per mm.
    """

    radii: np.ndarray
    depth: float = 0.0
    slope: float = 0.0

    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """The corners of a box around it, in mm; it has no end along z."""
        reach = np.array([np.inf, *self.radii])
        return -reach, reach

    def distance(self, points: Sequence[np.ndarray]) -> np.ndarray:
        """About the distance from its surface in mm, negative inside."""
        _, y, x = points
        scaled = [y / np.float32(self.radii[0]), x / np.float32(self.radii[1])]
        return _from_scaled(scaled, self.radii) + np.float32(self.depth) + np.float32(self.slope) * y


def _from_scaled(scaled: Sequence[np.ndarray], radii: np.ndarray) -> np.ndarray:
    """First-order distance from the ellipsoid |q| = 1, with q = `scaled` in units of `radii`."""
    length = np.sqrt(sum(q * q for q in scaled))
    slope = np.sqrt(sum((q / np.float32(r)) ** 2 for q, r in zip(scaled, radii, strict=True)))
    return length * (length - 1) / np.maximum(slope, np.float32(1e-6))


@dataclass(frozen=True)
class Structure:
    """What is painted over whatever is there already: an organ, a part of one, or its content.

    Args:
        parts: shapes; together they are the structure.
        density: in HU.
        texture: standard deviation of its slow inner variation, in HU.
        label: 1, 2, ... for the organs to be segmented, 0 for everything else.
    """

    parts: tuple[Ellipsoid | Capsule | Layer, ...]
    density: float
    texture: float = 6.0
    label: int = 0


def rotation(angles: Sequence[float]) -> np.ndarray:
    """The 3x3 rotation about the z, y and x axes, one after the other, in radians."""
    matrix = np.eye(3)
    for axis, angle in enumerate(angles):
        turn = np.eye(3)
        i, j = [other for other in range(3) if other != axis]
        turn[[i, j], [i, j]] = np.cos(angle)
        turn[i, j], turn[j, i] = np.sin(angle), -np.sin(angle)
        matrix = matrix @ turn
    return matrix
