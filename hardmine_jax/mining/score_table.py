"""One score for each example of a data set, as a value that `update` makes anew.

What an example's loss was when it was last seen (InfoBatch: `prune_weights`), or what a reference model's is
(RHO-LOSS, 2206.07137: the learner's minus this goes where `losses` stand). All state is plain arrays of
static shape: it goes through jit and into a checkpoint like any other.

    table = score_table.init(num_examples)
    table = score_table.update(table, batch["index"], losses, where=batch["where"])
    reference, seen = score_table.read(table, batch["index"])

Across devices, gather what each has seen first (`jax.lax.all_gather`): the same updates make the same table.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hardmine_jax.mining.layout import beside, for_export
from hardmine_jax.mining.types import ArrayLike, Scalar, check_indices


@for_export
class ScoreTable(NamedTuple):
    """A score an example.

    Attributes:
      scores: float32 [num_examples].
      seen: bool [num_examples], the example has been seen.
    """

    scores: jax.Array
    seen: jax.Array


def init(num_examples: int, *, score: float = np.inf) -> ScoreTable:
    """A table of examples that were not seen.

    Args:
      num_examples: of the data set, at least 1.
      score: of an example that was not seen; by default the hardest there is.

    Raises:
      ValueError: for num_examples < 1.

    >>> init(2, score=0.0).scores
    Array([0., 0.], dtype=float32)
    """
    if num_examples < 1:
        raise ValueError(f"num_examples={num_examples} < 1: a table has a slot for each example")
    return ScoreTable(jnp.full(num_examples, score, jnp.float32), jnp.zeros(num_examples, bool))


def update(
    table: ScoreTable,
    indices: ArrayLike,
    scores: ArrayLike,
    *,
    decay: Scalar = 0.0,
    where: ArrayLike | None = None,
) -> ScoreTable:
    """Takes in the scores of examples just seen; of the same one twice, the later counts.

    new = decay * old + (1 - decay) * score, of an example that was seen before; score of others

    Args:
      table: from `init` or `update`.
      indices: integer [B], dataset indices; negative ones and those beyond the table take no part.
      scores: [B]; without gradient.
      decay: in [0, 1), of an average over what an example's scores were; may be traced.
      where: bool [B], True takes part; None for all.

    Returns:
      The new table; the old one is as it was.

    Raises:
      ValueError: for arrays that differ in shape, indices of 2^31 or more, a `where` that is not bool, or a
        static decay outside [0, 1).
      TypeError: if indices are no integers.

    >>> table = update(init(3), jnp.array([2, 0, 2]), jnp.array([1.0, 2.0, 3.0]))
    >>> table.scores
    Array([ 2., inf,  3.], dtype=float32)
    """
    scores = jax.lax.stop_gradient(jnp.asarray(scores)).astype(jnp.float32)
    indices = check_indices(indices)
    where = jnp.ones(scores.shape, bool) if where is None else jnp.asarray(where)
    if where.dtype != bool:
        raise ValueError(f"where must be bool, not {where.dtype}: say which examples take part")
    if not indices.shape == scores.shape == where.shape or scores.ndim != 1:
        shapes = f"{indices.shape}, scores {scores.shape}, where {where.shape}"
        raise ValueError(f"indices {shapes}: one of each an example, [B]")
    if not isinstance(decay, jax.Array) and not 0 <= decay < 1:
        raise ValueError(f"decay={decay} must lie in [0, 1): with 1 no score would ever change")
    num_examples = len(table.scores)
    where &= (indices >= 0) & (indices < num_examples)
    # Of a pair of slots with one index the later writes: a scatter promises no order.
    again = (indices[:, None] == indices[None]) & where[None] & ~jnp.tri(len(indices), dtype=bool)
    slots = jnp.where(where & ~again.any(axis=1), indices, num_examples)
    scores_then, seen_then = (beside(column, slots) for column in table)
    old, seen = scores_then.at[slots].get(mode="clip"), seen_then.at[slots].get(mode="clip")
    decay = jnp.asarray(decay, jnp.float32)
    # An old score that is not finite would stay for ever.
    average = jnp.where(seen & jnp.isfinite(old), decay * old + (1 - decay) * scores, scores)
    return ScoreTable(
        scores_then.at[slots].set(average, mode="drop"), seen_then.at[slots].set(True, mode="drop")
    )


def read(table: ScoreTable, indices: ArrayLike) -> tuple[jax.Array, jax.Array]:
    """Scores of examples, and whether they were seen.

    Args:
      indices: integer [...]; one that is not in the table reads as not seen, with a score of NaN.

    Returns:
      (float32 [...], bool [...]).

    Raises:
      ValueError: for indices of 2^31 or more.
      TypeError: if they are no integers.

    >>> read(init(2, score=1.0), jnp.array([1, -1]))
    (Array([ 1., nan], dtype=float32), Array([False, False], dtype=bool))
    """
    indices = check_indices(indices)
    # A negative index would count from the end.
    slots = jnp.where((indices >= 0) & (indices < len(table.scores)), indices, len(table.scores))
    scores, seen = (beside(column, slots).at[slots] for column in table)
    return scores.get(mode="fill", fill_value=jnp.nan), seen.get(mode="fill", fill_value=False)
