"""Easy units left out at random, those that stay weighted up, so that the mean stays unbiased."""

import jax
import jax.numpy as jnp

from hardmine_jax.mining.types import ArrayLike, Scalar, at_least_single, check_units


def prune_weights(
    key: jax.Array, scores: ArrayLike, *, rate: Scalar, where: ArrayLike | None = None
) -> jax.Array:
    """Weights that drop a share of the units below the mean score, whose expectation is 1 for every unit.

    weights_i = 1                 where scores_i >= mean of the row's scores that take part
              = 0                 else, with probability rate
              = 1 / (1 - rate)    else

    Hence `masked_mean(losses, where=where, weights=weights)` has the expectation of the plain mean, and a
    unit of weight 0 need not be run: `mine` gathers `weights > 0`, a data loader leaves the example out.
    InfoBatch, 2303.04947, section 3: the scores are each example's loss when it was last seen
    (`score_table`), a row is the data set, and the last eighth of the epochs prunes nothing (rate=0).

    Args:
      key: a PRNG key; use a new one each epoch.
      scores: [..., N], larger is harder. What is not finite is never pruned, and is left out of the mean.
      rate: in [0, 1), the probability; may be traced.
      where: bool [..., N], True takes part; None for all.

    Returns:
      float32 [..., N], 0 where a unit takes no part or is pruned. No gradient.

    Raises:
      ValueError: for a static rate outside [0, 1), or a `where` that is not bool or of another shape.

    >>> weights = prune_weights(jax.random.key(0), jnp.array([0.1, 0.2, 0.1, 5.0]), rate=0.5)
    >>> bool(jnp.isin(weights[:3], jnp.array([0.0, 2.0])).all()), float(weights[3])
    (True, 1.0)
    """
    scores, where = check_units(scores, where)
    if not isinstance(rate, jax.Array) and not 0 <= rate < 1:
        raise ValueError(f"rate={rate} must lie in [0, 1): with 1 nothing would be left to weight up")
    scores = scores.astype(at_least_single(scores.dtype))
    finite = where & jnp.isfinite(scores)
    number = jnp.maximum(finite.sum(axis=-1, keepdims=True, dtype=scores.dtype), 1)
    # Divided first: the sum of large scores would overflow.
    mean = jnp.where(finite, scores / number, 0).sum(axis=-1, keepdims=True)
    easy = finite & (scores < mean)
    rate = jnp.asarray(rate, jnp.float32)
    pruned = jax.random.uniform(key, scores.shape) < rate
    weights = jnp.where(easy, jnp.where(pruned, 0, 1 / (1 - rate)), 1.0)
    return jnp.where(where, weights, 0.0)
