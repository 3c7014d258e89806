"""What a pretraining method says of itself; the list of scans, the crops and their cache, workers, resuming, several
GPUs, checks and the preview are the same for all."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from pymic_vf.keys import Key, Section
from pymic_vf.sizes import Size

SEGMENTATION, RECONSTRUCTION = "segmentation", "reconstruction"


@dataclass(frozen=True)
class Panel:
    """One column of a method's preview.

    Args:
        title: above the column.
        formula: below the title, as matplotlib writes mathematics; empty for none.
        image: grey values [D, H, W], or None.
        label: classes [D, H, W] to lay over the image in colour, or None.
    """

    title: str
    formula: str = ""
    image: np.ndarray | None = None
    label: np.ndarray | None = None


class Method(ABC):
    """A self-supervised method, made from its keys.

    Args:
        values: the value of each of `keys` by its name.

    Attributes:
        title: its name in the log and above the preview.
        keys: its rows of [dataset].
        scans_per_sample: a sample takes one crop each of so many different scans.
        task: SEGMENTATION or RECONSTRUCTION, which says which of PyMIC's agents trains it.
    """

    title: ClassVar[str]
    keys: ClassVar[tuple[Key, ...]]
    scans_per_sample: ClassVar[int] = 1
    task: ClassVar[str]

    @abstractmethod
    def __init__(self, values: Mapping[str, Any]) -> None: ...

    @classmethod  # noqa: B027 (most methods have no such rule)
    def check(cls, values: Mapping[str, Any], crop_size: Size, dataset: Section) -> None:
        """Note the rules between keys that are broken, by ``dataset.wrong``; none by default."""

    @abstractmethod
    def sample(self, crops: Sequence[np.ndarray], rng: np.random.Generator) -> dict[str, Any]:
        """One training sample.

        Args:
            crops: `scans_per_sample` of them, float32 [C, D, H, W]; the method may write to them.
            rng: where all of its randomness comes from.

        Returns:
            ``image``, float32 [C, D, H, W], what the network is shown, and ``label``: for a segmentation uint8
            [1, D, H, W], for a reconstruction float32 [C, D, H, W]. A reconstruction may add ``pixel_weight``, float32
            of the label's shape, the weight of each voxel in PyMIC's MAELoss. Further entries say what was drawn.
        """

    def class_names(self, in_chns: int) -> list[str]:
        """The name of each output channel of the network, of which ``class_num`` is the number."""
        return [f"channel {channel}" for channel in range(in_chns)]

    @property
    def weights_voxels(self) -> bool:
        """Whether samples have a ``pixel_weight``."""
        return False

    @abstractmethod
    def panels(self, crops: Sequence[np.ndarray], sample: Mapping[str, Any]) -> list[Panel]:
        """What :meth:`sample` made of `crops`, column by column, of the first channel."""
