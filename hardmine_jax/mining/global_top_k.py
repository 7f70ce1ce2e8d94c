"""The k hardest units of all devices of a mesh axis."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from hardmine_jax.mining.order import highest, keep_first, order_keys
from hardmine_jax.mining.types import ArrayLike, check_count, check_units


def global_top_k(
    losses: ArrayLike, *, k: int, axis_name: str | Sequence[str], where: ArrayLike | None = None
) -> jax.Array:
    """Keeps this device's share of the k hardest units over a mesh axis: of all devices' units of a row.

    The union over devices is what `top_k` keeps of the rows laid end to end in the order of the devices:
    exactly min(k, participating anywhere), ties to the lowest (device, index), NaN first. A device may keep
    all or none of its units, so divide by the global count: `masked_mean(losses, where=keep,
    denominator=k / number of devices)` under `pmean`, or sum and count under `psum`.

    One all_gather of min(k, N) order keys, 4 bytes each (8 for losses of 64 bits), from each device. Indices
    need not travel: once it is known how many of its own won, every device finds them itself. Works under
    `shard_map`, `pmap` and `vmap(axis_name=)`. The choice carries no gradient.

    Args:
      losses: [..., N], this device's units, larger is harder.
      k: how many to keep over all devices, 1 <= k <= N * devices, a Python int: it is the length of what
        is sent, so that it cannot be traced.
      axis_name: of the mesh axis, or several, the first the slowest.
      where: bool [..., N], True takes part; None for all.

    Returns:
      bool [..., N], a subset of `where`.

    Raises:
      ValueError: for k < 1, k > N * devices, or a `where` that is not bool or of another shape.
      TypeError: if k is no Python int, or losses are complex.
      NameError: outside of anything that binds `axis_name`.

    >>> losses = jnp.array([[3.0, 1.0], [2.0, 3.0]])
    >>> jax.vmap(lambda losses: global_top_k(losses, k=2, axis_name="devices"), axis_name="devices")(losses)
    Array([[ True, False],
           [False,  True]], dtype=bool)
    """
    losses, where = check_units(losses, where)
    num_units, num_devices = losses.shape[-1], jax.lax.axis_size(axis_name)
    k = check_count("k", k, num_units * num_devices, least=1)
    keys = order_keys(losses)
    candidates = highest(keys, k=min(k, num_units), where=where)
    gathered = jax.lax.all_gather(candidates, axis_name, axis=candidates.ndim - 1, tiled=True)
    # In the order of the devices, so that ties go to the lowest one.
    won = keep_first(gathered, k=k, where=gathered > jnp.iinfo(keys.dtype).min)
    won = won.reshape(*won.shape[:-1], num_devices, candidates.shape[-1]).sum(axis=-1, dtype=jnp.int32)
    return keep_first(keys, k=won[..., jax.lax.axis_index(axis_name)], where=where)
