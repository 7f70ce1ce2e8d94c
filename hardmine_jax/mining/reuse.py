"""The gradient of a few units from the residuals of a pass over all of them.

`jax.vjp` over N units leaves residuals, most of them with an axis of N. Traced once more for another number
of units, the same program shows which axis that is: the one whose size changed with it. Gathered along it,
the residuals of k units fit the pullback traced for k. Only the places of the units themselves are worked out
anew, and where it cannot be read from the program which these are (positions.py), nothing is reused.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from hardmine_jax.mining.jaxprs import primitive_names
from hardmine_jax.mining.positions import Order, orders
from hardmine_jax.mining.read_only import LossesOf, check_losses
from hardmine_jax.mining.unit_axes import UnitArgs, at_units, take_units


class Residuals:
    """Losses of all units, and what their gradient needs; `losses_at` pulls back the chosen ones only.

    Attributes:
      losses: [N], cut off from the gradient.
      known: whether each residual is known to belong to one unit. Where not, `losses_at` must not be used.
    """

    def __init__(self, units: UnitArgs, losses_of: LossesOf, *, capacity: int):
        self._num_units = num_units = units.num_units
        # Not one slot where there are more units: jnp writes another program for an axis of size 1.
        self._slots = min(max(capacity, 2), num_units)
        # With as many units as the whole has, no axis would change its size.
        self._probe = self._slots if self._slots < num_units else num_units + 1
        few = take_units(units.arrays, units.axes, jnp.zeros(self._probe, jnp.int32))
        whole, closed_over = jax.closure_convert(losses_of, units.arrays)
        part, closed_over_part = jax.closure_convert(losses_of, few)
        if [value.shape for value in closed_over] != [value.shape for value in closed_over_part]:
            raise ValueError(
                f"reuse=True: loss_fn reads other values from its closure for {num_units} units than for"
                f" {self._probe}: pass them as arguments, or set reuse=False"
            )
        self._operands = [*units.arrays, *closed_over]
        self._axes = (*units.axes, *[None] * len(closed_over))
        self._stopped = [jax.lax.stop_gradient(operand) for operand in self._operands]
        # All inside jit, traced alike: residual for residual.
        linearised = jax.jit(_linearised(whole, len(units.arrays), num_units))
        self._part = jax.jit(_linearised(part, len(units.arrays), self._probe))
        _, few_pullback = jax.eval_shape(self._part, [*few, *self._stopped[len(few) :]])
        self.losses, pullback = linearised(self._stopped)
        self._leaves, self._structure = jax.tree.flatten(pullback)
        if self._slots < num_units:
            self._structure = jax.tree.structure(few_pullback)
        else:
            self._part = linearised
        closed = jax.make_jaxpr(linearised)(self._stopped)
        found = orders(closed.jaxpr, closed.consts, num_units, self._axes)
        whole_numbers = [jnp.issubdtype(leaf.dtype, jnp.integer) for leaf in self._leaves]
        self._positions = [
            order == Order.COUNT and whole for order, whole in zip(found[1:], whole_numbers, strict=True)
        ]
        by_place = any(
            order == Order.PLACE and whole for order, whole in zip(found[1:], whole_numbers, strict=True)
        )
        # A backward pass of its own may take them for places in the array, which nothing here shows.
        hidden = by_place and _differentiates_by_itself(whole, self._stopped, len(few))
        self.known = Order.UNKNOWN not in found and not hidden
        self._leaf_axes = self._find_axes(jax.tree.leaves(few_pullback))

    def losses_at(self, indices: jax.Array) -> jax.Array:
        """`losses[indices]`, [capacity], with the gradient to everything that the losses came from."""
        spare = self._slots - indices.shape[0]
        slots = jnp.pad(indices, (0, spare), mode="edge")
        floating = _floating(self._operands)
        shapes = {place: operand.shape for place, operand in floating.items()}

        @jax.custom_vjp
        def attach(
            floating: dict[int, jax.Array], losses: jax.Array, pullback: Any, slots: jax.Array
        ) -> jax.Array:
            return losses

        def forward(
            floating: dict[int, jax.Array], losses: jax.Array, pullback: Any, slots: jax.Array
        ) -> tuple[jax.Array, Any]:
            return losses, (floating, pullback, slots)

        def backward(residuals: Any, cotangent: jax.Array) -> tuple[dict[int, jax.Array], None, None, None]:
            floating, pullback, slots = residuals
            (rows,) = pullback(jnp.pad(_first_derivative(cotangent, floating), (0, spare)))
            spread = {
                place: _spread(row, shapes[place], self._axes[place], slots) for place, row in rows.items()
            }
            return spread, None, None, None

        attach.defvjp(forward, backward)
        (losses,) = take_units([self.losses], (0,), indices)
        return attach(floating, losses, self._gathered(slots), slots)

    def _gathered(self, slots: jax.Array) -> Any:
        """The pullback of the units in the slots."""
        leaves = take_units(self._leaves, self._leaf_axes, slots)
        if any(self._positions):
            # Worked out anew for few units. The compiler leaves out all of it that makes no positions.
            _, again = self._part(take_units(self._stopped, self._axes, slots))
            places = enumerate(jax.tree.leaves(again))
            leaves = [leaf if self._positions[place] else leaves[place] for place, leaf in places]
        return jax.tree.unflatten(self._structure, leaves)

    def _find_axes(self, few: list[jax.Array]) -> tuple[int | None, ...]:
        """For each residual the axis to gather it along; None for what all units share, and for positions."""
        if self._num_units == 1:
            return (None,) * len(self._leaves)
        if [leaf.dtype for leaf in self._leaves] != [leaf.dtype for leaf in few]:
            raise ValueError(
                f"reuse=True: loss_fn is another program for {self._num_units} units than for {self._probe}:"
                " make it one for any number, or set reuse=False"
            )
        return tuple(
            None if positions else self._unit_axis(leaf.shape, other.shape)
            for positions, leaf, other in zip(self._positions, self._leaves, few, strict=True)
        )

    def _unit_axis(self, shape: tuple[int, ...], few: tuple[int, ...]) -> int | None:
        if shape == few:
            return None
        sizes = list(zip(shape, few, strict=False))
        changed = [axis for axis, (many, fewer) in enumerate(sizes) if many != fewer]
        if len(shape) == len(few) and [sizes[axis] for axis in changed] == [(self._num_units, self._probe)]:
            return changed[0]
        raise ValueError(
            f"reuse=True: a residual of shape {shape} for {self._num_units} units (and {few} for"
            f" {self._probe}) has no axis of units to gather along: let loss_fn keep the units on one axis of"
            " their own, merged with no other and met with no other unit, or set reuse=False"
        )


@jax.custom_jvp
def _first_derivative(cotangent: jax.Array, floating: dict[int, jax.Array]) -> jax.Array:
    """The cotangent. Residuals are cut off from the operands: a second derivative would lack its terms."""
    return cotangent


@functools.partial(_first_derivative.defjvp, symbolic_zeros=True)
def _no_second_derivative(primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Any, Any]:
    if not all(isinstance(tangent, SymbolicZero) for tangent in jax.tree.leaves(tangents[1])):
        raise ValueError(
            "reuse=True: residuals give first derivatives only: set reuse=False for second derivatives"
        )
    return primals[0], tangents[0]


def _differentiates_by_itself(
    function: Callable[..., jax.Array], operands: list[jax.Array], num_arrays: int
) -> bool:
    jaxpr = jax.make_jaxpr(function)(operands[:num_arrays], *operands[num_arrays:]).jaxpr
    return any(name.startswith("custom_vjp") for name in primitive_names(jaxpr))


def _floating(operands: list[jax.Array]) -> dict[int, jax.Array]:
    return {
        place: operand for place, operand in enumerate(operands) if jnp.issubdtype(operand.dtype, jnp.inexact)
    }


def _linearised(function: Callable[..., jax.Array], num_arrays: int, num_units: int) -> Callable[..., Any]:
    """Of arrays and what is closed over, in one list, the function to (losses, pullback)."""

    def linearised(operands: list[jax.Array]) -> Any:
        def losses(floating: dict[int, jax.Array]) -> jax.Array:
            every = [floating.get(place, operand) for place, operand in enumerate(operands)]
            return check_losses(function(every[:num_arrays], *every[num_arrays:]), num_units)

        return jax.vjp(losses, _floating(operands))

    return linearised


def _spread(row: jax.Array, shape: tuple[int, ...], axis: int | None, indices: jax.Array) -> jax.Array:
    """The transpose of `take_units`."""
    if axis is None:
        return row
    return at_units(jnp.zeros(shape, row.dtype), axis, indices).add(row, mode="promise_in_bounds")
