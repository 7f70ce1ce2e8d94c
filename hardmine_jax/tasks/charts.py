"""What the figures of both tasks share: colours, style, panels, montages.

Colours follow Okabe and Ito (2008), which stay apart for colour-blind readers. Nothing here touches pyplot,
so no window, backend or figure outlives a call; `png(figure)` gives its bytes.

A figure of several panels is 12 inches wide and its panels are subfigures, so that a page can show them side
by side or, where it is narrow, one below the other: `panels(figure)`. One of a single panel is `WIDTH` wide.
"""

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import imsave

from hardmine_jax.data.problems import printable

BLUE, ORANGE, GREEN, YELLOW = "#0072B2", "#D55E00", "#009E73", "#F0E442"
INK, FAINT = "#1f2933", "#9aa5b1"
WIDTH = 7.2
_DPI = 130
# The names of the settings have a type of matplotlib's own only in late versions.
STYLE: dict[Any, Any] = {
    "axes.axisbelow": True,
    "axes.edgecolor": FAINT,
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.labelsize": 12,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 13,
    "figure.facecolor": "white",
    "font.size": 12,
    "grid.color": "#e4e7eb",
    "legend.fontsize": 11,
    "legend.frameon": False,
    "text.color": INK,
    # A joint or a file called "$x" is a name, not a formula.
    "text.parse_math": False,
    "xtick.color": INK,
    "xtick.labelsize": 11,
    "ytick.color": INK,
    "ytick.labelsize": 11,
}


def png(figure: Figure, *, dpi: int = _DPI) -> bytes:
    """The figure as PNG bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    return buffer.getvalue()


def panels(figure: Figure) -> list[list[bytes]]:
    """The figure as PNG bytes, a row of panels after the other; one that is not divided is a single panel."""
    parts = [part for part in figure.subfigs if part.axes]
    if not parts:
        return [[png(figure)]]
    figure.set_dpi(_DPI)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    # Rows of pixels go down, matplotlib's y goes up.
    pixels = np.asarray(canvas.buffer_rgba())[::-1]
    rows: dict[int, list[bytes]] = {}
    for part in parts:
        left, low, right, high = (round(edge) for edge in part.bbox.extents)
        buffer = io.BytesIO()
        imsave(buffer, np.ascontiguousarray(pixels[low:high, left:right][::-1]), format="png")
        rows.setdefault(high, []).append(buffer.getvalue())
    return list(rows.values())


def side_by_side(count: int, height: float) -> tuple[Figure, list[Axes]]:
    """An empty figure of so many panels, in inches high."""
    figure = Figure(figsize=(12, height), layout="constrained")
    parts = figure.subfigures(1, count, squeeze=False).ravel()
    return figure, [part.subplots() for part in parts]


def series(lines: Sequence[dict], key: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and finite values of one metric; of a step there twice (a resumed run) the later counts.

    >>> series([{"step": 1, "loss": 4.0}, {"step": 2, "pck": 0.1}, {"step": 1, "loss": 3.0}], "loss")
    (array([1]), array([3.]))
    """
    found = {int(line["step"]): float(line[key]) for line in lines if isinstance(line.get(key), int | float)}
    steps = np.array(sorted(step for step, value in found.items() if np.isfinite(value)), dtype=int)
    return steps, np.array([found[step] for step in steps], dtype=float)


def montage(
    images: Sequence[np.ndarray], *, captions: Sequence[str] | None = None, columns: int = 4
) -> Figure:
    """A grid of u8 `[H, W, 3]` images, each with a caption above it.

    Raises:
      ValueError: there is no image, or not one caption for each.
    """
    if not images:
        raise ValueError("a montage of 0 images: give at least one")
    titles = [""] * len(images) if captions is None else captions
    if len(titles) != len(images):
        raise ValueError(f"{len(titles)} captions for {len(images)} images: give one each")
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    aspect = max(image.shape[0] / image.shape[1] for image in images)
    with rc_context(STYLE):
        height = rows * (12 / columns * aspect + (0.35 if captions else 0.0))
        figure = Figure(figsize=(12, height), layout="constrained")
        parts = figure.subfigures(rows, columns, squeeze=False).ravel()
        for part, image, title in zip(parts, images, titles, strict=False):
            axes = part.subplots()
            axes.set_axis_off()
            axes.imshow(image, interpolation="lanczos")
            if title:
                axes.set_title(title, fontsize=11)
        return figure


def loss_panel(axes: Axes, steps: np.ndarray, losses: np.ndarray) -> None:
    line_panel(
        axes,
        steps,
        losses,
        colour=BLUE,
        title="Training loss",
        label="loss",
        alpha=0.3 if len(losses) > 20 else 1,
    )
    if len(losses) > 20:
        width = max(3, len(losses) // 25)
        smooth = np.convolve(losses, np.ones(width) / width, mode="valid")
        axes.plot(steps[(width - 1) // 2 :][: len(smooth)], smooth, color=BLUE, linewidth=2.2)
    if len(losses) and losses.min() > 0 and losses.max() > 20 * losses.min():
        axes.set_yscale("log")


def line_panel(
    axes: Axes,
    steps: np.ndarray,
    values: np.ndarray,
    *,
    colour: str,
    title: str,
    label: str,
    line_label: str | None = None,
    **style: Any,
) -> None:
    if len(steps):
        axes.plot(steps, values, color=colour, linewidth=1.8, label=line_label, **style)
    else:
        axes.text(0.5, 0.5, "not recorded", ha="center", va="center", transform=axes.transAxes)
    axes.set(title=title, xlabel="training step", ylabel=label)
    axes.set_xlim(left=0)


def shorten(name: str, limit: int = 26) -> str:
    """The end of a name, for that tells files apart; a name of any characters and length can be drawn."""
    name = printable(name[-10 * limit :])
    return name if len(name) <= limit else "..." + name[3 - limit :]
