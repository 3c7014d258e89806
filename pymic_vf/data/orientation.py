"""Which way a volume lies, by the direction cosines of its header, and how to turn it for people who look at it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

LPS = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)  # x grows to the patient's left, y to the back, z to the head
LETTERS = ("LR", "PA", "SI")


def patient_axes(direction: Sequence[float]) -> list[tuple[int, bool]]:
    """For the array's axes x, y and z: the patient's axis (0 left, 1 back, 2 head) that each is closest to, and whether
    it grows against that one.

    Args:
        direction: the 3x3 direction cosines, row by row, as SimpleITK has them.
    """
    found = []
    for cosines in np.reshape(direction, (3, 3)).T:
        axis = int(np.argmax(np.abs(cosines)))
        found.append((axis, bool(cosines[axis] < 0)))
    return found


def letters(direction: Sequence[float]) -> str:
    """The anatomical direction in which each array axis (x, y, z) grows, such as LPS; unknown without a direction."""
    if len(direction) != 9:
        return "unknown"
    return "".join(LETTERS[axis][against] for axis, against in patient_axes(direction))


def upright(volume: np.ndarray, direction: Sequence[float]) -> np.ndarray:
    """A view of a volume whose axes are those of an LPS one: z grows to the head, y to the back, x to the left.

    Args:
        volume: [D, H, W].
        direction: of its header; one that does not say, or in which two axes are closest to one of the patient's,
            leaves the volume as it is.
    """
    for axis, against in enumerate(_against(direction)):
        volume = np.flip(volume, axis) if against else volume
    return volume.transpose(_order(direction))


def upright_spacing(spacing: Sequence[float], direction: Sequence[float]) -> tuple[float, ...]:
    """The (z, y, x) spacing of what :func:`upright` returns."""
    return tuple(spacing[axis] for axis in _order(direction))


def _known(direction: Sequence[float]) -> Sequence[float]:
    axes = [axis for axis, _ in patient_axes(direction)] if len(direction) == 9 else []
    return direction if sorted(axes) == [0, 1, 2] else LPS


def _order(direction: Sequence[float]) -> list[int]:
    """The array axis (0 for z) that becomes z, y and x."""
    axes = [axis for axis, _ in patient_axes(_known(direction))]
    return [2 - axes.index(patient) for patient in (2, 1, 0)]


def _against(direction: Sequence[float]) -> list[bool]:
    """Whether the array's axes z, y and x are to be flipped."""
    return [against for _, against in reversed(patient_axes(_known(direction)))]
