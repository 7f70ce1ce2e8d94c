"""Draws a figure of limbs and ellipsoids, each pixel by the nearest surface that its ray meets."""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from hardmine_jax.data.pose.figures import PART, Figure, _Ellipsoid, _Limb
from hardmine_jax.data.pose.outfits import weave


class Canvas(NamedTuple):
    """Drawn into: `image` f32[H,W,3] from 0 to 255, `depth` f32[H,W], `parts` u8[H,W] of numbers of PARTS."""

    image: np.ndarray
    depth: np.ndarray
    parts: np.ndarray


def project(points: np.ndarray, view: np.ndarray, *, distance: float) -> tuple[np.ndarray, np.ndarray]:
    """Weak perspective: body points `[..., 3]` -> seen ones (body units) and magnification `[...]`."""
    seen = points @ view.T
    larger = distance / (distance - seen[..., 2])
    return seen * np.stack([larger, larger, np.ones_like(larger)], -1), larger


class Camera(NamedTuple):
    """Picture = `scale` (pixels a body unit) * seen + `offset` (x, y); `light`: unit vector to the lamp."""

    view: np.ndarray
    distance: float
    scale: float
    offset: np.ndarray
    light: tuple[float, float, float]

    def place(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Body points `[..., 3]` -> picture points in pixels, and pixels a body unit there `[...]`."""
        seen, larger = project(points, self.view, distance=self.distance)
        pixels = seen * self.scale
        pixels[..., :2] += self.offset
        return pixels, larger * self.scale


def draw_figure(canvas: Canvas, figure: Figure, camera: Camera) -> np.ndarray:
    """Draws the solids, far ones first; returns the keypoints in the picture, `[17, 3]`."""
    joints, num_limbs = len(figure.keypoints), len(figure.limbs)
    points = [
        figure.keypoints,
        *(limb.ends for limb in figure.limbs),
        np.asarray([solid.centre for solid in figure.ellipsoids]),
    ]
    places, scales = camera.place(np.concatenate(points))
    ends, end_scales = (array[joints : joints + 2 * num_limbs] for array in (places, scales))
    centres, centre_scales = (array[joints + 2 * num_limbs :] for array in (places, scales))
    tasks: list[tuple[float, Callable[[], None]]] = []
    for i, limb in enumerate(figure.limbs):
        pair = slice(2 * i, 2 * i + 2)
        drawn = functools.partial(_draw_limb, canvas, figure, camera, limb, ends[pair], end_scales[pair])
        tasks.append((ends[pair, 2].mean(), drawn))
    for solid, centre, scale in zip(figure.ellipsoids, centres, centre_scales, strict=True):
        drawn = functools.partial(_draw_ellipsoid, canvas, figure, camera, solid, centre, scale)
        tasks.append((centre[2], drawn))
    # The depth map decides what hides what; the order only makes soft edges blend over what lies behind.
    for _, draw in sorted(tasks, key=lambda task: task[0]):
        draw()
    return places[:joints]


def _window(
    canvas: Canvas, low: np.ndarray, high: np.ndarray
) -> tuple[slice, slice, np.ndarray, np.ndarray] | None:
    height, width = canvas.depth.shape
    left, top = (max(int(value) - 1, 0) for value in low)
    right, bottom = min(int(high[0]) + 3, width), min(int(high[1]) + 3, height)
    if left >= right or top >= bottom:
        return None
    columns, rows = (
        np.arange(left, right, dtype=np.float32),
        np.arange(top, bottom, dtype=np.float32)[:, None],
    )
    return slice(top, bottom), slice(left, right), columns, rows


def _draw_limb(
    canvas: Canvas, figure: Figure, camera: Camera, limb: _Limb, ends: np.ndarray, scales: np.ndarray
) -> None:
    radii = np.asarray(limb.radii) * scales
    window = _window(canvas, (ends[:, :2] - radii[:, None]).min(0), (ends[:, :2] + radii[:, None]).max(0))
    if window is None:
        return
    rows, columns, x, y = window
    # Python floats: a float64 scalar of numpy would turn every picture-sized array below into float64.
    (ax, ay, az), (bx, by, bz) = ends.tolist()
    first, last = radii.tolist()
    length = math.hypot(bx - ax, by - ay) + 1e-3
    ux, uy = (bx - ax) / length, (by - ay) / length
    along = (x - ax) * ux + (y - ay) * uy
    across = (y - ay) * ux - (x - ax) * uy
    t = np.minimum(np.maximum(along * (1 / length), 0.0), 1.0)
    radius = first + (last - first) * t
    beyond = along - t * length
    squared = across * across + beyond * beyond
    coverage = np.minimum(np.maximum(radius - np.sqrt(squared) + 0.5, 0.0), 1.0)
    rise = np.sqrt(np.maximum(radius * radius - squared, 0.0))
    light_x, light_y, light_z = camera.light
    lit = across * (light_y * ux - light_x * uy) + beyond * (light_x * ux + light_y * uy) + rise * light_z
    shade = _shade(lit / radius, rise / radius)
    colours = figure.skin
    if limb.cloth is not None:
        colours = weave(limb.cloth, (limb.start + t) * limb.reach, across / float(scales[0]))
        if limb.covered < limb.start + 1:
            colours = np.where((limb.start + t > limb.covered)[..., None], figure.skin, colours)
    _blend(canvas, rows, columns, coverage, az + (bz - az) * t + rise, colours, shade, PART[limb.part])


def _draw_ellipsoid(
    canvas: Canvas, figure: Figure, camera: Camera, solid: _Ellipsoid, centre: np.ndarray, scale: np.ndarray
) -> None:
    frame = camera.view @ solid.frame
    radii = solid.radii * scale
    half = np.sqrt((frame**2) @ radii**2)
    window = _window(canvas, centre[:2] - half[:2], centre[:2] + half[:2])
    if window is None:
        return
    rows, columns, x, y = window
    form = (frame / radii**2) @ frame.T
    (a11, a12, a13), (_, a22, a23), (_, _, a33) = form.tolist()
    cx, cy, cz = centre.tolist()
    u, v = x - cx, y - cy
    slope = a13 * u + a23 * v
    flat = (a11 * u + 2 * a12 * v) * u + a22 * v * v - slope * slope / a33
    edge = (1.0 / np.sqrt(flat + 1e-9) - 1.0) * np.sqrt(u * u + v * v) + 0.5
    coverage = np.minimum(np.maximum(edge, 0.0), 1.0)
    w = (np.sqrt(np.maximum(1.0 - flat, 0.0) * a33) - slope) / a33
    nx, ny, nz = (row[0] * u + row[1] * v + row[2] * w for row in form.tolist())
    size = 1.0 / np.sqrt(nx * nx + ny * ny + nz * nz + 1e-12)
    light_x, light_y, light_z = camera.light
    shade = _shade((light_x * nx + light_y * ny + light_z * nz) * size, nz * size)
    colours = solid.paint
    if callable(colours):
        colours = colours(*(a * u + b * v + c * w for a, b, c in (frame / scale).T.tolist()))
    _blend(canvas, rows, columns, coverage, cz + w, colours, shade, PART[solid.part])


def _shade(lit: np.ndarray, facing: np.ndarray) -> np.ndarray:
    """Lambert's law with darkened rims, which keeps a limb readable before a limb of the same cloth."""
    return (0.62 + 0.38 * np.maximum(lit, 0.0)) * (0.62 + 0.38 * facing)


def _blend(
    canvas: Canvas,
    rows: slice,
    columns: slice,
    coverage: np.ndarray,
    depth: np.ndarray,
    colours: np.ndarray,
    shade: np.ndarray,
    part: int,
) -> None:
    seen = canvas.depth[rows, columns]
    front = depth > seen
    opacity = (coverage * front)[..., None]
    picture = canvas.image[rows, columns]
    picture += opacity * (colours * shade[..., None] - picture)
    solid = front & (coverage >= 0.5)
    np.copyto(seen, depth, where=solid)
    np.copyto(canvas.parts[rows, columns], np.uint8(part), where=solid)
