"""Pictures of one articulated figure in a cluttered room, with the truth about which joints can be seen.

Pixels are `(x, y)`, centre of the first pixel 0.0; images are `[H, W, 3]` RGB. Visibility is COCO's: 2 seen,
1 in the picture but hidden (by an object or by the body itself), 0 outside (its keypoint is `(0, 0)`).
"""

from typing import NamedTuple

import cv2
import numpy as np

from hardmine_jax.data.pose import figures, outfits, raycast


class Scene(NamedTuple):
    """A rendered example.

    `image` u8[H,W,3]; `keypoints` f32[17,2]; `visibility` i32[17]; `box` f32[4] xyxy around the whole
    silhouette inside the picture, hidden or not; `area` of that silhouette in pixels; `parts` u8[H,W], for
    each pixel the number in `figures.PARTS` of what is seen there.
    """

    image: np.ndarray
    keypoints: np.ndarray
    visibility: np.ndarray
    box: np.ndarray
    area: float
    parts: np.ndarray


def render(rng: np.random.Generator, *, size: int = 160) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`(image u8[size,size,3] RGB, keypoints f32[17,2] in pixels, visibility i32[17])` of a random scene.

    >>> image, keypoints, visibility = render(np.random.default_rng(0), size=96)
    >>> image.shape, keypoints.shape, visibility.shape
    ((96, 96, 3), (17, 2), (17,))
    """
    return render_scene(rng, size=size)[:3]


def render_scene(rng: np.random.Generator, *, size: int = 160) -> Scene:
    """A random scene; the same generator state gives the same bits.

    Args:
      rng: consumed; one fresh generator an example makes examples independent of their order.
      size: side of the square picture in pixels, 64 or more.

    Raises:
      ValueError: `size` below 64, where a face is less than its features.
    """
    if size < 64:
        raise ValueError(f"size={size} < 64: the figure's face and hands would be smaller than a pixel")
    outfit = outfits.sample_outfit(rng)
    figure = figures.pose_figure(rng, figures.sample_pose(rng), outfit)
    camera = _frame(rng, figure, size)
    canvas = raycast.Canvas(
        _background(rng, outfit, size),
        np.full((size, size), -1e9, np.float32),
        np.zeros((size, size), np.uint8),
    )
    placed = raycast.draw_figure(canvas, figure, camera)
    silhouette = canvas.parts > 0
    box = _tight_box(silhouette)
    _occlude(rng, canvas, placed, camera.scale)
    image = _develop(rng, canvas.image)
    keypoints, visibility = _look(placed[:, :2], canvas.parts)
    return Scene(image, keypoints, visibility, box, float(silhouette.sum()), canvas.parts)


def _look(places: np.ndarray, parts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A joint is seen exactly if one of its own parts owns the pixel it falls on."""
    height, width = parts.shape
    columns, rows = np.rint(places).astype(int).T
    within = (columns >= 0) & (columns < width) & (rows >= 0) & (rows < height)
    visibility = np.zeros(len(places), np.int32)
    for joint in np.flatnonzero(within):
        owner = figures.PARTS[parts[rows[joint], columns[joint]]]
        visibility[joint] = 2 if owner in figures.OWNERS[joint] else 1
    return np.where(within[:, None], places, 0.0).astype(np.float32), visibility


def _tight_box(silhouette: np.ndarray) -> np.ndarray:
    columns, rows = np.flatnonzero(silhouette.any(0)), np.flatnonzero(silhouette.any(1))
    # Up to the outer edges of the outermost pixels, whose centres are the integers.
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], np.float32) - np.float32(0.5)


def _frame(rng: np.random.Generator, figure: figures.Figure, size: int) -> raycast.Camera:
    """Turns the body and fits it: 50 to 90 % of the picture, now and then cut off by its border."""
    view, distance = figures.sample_view(rng), rng.uniform(3.0, 7.0)
    seen, _ = raycast.project(figure.keypoints, view, distance=distance)
    low, high = seen[:, :2].min(0) - 0.06, seen[:, :2].max(0) + 0.06
    scale = rng.uniform(0.6, 0.95) * size / max((high - low).max(), 0.45)
    span = (high - low) * scale
    room = np.maximum(size - span, 0.0) / 2
    if rng.random() < 0.12:
        room = room + 0.2 * span
    offset = (size - 1) / 2 - scale * (low + high) / 2 + rng.uniform(-1, 1, 2) * room
    light = np.array([rng.uniform(-0.8, 0.8), rng.uniform(-1.0, -0.2), rng.uniform(0.4, 1.0)])
    return raycast.Camera(view, distance, scale, offset, tuple((light / np.linalg.norm(light)).tolist()))


def _background(rng: np.random.Generator, outfit: outfits.Outfit, size: int) -> np.ndarray:
    """Wall, floor, furniture and limb-like bars; its main colour is told from the clothes and the skin."""
    worn = np.stack([outfit.skin, outfit.shirt.colour, outfit.trousers.colour])
    walls = np.stack([outfits.muted_colour(rng, chroma=22) for _ in range(8)])
    apart = np.abs(walls[:, None] - worn).sum(-1).min(1)
    wall = walls[np.argmax(np.minimum(apart, 130))]  # The first that is far enough, else the farthest.
    image: np.ndarray = np.empty((size, size, 3), np.float32)
    image[:] = wall
    if rng.random() < 0.6:
        image[int(rng.uniform(0.45, 0.9) * size) :] = np.clip(wall * rng.uniform(0.6, 1.35), 0, 255)
    _clutter(rng, image, wall, worn)
    if rng.random() < 0.5:
        image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.6, 2.2))
    cells = int(rng.integers(3, 14))
    waves: np.ndarray = rng.normal(0, 1, (cells, cells, 3)).astype(np.float32)
    waves *= np.float32(rng.uniform(2, 10))
    waves += waves.mean(-1, keepdims=True) * np.float32(1.5)
    waves = cv2.resize(waves, (size // 4, size // 4), interpolation=cv2.INTER_CUBIC)
    return image + cv2.resize(waves, (size, size))


def _clutter(rng: np.random.Generator, image: np.ndarray, wall: np.ndarray, worn: np.ndarray) -> None:
    size = image.shape[0]
    for _ in range(rng.integers(5, 15)):
        colour = np.clip(wall + rng.normal(0, 26) + rng.normal(0, 26, 3), 0, 255).tolist()
        x, y = rng.uniform(0, size, 2)
        w, h = rng.uniform(0.06, 0.4, 2) * size
        kind = rng.random()
        if kind < 0.35:
            cv2.rectangle(image, (int(x), int(y)), (int(x + w), int(y + h)), colour, -1)
        elif kind < 0.5:
            cv2.ellipse(image, ((x, y), (w, h), rng.uniform(0, 180)), colour, -1, cv2.LINE_AA)
        elif kind < 0.62:
            _table(rng, image, colour, (x, y, w, h))
        elif kind < 0.75:
            corners = np.array([x, y]) + rng.uniform(-0.25, 0.25, (4, 2)) * size
            cv2.fillConvexPoly(
                image, cv2.convexHull(corners.astype(np.float32)).astype(np.int32), colour, cv2.LINE_AA
            )
        elif kind < 0.88:
            step = int(rng.integers(4, 10))
            for row in range(int(y), int(y + h), step):
                cv2.line(image, (int(x), row), (int(x + w), row), colour, step // 2)
        else:  # A bar of the colour of a limb, so that colour alone finds no limb.
            bar = np.clip(worn[rng.integers(3)] + rng.normal(0, 12, 3), 0, 255).tolist()
            angle, reach = rng.uniform(0, np.pi), rng.uniform(0.12, 0.3) * size
            end = (int(x + np.cos(angle) * reach), int(y + np.sin(angle) * reach))
            cv2.line(image, (int(x), int(y)), end, bar, max(2, int(0.04 * size)), cv2.LINE_AA)


def _table(
    rng: np.random.Generator, image: np.ndarray, colour: list[float], place: tuple[float, ...]
) -> None:
    x, y, w, h = place
    board, leg = max(2, int(0.15 * h)), max(2, int(0.06 * w))
    cv2.rectangle(image, (int(x), int(y)), (int(x + w), int(y) + board), colour, -1)
    for left in (x, x + w - leg):
        cv2.rectangle(image, (int(left), int(y)), (int(left) + leg, int(y + h)), colour, -1)
    if rng.random() < 0.5:  # A chair's back.
        cv2.rectangle(image, (int(x), int(y - h)), (int(x) + leg, int(y)), colour, -1)


def _occlude(rng: np.random.Generator, canvas: raycast.Canvas, placed: np.ndarray, scale: float) -> None:
    """Puts 0 to 3 objects before the figure, near a joint each, and writes them into the map of parts."""
    for _ in range(rng.choice(4, p=[0.35, 0.35, 0.2, 0.1])):
        x, y = placed[rng.integers(len(placed)), :2] + rng.normal(0, 0.05, 2) * scale
        w, h = rng.uniform(0.08, 0.22, 2) * scale
        colour, cover = outfits.muted_colour(rng), np.zeros(canvas.depth.shape, np.uint8)
        kind = rng.random()
        if kind < 0.4:
            corners = cv2.boxPoints(((x, y), (w, h), rng.normal(0, 20)))
            cv2.fillConvexPoly(cover, corners.astype(np.int32), 1)
        elif kind < 0.6:
            cv2.ellipse(cover, ((x, y), (w, h), rng.uniform(0, 180)), 1, -1)
        elif kind < 0.8:  # A post, from border to border.
            tilt = rng.normal(0, 0.15) * len(cover)
            ends = ((int(x - tilt), 0), (int(x + tilt), len(cover)))
            cv2.line(cover, *ends, 1, max(2, int(0.35 * min(w, h))))
        else:  # A bush.
            for dx, dy, radius in rng.uniform((-0.5, -0.5, 0.2), (0.5, 0.5, 0.4), (5, 3)):
                cv2.circle(cover, (int(x + dx * w), int(y + dy * h)), int(radius * min(w, h)) + 1, 1, -1)
        rows, columns = np.nonzero(cover)
        texture = rows // 3 % 2 * rng.uniform(0, 35) + rng.normal(0, rng.uniform(1, 14), len(rows))
        canvas.image[rows, columns] = colour + texture[:, None]
        canvas.parts[rows, columns] = figures.PART["occluder"]


def _develop(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    """Exposure, a cast of colour, a little blur and the sensor's noise; float image -> u8."""
    if rng.random() < 0.3:
        image = cv2.GaussianBlur(image, (3, 3), 0)
    noise = np.frombuffer(rng.bytes(image[..., 0].size), np.uint8).astype(np.float32).reshape(image.shape[:2])
    strength = rng.uniform(0.01, 0.08)
    noise = noise * np.float32(strength) + np.float32(rng.uniform(-10, 12) - 127.5 * strength)
    gain = rng.uniform(0.8, 1.15) * rng.uniform(0.95, 1.05, 3)
    # OpenCV's stubs know no scalars.
    image = cv2.multiply(image, (*gain, 0.0))  # type: ignore[call-overload]
    image = cv2.max(cv2.add(image, cv2.merge((noise, noise, noise))), 0.0)  # type: ignore[call-overload]
    return cv2.convertScaleAbs(image)
