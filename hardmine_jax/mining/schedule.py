"""How many units to keep, over training."""

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from hardmine_jax.mining.types import ArrayLike


def schedule(
    step: ArrayLike,
    *,
    start: int,
    k: int,
    steps: int,
    begin: int = 0,
    shape: Literal["linear", "cosine"] = "linear",
) -> jax.Array:
    """The number of units to keep at a step: `start` (all units, say) at first, `k` in the end.

    linear:  start + (k - start) * t,  t = min(max((step - begin) / steps, 0), 1)
    cosine:  start + (k - start) * (1 - cos(pi t)) / 2,  slow at both ends

    rounded to the nearest integer. Made for use inside jit with the training step as a traced number: the k
    that comes out may be given as `k` to `top_k`, `random_k` and `importance_weights`, as `min_kept` or
    `max_kept` to `threshold` and `harder_than_easiest`, and as `min_negatives` to `hard_negatives`, none of
    which compile again when it changes. Not to `non_max` and `global_top_k`, nor as the `capacity` of
    two-pass mining, where it is a length: give those the largest k of the schedule, or bound what they keep
    by a `top_k` after them.

    Args:
      step: the training step, from 0; a number or an array of any shape, traced or not.
      start: units kept up to the step `begin`, 1 or more.
      k: units kept from the step begin + steps on, 1 or more.
      steps: how long the change takes, 1 or more.
      begin: the last step at which all `start` units are kept.
      shape: "linear" or "cosine".

    Returns:
      int32, of the shape of step.

    Raises:
      ValueError: for start, k or steps < 1, or another shape.
      TypeError: if one of these is no Python int.

    >>> [int(schedule(step, start=17, k=8, steps=100)) for step in (0, 50, 100, 1000)]
    [17, 13, 8, 8]
    >>> from hardmine_jax.mining import top_k
    >>> keep = jax.jit(lambda losses, step: top_k(losses, k=schedule(step, start=4, k=1, steps=3)))
    >>> [int(keep(jnp.arange(4.0), step).sum()) for step in range(4)]
    [4, 3, 2, 1]
    """
    for name, given in (("start", start), ("k", k), ("steps", steps)):
        if isinstance(given, bool) or not isinstance(given, (int, np.integer)):
            raise TypeError(f"{name}={given!r} must be a Python int")
        if given < 1:
            raise ValueError(f"{name}={given} < 1")
    if shape not in ("linear", "cosine"):
        raise ValueError(f"shape={shape!r} must be 'linear' or 'cosine'")
    # Whole steps are subtracted before they become floats, which are exact up to 2^24 only.
    done = jnp.clip((jnp.asarray(step).astype(jnp.int32) - begin).astype(jnp.float32) / steps, 0, 1)
    portion = done if shape == "linear" else (1 - jnp.cos(jnp.pi * done)) / 2
    start, k = int(start), int(k)
    number = start + jnp.round((k - start) * portion).astype(jnp.int32)
    # Both ends exactly, above 2^24 units too.
    return jnp.where(done < 1, jnp.clip(number, min(start, k), max(start, k)), k)
