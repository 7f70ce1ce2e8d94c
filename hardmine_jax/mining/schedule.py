"""How many units to keep, over training."""

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from hardmine_jax.mining.types import ArrayLike, check_integer


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
      step: the training step, from 0; a number or an array of any shape, of any real dtype, traced or not.
        Parts of a step are cut off.
      start: units kept up to the step `begin`, 1 or more.
      k: units kept from the step begin + steps on, 1 or more.
      steps: how long the change takes, 1 or more, and below 2^31.
      begin: the last step at which all `start` units are kept.
      shape: "linear" or "cosine".

    Returns:
      int32, of the shape of step.

    Raises:
      ValueError: for start, k or steps < 1, steps of 2^31 or more, or another shape.
      TypeError: if one of these or begin is no Python int, or a step is no real number.

    >>> [int(schedule(step, start=17, k=8, steps=100)) for step in (0, 50, 100, 1000)]
    [17, 13, 8, 8]
    >>> from hardmine_jax.mining import top_k
    >>> keep = jax.jit(lambda losses, step: top_k(losses, k=schedule(step, start=4, k=1, steps=3)))
    >>> [int(keep(jnp.arange(4.0), step).sum()) for step in range(4)]
    [4, 3, 2, 1]
    """
    start, k = check_integer("start", start, least=1), check_integer("k", k, least=1)
    steps, begin = check_integer("steps", steps, least=1), check_integer("begin", begin, least=-(2**31))
    if steps >= 2**31:
        raise ValueError(f"steps={steps} must be below 2^31")
    if shape not in ("linear", "cosine"):
        raise ValueError(f"shape={shape!r} must be 'linear' or 'cosine'")
    done = _done(step, begin, steps)
    portion = done if shape == "linear" else (1 - jnp.cos(jnp.pi * done)) / 2
    number = start + jnp.round((k - start) * portion).astype(jnp.int32)
    # Both ends exactly, above 2^24 units too.
    return jnp.where(done < 1, jnp.clip(number, min(start, k), max(start, k)), k)


def _done(step: ArrayLike, begin: int, steps: int) -> jax.Array:
    """(step - begin) / steps from 0 to 1, float32, of any step that there is."""
    if isinstance(step, int) or not isinstance(step, jax.Array) and np.asarray(step).dtype.kind in "iu":
        # As Python's integers, before JAX makes 32 bits of them.
        since = np.asarray(np.asarray(step, object) - begin)
        return jnp.asarray(np.asarray(np.clip(since, 0, steps), np.int32)).astype(jnp.float32) / steps
    step = jnp.asarray(step)
    if jnp.issubdtype(step.dtype, jnp.floating):
        return jnp.clip((jnp.trunc(step.astype(jnp.float32)) - begin) / steps, 0, 1)
    if not jnp.issubdtype(step.dtype, jnp.integer):
        raise TypeError(f"step of {step.dtype} must be a number of steps")
    # Cut off and subtracted in its own dtype, where nothing wraps, before it becomes a float, which is exact
    # up to 2^24 only.
    step = step.astype(jnp.int32) if step.dtype.itemsize < 4 else step
    lowest, highest = jnp.iinfo(step.dtype).min, jnp.iinfo(step.dtype).max
    first = min(max(begin, lowest), highest)
    last = min(max(begin + steps, first), highest)
    bounds = [jnp.asarray(bound, step.dtype) for bound in (first, last)]
    passed = (step.clip(*bounds) - bounds[0]).astype(jnp.float32) + float(first - begin)
    return jnp.clip(passed / steps, 0, 1)
