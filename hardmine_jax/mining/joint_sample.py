"""A sub-batch chosen jointly, by what its examples teach together."""

import jax
import jax.numpy as jnp

from hardmine_jax.mining.order import keep_first, order_keys
from hardmine_jax.mining.types import ArrayLike, check_count, check_units


def joint_sample(
    key: jax.Array, scores: ArrayLike, *, k: int, chunks: int, where: ArrayLike | None = None
) -> jax.Array:
    """Draws k of N examples in chunks, each by how much its examples add to those drawn before.

    logits_i = scores_ii + sum_{j drawn} (scores_ji + scores_ij)

    k / chunks examples a time, without putting back, with probability in proportion to exp(logits). JEST,
    2406.17711, section 3 and algorithm 1: `scores` is the learner's loss minus a reference model's for each
    pair of a contrastive batch. The choice carries no gradient.

    Args:
      key: a PRNG key; use a new one each step.
      scores: [N, N], the diagonal for an example alone; larger teaches more.
      k: how many to keep, a Python int.
      chunks: how many draws, a Python int that divides k; 16 in the paper.
      where: bool [N], True takes part; None for all.

    Returns:
      bool [N], a subset of `where`; min(k, participating) True. `kept_indices` makes indices of it.

    Raises:
      ValueError: for scores that are no square, k or chunks out of range, chunks that do not divide k, or a
        `where` that is not bool or of another shape.
      TypeError: if k or chunks is no Python int.

    >>> int(joint_sample(jax.random.key(0), jnp.zeros((32, 32)), k=8, chunks=4).sum())
    8
    """
    scores = jax.lax.stop_gradient(jnp.asarray(scores))
    if scores.ndim != 2 or scores.shape[0] != scores.shape[1]:
        raise ValueError(f"scores of shape {scores.shape}: one for each pair of N examples, [N, N]")
    alone, where = check_units(jnp.diagonal(scores), where)
    k = check_count("k", k, len(alone), least=1)
    chunks = check_count("chunks", chunks, k, least=1)
    if k % chunks:
        raise ValueError(f"chunks={chunks} do not divide k={k}: every draw is of as many")
    pairs = scores + scores.T

    def draw(chunk: jax.Array, keep: jax.Array) -> jax.Array:
        # Chosen, not multiplied: a NaN of a pair that is not there stays out.
        together = jnp.where(keep[:, None], pairs, 0).sum(axis=0)
        noise = jax.random.gumbel(jax.random.fold_in(key, chunk), alone.shape)
        keys = order_keys(alone + together + noise.astype(alone.dtype))
        return keep | keep_first(keys, k=k // chunks, where=where & ~keep)

    return jax.lax.fori_loop(0, chunks, draw, where & jnp.zeros_like(alone, dtype=bool))
