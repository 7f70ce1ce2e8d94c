"""Bootstrapping: a buffer of the hardest examples of a data set, as a value that `update` makes anew.

An example is known by its dataset index, an int32 >= 0; a negative one is a free slot. Scores are losses or
false-positive scores, any real numbers, larger is harder. All state is plain arrays of static shape: it goes
through jit and into a checkpoint like any other.

    pool = hard_pool.init(1000, num_positives=200)
    pool = hard_pool.update(pool, indices, scores, positive=labels > 0, decay=0.99)
    batch = hard_pool.sample(pool, key, num_negatives=48, num_positives=16)

Train, collect false positives, train again: Sung and Poggio, Example-based learning for view-based human face
detection, 1998, section 2.4; the cache of hard examples of Felzenszwalb et al., 2010, section 4.4. Across
devices, gather what each has seen first (`jax.lax.all_gather`): the same updates make the same pool.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from hardmine_jax.mining.layout import for_export
from hardmine_jax.mining.order import first_reaching, order_keys
from hardmine_jax.mining.types import ArrayLike, Count, Scalar, check_indices, check_real


@for_export
class Ranked(NamedTuple):
    """Examples, hardest first, equal ones by rising index; free slots come last.

    Attributes:
      indices: int32 [capacity], dataset indices, none twice; -1 in free slots.
      scores: float32 [capacity], larger is harder; -inf in free slots.
      ages: int32 [capacity], updates since the example was last seen.
    """

    indices: jax.Array
    scores: jax.Array
    ages: jax.Array


@for_export
class HardPool(NamedTuple):
    """Negatives compete for their slots and age; positives are kept aside, untouched by both.

    Attributes:
      negatives: Ranked.
      positives: Ranked; None for a pool that does not tell them apart.
    """

    negatives: Ranked
    positives: Ranked | None


@for_export
class Sample(NamedTuple):
    """A draw of num_positives positives, then num_negatives negatives.

    Attributes:
      indices: int32 [num_positives + num_negatives], dataset indices, none twice; -1 where `where` is False.
      positive: bool, which are drawn from the positives.
      where: bool, False in the slots for which the pool had no example.
    """

    indices: jax.Array
    positive: jax.Array
    where: jax.Array


def init(capacity: int, *, num_positives: int = 0) -> HardPool:
    """An empty pool.

    Args:
      capacity: slots for negatives (for all examples, where positives are not told apart), at least 1.
      num_positives: slots for positives; 0: they are not told apart.

    Raises:
      ValueError: for a capacity < 1 or num_positives < 0.

    >>> init(2).negatives.indices
    Array([-1, -1], dtype=int32)
    """
    if capacity < 1 or num_positives < 0:
        raise ValueError(f"capacity={capacity}, num_positives={num_positives}: at least 1 and 0 slots")
    return HardPool(_empty(capacity), _empty(num_positives) if num_positives else None)


def update(
    pool: HardPool,
    indices: ArrayLike,
    scores: ArrayLike,
    *,
    positive: ArrayLike | None = None,
    where: ArrayLike | None = None,
    decay: Scalar = 1.0,
    max_age: Count | None = None,
    min_score: Scalar | None = None,
) -> HardPool:
    """Takes in examples just seen; the hardest of these and of those already there stay.

    First the negatives already there age: a score s becomes s * decay (s / decay below zero, so that ageing
    always ranks lower), and what was not seen for more than `max_age` updates leaves. Then each example
    seen replaces its own entry, wherever that is; of the same index twice among those seen, the later
    counts. What now ranks behind the last slot leaves, ties to the lowest dataset index. So the outcome
    does not depend on the order in which different examples are listed.

    Positives do not age and know no `min_score`; if there are more than slots, the hardest stay.

    A NaN ranks as the hardest, as in the selectors: it stays in sight until it is seen again with another
    score, or gets too old.

    Args:
      pool: from `init` or `update`.
      indices: integer [B], dataset indices below 2^31; negative ones take no part, nor do traced ones that
        are 2^31 or more.
      scores: [B], larger is harder.
      positive: bool [B]; None: all are negatives. Needs a pool with slots for positives.
      where: bool [B], True takes part; None for all. An example left out keeps the entry it may have.
      decay: in (0, 1], of each update; 1 for none.
      max_age: of a negative, in updates; None for no end.
      min_score: a negative with a score not above it leaves, or is not let in: no longer hard. None for none.

    Returns:
      The new pool; the old one is as it was.

    Raises:
      ValueError: for shapes that disagree, indices of 2^31 or more, a decay out of range, `positive` without
        slots for positives.
      TypeError: if indices are no integers, or scores are complex.

    >>> pool = update(init(2), jnp.array([7, 3, 9]), jnp.array([0.5, 0.1, 0.9]))
    >>> pool.negatives.indices, pool.negatives.scores
    (Array([9, 7], dtype=int32), Array([0.9, 0.5], dtype=float32))
    >>> update(pool, jnp.array([9]), jnp.array([0.2])).negatives.indices
    Array([7, 9], dtype=int32)
    """
    indices, scores, positive, where = _check_seen(pool, indices, scores, positive, where)
    if not isinstance(decay, jax.Array) and not 0 < decay <= 1:
        raise ValueError(f"decay={decay} must be in (0, 1]: each update multiplies the scores by it")
    seen = Ranked(jnp.where(where, indices, -1), scores.astype(jnp.float32), jnp.zeros_like(indices))
    replaced = seen.indices
    aged = _leave(_age(pool.negatives, decay), max_age, min_score)
    fresh = _leave(_only(seen, ~positive), None, min_score)
    negatives = _hardest(_without(aged, replaced), _last_seen(fresh, replaced))
    if pool.positives is None:
        return HardPool(negatives, None)
    older = pool.positives._replace(ages=jnp.where(pool.positives.indices < 0, 0, pool.positives.ages + 1))
    positives = _hardest(_without(older, replaced), _last_seen(_only(seen, positive), replaced))
    return HardPool(negatives, positives)


def sample(pool: HardPool, key: jax.Array, *, num_negatives: int, num_positives: int = 0) -> Sample:
    """Draws examples, each of a kind equally likely and none twice. The same key and pool draw the same.

    For the hardest rather than a draw, take the head: `pool.negatives.indices[:k]`.

    Args:
      pool: from `init` or `update`.
      key: a PRNG key; use a new one each time.
      num_negatives: how many, static, at most the capacity.
      num_positives: how many, static, at most the slots for positives.

    Raises:
      ValueError: for numbers below 0 or above the slots there are.

    >>> pool = update(init(3), jnp.array([7, 3]), jnp.array([0.5, 0.1]))
    >>> drawn = sample(pool, jax.random.key(0), num_negatives=3)
    >>> sorted(drawn.indices.tolist()), int(drawn.where.sum())
    ([-1, 3, 7], 2)
    """
    _check_drawn("num_negatives", num_negatives, pool.negatives)
    _check_drawn("num_positives", num_positives, pool.positives)
    positive_key, negative_key = jax.random.split(key)
    parts = [_draw(negative_key, pool.negatives.indices, num_negatives)]
    if num_positives and pool.positives is not None:
        parts.insert(0, _draw(positive_key, pool.positives.indices, num_positives))
    indices = jnp.concatenate(parts)
    return Sample(indices, jnp.arange(indices.shape[0]) < num_positives, indices >= 0)


def _empty(capacity: int) -> Ranked:
    return Ranked(
        jnp.full(capacity, -1, jnp.int32),
        jnp.full(capacity, -jnp.inf, jnp.float32),
        jnp.zeros(capacity, jnp.int32),
    )


def _check_seen(
    pool: HardPool,
    indices: ArrayLike,
    scores: ArrayLike,
    positive: ArrayLike | None,
    where: ArrayLike | None,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    indices, scores = check_indices(indices), jax.lax.stop_gradient(check_real(jnp.asarray(scores)))
    if positive is not None and pool.positives is None:
        raise ValueError("positive= given to a pool without slots for positives: init(..., num_positives=n)")
    positive = jnp.zeros(indices.shape, bool) if positive is None else jnp.asarray(positive)
    where = jnp.ones(indices.shape, bool) if where is None else jnp.asarray(where)
    shapes = [array.shape for array in (indices, scores, positive, where)]
    if indices.ndim != 1 or len(set(shapes)) > 1:
        raise ValueError(
            "indices, scores, positive, where must be [B] alike, not {}, {}, {}, {}".format(*shapes)
        )
    if positive.dtype != bool or where.dtype != bool:
        raise ValueError(f"positive and where must be bool, not {positive.dtype} and {where.dtype}")
    return indices, scores, positive, where


def _check_drawn(name: str, count: int, ranked: Ranked | None) -> None:
    slots = 0 if ranked is None else ranked.indices.shape[0]
    if not 0 <= count <= slots:
        raise ValueError(f"{name}={count} of a pool with {slots} such slots: give `init` more, or draw fewer")


def _only(ranked: Ranked, keep: jax.Array) -> Ranked:
    """Frees the other slots."""
    return ranked._replace(indices=jnp.where(keep, ranked.indices, -1))


def _age(ranked: Ranked, decay: Scalar) -> Ranked:
    scores = jnp.where(ranked.scores > 0, ranked.scores * decay, ranked.scores / decay)
    return ranked._replace(scores=scores, ages=ranked.ages + 1)


def _leave(ranked: Ranked, max_age: Count | None, min_score: Scalar | None) -> Ranked:
    if max_age is not None:
        ranked = _only(ranked, ranked.ages <= max_age)
    if min_score is not None:
        # Not `scores > min_score`: a NaN is to stay in sight.
        ranked = _only(ranked, ~(ranked.scores <= min_score))
    return ranked


def _without(ranked: Ranked, replaced: jax.Array) -> Ranked:
    """Frees the slots of examples that are among `replaced`, int32 [B] in any order."""
    # One free slot at the end: a search ends within, whatever is looked up and were there nothing replaced.
    ordered = jnp.pad(jnp.sort(replaced), (0, 1), constant_values=-1)
    place = first_reaching(ordered[:-1], ranked.indices)
    return _only(ranked, ordered[place] != ranked.indices)


def _last_seen(ranked: Ranked, replaced: jax.Array) -> Ranked:
    """Frees the slots [B] of examples that come once more further on in `replaced` [B]."""
    order = jnp.argsort(replaced, stable=True)
    ordered = replaced[order]
    last = ordered != jnp.pad(ordered[1:], (0, 1), constant_values=-1)
    return _only(ranked, last[jnp.argsort(order)])


def _hardest(old: Ranked, seen: Ranked) -> Ranked:
    """As many of both as `old` has slots, in the order of `Ranked`."""
    capacity = old.indices.shape[0]
    both = Ranked(*(jnp.concatenate(pair) for pair in zip(old, seen, strict=True)))
    free = both.indices < 0
    # The complement turns the order round without overflow.
    _, _, indices, scores, ages = jax.lax.sort(
        (free, ~order_keys(both.scores), both.indices, both.scores, both.ages), num_keys=3
    )
    best = Ranked(indices[:capacity], scores[:capacity], ages[:capacity])
    free = best.indices < 0
    return Ranked(best.indices, jnp.where(free, -jnp.inf, best.scores), jnp.where(free, 0, best.ages))


def _draw(key: jax.Array, indices: jax.Array, count: int) -> jax.Array:
    """[count] of the examples in filled slots, none twice, then -1."""
    lottery = jax.lax.bitcast_convert_type(jax.random.bits(key, indices.shape, jnp.uint32) >> 1, jnp.int32)
    _, slots = jax.lax.top_k(jnp.where(indices >= 0, lottery, -1), count)
    return jnp.take(indices, slots)
