"""The one name for three whole numbers."""

from __future__ import annotations

Size = tuple[int, int, int]
"""(D, H, W) or (z, y, x), in voxels."""

AXES = ("depth", "height", "width")
