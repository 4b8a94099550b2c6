"""Plots of an evaluation, as PNG: drawings, confusion of digits, figures against targets, reconstructions."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from training.digits.scenes import COLORS
from training.evaluation.metrics import AIMS, Drawing
from training.registry.gates import numbers, reaches

INK, MUTED, GOOD, BAD = "#222222", "#8a8f98", "#1a9850", "#d73027"
FILL, EMPTY = "#4575b4", "#f2f2f2"
CELL, FRAME, GAP = 64, 4, 3
PER_PAIR = 2
NUM_PAIRS_SHOWN = 16


def save_drawings(drawings: Sequence[Drawing], pictures: Sequence[Image.Image], path: Path) -> None:
    """A row for every digit, two pictures for every colour: red frame = judged wrong, green = unseen pair."""
    cells: dict[tuple[int, str], list[Image.Image]] = {}
    for drawing, picture in zip(drawings, pictures, strict=True):
        cells.setdefault(drawing.scene.pair, []).append(_framed(drawing, picture))
    # Requests go through the backgrounds in turn; another start for every digit and colour shows them all.
    rows = [
        [
            cell
            for column, color in enumerate(COLORS)
            for cell in _some(cells.get((digit, color), []), 3 * digit + 2 * column)
        ]
        for digit in range(10)
    ]
    sheet = _sheet(rows)
    right = sum(drawing.is_right for drawing in drawings)
    figure, axes = _figure(sheet.width / 80, sheet.height / 80 + 0.9)
    axes.imshow(sheet)
    step = CELL + GAP
    centers = [GAP + step * PER_PAIR * (index + 0.5) for index in range(len(COLORS))]
    axes.set_xticks(centers, list(COLORS))
    axes.set_yticks(
        [GAP + step * digit + CELL / 2 for digit in range(10)], [str(digit) for digit in range(10)]
    )
    axes.set_title(
        f"{right} of {len(drawings)} drawings all right\nred: judged wrong   green: pair never trained on",
        fontsize=9,
        color=INK,
    )
    _bare(axes)
    figure.savefig(path, dpi=100)


def _some(cells: Sequence[Image.Image], start: int) -> list[Image.Image]:
    """As many cells as a pair gets, gray ones where there are none."""
    found = [cells[(start + place) % len(cells)] for place in range(min(PER_PAIR, len(cells)))]
    return found + [Image.new("RGB", (CELL, CELL), EMPTY)] * (PER_PAIR - len(found))


def _framed(drawing: Drawing, picture: Image.Image) -> Image.Image:
    """The picture with its frames: the outer one says wrong, the inner one says unseen."""
    colors = [color for color, is_on in ((BAD, not drawing.is_right), (GOOD, drawing.is_unseen)) if is_on]
    cell = Image.new("RGB", (CELL, CELL), colors[0] if colors else "white")
    for depth, color in enumerate(colors):
        margin = depth * FRAME
        cell.paste(Image.new("RGB", (CELL - 2 * margin,) * 2, color), (margin, margin))
    margin = max(1, len(colors)) * FRAME
    cell.paste(_enlarged(picture, CELL - 2 * margin), (margin, margin))
    return cell


def _enlarged(picture: Image.Image, side: int) -> Image.Image:
    return picture.convert("RGB").resize((side, side), Image.Resampling.NEAREST)


def _sheet(rows: Sequence[Sequence[Image.Image]]) -> Image.Image:
    step = CELL + GAP
    sheet = Image.new("RGB", (step * len(rows[0]) + GAP, step * len(rows) + GAP), "white")
    for row, cells in enumerate(rows):
        for column, cell in enumerate(cells):
            sheet.paste(cell, (GAP + column * step, GAP + row * step))
    return sheet


def save_confusion(drawings: Sequence[Drawing], path: Path) -> None:
    """Which digit was asked for, and which one the judge saw."""
    counts = np.zeros((10, 11), dtype=int)
    for drawing in drawings:
        seen = 10 if drawing.verdict.digit is None else drawing.verdict.digit
        counts[drawing.scene.digit, seen] += 1
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    figure, axes = _figure(5.4, 5.0)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (row, column), count in np.ndenumerate(counts):
        if count:
            color = "white" if shares[row, column] > 0.5 else INK
            axes.text(column, row, str(count), ha="center", va="center", fontsize=7, color=color)
    axes.set_xticks(range(11), [*map(str, range(10)), "none"])
    axes.set_yticks(range(10))
    axes.set_xlabel("digit the judge saw")
    axes.set_ylabel("digit asked for")
    _bare(axes)
    figure.savefig(path, dpi=100)


def save_targets(metrics: Mapping[str, Any], floors: Mapping[str, Any], path: Path) -> None:
    """Every figure that has an aim, with its 95 % interval; ticks mark what it must reach and aims at.

    Args:
        floors: What figures must reach, nested like the metrics.
    """
    shares = [name for name, aim in AIMS.items() if aim <= 1]
    others = [name for name in AIMS if name not in shares]
    musts = numbers(floors)
    figure = Figure(figsize=(7.2, 6.0), layout="constrained")
    heights = [len(shares) + 1.5, *[2.2] * len(others)]
    panels = figure.subplots(1 + len(others), 1, height_ratios=heights)
    _bars(panels[0], metrics, musts, shares)
    values = [_at(metrics, name) for name in shares]
    panels[0].set_xlim(max(0.0, min([0.8, *values]) - 0.1), 1.0)
    panels[0].set_title("bar: figure   line: 95 % interval   | must   : aim", fontsize=9, color=INK)
    for panel, name in zip(panels[1:], others, strict=True):
        _bars(panel, metrics, musts, [name])
        panel.set_xlim(0, 1.15 * max(_at(metrics, name), AIMS[name], musts.get(name, 0.0)))
    figure.savefig(path, dpi=100)


def _bars(axes: Axes, metrics: Mapping[str, Any], musts: Mapping[str, float], names: Sequence[str]) -> None:
    for row, name in enumerate(names):
        value, must, aim = _at(metrics, name), musts.get(name), AIMS[name]
        is_enough = must is None or reaches(name, value, must)
        axes.barh(row, value, height=0.55, color=FILL if is_enough else BAD)
        if interval := _interval(metrics, name):
            axes.plot(interval, (row, row), color=INK, linewidth=1.2)
        if must is not None:
            axes.plot((must, must), (row - 0.4, row + 0.4), color=INK, linewidth=1.6)
        axes.plot((aim, aim), (row - 0.4, row + 0.4), color=INK, linewidth=1.2, linestyle=":")
    labels = [
        f"{name.replace('_', ' ')}  {_at(metrics, name):.{3 if AIMS[name] <= 1 else 2}f}" for name in names
    ]
    axes.set_yticks(range(len(names)), labels, fontsize=8)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.tick_params(axis="x", labelsize=8, colors=MUTED)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.tick_params(axis="y", length=0)


def _at(metrics: Mapping[str, Any], name: str) -> float:
    """A figure by its dotted name; 0 where nothing was counted."""
    value: Any = metrics
    for key in name.split("."):
        value = value[key]
    return 0.0 if value is None else float(value)


def _interval(metrics: Mapping[str, Any], name: str) -> Sequence[float] | None:
    found: Any = metrics["intervals"]
    for key in name.split("."):
        found = found.get(key) if isinstance(found, Mapping) else None
    return found


def save_pairs(
    above: Sequence[Image.Image], below: Sequence[Image.Image], labels: tuple[str, str], path: Path
) -> None:
    """Two rows of pictures that belong together, as real ones and what the image tokenizer makes of them."""
    places = np.linspace(0, len(above) - 1, min(NUM_PAIRS_SHOWN, len(above)), dtype=int)
    rows = [[_enlarged(images[place], CELL) for place in places] for images in (above, below)]
    sheet = _sheet(rows)
    figure, axes = _figure(sheet.width / 80, sheet.height / 80)
    axes.imshow(sheet)
    axes.set_xticks([])
    axes.set_yticks([GAP + CELL / 2, 2 * GAP + 1.5 * CELL], labels)
    _bare(axes)
    figure.savefig(path, dpi=100)


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def _bare(axes: Axes) -> None:
    """Labels without a box around the plot."""
    axes.tick_params(length=0, labelsize=8)
    for spine in axes.spines.values():
        spine.set_visible(False)
