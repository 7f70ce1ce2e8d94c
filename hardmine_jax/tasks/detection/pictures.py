"""Pictures of a detector's training: curves, precision and recall, boxes on photographs, what was mined.

Images are u8 [H, W, 3] RGB, boxes [N, 4] xyxy in pixels of that image, labels 1 .. C. Every plot is a
function of plain numbers and returns a `matplotlib.figure.Figure`, as in `charts.py`.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure

from hardmine_jax.detection import Detections, GroundTruth
from hardmine_jax.detection.metrics import overlaps
from hardmine_jax.tasks import charts
from hardmine_jax.tasks.charts import BLUE, GREEN, ORANGE, panels, series
from hardmine_jax.tasks.page import Panels

# Of the classes beyond the eighth, the sixteenth and so on, whose colours begin anew.
_LINES = ("-", "--", ":", "-.")
# Okabe and Ito (2008), which stay apart for colour-blind readers; classes beyond the eighth begin anew. White
# is the background's, on boxes and on paper.
COLOURS = (
    (230, 120, 0), (0, 130, 215), (0, 158, 115), (240, 228, 66), (204, 121, 167), (86, 180, 233),
    (140, 86, 75), (140, 140, 140),
)  # fmt: skip
_MISSED, _BACKGROUND = (220, 20, 60), (255, 255, 255)
_TILE = 480
_MOST_CURVES = 20


class Example(NamedTuple):
    """An evaluated image with what was found on it and what is there."""

    image: np.ndarray
    found: Detections
    truth: GroundTruth
    name: str


class MinedRois(NamedTuple):
    """RoIs that were mined at a step: boxes [k, 4], labels [k], 0 background."""

    step: int
    boxes: np.ndarray
    labels: np.ndarray


class MinedExample(NamedTuple):
    """A training image and what was mined on it early and late."""

    image: np.ndarray
    early: MinedRois
    late: MinedRois
    name: str


def report_pictures(
    lines: Sequence[dict],
    result: Mapping,
    classes: Sequence[str],
    *,
    curves: Mapping[str, tuple[np.ndarray, np.ndarray]],
    mined: Sequence[MinedExample],
    typical: Sequence[Example],
    hardest: Sequence[Example],
) -> list[tuple[str, Panels]]:
    """(caption, panels) of every picture in the report.

    Args:
      lines: of `metrics.jsonl`.
      result: what result.json holds.
      classes: names, without background.
      curves: for each class (recall, precision), rising recall.
      mined: may be empty, as may the next two.
      typical: validation images that nobody picked.
      hardest: validation images with most mistakes.
    """
    pictures: list[tuple[str, Panels]] = [("Learning curves", panels(learning_curves(lines)))]
    if any(line.get("fraction_kept") is not None for line in lines):
        caption = (
            "What carries the gradient: the share of the RoIs that is kept, how much of their loss that is, "
            "and how many of the kept ones are foreground"
        )
        pictures.append((caption, panels(mining_curves(lines))))
    if curves:
        shown = "every class" if len(curves) <= _MOST_CURVES else f"the {_MOST_CURVES} most frequent classes"
        caption = (
            f"Precision and recall at IoU 0.5 of {shown}, in the colours of the boxes: for each recall the "
            "best precision at it or beyond, so that the area below is the average precision (in brackets)"
        )
        pictures.append((caption, panels(precision_recall(curves, result["per_class"], classes))))
    if mined:
        caption = (
            f"Which RoIs were mined on some training images: at step {mined[0].early.step:,} and at step "
            f"{mined[0].late.step:,}. White boxes are background, coloured ones objects"
        )
        pictures.append((caption, panels(mined_early_and_late(mined, classes))))
    if typical:
        caption = (
            "Images taken at equal distances with everything found at a score above 0.5; "
            "dashed red: objects that were missed"
        )
        pictures.append((caption, panels(found_on_images(typical, classes))))
    if hardest:
        caption = "The images with most mistakes, drawn alike"
        pictures.append((caption, panels(found_on_images(hardest, classes))))
    return pictures


def learning_curves(lines: Sequence[dict]) -> Figure:
    """Training loss, learning rate and validation mAP over steps."""
    with rc_context(charts.STYLE):
        figure, (loss_axes, rate_axes, map_axes) = charts.side_by_side(3, 3.9)
        charts.loss_panel(loss_axes, *series(lines, "loss"))
        panel: dict[str, Any] = dict(colour=GREEN, title="Learning rate", label="learning rate")
        charts.line_panel(rate_axes, *series(lines, "learning_rate"), **panel)
        rate_axes.yaxis.set_major_formatter("{x:g}")
        panel = dict(colour=ORANGE, title="Validation accuracy", label="mAP at IoU 0.5 (area)", marker="o")
        charts.line_panel(map_axes, *series(lines, "validation/map"), **panel)
        map_axes.set_ylim(0, 1)
        return figure


def mining_curves(lines: Sequence[dict]) -> Figure:
    """Shares over steps: RoIs kept, their part of all the loss, and the foreground among them."""
    kinds = (
        ("fraction_kept", "RoIs kept", BLUE),
        ("loss_captured", "Loss captured", ORANGE),
        ("foreground_share", "Foreground among the kept", GREEN),
    )
    with rc_context(charts.STYLE):
        figure, row = charts.side_by_side(3, 3.6)
        for axes, (key, title, colour) in zip(row, kinds, strict=True):
            charts.line_panel(axes, *series(lines, key), colour=colour, title=title, label="share")
            axes.set_ylim(0, 1.03)
        return figure


def precision_recall(
    curves: Mapping[str, tuple[np.ndarray, np.ndarray]],
    per_class: Mapping[str, Mapping],
    classes: Sequence[str],
) -> Figure:
    """The best precision at each recall or beyond, a line a class, the twenty classes with most objects.

    Args:
      curves: for each class (recall, precision), rising recall.
      per_class: `count` and `ap` of each.
      classes: all names, in the order of the labels, which the colours follow.
    """
    names = sorted(curves, key=lambda name: -(per_class[name].get("count") or 0))[:_MOST_CURVES]
    with rc_context(charts.STYLE):
        # As much room for the lines whatever the number of names below them.
        height = 4.6 + 0.24 * -(-len(names) // 2)
        figure = Figure(figsize=(charts.WIDTH, height), layout="constrained")
        axes = figure.subplots()
        for name in names:
            place = classes.index(name)
            ap = per_class[name].get("ap")
            label = charts.shorten(name) if ap is None else f"{charts.shorten(name)} ({ap:.3f})"
            colour = tuple(channel / 255 for channel in COLOURS[place % len(COLOURS)])
            style = _LINES[place // len(COLOURS) % len(_LINES)]
            axes.plot(*envelope(*curves[name]), color=colour, linestyle=style, linewidth=2.4, label=label)
        axes.set(xlim=(0, 1.01), ylim=(0, 1.03), xlabel="recall", ylabel="precision")
        figure.legend(loc="outside lower left", ncols=2)
        return figure


def envelope(recall: np.ndarray, precision: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Corners of the steps whose area is VOC's average precision: (recalls, precisions), from recall 0.

    >>> envelope(np.array([0.5, 0.5, 1.0]), np.array([1.0, 0.5, 0.6]))
    (array([0. , 0.5, 0.5, 0.5, 0.5, 1. , 1. ]), array([1. , 1. , 0.6, 0.6, 0.6, 0.6, 0. ]))
    """
    best = np.maximum.accumulate(np.asarray(precision, float)[::-1])[::-1]
    edges = np.concatenate([[0.0], recall])
    return np.append(np.repeat(edges, 2)[1:-1], edges[-1:]), np.append(np.repeat(best, 2), 0.0)


def found_on_images(examples: Sequence[Example], classes: Sequence[str], *, columns: int = 3) -> Figure:
    """A grid of images with what was found on them."""
    tiles = [draw_example(example, classes) for example in examples]
    captions = [f"{charts.shorten(example.name)}: {len(example.truth.boxes)} objects" for example in examples]
    return charts.montage(tiles, captions=captions, columns=columns)


def draw_example(example: Example, classes: Sequence[str], *, min_score: float = 0.5) -> np.ndarray:
    """The image with what was found at `min_score`, and the objects that this misses dashed in red."""
    found, truth = example.found, example.truth
    sure = found.scores >= min_score
    boxes, labels = found.boxes[sure], found.labels[sure]
    hits = (overlaps(truth.boxes, boxes) >= 0.5) & (truth.labels[:, None] == labels)
    image, factor = _enlarge(example.image)
    canvas = draw_boxes(image, boxes * factor, labels, classes, scores=found.scores[sure])
    for box in truth.boxes[~hits.any(1)]:
        _dashed(canvas, box * factor, _MISSED)
    return canvas


def mined_early_and_late(examples: Sequence[MinedExample], classes: Sequence[str]) -> Figure:
    """Two pictures an example: what was mined early, and beside it late."""
    tiles, captions = [], []
    for example in examples:
        image, factor = _enlarge(example.image)
        for mined in (example.early, example.late):
            tiles.append(draw_boxes(image, mined.boxes * factor, mined.labels, classes))
            objects = int((mined.labels > 0).sum())
            captions.append(f"step {mined.step:,}: {len(mined.labels)} RoIs, {objects} foreground")
    return charts.montage(tiles, captions=captions, columns=4 if len(examples) > 1 else 2)


def draw_boxes(
    image: np.ndarray,
    boxes: np.ndarray,
    labels: np.ndarray,
    classes: Sequence[str],
    *,
    scores: np.ndarray | None = None,
) -> np.ndarray:
    """A copy of the image with boxes in the colours of their classes; with scores, named too.

    Args:
      image: u8 [H, W, 3] RGB.
      boxes: [N, 4] pixels of the image; labels: int [N], 0 (background) is white; scores: [N].
    """
    canvas = np.ascontiguousarray(image).copy()
    thickness = max(1, round(max(image.shape[:2]) / 320))
    # The best is drawn last, on top.
    for place in reversed(range(len(boxes))):
        label = int(labels[place])
        colour = COLOURS[(label - 1) % len(COLOURS)] if label else _BACKGROUND
        start, end = _corners(boxes[place], canvas.shape)
        cv2.rectangle(canvas, start, end, (0, 0, 0), thickness + 2, cv2.LINE_AA)
        cv2.rectangle(canvas, start, end, colour, thickness, cv2.LINE_AA)
        if scores is not None:
            _write(canvas, f"{classes[label - 1]} {scores[place]:.2f}", start, colour)
    return canvas


def _write(canvas: np.ndarray, text: str, corner: tuple[int, int], colour: tuple[int, int, int]) -> None:
    # OpenCV's letters are ASCII; other names show as question marks.
    text = text.encode("ascii", "replace").decode()
    scale = max(canvas.shape[:2]) / 1400
    (width, height), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, scale, 1)
    x = min(max(corner[0], 0), max(canvas.shape[1] - width, 0))
    y = max(corner[1] - 3, height + 1)
    cv2.rectangle(canvas, (x, y - height - 2), (x + width, y + 3), colour, -1)
    cv2.putText(canvas, text, (x, y), cv2.FONT_HERSHEY_SIMPLEX, scale, (0, 0, 0), 1, cv2.LINE_AA)


def _dashed(canvas: np.ndarray, box: np.ndarray, colour: tuple[int, int, int], dash: int = 8) -> None:
    (x1, y1), (x2, y2) = _corners(box, canvas.shape)
    for start in range(0, max(x2 - x1, y2 - y1), 2 * dash):
        for fixed in (y1, y2):
            if x1 + start < x2:
                cv2.line(canvas, (x1 + start, fixed), (min(x1 + start + dash, x2), fixed), colour, 2)
        for fixed in (x1, x2):
            if y1 + start < y2:
                cv2.line(canvas, (fixed, y1 + start), (fixed, min(y1 + start + dash, y2)), colour, 2)


def _corners(box: np.ndarray, shape: tuple[int, ...]) -> tuple[tuple[int, int], tuple[int, int]]:
    low, high = -1, np.array([shape[1], shape[0]])
    points = np.clip(np.round(np.reshape(box, (2, 2))), low, high).astype(int)
    return tuple(points[0].tolist()), tuple(points[1].tolist())


def _enlarge(image: np.ndarray) -> tuple[np.ndarray, float]:
    """To the height of a tile: lines stay crisp on small images, and the report small with large ones."""
    factor = _TILE / image.shape[0]
    way = cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC
    size = (max(1, round(image.shape[1] * factor)), _TILE)
    return cv2.resize(image, size, interpolation=way), factor
