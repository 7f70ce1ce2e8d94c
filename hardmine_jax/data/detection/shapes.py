"""Pictures of filled shapes on clutter, with the boxes of the shapes; drawn by OpenCV from a generator.

Pixels are `(x, y)`; images `[H, W, 3]` RGB; boxes xyxy half open: the first pixel alone is (0, 0, 1, 1). What
is clutter never is a whole shape: stripes, scribbles, crooked patches, and pieces of shapes.
"""

from collections.abc import Callable
from typing import NamedTuple

import cv2
import numpy as np

CLASSES = ("circle", "cross", "ring", "square", "star", "triangle")
# Radius of the circle around a shape, as a fraction of the picture's side.
_RADII = (0.085, 0.25)
# Parts of a pixel that OpenCV draws to.
_SHIFT = 4


class Shapes(NamedTuple):
    """`image` u8 [S, S, 3] RGB; `boxes` f32 [M, 4] around the part of each shape inside the picture, hidden
    or not; `labels` i32 [M], 1 + position in CLASSES."""

    image: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray


def render(rng: np.random.Generator, *, size: int = 160) -> Shapes:
    """A random picture of none to four shapes; the same generator state gives the same bits.

    >>> shown = render(np.random.default_rng(0), size=96)
    >>> shown.image.shape, len(shown.boxes) == len(shown.labels)
    ((96, 96, 3), True)
    """
    if size < 64:
        raise ValueError(f"size={size} < 64: the smallest shapes would be smaller than their features")
    image = _background(rng, size)
    for _ in range(rng.integers(2, 6)):
        _clutter(rng, image)
    boxes, labels, taken = [], [], np.zeros((size, size), bool)
    for _ in range(rng.choice(5, p=[0.04, 0.3, 0.3, 0.22, 0.14])):
        placed = _place(rng, size, taken)
        if placed is None:
            continue
        label, cover = placed
        _paint(rng, image, cover)
        taken |= cover > 0
        boxes.append(_tight_box(cover > 127))
        labels.append(label + 1)
    if rng.random() < 0.5:
        _bar(rng, image)
    return Shapes(
        _develop(rng, image), np.asarray(boxes, np.float32).reshape(-1, 4), np.asarray(labels, np.int32)
    )


def _place(rng: np.random.Generator, size: int, taken: np.ndarray) -> tuple[int, np.ndarray] | None:
    """(class, cover u8 [S, S] 0 to 255) of a shape that hides little of the others; None where none fits."""
    for _ in range(20):
        label = int(rng.integers(len(CLASSES)))
        radius = size * np.exp(rng.uniform(*np.log(_RADII)))
        centre = rng.uniform(0.6 * radius, size - 0.6 * radius, 2)
        cover = draw_shape(CLASSES[label], size, centre, radius, rng.uniform(0, 2 * np.pi))
        shown, whole = cover > 127, _AREAS[CLASSES[label]] * radius**2
        if shown.sum() > 0.6 * whole and (shown & taken).sum() < 0.1 * shown.sum():
            return label, cover
    return None


def draw_shape(kind: str, size: int, centre: np.ndarray, radius: float, angle: float) -> np.ndarray:
    """Cover u8 [S, S] of a shape of CLASSES, 255 inside, smooth at the edge."""
    cover = np.zeros((size, size), np.uint8)
    if kind in ("circle", "ring"):
        _disc(cover, centre, 0.9 * radius, 255)
        if kind == "ring":
            _disc(cover, centre, 0.48 * radius, 0)
        return cover
    outline = _polar(*_OUTLINES[kind]) * radius
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    _polygon(cover, outline @ turn + centre, 255)
    return cover


def _polar(angles: np.ndarray, radii: np.ndarray) -> np.ndarray:
    angles = np.deg2rad(np.asarray(angles, np.float64))
    return np.stack([np.cos(angles), np.sin(angles)], -1) * np.asarray(radii)[:, None]


# Corners: angles in degrees and radii.
_OUTLINES = {
    "square": (np.arange(4) * 90 + 45, np.full(4, 1.0)),
    "triangle": (np.arange(3) * 120, np.full(3, 1.0)),
    "star": (np.arange(10) * 36, np.tile([1.0, 0.42], 5)),
    # Arms of width 0.56: corners of the arms at +-16 degrees, inner corners at 45.
    "cross": (
        np.concatenate([np.array([-16.26, 16.26, 45.0]) + 90 * arm for arm in range(4)]),
        np.tile([1.0, 1.0, 0.396], 4),
    ),
}
# Area of each shape of radius 1.
_AREAS = {"circle": 2.54, "ring": 1.82, "square": 2.0, "triangle": 1.3, "star": 1.23, "cross": 1.84}


def _disc(cover: np.ndarray, centre: np.ndarray, radius: float, value: int) -> None:
    fixed = tuple(int(round(part * 2**_SHIFT)) for part in centre)
    cv2.circle(cover, fixed, int(round(radius * 2**_SHIFT)), value, -1, cv2.LINE_AA, _SHIFT)


def _polygon(cover: np.ndarray, corners: np.ndarray, value: int) -> None:
    cv2.fillPoly(cover, [np.rint(corners * 2**_SHIFT).astype(np.int32)], value, cv2.LINE_AA, _SHIFT)


def _paint(rng: np.random.Generator, image: np.ndarray, cover: np.ndarray) -> None:
    """A colour told from what is there, a little lighter to one side."""
    left, top, width, height = cv2.boundingRect(cover)
    cover = cover[top : top + height, left : left + width]
    part = image[top : top + height, left : left + width]
    under = part[cover > 127].mean(0)
    candidates = rng.uniform(20, 235, (12, 3))
    apart = np.abs(candidates - under).sum(-1)
    colour = candidates[np.argmax(np.minimum(apart, 140))]  # The first that is far enough, else the farthest.
    shade = _ramp(rng, height, width) * np.float32(rng.uniform(0, 30))
    share = (cover / np.float32(255))[..., None]
    part += (np.float32(colour) + shade[..., None] - part) * share


def _ramp(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """f32 [H, W] from about -1 to 1 along a random direction."""
    angle = rng.uniform(0, 2 * np.pi)
    x = np.linspace(-0.7 * np.cos(angle), 0.7 * np.cos(angle), width, dtype=np.float32)
    y = np.linspace(-0.7 * np.sin(angle), 0.7 * np.sin(angle), height, dtype=np.float32)
    return x[None] + y[:, None]


def _background(rng: np.random.Generator, size: int) -> np.ndarray:
    """A gradient, and in part of the pictures stripes over all of it."""
    image = rng.uniform(60, 195, 3) + _ramp(rng, size, size)[..., None] * rng.uniform(-50, 50, 3)
    if rng.random() < 0.4:
        waves = np.sin(_ramp(rng, size, size) * rng.uniform(15, 60))
        image = image + waves[..., None] * rng.uniform(4, 14)
    return image.astype(np.float32)


def _clutter(rng: np.random.Generator, image: np.ndarray) -> None:
    kinds: tuple[Callable, ...] = (_scribble, _patch, _piece, _piece, _stripes)
    cover = kinds[rng.integers(len(kinds))](rng, len(image))
    if (cover > 127).any():
        _paint(rng, image, cover)


def _scribble(rng: np.random.Generator, size: int) -> np.ndarray:
    cover = np.zeros((size, size), np.uint8)
    steps = rng.normal(0, 0.07 * size, (rng.integers(6, 20), 2)).cumsum(0) + rng.uniform(0, size, 2)
    cv2.polylines(cover, [steps.astype(np.int32)], False, 255, int(rng.integers(1, 4)), cv2.LINE_AA)
    return cover


def _patch(rng: np.random.Generator, size: int) -> np.ndarray:
    """A crooked polygon, longer than wide: neither square nor triangle."""
    cover = np.zeros((size, size), np.uint8)
    angles = np.sort(rng.uniform(0, 360, rng.integers(5, 9)))
    corners = _polar(angles, rng.uniform(0.5, 1.0, len(angles))) * [1.0, rng.uniform(0.25, 0.5)]
    _polygon(cover, corners * size * rng.uniform(0.1, 0.3) + rng.uniform(0, size, 2), 255)
    return cover


def _piece(rng: np.random.Generator, size: int) -> np.ndarray:
    """About half of a shape: one of its sides is cut away."""
    radius = size * rng.uniform(*_RADII)
    centre = rng.uniform(0, size, 2)
    kind = CLASSES[rng.integers(len(CLASSES) - 1)]  # Not the triangle: half of one is another.
    cover = draw_shape(kind, size, centre, radius, rng.uniform(0, 2 * np.pi))
    angle = rng.uniform(0, 2 * np.pi)
    normal = np.array([np.cos(angle), np.sin(angle)])
    along = np.array([-normal[1], normal[0]])
    edge = centre + normal * rng.uniform(-0.15, 0.15) * radius
    far = 3.0 * radius
    _polygon(
        cover, np.array([edge - far * along, edge + far * along, edge + far * (along + normal),
                         edge + far * (normal - along)]), 0,
    )  # fmt: skip
    return cover


def _stripes(rng: np.random.Generator, size: int) -> np.ndarray:
    """Parallel bars."""
    cover = np.zeros((size, size), np.uint8)
    centre, angle = rng.uniform(0, size, 2), rng.uniform(0, np.pi)
    along = np.array([np.cos(angle), np.sin(angle)]) * size * rng.uniform(0.08, 0.25)
    across = np.array([-np.sin(angle), np.cos(angle)]) * rng.uniform(5, 10)
    for number in range(rng.integers(2, 6)):
        ends = np.rint([centre + number * across - along, centre + number * across + along]).astype(np.int32)
        cv2.line(cover, ends[0].tolist(), ends[1].tolist(), 255, int(rng.integers(1, 4)), cv2.LINE_AA)
    return cover


def _bar(rng: np.random.Generator, image: np.ndarray) -> None:
    """A thin bar from border to border, over whatever is there."""
    size = len(image)
    cover = np.zeros((size, size), np.uint8)
    angle, middle = rng.uniform(0, np.pi), rng.uniform(0.2 * size, 0.8 * size, 2)
    far = np.array([np.cos(angle), np.sin(angle)]) * 2 * size
    ends = np.rint([middle - far, middle + far]).astype(np.int32)
    cv2.line(cover, ends[0].tolist(), ends[1].tolist(), 255, int(rng.integers(2, 7)), cv2.LINE_AA)
    _paint(rng, image, cover)


def _tight_box(inside: np.ndarray) -> np.ndarray:
    columns, rows = np.flatnonzero(inside.any(0)), np.flatnonzero(inside.any(1))
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], np.float32)


def _develop(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    """A little blur and the sensor's noise; float image -> u8."""
    if rng.random() < 0.3:
        image = cv2.GaussianBlur(image, (3, 3), 0)
    noise = rng.standard_normal(image.shape, np.float32) * np.float32(rng.uniform(1, 7))
    return np.clip(image + noise, 0, 255).astype(np.uint8)
