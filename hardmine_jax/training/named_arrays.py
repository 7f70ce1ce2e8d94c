"""A training state as a tree of named plain arrays: what goes to disk, and how damage or another model shows.

A name is the path with slashes, `params/stem/kernel`. An entry is `[shape, dtype, CRC-32 of the bytes]`.
"""

import zlib
from typing import Any

import flax.serialization
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from hardmine_jax.training.state import TrainState


def to_tree(state: TrainState) -> dict:
    """Nested dicts of arrays under string keys; a typed random key becomes its uint32 data."""
    if _is_typed(state.key):
        state = state.replace(key=jax.random.key_data(state.key))
    return flax.serialization.to_state_dict(state)


def from_tree(template: TrainState, tree: dict) -> TrainState:
    """The inverse of `to_tree`; the template gives the structure and the kind of random key."""
    # Empty nodes (an optimizer without memory) are not stored: the template fills them in.
    full = flax.traverse_util.flatten_dict(to_tree(template), keep_empty_nodes=True)
    full.update({tuple(name.split("/")): x for name, x in named(tree).items()})
    state = flax.serialization.from_state_dict(template, flax.traverse_util.unflatten_dict(full))
    if _is_typed(template.key):
        state = state.replace(key=jax.random.wrap_key_data(state.key, impl=jax.random.key_impl(template.key)))
    return state


def named(tree: dict) -> dict[str, Any]:
    """`{name: array}` of a tree; what is None has no entry."""
    return {name: x for name, x in flax.traverse_util.flatten_dict(tree, sep="/").items() if x is not None}


def describe(arrays: dict[str, np.ndarray]) -> dict[str, list]:
    """`{name: entry}`, for JSON."""
    return {name: [list(x.shape), str(x.dtype), _crc(x)] for name, x in arrays.items()}


def differences(entries: dict[str, list], here: dict[str, Any]) -> dict[str, str]:
    """What differs in shape or type between a checkpoint's entries and arrays here; parameters come first."""

    def say(shape_and_dtype: list) -> str:
        return "{} {}".format(*shape_and_dtype) if shape_and_dtype else "missing"

    there = {name: entry[:2] for name, entry in entries.items()}
    here = {name: [list(np.shape(x)), str(x.dtype)] for name, x in here.items()}
    names = sorted({*there, *here}, key=lambda name: (not name.startswith("params/"), name))
    pairs = {name: (there.get(name, []), here.get(name, [])) for name in names}
    return {name: f"{say(a)} there, {say(b)} here" for name, (a, b) in pairs.items() if a != b}


def check_whole(entries: dict[str, list], arrays: dict[str, Any]) -> None:
    """ValueError naming the first array whose bytes are not those that were saved."""
    for name, entry in entries.items():
        if _crc(np.asarray(arrays[name])) != entry[2]:
            raise ValueError(f"{name} is not what was saved")


def check_described(entries: dict[str, list], arrays: dict[str, Any]) -> None:
    """ValueError naming the first array that is not as its entry says."""
    for name, what in differences(entries, arrays).items():
        raise ValueError(f"{name} is not what was saved: {what}")


def _crc(x: np.ndarray) -> int:
    return zlib.crc32(np.ascontiguousarray(x).reshape(-1).view(np.uint8).data)


def _is_typed(key: jax.Array) -> bool:
    return jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
