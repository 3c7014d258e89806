"""Two pictures: a training sample as in Fig. 2 of MIS-FM, and segmentations beside the truth as in its Fig. 6.

Drawn with matplotlib's objects and never through pyplot, so nothing of the caller's figures or backend is touched.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import BoundaryNorm, ListedColormap, to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import Patch as Swatch
from scipy import ndimage

from pymic_vf.data.orientation import LPS, upright, upright_spacing
from pymic_vf.files import whole_file, written
from pymic_vf.methods.method import Panel

# Okabe and Ito's colours, which people with any colour vision tell apart, without the two that vanish on grey
ORGAN_COLOURS = ("#E69F00", "#56B4E9", "#D55E00", "#F0E442", "#009E73", "#CC79A7")
INK, PALE = "#222222", "#777777"
PANEL = 2.5  # inches, the width of one
DPI = 150
AXIAL, CORONAL = 0, 1  # the axis that a view cuts across


def draw_sample(
    panels: Sequence[Panel],
    class_names: Sequence[str],
    path: str | Path,
    title: str,
    spacing: Sequence[float] = (1.0, 1.0, 1.0),
    direction: Sequence[float] = LPS,
) -> None:
    """One training sample, a column for each panel, in an axial and a coronal slice.

    The slices are those that show most of the classes, of their borders and of the images.

    Args:
        panels: of one shape [D, H, W].
        class_names: of the classes of the panels' labels, from 0; empty where no panel has a label.
        path: of the PNG.
        title: above all.
        spacing: (z, y, x) in mm.
        direction: cosines of the array's axes, see :mod:`pymic_vf.data.orientation`; what lies in another way than a
            radiologist looks at it is turned.

    Raises:
        ValueError: the volumes are not of one shape.
    """
    volumes = [volume for panel in panels for volume in (panel.image, panel.label) if volume is not None]
    _check_shapes(**{str(number): volume for number, volume in enumerate(volumes)})
    panels, spacing = [_upright_panel(panel, direction) for panel in panels], upright_spacing(spacing, direction)
    images = [panel.image for panel in panels if panel.image is not None]
    labels = [panel.label for panel in panels if panel.label is not None]
    colours = ListedColormap(colormaps["viridis"](np.linspace(0, 1, max(len(class_names), 2))))
    norm = BoundaryNorm(np.arange(colours.N + 1) - 0.5, colours.N)
    window = np.percentile(np.stack(images), (0.5, 99.5))
    figure, columns = _panels(images[0].shape, spacing, len(panels), top=0.85, bottom=0.45)
    figure.suptitle(title, x=0.01, y=0.985, ha="left", fontsize=13, color=INK, weight="bold")
    for row, axis in zip(columns, (AXIAL, CORONAL), strict=True):
        index = _busiest(images, labels[0] if labels else None, axis)
        for axes, panel in zip(row, panels, strict=True):
            if panel.image is not None:
                _grey(axes, _view(panel.image, axis, index), window, _aspect(spacing, axis))
            if panel.label is not None:
                alpha = 1.0 if panel.image is None else 0.55
                view = _view(panel.label, axis, index)
                aspect = _aspect(spacing, axis)
                axes.imshow(view, cmap=colours, norm=norm, alpha=alpha, interpolation="nearest", aspect=aspect)
        _name_view(row[0], axis, index)
    for axes, panel in zip(columns[0], panels, strict=True):
        axes.set_title(f"{panel.title}\n{panel.formula}", fontsize=10, color=INK)
    if class_names:
        swatches = [Swatch(facecolor=colours(k), edgecolor=PALE, linewidth=0.5) for k in range(len(class_names))]
        _legend(figure, swatches, [f"{name}  (class {k})" for k, name in enumerate(class_names)])
    _save(figure, path)


def draw_overlays(
    image: np.ndarray,
    truth: np.ndarray,
    segmentations: Mapping[str, np.ndarray],
    class_names: Sequence[str],
    path: str | Path,
    spacing: Sequence[float] = (1.0, 1.0, 1.0),
    direction: Sequence[float] = LPS,
) -> None:
    """Segmentations beside the truth, in an axial and a coronal slice, with the Dice of the whole volume.

    The slices are those with the largest share of all structures; the grey window is that of their surroundings.

    Args:
        image: [D, H, W].
        truth: labels 0..C, [D, H, W].
        segmentations: the same by the name of who made them, one column each.
        class_names: of the labels 1..C.
        path: of the PNG.
        spacing: (z, y, x) in mm.
        direction: as in :func:`draw_sample`.

    Raises:
        ValueError: the arrays are not of one shape.
    """
    _check_shapes(image=image, truth=truth, **segmentations)
    image, truth = upright(image, direction), upright(truth, direction)
    segmentations = {name: upright(labels, direction) for name, labels in segmentations.items()}
    spacing = upright_spacing(spacing, direction)
    window = _window_around(image, truth > 0)
    figure, panels = _panels(image.shape, spacing, 2 + len(segmentations), top=0.65, bottom=0.7)
    columns = {"image": np.zeros_like(truth), "ground truth": truth, **segmentations}
    colours = [ORGAN_COLOURS[k % len(ORGAN_COLOURS)] for k in range(len(class_names))]
    for row, axis in zip(panels, (AXIAL, CORONAL), strict=True):
        index = _fullest(truth, axis, len(class_names))
        for panel, labels in zip(row, columns.values(), strict=True):
            _grey(panel, _view(image, axis, index), window, _aspect(spacing, axis))
            _overlay(panel, _view(labels, axis, index), colours)
        _name_view(row[0], axis, index)
    for column, (name, labels) in enumerate(columns.items()):
        panels[0][column].set_title(name, fontsize=11, color=INK, weight="bold", pad=20)
        if name in segmentations:
            dice = dice_per_class(truth, labels, len(class_names))
            mean = f"mean Dice {np.nanmean(dice):.3f}" if np.isfinite(dice).any() else "no structure"
            _above(panels[0][column], mean)
            _below(panels[1][column], [f"{value:.3f}" for value in dice], colours)
    _legend(figure, [Swatch(facecolor=colour) for colour in colours], list(class_names))
    _save(figure, path)


def dice_per_class(truth: np.ndarray, segmentation: np.ndarray, classes: int) -> np.ndarray:
    """Dice of the labels 1..classes, float [classes]; NaN for one that neither has."""
    scores = np.full(classes, np.nan)
    for k in range(classes):
        a, b = truth == k + 1, segmentation == k + 1
        if a.any() or b.any():
            scores[k] = 2 * np.count_nonzero(a & b) / (np.count_nonzero(a) + np.count_nonzero(b))
    return scores


def _check_shapes(**volumes: np.ndarray) -> None:
    shapes = {name: np.shape(volume) for name, volume in volumes.items()}
    if len(set(shapes.values())) > 1 or len(next(iter(shapes.values()))) != 3:
        raise ValueError(f"a picture needs volumes [D, H, W] of one shape, got {shapes}")


def _upright_panel(panel: Panel, direction: Sequence[float]) -> Panel:
    image, label = (None if each is None else upright(each, direction) for each in (panel.image, panel.label))
    return replace(panel, image=image, label=label)


def _view(volume: np.ndarray, axis: int, index: int) -> np.ndarray:
    """A slice as radiologists look at it: a coronal one has the head, which is at the last z, on top."""
    return volume[index] if axis == AXIAL else volume[::-1, index]


def _aspect(spacing: Sequence[float], axis: int) -> float:
    return spacing[1 if axis == AXIAL else 0] / spacing[2]


def _busiest(images: Sequence[np.ndarray], label: np.ndarray | None, axis: int) -> int:
    """The slice across `axis` that shows most: of the classes, of their borders and of the differences of grey values,
    each as a share of the most in any slice."""
    shown = sum(_share(_borders(image, axis)) for image in images)
    if label is not None:
        across = np.moveaxis(label, axis, 0)
        classes = np.array([len(np.unique(each)) for each in across])
        shown = shown + _share(_borders(label, axis)) + len(images) * _share(classes)
    return int(np.argmax(shown))


def _borders(volume: np.ndarray, axis: int) -> np.ndarray:
    """For each slice across `axis`, how much neighbouring voxels differ; of a label, how many do."""
    across = np.moveaxis(volume, axis, 0)
    of_label = volume.dtype.kind == "u"
    steps = [np.diff(across.astype(np.float32), axis=other) for other in (1, 2)]
    return sum((step != 0 if of_label else np.abs(step)).sum(axis=(1, 2)) for step in steps)


def _share(values: np.ndarray) -> np.ndarray:
    return values / max(values.max(), 1e-6)


def _fullest(label: np.ndarray, axis: int, classes: int) -> int:
    """The slice across `axis` that shows most of every class, each counted as a share of its own largest slice."""
    across = np.moveaxis(label, axis, 0)
    areas = np.stack([np.count_nonzero(across == k, axis=(1, 2)) for k in range(1, classes + 1)])
    return int(np.argmax((areas / np.maximum(areas.max(axis=1, keepdims=True), 1)).sum(axis=0)))


def _window_around(image: np.ndarray, mask: np.ndarray) -> tuple[float, float]:
    """The grey window (lowest, highest) that shows the structures and what is around them."""
    near = ndimage.binary_dilation(mask, iterations=2) if mask.any() else np.ones_like(mask)
    low, middle, high = np.percentile(image[near], (5, 50, 98))
    reach = max(high - middle, min(middle - low, 3 * (high - middle)), 1e-6)
    return middle - 1.4 * reach, middle + 1.4 * reach


def _panels(
    shape: Sequence[int], spacing: Sequence[float], columns: int, top: float, bottom: float
) -> tuple[Figure, list[list[Axes]]]:
    """A figure with an axial row over a coronal one; `top` and `bottom` inches are left for text."""
    depth, height, width = np.multiply(shape, spacing)
    rows = [PANEL * height / width, PANEL * depth / width]
    left, right, gap = 0.4, 0.1, 0.06
    size = (left + right + columns * (PANEL + gap), top + bottom + sum(rows) + gap)
    figure = Figure(figsize=size, dpi=DPI, facecolor="white")
    axes = []
    for row, tall in enumerate(rows):
        base = bottom + (0 if row else rows[1] + gap)
        corners = [(left + column * (PANEL + gap), base, PANEL, tall) for column in range(columns)]
        boxes = [np.array(corner) / (size[0], size[1], size[0], size[1]) for corner in corners]
        axes.append([_bare(figure.add_axes(tuple(box))) for box in boxes])
    return figure, axes


def _bare(panel: Axes) -> Axes:
    panel.set(xticks=[], yticks=[])
    for side in panel.spines.values():
        side.set_visible(False)
    return panel


def _grey(panel: Axes, view: np.ndarray, window: Sequence[float], aspect: float = 1.0) -> None:
    panel.imshow(view, cmap="gray", vmin=window[0], vmax=window[1], aspect=aspect, interpolation="nearest")


def _overlay(panel: Axes, labels: np.ndarray, colours: Sequence[str]) -> None:
    """A translucent fill with a firm contour for every label."""
    for k, colour in enumerate(colours, start=1):
        mask = labels == k
        if mask.any():
            fill = np.zeros((*mask.shape, 4))
            fill[mask] = to_rgba(colour, 0.35)
            panel.imshow(fill, aspect=panel.get_aspect(), interpolation="nearest")
            edged = np.pad(mask, 1).astype(float)  # so that a structure at the border gets its line there as well
            axes = [np.arange(-1, n + 1) for n in mask.shape]
            panel.contour(axes[1], axes[0], edged, levels=[0.5], colors=[colour], linewidths=1.3)
            panel.set(xlim=(-0.5, mask.shape[1] - 0.5), ylim=(mask.shape[0] - 0.5, -0.5))


def _name_view(panel: Axes, axis: int, index: int) -> None:
    panel.set_ylabel(f"{'axial' if axis == AXIAL else 'coronal'} {index}", fontsize=9, color=PALE)


def _above(panel: Axes, text: str) -> None:
    panel.annotate(text, (0.5, 1), (0, 5), "axes fraction", "offset points", ha="center", fontsize=10, color=INK)


def _below(panel: Axes, texts: Sequence[str], colours: Sequence[str]) -> None:
    """Dice of the classes in a row, each with a bar of its colour; only the first few where there are many."""
    shown = min(len(texts), 4)
    for number, (text, colour) in enumerate(zip(texts[:shown], colours, strict=False)):
        x = (number + 0.5) / shown
        panel.annotate(text, (x, 0), (0, -13), "axes fraction", "offset points", ha="center", fontsize=9, color=INK)
        panel.plot([x - 0.09, x + 0.09], [-0.012] * 2, color=colour, lw=3, transform=panel.transAxes, clip_on=False)


def _legend(figure: Figure, swatches: Sequence[Swatch], texts: Sequence[str]) -> None:
    columns = min(len(texts), 6)
    legend = figure.legend(
        swatches, texts, loc="lower center", ncols=columns, frameon=False, fontsize=10, handlelength=1.2
    )
    for text in legend.get_texts():
        text.set_color(INK)


def _save(figure: Figure, path: str | Path) -> None:
    with written(path), whole_file(path) as temporary:
        figure.savefig(temporary, format="png")
