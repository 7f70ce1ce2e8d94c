"""Fast R-CNN's own choice of regions, by chance and quota: what OHEM does without."""

import jax
import jax.numpy as jnp

from hardmine_jax.mining import random_k
from hardmine_jax.mining.order import count
from hardmine_jax.mining.types import ArrayLike, as_floats, check_count, check_units


def sample_rois(
    key: jax.Array,
    labels: ArrayLike,
    overlaps: ArrayLike,
    *,
    k: int,
    foreground_fraction: float = 0.25,
    background: tuple[float, float] = (0.1, 0.5),
    where: ArrayLike | None = None,
) -> jax.Array:
    """Keeps k regions of each image at random: a quarter objects, the rest background that is not too easy.

    foreground: label > 0;  background: label = 0 and background[0] <= overlap < background[1]
    kept foreground = min(round(foreground_fraction k), foreground)
    kept background = min(k - kept foreground, background)

    As in Fast R-CNN's code, background takes the places that foreground leaves free, but not the other way
    about: where background runs short fewer than k are kept. Within each kind every set is equally likely;
    each row draws its own. No gradient flows. Fast R-CNN, 1504.08083, section 2.3, "Mini-batch sampling". The
    lower bound on the overlap of background is a guess at what is hard, which OHEM drops (1604.03540).

    Args:
      key: a PRNG key; use a new one each step.
      labels: int [..., N], 0 for background. `match` gives them, and the overlaps.
      overlaps: [..., N], IoU with the nearest ground truth.
      k: 1 <= k <= N, a Python int.
      foreground_fraction: of k, 0 .. 1.
      background: (least, below) overlap of a background region.
      where: bool [..., N], True takes part; None for all.

    Returns:
      bool [..., N], a subset of `where`, at most k in each row.

    Raises:
      ValueError: for k < 1 or k > N, a fraction outside 0 .. 1, or shapes that do not fit.
      TypeError: if k is no integer.

    >>> labels, overlaps = jnp.array([3, 0, 0, 1]), jnp.array([0.9, 0.3, 0.0, 0.6])
    >>> keep = sample_rois(jax.random.key(0), labels, overlaps, k=4)
    >>> [int(kept.sum()) for kept in (keep & (labels > 0), keep & (labels == 0))]
    [1, 1]
    """
    overlaps, where = check_units(overlaps, where)
    labels = jnp.asarray(labels)
    k = check_count("k", k, overlaps.shape[-1], least=1)
    if labels.shape != overlaps.shape:
        raise ValueError(f"labels {labels.shape} and overlaps {overlaps.shape} must both be [..., N]")
    if not 0 <= foreground_fraction <= 1:
        raise ValueError(f"foreground_fraction={foreground_fraction} must lie in 0 .. 1, it is a part of k")
    (overlaps,) = as_floats(overlaps)
    least, below = (jnp.asarray(overlap, overlaps.dtype) for overlap in background)
    easy = ~((overlaps >= least) & (overlaps < below))
    foreground_key, background_key = jax.random.split(key)
    quota = jnp.asarray(round(foreground_fraction * k), jnp.int32)
    foreground = random_k(foreground_key, overlaps, k=quota, where=where & (labels > 0))
    free = k - count(foreground)[..., 0]
    return foreground | random_k(background_key, overlaps, k=free, where=where & (labels == 0) & ~easy)
