"""Two-pass mining: losses of all units without gradient, then the hard ones once more with it."""

import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hardmine_jax.mining.fit import Fitted, fit
from hardmine_jax.mining.layout import for_export
from hardmine_jax.mining.read_only import check_losses, read_only_losses
from hardmine_jax.mining.reuse import Residuals
from hardmine_jax.mining.types import check_count, check_real
from hardmine_jax.mining.unit_axes import UnitArgs, split_units, take_units


@for_export
class Mined(NamedTuple):
    """The hard units, gathered: `masked_mean(mined.losses, where=mined.keep)` finishes the job.

    Attributes:
      losses: [capacity], with gradient.
      keep: bool [capacity], True for the first min(num_selected, capacity) slots. What lies in the others
        is no unit of the choice.
      indices: int32 [capacity], which unit lies in each slot, in rising order over the kept ones.
      num_selected: int32 [], how many units `select` kept.
      num_dropped: int32 [], how many of these did not fit: max(0, num_selected - capacity).
    """

    losses: jax.Array
    keep: jax.Array
    indices: jax.Array
    num_selected: jax.Array
    num_dropped: jax.Array


def mine(
    loss_fn: Callable[..., jax.Array],
    select: Callable[..., jax.Array],
    *,
    capacity: int,
    in_axes: Any,
    chunk: int | None = None,
    score_dtype: jax.typing.DTypeLike | None = None,
    reuse: bool = False,
    score_fn: Callable[..., jax.Array] | None = None,
) -> Callable[..., Mined]:
    """Makes a function that runs `loss_fn` over all units to choose, and over the chosen ones to learn.

    losses = stop_gradient(loss_fn(*args));  scores = score_fn(losses, *mapped_args), or the losses
    keep = select(scores, *mapped_args);  mined.losses = loss_fn(*args with the kept units only)

    With N units and k chosen that is N forward passes and k forward and backward ones, against N of both in
    the masked path `masked_mean(loss_fn(*args), where=keep)`: up to 3N / (N + 3k) times less work, and the
    memory of a backward pass over k units only. Value and gradient are those of the masked path as long as
    the choice fits into `capacity`, for a `loss_fn` that is deterministic and takes each unit by itself.

    If more are kept than fit, those of the lowest score are dropped (ties: the highest index) and counted in
    `num_dropped`; the result is that of the masked path over what is left. Watch `num_dropped` where the
    selector has no `k`.

    The returned function works inside jit, vmap, grad, pmap and shard_map, and takes gradients to all
    floating arguments and to what `loss_fn` has in its closure. The gradient to a mapped argument is an array
    of the size of that argument, zero but for k units. To do without it, let `loss_fn` make a unit's features
    itself (boxes mapped, feature map shared, pooling inside); or use `mined.indices` and `mined.keep` only,
    gather and run `loss_fn` oneself: the gradient is then one of k rows, and jit leaves out the second run
    here.

    On a mesh with Explicit axes (`jax.make_mesh`) the units must lie whole on each device: use it inside
    `shard_map` there, one call a device.

    *BatchNorm.* The second run sees other units together than the first (and so does each chunk), so
    statistics taken over units differ: loss and gradient are those of a batch of the k hard ones, not of the
    masked path. Inside `loss_fn` use running averages (`train=False`) or a normalisation within the unit
    (GroupNorm, LayerNorm). BatchNorm that comes before the units are made, in the trunk, is untouched.

    *Dropout* (and any other chance). One key for all draws masks by the position in the batch, so that a
    hard unit meets another mask in the second run than the one it was found hard with. Give each unit its key
    and let the keys travel: map `jax.random.split(key, N)` and draw under `jax.vmap` inside `loss_fn`; that
    equals the masked path exactly, for every `chunk`. `reuse=True` keeps the masks of the first run, where it
    runs no unit again.

    OHEM: 1604.03540, section 4.2 (the read-only RoI network).

    Args:
      loss_fn: `loss_fn(*args)` -> losses [N], nothing reduced over units. It is run with other numbers of
        units too, so it must not have N written into it, and it must be pure.
      select: `select(losses, *mapped_args) -> keep` bool [N]: losses are without gradient, of the dtype that
        `loss_fn` returns; the arguments are those that carry units, whole. Who takes one positional argument
        is given the losses alone: `functools.partial(top_k, k=64)`.
      capacity: static length of the buffer for hard units, 1 <= capacity <= N.
      in_axes: which axis of which argument holds the units, as in `jax.vmap`: an int, None (shared by all
        units: parameters, a feature map), or a tuple with an entry for each argument, each an int, None or a
        pytree of them. Axes may be negative, PRNG keys may be mapped.
      chunk: units at a time in the first run, which bounds its memory; need not divide N. None: all at once.
      score_dtype: floating arrays among the arguments are cast to it for the first run, say jnp.bfloat16.
        Only the choice changes by that, as far as rounding reorders losses; closures are not cast, so pass
        the parameters as an argument.
      reuse: keeps what the first run computed for the gradient and pulls back the chosen units, instead of
        running them again: 3N / (N + 2k). It takes the memory of a forward pass with residuals over all N, is
        for first derivatives in reverse mode only, and pays from about k = N/8 on. Where the program of
        `loss_fn` does not show that each residual belongs to one unit (rows numbered otherwise than by
        `jnp.arange`, a sort or a running sum over units, units in a loop), the chosen units are run again
        after all, which is right for every `loss_fn` that takes each unit by itself. Not with `chunk` or
        `score_dtype`.
      score_fn: `score_fn(losses, *mapped_args) -> scores` real [N], larger is harder: what `select` is given
        in place of the losses, where these are not what ranks units. With a reference model's losses mapped
        along, `lambda losses, x, y, reference: losses - reference` is RHO-LOSS (2206.07137, section 2). Like
        `select` it may take the losses alone, and carries no gradient.

    Returns:
      A function of `loss_fn`'s positional arguments that returns `Mined`.

    Raises:
      ValueError: for a number out of range, `reuse` along with `chunk` or `score_dtype`; from the returned
        function if capacity > N, `in_axes` does not fit the arguments, arguments disagree on N, `loss_fn`,
        `score_fn` or `select` return anything but [N]; and with `reuse` if a residual cannot be gathered
        along the units, or the gradient is differentiated again.
      TypeError: for a capacity or chunk that is no integer, a score_dtype that is no floating type.

    >>> import functools
    >>> from hardmine_jax.mining.masked_mean import masked_mean
    >>> from hardmine_jax.mining.top_k import top_k
    >>> def squared_error(weight, x, y):
    ...     return (weight * x - y) ** 2
    >>> hard = mine(squared_error, functools.partial(top_k, k=2), capacity=2, in_axes=(None, 0, 0))
    >>> def loss(weight, x, y):
    ...     mined = hard(weight, x, y)
    ...     return masked_mean(mined.losses, where=mined.keep), mined.indices
    >>> x = jnp.array([1.0, 2.0, 3.0, 4.0])
    >>> jax.grad(loss, has_aux=True)(1.0, x, jnp.array([1.0, 0.0, 3.0, 1.0]))
    (Array(16., dtype=float32, weak_type=True), Array([1, 3], dtype=int32))
    """
    _check_options(capacity, chunk, score_dtype, reuse)
    choose = functools.partial(_choose, _takes_units(select), score_fn and _takes_units(score_fn))

    def mined(*args: Any) -> Mined:
        units = split_units(args, in_axes)
        check_count("capacity", capacity, units.num_units, least=1)

        def losses_of(arrays: list[jax.Array]) -> jax.Array:
            return loss_fn(*units.rebuild(arrays))

        if reuse:
            residuals = Residuals(units, losses_of, capacity=capacity)
            chosen = choose(residuals.losses, units, capacity)
            if residuals.known:
                return Mined(residuals.losses_at(chosen.indices), *chosen)
        else:
            losses = read_only_losses(units, losses_of, chunk=chunk, score_dtype=score_dtype)
            chosen = choose(losses, units, capacity)
        hard = take_units(units.arrays, units.axes, chosen.indices)
        return Mined(check_losses(losses_of(hard), capacity), *chosen)

    return mined


def _choose(
    select: Callable[..., jax.Array],
    score_fn: Callable[..., jax.Array] | None,
    losses: jax.Array,
    units: UnitArgs,
    capacity: int,
) -> Fitted:
    mapped = units.mapped([jax.lax.stop_gradient(array) for array in units.arrays])
    scores = losses if score_fn is None else _scores(score_fn, losses, mapped)
    keep = select(scores, *mapped)
    shape, dtype = getattr(keep, "shape", None), getattr(keep, "dtype", None)
    if shape != losses.shape or dtype != jnp.bool_:
        raise ValueError(f"select must return keep, bool [N]=[{units.num_units}], not {_found(keep)}")
    return fit(scores, jnp.asarray(keep), capacity=capacity)


def _scores(score_fn: Callable[..., jax.Array], losses: jax.Array, mapped: tuple[Any, ...]) -> jax.Array:
    scores = score_fn(losses, *mapped)
    if getattr(scores, "shape", None) != losses.shape:
        raise ValueError(f"score_fn must return scores [N]=[{losses.shape[0]}], not {_found(scores)}")
    return jax.lax.stop_gradient(check_real(jnp.asarray(scores)))


def _found(value: Any) -> str:
    if not hasattr(value, "shape"):
        return type(value).__name__
    return f"{value.dtype} of shape {value.shape}"


def _takes_units(function: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """The function, handed the losses alone where it takes one positional argument (a selector)."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        # Nothing is known of what is written in C.
        return function
    kinds = [parameter.kind for parameter in parameters]
    positional = {inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD}
    alone = inspect.Parameter.VAR_POSITIONAL not in kinds and sum(kind in positional for kind in kinds) == 1
    return (lambda losses, *_: function(losses)) if alone else function


def _check_options(capacity: int, chunk: int | None, score_dtype: Any, reuse: bool) -> None:
    for name, count in {"capacity": capacity, "chunk": chunk}.items():
        if name == "chunk" and count is None:
            continue
        if isinstance(count, bool) or not isinstance(count, (int, np.integer)):
            raise TypeError(f"{name}={count!r} must be a Python int, known before tracing")
        if count < 1:
            raise ValueError(f"{name}={count} < 1: at least one unit at a time")
    if score_dtype is not None and not jnp.issubdtype(score_dtype, jnp.floating):
        raise TypeError(f"score_dtype={score_dtype} is no floating type: take jnp.bfloat16, say")
    if reuse and chunk is not None:
        raise ValueError(f"reuse=True keeps residuals of all units, chunk={chunk} saves memory: choose one")
    if reuse and score_dtype is not None:
        raise ValueError(
            "reuse=True takes the gradient from the first run, which"
            f" score_dtype={jnp.dtype(score_dtype)} would make one of that precision: choose one"
        )
