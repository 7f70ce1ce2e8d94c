"""How arrays lie on a mesh with Explicit axes, as `jax.make_mesh` makes them: JAX chooses no layout there."""

import contextlib
from typing import TypeVar

import jax
import jax.export
import jax.numpy as jnp

from hardmine_jax.mining.types import AnyArray

_Result = TypeVar("_Result")


def cut_axes(array: AnyArray) -> tuple[bool, ...]:
    """For each axis of the array whether it is cut over an Explicit axis of the mesh."""
    spec = jax.typeof(array).sharding.spec
    return tuple(part is not None for part in (*spec, *[None] * (array.ndim - len(spec))))


def check_whole(losses: jax.Array) -> None:
    """Checks that each device holds whole rows of losses, [..., N].

    Raises:
      ValueError: if the units are cut over an Explicit axis.
    """
    if losses.ndim and cut_axes(losses)[-1]:
        raise ValueError(
            f"losses {jax.typeof(losses)}: the units, on the last axis, lie on several devices, of which"
            " none can rank them: call `global_top_k` inside jax.shard_map, or jax.reshard to whole rows"
        )


def beside(table: jax.Array, index: jax.Array) -> jax.Array:
    """The table, to be read at an index on other devices; on a mesh without Explicit axes as it is.

    Under vmap, JAX refuses a gather from one table for all rows where these are cut over an Explicit axis.
    As what varies with the index the table is one of each row, a copy on each device.
    """
    meshes = (jax.sharding.get_abstract_mesh(), jax.typeof(index).sharding.mesh)
    if not any(mesh.explicit_axes for mesh in meshes):
        return table
    # True whatever the index, which the compiler finds too.
    return jnp.where((index == index).all(), table, table)


def varying_as(array: jax.Array, other: jax.Array) -> jax.Array:
    """The array, which inside `jax.shard_map` varies from here on over the devices as the other does.

    So what is the same on all of them gets its gradient summed, to which a `jax.custom_vjp` has to see.
    """
    return jnp.where((jnp.zeros_like(other) == 0).all(), array, array)


def on_mesh_of(array: jax.Array) -> contextlib.AbstractContextManager[object]:
    """Within it JAX finds the mesh with Explicit axes that the array lies on, also without `jax.set_mesh`.

    In the backward function of a `jax.custom_vjp` it has lost that, and under vmap joins no arrays there.
    Outside of jit JAX (0.10) takes no gradient there at all, of no function, without `jax.set_mesh`.
    """
    mesh = jax.typeof(array).sharding.mesh
    return jax.sharding.use_abstract_mesh(mesh) if mesh.explicit_axes else contextlib.nullcontext()


def for_export(kind: type[_Result]) -> type[_Result]:
    """The NamedTuple, which a function may take and return that `jax.export` writes to a file."""
    jax.export.register_namedtuple_serialization(kind, serialized_name=f"hardmine_jax.{kind.__name__}")
    return kind
