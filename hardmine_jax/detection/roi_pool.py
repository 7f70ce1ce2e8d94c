"""RoI max pooling with the quantised bins of Fast R-CNN.

Features are [H, W, C], boxes [N, 4] are (x1, y1, x2, y2) in image pixels; `stride` image pixels lie between
two feature pixels. A cell below is one feature pixel.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from hardmine_jax.detection.box_runs import TPU_RUN, map_in_runs, sum_in_runs, sum_over_boxes
from hardmine_jax.mining.layout import beside, cut_axes, on_mesh_of, varying_as
from hardmine_jax.mining.types import ArrayLike, at_least_single


class _Bins(NamedTuple):
    """Cells of the bins, the stops not included: top, bottom int32 [N, P]; left, right int32 [N, Q]."""

    top: jax.Array
    bottom: jax.Array
    left: jax.Array
    right: jax.Array


_Residuals: TypeAlias = tuple[jax.Array, _Bins, jax.Array]
# Values, and the places that they come from where these are asked for.
_Window: TypeAlias = tuple[jax.Array, jax.Array | None]


def roi_pool(
    features: ArrayLike, boxes: ArrayLike, *, size: tuple[int, int] = (7, 7), stride: float
) -> jax.Array:
    """The maximum of each channel in each bin of each box.

    x = round(box / stride), L = max(x2 - x1 + 1, 1),
    bin q = cells x1 + floor(q L / Q) up to, not including, x1 + ceil((q + 1) L / Q)

    Fast R-CNN: 1504.08083, section 2.1, as its published code computes it: halves are rounded away from zero,
    the last cell belongs to the box, bins are clipped to the map, a bin without a cell is 0. A reversed box
    or one of zero area is one cell wide. The gradient goes to the first maximum, row by row, and none to
    boxes. Bit-exact with torchvision's kernel for finite features, its bins in float32 included: where L is
    57 and Q 7, the last bin takes one cell more than the formula says.

    Where it departs: a box with a NaN is all bins without a cell (undefined there), so it is 0 and gets no
    gradient; corners are cut off 1,024 cells (or 2 maps, if more) outside the map; a bin with a NaN is NaN
    (skipped there).

    Time goes by the number of bins, not by their area: maxima over windows of 1, 3, 7, ... cells a side are
    made once, and four of them cover a bin. Differentiable in reverse mode only. For a batch, `jax.vmap`.

    Args:
      features: float [H, W, C].
      boxes: [N, 4] image pixels; inside the map, outside or both.
      size: (P, Q), bins down and across.
      stride: image pixels a feature pixel, a Python number (1 / spatial_scale).

    Returns:
      [N, P, Q, C] of the dtype of features.

    Raises:
      ValueError: for other shapes, features that are no floats, size or stride not positive.

    >>> features = jnp.arange(16.0).reshape(4, 4, 1)
    >>> roi_pool(features, jnp.array([[0.0, 0.0, 30.0, 16.0]]), size=(2, 2), stride=10)[0, :, :, 0]
    Array([[ 5.,  7.],
           [ 9., 11.]], dtype=float32)
    """
    features, boxes = check_rois(features, boxes, size, stride)
    return _pool_boxes(features, boxes, tuple(size), float(stride))


def check_rois(
    features: ArrayLike, boxes: ArrayLike, size: tuple[int, int], stride: float
) -> tuple[jax.Array, jax.Array]:
    """`features` as an array, and `boxes` in float32 without a gradient.

    Raises:
      ValueError: as in `roi_pool`.
    """
    features, boxes = jnp.asarray(features), jnp.asarray(boxes)
    if features.ndim != 3 or 0 in features.shape or not jnp.issubdtype(features.dtype, jnp.floating):
        raise ValueError(
            f"features of shape {features.shape} and {features.dtype} must be [H, W, C] of floats, none of "
            "them 0: jax.vmap goes over images"
        )
    if boxes.ndim != 2 or boxes.shape[-1] != 4:
        raise ValueError(f"boxes of shape {boxes.shape} must be [N, 4], (x1, y1, x2, y2) of one image")
    if len(size) != 2 or min(size) < 1 or not stride > 0:
        raise ValueError(f"size={tuple(size)} must be two bin counts from 1 and stride={stride} positive")
    if any(cut_axes(features)[:2]) or cut_axes(boxes)[0]:
        raise ValueError(
            f"features {jax.typeof(features)} and boxes {jax.typeof(boxes)} of one image lie on several"
            " devices: call it inside jax.shard_map, or jax.reshard them to whole images"
        )
    return features, jax.lax.stop_gradient(boxes).astype(jnp.float32)


# Compiled as one even where the caller is not: a loop alone would be compiled again at every call.
@functools.partial(jax.jit, static_argnums=(2, 3))
def _pool_boxes(features: jax.Array, boxes: jax.Array, size: tuple[int, int], stride: float) -> jax.Array:
    return _pool(varying_as(features, boxes), _bins(boxes, features.shape, size, stride))


def _bins(boxes: jax.Array, shape: tuple[int, ...], size: tuple[int, int], stride: float) -> _Bins:
    reach = max(1024, 2 * max(shape[:2]))
    # XLA has this rounding as one operation, so that no compiler merges the product into a wider one.
    cells = jax.lax.round(boxes * np.float32(1 / stride), jax.lax.RoundingMethod.AWAY_FROM_ZERO)
    known = ~jnp.isnan(boxes).any(axis=-1, keepdims=True)
    x1, y1, x2, y2 = jnp.where(known, jnp.clip(cells, -reach, reach), reach).astype(jnp.int32).T

    def along(first: jax.Array, last: jax.Array, count: int, length: int) -> list[jax.Array]:
        starts, stops = (jnp.asarray(edges) for edges in _edges(count, 2 * reach + 1))
        extent = jnp.maximum(last - first + 1, 1)
        return [
            jnp.clip(first[:, None] + beside(edges, extent)[extent], 0, length) for edges in (starts, stops)
        ]

    return _Bins(*along(y1, y2, size[0], shape[0]), *along(x1, x2, size[1], shape[1]))


@functools.lru_cache(maxsize=32)
def _edges(count: int, longest: int) -> tuple[np.ndarray, np.ndarray]:
    """Starts and stops int32 [longest + 1, count] of the bins of a box of each extent.

    In numpy because the published code rounds L / P to float32, which XLA may turn into a product with 1 / P:
    other bins.
    """
    extent = np.arange(longest + 1, dtype=np.float32)[:, None] / np.float32(count)
    number = np.arange(count, dtype=np.float32)
    return np.floor(number * extent).astype(np.int32), np.ceil((number + 1) * extent).astype(np.int32)


@jax.custom_vjp
def _pool(features: jax.Array, bins: _Bins) -> jax.Array:
    table = _table(features, bins)

    def at_once(bins: _Bins) -> jax.Array:
        return _maxima(table, bins)

    def in_runs(bins: _Bins) -> jax.Array:
        numbers_a_box = bins.top.shape[1] * bins.left.shape[1] * features.shape[2]
        run = TPU_RUN // numbers_a_box
        return map_in_runs(lambda _, bins: at_once(bins), table.values, bins, run=run)

    # 2,000 boxes of 38 x 50 x 512, v5e: 192 MB of temporaries, not 1,231.
    return jax.lax.platform_dependent(bins, tpu=in_runs, default=at_once)


def _pool_forward(features: jax.Array, bins: _Bins) -> tuple[jax.Array, _Residuals]:
    maxima = _pool(features, bins)
    return maxima, (features, bins, maxima)


def _pool_backward(residuals: _Residuals, gradient: jax.Array) -> tuple[jax.Array, None]:
    with on_mesh_of(gradient):
        return _pull(residuals, gradient), None


def _pull(residuals: _Residuals, gradient: jax.Array) -> jax.Array:
    """The gradient of the features."""
    features, bins, maxima = residuals
    table = _table(features, bins, with_places=True)
    channel = jnp.arange(features.shape[-1], dtype=jnp.int32).reshape(1, 1, 1, -1)

    # Places are looked up here, a few boxes at a time: to keep them would take as much memory as the maxima.
    def add(total: jax.Array, rows: tuple[_Bins, jax.Array, jax.Array], fresh: jax.Array) -> jax.Array:
        bins, maxima, gradient = rows
        places = _first_places(table, bins, maxima)
        places = jnp.where(fresh[:, None, None, None] & ~_empty(bins), places, table.nowhere)
        # Flat: XLA:CPU scatters along one axis several times as fast as along two.
        index = (places * features.shape[-1] + channel).ravel()
        return total.at[index].add(gradient.astype(total.dtype).ravel(), mode="drop")

    total = jnp.zeros(features.size, at_least_single(features.dtype))
    numbers_a_box = math.prod(maxima.shape[1:])
    # A dozen arrays of a run, places beside values: 524 MB on v5e, 884 with four times as many boxes a run.
    total = jax.lax.platform_dependent(
        total,
        (bins, maxima, gradient),
        tpu=functools.partial(sum_in_runs, add, run=TPU_RUN // (4 * numbers_a_box)),
        default=functools.partial(sum_over_boxes, add, numbers_a_box=numbers_a_box),
    )
    return total.reshape(features.shape).astype(features.dtype)


_pool.defvjp(_pool_forward, _pool_backward)


class _Table(NamedTuple):
    """Maxima over windows of some lengths, at every position inside the map.

    Attributes:
      values: [rows, C].
      places: int32 [rows, C], row * W + column of the first such value; None where not asked for.
      nowhere: H * W, one more than the last place.
      down, across: the lengths, int32.
      offsets: int32 [len(down), len(across)], the row at which the windows of each size begin.
      shape: (H, W).
    """

    values: jax.Array
    places: jax.Array | None
    nowhere: int
    down: np.ndarray
    across: np.ndarray
    offsets: np.ndarray
    shape: tuple[int, int]


def _table(features: jax.Array, bins: _Bins, *, with_places: bool = False) -> _Table:
    height, width, channels = features.shape
    # What a box inside the map can ask for; larger bins take more windows.
    down = _lengths(-(-height // bins.top.shape[-1]) + 1)
    across = _lengths(-(-width // bins.left.shape[-1]) + 1)
    places = jnp.arange(height * width, dtype=jnp.int32).reshape(height, width, 1)
    window = features, jnp.broadcast_to(places, features.shape) if with_places else None
    maps = [wide for high in _widened(window, down, 0) for wide in _widened(high, across, 1)]
    # Each as small as it is, not padded to H x W: XLA:CPU makes that four times as fast.
    values, places = jax.tree.map(
        lambda *maps: jnp.concatenate([m.reshape(-1, channels) for m in maps]), *maps
    )
    counts = np.outer(height - down + 1, width - across + 1)
    offsets = (np.cumsum(counts) - counts.ravel()).reshape(counts.shape).astype(np.int32)
    return _Table(values, places, height * width, down, across, offsets, (height, width))


def _lengths(longest: int) -> np.ndarray:
    """1, 3, 7, ... such that two windows of one of these cover every length up to `longest`."""
    lengths = [1]
    while 2 * lengths[-1] < longest:
        lengths.append(2 * lengths[-1] + 1)
    return np.array(lengths, np.int32)


def _widened(window: _Window, lengths: np.ndarray, axis: int) -> list[_Window]:
    """[(values, places or None)] for windows of each length along `axis`, from those of length 1."""
    made = [window]
    for length in lengths[:-1].tolist():
        values, places = made[-1]
        parts = [_shifted(values, start, length + 1, axis) for start in (0, length, length + 1)]
        widest = functools.reduce(jnp.maximum, parts)
        if places is not None:
            theirs = [_shifted(places, start, length + 1, axis) for start in (0, length, length + 1)]
            found = [_where_equal(*part, widest) for part in zip(parts, theirs, strict=True)]
            places = functools.reduce(jnp.minimum, found)
        made.append((widest, places))
    return made


def _shifted(array: jax.Array, start: int, shorter: int, axis: int) -> jax.Array:
    return jax.lax.slice_in_dim(array, start, start + array.shape[axis] - shorter, axis=axis)


def _where_equal(values: jax.Array, places: jax.Array, maxima: jax.Array) -> jax.Array:
    """The places at which values are the maxima, beyond all places elsewhere."""
    return jnp.where((values == maxima) | jnp.isnan(values), places, jnp.iinfo(jnp.int32).max)


def _maxima(table: _Table, bins: _Bins) -> jax.Array:
    """[N, P, Q, C]."""
    empty = _empty(bins)

    def read(rows: jax.Array) -> jax.Array:
        return jnp.where(empty, 0, beside(table.values, rows).at[rows].get(mode="promise_in_bounds"))

    return _over_windows(table, bins, read, jnp.maximum)


def _first_places(table: _Table, bins: _Bins, maxima: jax.Array) -> jax.Array:
    """int32 [N, P, Q, C], of no meaning for a bin without a cell."""

    every_place = table.places
    assert every_place is not None, "a table made without places"

    def read(rows: jax.Array) -> jax.Array:
        maps = (beside(table.values, rows), beside(every_place, rows))
        values, places = (x.at[rows].get(mode="promise_in_bounds") for x in maps)
        return _where_equal(values, places, maxima)

    return _over_windows(table, bins, read, jnp.minimum)


def _over_windows(
    table: _Table,
    bins: _Bins,
    read: Callable[[jax.Array], jax.Array],
    merge: Callable[[jax.Array, jax.Array], jax.Array],
) -> jax.Array:
    """`read(rows of the table)`, merged over the four windows that cover a bin; more where one is large."""
    level_down, top = _positions(bins.top, bins.bottom, table.down, table.shape[0])
    level_across, left = _positions(bins.left, bins.right, table.across, table.shape[1])
    widths = beside(jnp.asarray(table.shape[1] - table.across + 1), level_across)[level_across][:, None, :]
    offsets = beside(jnp.asarray(table.offsets), level_down)[level_down[:, :, None], level_across[:, None, :]]

    def window(step_down: jax.Array | int, step_across: jax.Array | int) -> jax.Array:
        return read(offsets + top(step_down)[:, :, None] * widths + left(step_across)[:, None, :])

    merged = functools.reduce(merge, (window(down, across) for down in (0, 1) for across in (0, 1)))
    down = _most_steps(bins.bottom - bins.top, table.down)
    across = _most_steps(bins.right - bins.left, table.across)
    steps = jnp.where(jnp.maximum(down, across) > 2, down * across, 0)

    def more(state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        steps, merged = state
        step = steps - 1
        return step, merge(merged, window(step // across, step % across))

    # Counted down, since JAX's vmap of a count from 0 fails where a mesh axis is Explicit.
    return jax.lax.while_loop(lambda state: state[0] > 0, more, (steps, merged))[1]


def _positions(
    start: jax.Array, stop: jax.Array, lengths: np.ndarray, size: int
) -> tuple[jax.Array, Callable[[jax.Array | int], jax.Array]]:
    """Which of the lengths covers each bin, and a function of the step to where its window begins."""
    level = ((stop - start)[..., None] > 2 * lengths[:-1].reshape(1, 1, -1)).sum(axis=-1, dtype=jnp.int32)
    length = beside(jnp.asarray(lengths), level)[level]
    # A bin without a cell may lie at the end: what is read there is not used, yet must lie in the table.
    last = jnp.clip(stop - length, 0, size - length)
    return level, lambda step: jnp.minimum(start + step * length, last)


def _most_steps(extent: jax.Array, lengths: np.ndarray) -> jax.Array:
    """Windows that the longest bin takes, at least 1."""
    return jnp.maximum(-(-jnp.max(extent, initial=1) // int(lengths[-1])), 1)


def _empty(bins: _Bins) -> jax.Array:
    """bool [N, P, Q, 1]: bins without a cell."""
    return ((bins.bottom <= bins.top)[:, :, None] | (bins.right <= bins.left)[:, None, :])[..., None]
