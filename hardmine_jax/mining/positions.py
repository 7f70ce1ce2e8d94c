"""What the values of a program have to do with the order of the units.

`logits[jnp.arange(N), labels]` leaves rows 0 ... N-1 for its gradient. Gathered for k units they would still
count to N, and point past the k rows there are: they have to be worked out anew for k. Others must not
(a class for each place), and of others again nobody can tell (a running sum of ones).
"""

import enum
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np

from hardmine_jax.mining.jaxprs import CALLS, called, inner


class Order(enum.IntEnum):
    """What an entry of an array of units is made of. The larger takes over from the smaller.

    Attributes:
      SHARED: of what is the same for all units.
      UNIT: of that unit, wherever it stands: for few units, gathered is the same as worked out anew.
      COUNT: an integer that is the place of the unit itself, or rows with it in a column, the others UNIT.
      PLACE: of the unit and of the place where it stands (a mask drawn by place).
      UNKNOWN: perhaps of other units: summed up, sorted, read or written at unknown places.
    """

    SHARED = 0
    UNIT = 1
    COUNT = 2
    PLACE = 3
    UNKNOWN = 4


def orders(jaxpr: Any, consts: list[Any], num_units: int, axes: Sequence[int | None]) -> list[Order]:
    """For each output of a jaxpr; `axes` says where its inputs have their units, None: shared by all."""
    inputs = [Order.SHARED if axis is None else Order.UNIT for axis in axes]
    return _Reading(num_units).outputs(jaxpr, consts, inputs)


_PASS_ON = frozenset(
    "broadcast_in_dim convert_element_type copy copy_p expand_dims mesh_cast name optimization_barrier pcast"
    " pvary reshape reshard sharding_constraint squeeze stop_gradient transpose".split()
)
_ALONG = frozenset("cumlogsumexp cummax cummin cumprod cumsum".split())


class _Reading:
    """Reads equations in their order. Which axis is that of the units is told by its size."""

    def __init__(self, num_units: int):
        self._num_units = num_units

    def outputs(self, jaxpr: Any, consts: list[Any], inputs: list[Order]) -> list[Order]:
        known = dict(zip(jaxpr.invars, inputs, strict=True))
        constants = dict(zip(jaxpr.constvars, consts, strict=False))
        known |= {variable: self._of_constant(const) for variable, const in constants.items()}
        known |= {variable: Order.UNKNOWN for variable in jaxpr.constvars if variable not in known}
        made: dict[Any, Any] = dict(constants)
        for equation in jaxpr.eqns:
            arriving = [self._order(known, atom) for atom in equation.invars]
            if equation.primitive.name in CALLS:
                leaving = self.outputs(*called(equation.params), arriving)
            elif equation.primitive.name == "cond":
                branches = [
                    self.outputs(branch.jaxpr, branch.consts, arriving[1:])
                    for branch in equation.params["branches"]
                ]
                leaving = [max(found) for found in zip(*branches, strict=True)]
            else:
                found = self._of_equation(equation, arriving, made, known)
                leaving = [found] * len(equation.outvars)
            known.update(zip(equation.outvars, leaving, strict=True))
            made.update(dict.fromkeys(equation.outvars, equation))
        return [self._order(known, atom) for atom in jaxpr.outvars]

    def _order(self, known: dict[Any, Order], atom: Any) -> Order:
        # A literal may be an array of numpy.
        is_literal = isinstance(atom, jax.extend.core.Literal)
        return self._of_constant(atom.val) if is_literal else known[atom]

    def _sized(self, atom: Any) -> bool:
        return self._num_units in getattr(atom.aval, "shape", ())

    def _of_constant(self, const: Any) -> Order:
        if self._num_units not in np.shape(const):
            return Order.SHARED
        if isinstance(const, jax.core.Tracer) or not jnp.issubdtype(const.dtype, jnp.integer):
            return Order.PLACE
        squeezed = np.squeeze(np.asarray(const))
        counts = squeezed.shape == (self._num_units,) and (squeezed == np.arange(self._num_units)).all()
        return Order.COUNT if counts else Order.PLACE

    def _of_equation(self, equation: Any, arriving: list[Order], made: Any, known: Any) -> Order:
        name, most = equation.primitive.name, max(arriving, default=Order.SHARED)
        if most == Order.UNKNOWN or inner(equation.params):
            return max(most, Order.UNKNOWN if any(map(self._sized, equation.outvars)) else Order.SHARED)
        if name == "iota":
            return self._of_iota(equation)
        if name == "gather" or name.startswith("scatter"):
            return self._of_lookup(equation, arriving)
        if self._reorders(equation):
            return Order.UNKNOWN
        if name == "select_n" and (original := _not_negative(equation, made)) is not None:
            return self._order(known, original)
        if name == "concatenate" and most == Order.COUNT:
            return Order.COUNT
        if name in _PASS_ON:
            whole = jnp.issubdtype(equation.outvars[0].aval.dtype, jnp.integer)
            return most if most != Order.COUNT or whole else Order.PLACE
        if any(map(self._sized, equation.outvars)) and not any(map(self._sized, equation.invars)):
            # A draw, say, from one key for all.
            return Order.PLACE
        return Order.PLACE if most == Order.COUNT else most

    def _of_iota(self, equation: Any) -> Order:
        shape = equation.outvars[0].aval.shape
        if not shape or shape[equation.params["dimension"]] != self._num_units:
            return Order.SHARED
        return Order.COUNT if math.prod(shape) == self._num_units else Order.PLACE

    def _of_lookup(self, equation: Any, arriving: list[Order]) -> Order:
        """Of gather and scatter: at places along the units only these places themselves are known."""
        table, index = equation.invars[:2]
        numbers, rest = equation.params["dimension_numbers"], max([arriving[0], *arriving[2:]])
        if equation.primitive.name == "gather" and arriving[0] == Order.SHARED:
            # Counted anew for few units, places would be those of other entries of a table for all.
            return Order.UNKNOWN if arriving[1] == Order.COUNT else arriving[1]
        looked_up = getattr(numbers, "start_index_map", getattr(numbers, "scatter_dims_to_operand_dims", ()))
        if any(table.aval.shape[axis] == self._num_units for axis in looked_up):
            return rest if arriving[1] == Order.COUNT and rest <= Order.UNIT else Order.UNKNOWN
        if arriving[1] in (Order.COUNT, Order.PLACE):
            # The table may hold the units merged with another axis, unless each is read by itself.
            own = any(table.aval.shape[axis] == self._num_units for axis in _batched(numbers))
            return max(rest, Order.PLACE) if own else Order.UNKNOWN
        return max(rest, arriving[1])

    def _reorders(self, equation: Any) -> bool:
        name, params, size = equation.primitive.name, equation.params, self._num_units
        shapes = [getattr(atom.aval, "shape", ()) for atom in equation.invars]
        if name in _ALONG:
            return shapes[0][params["axis"]] == size
        if name == "sort":
            return shapes[0][params["dimension"]] == size
        if name == "rev":
            return any(shapes[0][axis] == size for axis in params["dimensions"])
        out = equation.outvars[0].aval.shape
        if name == "concatenate":
            return out[params["dimension"]] == size
        if name == "pad":
            edges = zip(params["padding_config"], out, strict=True)
            return any(any(edge) for edge, after in edges if after == size)
        if name == "dynamic_update_slice":
            return any(after == size != part for after, part in zip(out, shapes[1], strict=True))
        return name.startswith(("reduce_window", "select_and")) or (
            name == "conv_general_dilated" and size in shapes[0][1:]
        )


def _batched(numbers: Any) -> tuple[int, ...]:
    """Axes of the table that gather and scatter walk along with the index."""
    return getattr(numbers, "operand_batching_dims", ())


def _not_negative(equation: Any, made: dict[Any, Any]) -> Any:
    """The index i of `where(i < 0, i + N, i)`, with which jnp reads arrays; None for another equation.

    Args:
      made: what variables come from: an equation, or the constant that they are.
    """
    chosen, otherwise = equation.invars[0], equation.invars[1]
    test: Any = chosen.val if isinstance(chosen, jax.extend.core.Literal) else made.get(chosen)
    if isinstance(test, (np.ndarray, jax.Array)) and not isinstance(test, jax.core.Tracer):
        # Of numpy's rows it is known already which are negative.
        return None if np.any(np.asarray(test)) else otherwise
    if getattr(test, "primitive", None) is None or test.primitive.name != "lt":
        return None
    if test.invars[0] is not otherwise:
        return None
    bound = test.invars[1]
    return otherwise if isinstance(bound, jax.extend.core.Literal) and bound.val == 0 else None
