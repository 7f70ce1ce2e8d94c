"""Hard triplets of a batch: an anchor, one of its class, and one of another class."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from hardmine_jax.mining.layout import for_export
from hardmine_jax.mining.order import first_reaching, order_keys
from hardmine_jax.mining.types import ArrayLike, Scalar, check_units


@for_export
class Triplets(NamedTuple):
    """Indices into the batch; the triplet loss is `relu(d[anchor, positive] - d[anchor, negative] + margin)`.

    Attributes:
      anchor: int32 [M].
      positive: int32 [M], of the anchor's class.
      negative: int32 [M], of another.
      where: bool [M], there is such a triplet.
    """

    anchor: jax.Array
    positive: jax.Array
    negative: jax.Array
    where: jax.Array


def batch_hard(distances: ArrayLike, labels: ArrayLike, *, where: ArrayLike | None = None) -> Triplets:
    """For each anchor the furthest example of its class and the nearest of another.

    positive_a = argmax_{labels_p = labels_a, p != a} distances_ap
    negative_a = argmin_{labels_n != labels_a} distances_an

    Ties go to the lowest index; a NaN is hardest. The choice carries no gradient. Hermans, Beyer and Leibe,
    1703.07737, section 2, equation 5.

    Args:
      distances: [N, N], row a from anchor a.
      labels: integer [N].
      where: bool [N], True takes part; None for all.

    Returns:
      `Triplets`, M = N, one an anchor; `where` is False for an anchor that lacks either.

    Raises:
      ValueError: for distances that are no square, labels or `where` of another length or of a wrong type.

    >>> distances = jnp.abs(jnp.arange(4.0)[:, None] - jnp.arange(4.0)[None])
    >>> found = batch_hard(distances, jnp.array([0, 0, 1, 1]))
    >>> found.positive, found.negative
    (Array([1, 0, 3, 2], dtype=int32), Array([2, 2, 1, 1], dtype=int32))
    """
    distances, same, other = _pairs(distances, labels, where)
    positive = jnp.where(same, distances, -jnp.inf).argmax(axis=1).astype(jnp.int32)
    negative = jnp.where(other, distances, jnp.inf).argmin(axis=1).astype(jnp.int32)
    anchor = jnp.arange(len(distances), dtype=jnp.int32)
    return Triplets(anchor, positive, negative, same.any(axis=1) & other.any(axis=1))


def semi_hard(
    distances: ArrayLike, labels: ArrayLike, *, margin: Scalar, where: ArrayLike | None = None
) -> Triplets:
    """For each pair of a class, the nearest example of another that is further than the pair, by a margin.

    negative_ap = argmin_n distances_an  over labels_n != labels_a,
                  distances_ap < distances_an < distances_ap + margin

    Ties go to the lowest index. The choice carries no gradient. Schroff, Kalenichenko and Philbin, FaceNet,
    1503.03832, section 3.2.

    Args:
      distances: [N, N], row a from anchor a.
      labels: integer [N].
      margin: above 0; may be traced.
      where: bool [N], True takes part; None for all.

    Returns:
      `Triplets`, M = N * N, one a pair (a, p) in the order of `distances`' entries; `where` is False for what
      is no pair of a class, and where no negative lies between.

    Raises:
      ValueError: as `batch_hard`; for a static margin that is not above 0.

    >>> places = jnp.array([0.0, 1.0, 1.5, 5.0])
    >>> distances = jnp.abs(places[:, None] - places[None])
    >>> found = semi_hard(distances, jnp.array([0, 0, 1, 1]), margin=1.0)
    >>> [tuple(map(int, row[:3])) for row in zip(*found) if row[3]]
    [(0, 1, 2), (3, 2, 1)]
    """
    if not isinstance(margin, jax.Array) and not margin > 0:
        raise ValueError(f"margin={margin} must be above 0: no negative lies within it")
    distances, same, other = _pairs(distances, labels, where)
    margin = jnp.asarray(margin, distances.dtype)

    def of_anchor(distances: jax.Array, same: jax.Array, other: jax.Array) -> tuple[jax.Array, jax.Array]:
        candidates = jnp.where(other, distances, jnp.inf)
        order = jnp.argsort(candidates, stable=True).astype(jnp.int32)
        # Equal keys, as those of 0.0 and -0.0, are equal distances.
        place = first_reaching(order_keys(candidates)[order], order_keys(distances) + 1)
        negative = order[jnp.minimum(place, len(order) - 1)]
        found = candidates[negative]
        return negative, same & (found > distances) & (found < distances + margin)

    negative, where = jax.vmap(of_anchor)(distances, same, other)
    anchor, positive = jnp.indices(distances.shape, jnp.int32)
    return Triplets(anchor.ravel(), positive.ravel(), negative.ravel(), where.ravel())


def _pairs(
    distances: ArrayLike, labels: ArrayLike, where: ArrayLike | None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Distances without gradient, and bool [N, N]: a pair of one class, and of two."""
    distances = jax.lax.stop_gradient(jnp.asarray(distances))
    if distances.ndim != 2 or distances.shape[0] != distances.shape[1]:
        raise ValueError(f"distances of shape {distances.shape}: one for each pair of N examples, [N, N]")
    labels, where = check_units(labels, where)
    if labels.shape != distances.shape[:1] or not jnp.issubdtype(labels.dtype, jnp.integer):
        found = f"labels {labels.dtype} {labels.shape} for distances {distances.shape}"
        raise ValueError(f"{found}: an integer an example, [N]")
    both = where[:, None] & where[None]
    alike = labels[:, None] == labels[None]
    return distances, both & alike & ~jnp.eye(len(labels), dtype=bool), both & ~alike
