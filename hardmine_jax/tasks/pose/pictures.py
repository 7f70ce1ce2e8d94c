"""Pictures of a pose training: curves, mined joints, per-joint accuracy, skeletons on photographs.

Images are u8 `[H, W, 3]` RGB, keypoints `[K, 2]` are `(x, y)` pixels of that image, the centre of its first
pixel at 0. Every plot is a function of plain numbers and returns a `matplotlib.figure.Figure`, as in
`charts.py`. Nothing here touches pyplot, so no window, backend or figure outlives a call. Colours follow
Okabe and Ito (2008), which stay apart for colour-blind readers: left orange, right blue, middle yellow.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure

from hardmine_jax.errors import UserError
from hardmine_jax.pose import Skeleton
from hardmine_jax.tasks import charts
from hardmine_jax.tasks.charts import BLUE, GREEN, INK, ORANGE, panels, series
from hardmine_jax.tasks.page import Panels

LEFT, RIGHT, MIDDLE = (230, 120, 0), (0, 130, 215), (240, 228, 66)
_MAX_COLUMNS = 60


class Example(NamedTuple):
    """One validation crop with what was predicted and what is true, all in pixels of `image`."""

    image: np.ndarray  # u8 [H, W, 3] RGB
    predicted: np.ndarray  # [K, 2]
    target: np.ndarray  # [K, 2]
    visibility: np.ndarray  # [K] 0 unlabelled, 1 occluded, 2 visible
    correct: np.ndarray  # [K] bool, False where not labelled
    name: str


def report_pictures(
    lines: Sequence[dict],
    result: dict,
    skeleton: Skeleton,
    hardest: Sequence[Example],
    typical: Sequence[Example] = (),
) -> list[tuple[str, Panels]]:
    """What `report.write_report` shows, as (caption, panels); what a run does not have is left out.

    Args:
      lines: the lines of `metrics.jsonl`.
      result: what `result.json` holds.
      skeleton: of the K joints.
      hardest: the validation examples that went worst, worst first; may be empty.
      typical: validation examples that nobody picked; may be empty.
    """
    curves = learning_curves(lines, baseline=result.get("mean_pose_pck"))
    pictures: list[tuple[str, Panels]] = [("Learning curves", panels(curves))]
    if any(line.get("unit_rate") is not None for line in lines):
        caption = (
            "What mining kept: the share of the labelled joints, the share of their loss (far larger where "
            "few joints are hard), and how many different joints these are in effect"
        )
        pictures.append((caption, panels(mining_curves(lines, num_keypoints=skeleton.num_keypoints))))
        mined = panels(mined_over_training(lines, skeleton.names))
        pictures.append(("Which joints were mined, and how often, as training went on", mined))
    pictures.append(
        ("How many joints are right, joint by joint", panels(per_joint_bars(result["per_joint"])))
    )
    if typical:
        caption = f"Predictions on images taken at equal distances{_sides(skeleton)}"
        pictures.append((caption, panels(predicted_images(typical, skeleton))))
    if hardest:
        caption = (
            f"The hardest images{_sides(skeleton)}. Each true skeleton, and beside it the predicted one: "
            "occluded joints are hollow, a red line leads from a wrong joint to its true place"
        )
        pictures.append((caption, panels(hardest_images(hardest, skeleton))))
    return pictures


def _sides(skeleton: Skeleton) -> str:
    """What the colours say, of a skeleton that has sides."""
    if not skeleton.flip_pairs:
        return ""
    middle = "" if 2 * len(skeleton.flip_pairs) == skeleton.num_keypoints else ", what is between yellow"
    return f": the left side orange, the right blue{middle}"


def learning_curves(
    lines: Sequence[dict],
    *,
    baseline: float | None = None,
) -> Figure:
    """Training loss, learning rate and validation PCK over steps.

    Args:
      lines: what `training.read_metrics` gives, each with `step` and whichever of the keys it knows.
      baseline: PCK of predicting the mean pose, drawn as a dashed line.
    """
    with rc_context(charts.STYLE):
        figure, (loss_axes, rate_axes, pck_axes) = charts.side_by_side(3, 3.9)
        charts.loss_panel(loss_axes, *series(lines, "loss"))
        steps, rates = series(lines, "learning_rate")
        charts.line_panel(rate_axes, steps, rates, colour=GREEN, title="Learning rate", label="learning rate")
        rate_axes.yaxis.set_major_formatter("{x:g}")
        steps, values = series(lines, "validation/pck")
        charts.line_panel(
            pck_axes,
            steps,
            values,
            colour=ORANGE,
            title="Validation accuracy",
            label="PCK@0.1 (share of joints)",
            marker="o",
        )
        pck_axes.set_ylim(0, 1)
        if baseline is not None:
            pck_axes.axhline(baseline, color=INK, linestyle="--", linewidth=1.3)
            pck_axes.text(
                0.98,
                baseline + 0.02,
                f"mean pose {baseline:.3f}",
                ha="right",
                transform=pck_axes.get_yaxis_transform(),
            )
        return figure


def mining_curves(lines: Sequence[dict], *, num_keypoints: int) -> Figure:
    """What `mining.stats` told of each log line: the kept share of joints and loss, and exp(entropy).

    Args:
      lines: the lines of `metrics.jsonl`, with `fraction_kept`, `loss_captured` and `entropy`, in nats.
      num_keypoints: K, the number that exp(entropy) reaches where all are kept equally often.
    """
    with rc_context(charts.STYLE):
        figure, (share_axes, number_axes) = charts.side_by_side(2, 3.9)
        panel: dict[str, Any] = dict(title="Kept by mining", label="share")
        kinds = [("loss_captured", "of the loss", ORANGE), ("fraction_kept", "of the labelled joints", BLUE)]
        for key, name, colour in kinds:
            charts.line_panel(share_axes, *series(lines, key), colour=colour, line_label=name, **panel)
        share_axes.set_ylim(0, 1.03)
        share_axes.legend(loc="lower right")
        steps, entropies = series(lines, "entropy")
        panel = dict(title="Different joints among the kept", label="joints, exp(entropy)")
        charts.line_panel(number_axes, steps, np.exp(entropies), colour=GREEN, **panel)
        number_axes.set_ylim(0, 1.03 * num_keypoints)
        number_axes.axhline(num_keypoints, color=INK, linestyle="--", linewidth=1.3)
        number_axes.text(
            0.98,
            0.98 * num_keypoints,
            f"all {num_keypoints} equally often",
            ha="right",
            va="top",
            transform=number_axes.get_yaxis_transform(),
        )
        return figure


def mined_over_training(lines: Sequence[dict], names: Sequence[str]) -> Figure:
    """Heat map, joints by training progress: share of the images with a joint in which it was kept.

    Args:
      lines: the lines of `metrics.jsonl`; those with `unit_rate` carry K shares in 0..1.
      names: the K joint names.

    Raises:
      UserError: no line carries `unit_rate`, or a line has another number of joints.
    """
    steps, shares = _unit_rates(lines, names)
    groups = np.array_split(np.arange(len(steps)), min(len(steps), _MAX_COLUMNS))
    table = np.stack([shares[group].mean(axis=0) for group in groups], axis=1)
    edges = np.array([0.0, *(steps[group[-1]] for group in groups)])
    with rc_context(charts.STYLE | {"axes.grid": False}):
        figure = Figure(figsize=(charts.WIDTH, 1.6 + 0.3 * len(names)), layout="constrained")
        axes = figure.subplots()
        mesh = axes.pcolormesh(
            edges, np.arange(len(names) + 1), 100 * table, cmap="cividis", vmin=0, vmax=100
        )
        axes.invert_yaxis()
        axes.set_yticks(np.arange(len(names)) + 0.5, [_words(name) for name in names])
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel("training step")
        # Beside the bar it would be cut where few joints make the figure low.
        axes.set_title("kept, of the images with this joint (%)", fontsize=12)
        figure.colorbar(mesh, ax=axes, pad=0.01)
        return figure


def per_joint_bars(per_joint: dict[str, dict]) -> Figure:
    """PCK of every joint, over all, over visible and over occluded examples; a None is left out.

    Args:
      per_joint: `{joint: {"pck", "pck_visible", "pck_occluded", ...}}`, shares in 0..1 or None.
    """
    kinds = [
        ("pck", "all labelled", INK),
        ("pck_visible", "visible", BLUE),
        ("pck_occluded", "occluded", ORANGE),
    ]
    kinds = [kind for kind in kinds if any(row.get(kind[0]) is not None for row in per_joint.values())]
    height = 0.8 / max(len(kinds), 1)
    with rc_context(charts.STYLE):
        figure = Figure(
            figsize=(charts.WIDTH, 1.5 + (0.16 + 0.13 * len(kinds)) * len(per_joint)), layout="constrained"
        )
        axes = figure.subplots()
        for shift, (key, label, colour) in enumerate(kinds):
            rows = [
                (index, row[key]) for index, row in enumerate(per_joint.values()) if row.get(key) is not None
            ]
            places = [index + (shift - (len(kinds) - 1) / 2) * height for index, _ in rows]
            bars = axes.barh(
                places, [value for _, value in rows], height=0.9 * height, color=colour, label=label
            )
            axes.bar_label(bars, fmt="%.2f", padding=3, fontsize=9)
        axes.set_yticks(range(len(per_joint)), [_words(name) for name in per_joint])
        axes.set(
            xlim=(0, 1.04),
            ylim=(len(per_joint) - 0.4, -0.6),
            xlabel="PCK@0.1 (share of joints within a tenth of the subject)",
        )
        axes.grid(axis="y", visible=False)
        axes.tick_params(axis="y", length=0)
        figure.legend(loc="outside upper right", ncols=3)
        return figure


def draw_skeleton(
    image: np.ndarray,
    keypoints: np.ndarray,
    where: np.ndarray,
    skeleton: Skeleton,
    *,
    occluded: np.ndarray | None = None,
    thickness: int | None = None,
) -> np.ndarray:
    """A copy of the image with the skeleton on it: left orange, right blue, middle yellow, occluded hollow.

    Args:
      image: u8 `[H, W, 3]` RGB.
      keypoints: `[K, 2]` pixels of the image.
      where: `[K]` bool, True = draw this joint; an edge is drawn when both its ends are.
      skeleton: names, flip pairs and edges of the K joints.
      occluded: `[K]` bool, drawn as rings.
      thickness: of an edge in pixels; None suits a subject that fills the image.

    Returns:
      u8 `[H, W, 3]` RGB. Joints that are not finite are left out.

    Raises:
      ValueError: the number of keypoints is not the skeleton's.
    """
    keypoints = np.asarray(keypoints, dtype=float)
    if keypoints.shape != (skeleton.num_keypoints, 2):
        raise ValueError(
            f"keypoints of shape {keypoints.shape}: this skeleton needs ({skeleton.num_keypoints}, 2)"
        )
    canvas = np.ascontiguousarray(image).copy()
    where = np.asarray(where, dtype=bool) & np.isfinite(keypoints).all(axis=-1)
    occluded = np.zeros_like(where) if occluded is None else np.asarray(occluded, dtype=bool)
    colours = joint_colours(skeleton)
    if thickness is None:
        thickness = max(1, round(max(image.shape[:2]) / 110))
    for start, end in skeleton.edges:
        if where[start] and where[end]:
            _edge(
                canvas,
                keypoints[start],
                keypoints[end],
                _edge_colour(colours[start], colours[end]),
                thickness,
            )
    for index in np.flatnonzero(where):
        _joint(canvas, keypoints[index], colours[index], thickness, hollow=bool(occluded[index]))
    return canvas


def joint_colours(skeleton: Skeleton) -> list[tuple[int, int, int]]:
    """RGB of each joint. Names tell the side; a pair whose names do not say it counts as (left, right)."""
    colours = [MIDDLE] * skeleton.num_keypoints
    for first, second in skeleton.flip_pairs:
        names = skeleton.names[first].lower(), skeleton.names[second].lower()
        swapped = (
            "right" in names[0]
            or "left" in names[1]
            or (names[0][:2] in ("r_", "r-") and names[1][:2] in ("l_", "l-"))
        )
        colours[first], colours[second] = (RIGHT, LEFT) if swapped else (LEFT, RIGHT)
    return colours


def predicted_images(
    examples: Sequence[Example], skeleton: Skeleton, *, columns: int = 6, tile: int = 400
) -> Figure:
    """A grid of images with the predicted skeletons on them, as a user of the network would see them."""
    tiles = [_true_and_predicted(example, skeleton, tile, misses=False)[1] for example in examples]
    return charts.montage(tiles, columns=columns)


def hardest_images(
    examples: Sequence[Example], skeleton: Skeleton, *, pairs_in_row: int = 2, tile: int = 400
) -> Figure:
    """Pairs of pictures: the true skeleton, and beside it the predicted one.

    From a wrong joint a thin red line leads to where it belongs. Crops are enlarged before they are
    drawn on, so that lines stay crisp on small ones.

    Args:
      examples: hardest first.
      pairs_in_row: how many examples stand side by side.
      tile: height of a picture in pixels.
    """
    tiles, captions = [], []
    for example in examples:
        right, labelled = int(np.sum(example.correct)), int((np.asarray(example.visibility) > 0).sum())
        tiles += _true_and_predicted(example, skeleton, tile)
        captions += [f"{charts.shorten(example.name)}: true", f"predicted: {right} of {labelled} right"]
    return charts.montage(tiles, captions=captions, columns=2 * pairs_in_row)


def _unit_rates(lines: Sequence[dict], names: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    found = {int(line["step"]): line["unit_rate"] for line in lines if line.get("unit_rate") is not None}
    if not found:
        raise UserError(
            f"none of {len(lines)} metric lines carries 'unit_rate': was the training run without mining?"
        )
    for step, rates in found.items():
        if len(rates) != len(names):
            raise UserError(
                f"step {step} has {len(rates)} unit rates for {len(names)} joints: another run's metrics?"
            )
    steps = sorted(found)
    return np.array(steps), np.array([found[step] for step in steps], dtype=float)


def _true_and_predicted(
    example: Example, skeleton: Skeleton, tile: int, *, misses: bool = True
) -> list[np.ndarray]:
    factor = tile / example.image.shape[0]
    image = cv2.resize(example.image, None, fx=factor, fy=factor, interpolation=cv2.INTER_CUBIC)
    # Pixel centres are at integers, so enlarging moves them by half a pixel.
    target, predicted = (
        (np.asarray(points, float) + 0.5) * factor - 0.5 for points in (example.target, example.predicted)
    )
    visibility = np.asarray(example.visibility)
    labelled = visibility > 0
    true = draw_skeleton(image, target, labelled, skeleton, occluded=visibility == 1)
    guess = draw_skeleton(image, predicted, np.ones_like(labelled), skeleton)
    wrong = misses & labelled & ~np.asarray(example.correct, dtype=bool)
    for index in np.flatnonzero(wrong):
        start, end = _fixed(target[index], predicted[index])
        cv2.line(guess, start, end, (220, 20, 60), 2, cv2.LINE_AA, _BITS)
    return [true, guess]


_BITS = 4


def _fixed(*points: np.ndarray) -> list[tuple[int, int]]:
    """OpenCV's fixed-point coordinates, kept in the range where they do not overflow."""
    clipped = (np.clip(np.round(point * 2**_BITS), -(2**24), 2**24) for point in points)
    return [(int(x), int(y)) for x, y in clipped]


def _edge(
    canvas: np.ndarray, start: np.ndarray, end: np.ndarray, colour: tuple[int, int, int], thickness: int
) -> None:
    first, last = _fixed(start, end)
    cv2.line(canvas, first, last, (0, 0, 0), thickness + 2, cv2.LINE_AA, _BITS)
    cv2.line(canvas, first, last, colour, thickness, cv2.LINE_AA, _BITS)


def _joint(
    canvas: np.ndarray, point: np.ndarray, colour: tuple[int, int, int], thickness: int, *, hollow: bool
) -> None:
    (centre,), unit = _fixed(point), 2**_BITS
    radius = round(1.5 * thickness * unit)
    cv2.circle(canvas, centre, radius + unit // 2, (0, 0, 0), -1, cv2.LINE_AA, _BITS)
    cv2.circle(canvas, centre, radius - unit // 2, colour, -1, cv2.LINE_AA, _BITS)
    if hollow:
        cv2.circle(canvas, centre, round(0.85 * thickness * unit), (255, 255, 255), -1, cv2.LINE_AA, _BITS)


def _edge_colour(start: tuple[int, int, int], end: tuple[int, int, int]) -> tuple[int, int, int]:
    """An edge from the middle to a side has the side's colour; one that joins both sides has the middle's."""
    if start == end or end == MIDDLE:
        return start
    return end if start == MIDDLE else MIDDLE


def _words(name: str) -> str:
    return charts.shorten(name.replace("_", " "), 40)
