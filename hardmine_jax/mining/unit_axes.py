"""Which axis of which array holds the units, as `jax.vmap` says it, and the cutting along these axes.

`in_axes` is an int, None or a tuple with an entry for each positional argument; an entry is an int, None, or
a pytree of them that is a prefix of the argument. None: shared by all units.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hardmine_jax.mining.layout import beside


@dataclasses.dataclass(frozen=True)
class UnitArgs:
    """The arguments of a call, taken apart.

    Attributes:
      arrays: every array in the arguments, in the order of their leaves.
      axes: for each array the axis of its units, not negative; None where it is shared.
      num_units: N, the size of all these axes.
      leaves: all leaves, with what is no array and passes by as it is (a function, a Python number).
      places: for each array where it lies in `leaves`.
      structures: the pytree of each argument.
    """

    arrays: list[jax.Array]
    axes: tuple[int | None, ...]
    num_units: int
    leaves: list[Any]
    places: tuple[int, ...]
    structures: tuple[Any, ...]

    def rebuild(self, arrays: list[jax.Array]) -> tuple[Any, ...]:
        """The arguments with other arrays in the places of theirs."""
        leaves = list(self.leaves)
        for place, array in zip(self.places, arrays, strict=True):
            leaves[place] = array
        args, start = [], 0
        for structure in self.structures:
            args.append(jax.tree.unflatten(structure, leaves[start : start + structure.num_leaves]))
            start += structure.num_leaves
        return tuple(args)

    def mapped(self, arrays: list[jax.Array]) -> tuple[Any, ...]:
        """Of `rebuild(arrays)`, the arguments that carry units somewhere."""
        carriers = {place for place, axis in zip(self.places, self.axes, strict=True) if axis is not None}
        mapped, start = [], 0
        for arg, structure in zip(self.rebuild(arrays), self.structures, strict=True):
            stop = start + structure.num_leaves
            if carriers.intersection(range(start, stop)):
                mapped.append(arg)
            start = stop
        return tuple(mapped)


def split_units(args: tuple[Any, ...], in_axes: Any) -> UnitArgs:
    """Takes the arguments of a call apart.

    Raises:
      ValueError: if `in_axes` does not fit the arguments, an array lacks its axis, no argument carries units,
        or two arrays disagree on their number.
    """
    entries = tuple(in_axes) if isinstance(in_axes, (tuple, list)) else (in_axes,) * len(args)
    if len(entries) != len(args):
        raise ValueError(f"in_axes has {len(entries)} entries for {len(args)} arguments: give each its own")
    leaves, axes, names = [], [], []
    for number, (entry, arg) in enumerate(zip(entries, args, strict=True)):
        paths = jax.tree_util.tree_leaves_with_path(arg)
        leaves += [leaf for _, leaf in paths]
        names += [f"args[{number}]{jax.tree_util.keystr(path)}" for path, _ in paths]
        axes += _broadcast(entry, arg, number)
    is_array = [isinstance(leaf, (jax.Array, np.ndarray, np.generic)) for leaf in leaves]
    axes = [
        axis if axis is None else _checked_axis(axis, leaf, known, name)
        for axis, leaf, known, name in zip(axes, leaves, is_array, names, strict=True)
    ]
    places = tuple(np.flatnonzero(is_array).tolist())
    return UnitArgs(
        arrays=[leaves[place] for place in places],
        axes=tuple(axes[place] for place in places),
        num_units=_num_units(leaves, axes, names, in_axes),
        leaves=leaves,
        places=places,
        structures=tuple(jax.tree.structure(arg) for arg in args),
    )


def _broadcast(entry: Any, arg: Any, number: int) -> list[int | None]:
    axes = []

    def extend(axis: int | None, subtree: Any) -> None:
        axes.extend([axis] * len(jax.tree.leaves(subtree)))

    try:
        jax.tree.map(extend, entry, arg, is_leaf=lambda node: node is None)
    except ValueError as error:
        raise ValueError(f"in_axes[{number}]={entry!r} is no prefix of args[{number}]: {error}") from error
    return axes


def _checked_axis(axis: Any, leaf: Any, is_array: bool, name: str) -> int:
    if isinstance(axis, bool) or not isinstance(axis, (int, np.integer)):
        raise TypeError(
            f"in_axes says {axis!r} for {name}: give an int, or None if it is shared by all units"
        )
    if not is_array:
        raise ValueError(f"in_axes says axis {axis} for {name}, which is no array but {leaf!r}: give it None")
    if not -leaf.ndim <= axis < leaf.ndim:
        raise ValueError(f"in_axes says axis {axis} for {name} of shape {leaf.shape}: it has no such axis")
    return int(axis) % leaf.ndim


def _num_units(leaves: list[Any], axes: list[int | None], names: list[str], in_axes: Any) -> int:
    sizes = {
        name: leaf.shape[axis]
        for leaf, axis, name in zip(leaves, axes, names, strict=True)
        if axis is not None
    }
    if not sizes:
        raise ValueError(f"in_axes={in_axes} finds no units in the arguments: one must carry them")
    if len(set(sizes.values())) > 1:
        listed = ", ".join(f"{name} has {size}" for name, size in sizes.items())
        raise ValueError(f"the arguments disagree on the number of units: {listed}")
    return next(iter(sizes.values()))


def take_units(arrays: list[jax.Array], axes: tuple[int | None, ...], indices: jax.Array) -> list[jax.Array]:
    """The arrays with the units at `indices` only; all must be within [0, N)."""
    return [
        array
        if axis is None
        else at_units(beside(jnp.asarray(array), indices), axis, indices).get(mode="promise_in_bounds")
        for array, axis in zip(arrays, axes, strict=True)
    ]


def at_units(array: jax.Array, axis: int, indices: jax.Array) -> Any:
    """`array.at[...]` with the indices along that axis."""
    return jnp.asarray(array).at[(slice(None),) * axis + (indices,)]


def slice_units(
    arrays: list[jax.Array], axes: tuple[int | None, ...], start: jax.Array | int, size: int
) -> list[jax.Array]:
    """The arrays with `size` units from `start` on; untouched where that is all of them."""
    return [
        array
        if axis is None or array.shape[axis] == size
        else jax.lax.dynamic_slice_in_dim(array, start, size, axis)
        for array, axis in zip(arrays, axes, strict=True)
    ]
