"""One step, run by jit, pmap or shard_map over any number of devices, with the same numbers.

Batches come as numpy, examples on the first axis, `[B, ...]`, B the number that this process feeds; states
are replicated. The batch of a job of several processes is theirs one after another.
"""

import contextlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from hardmine_jax.errors import UserError
from hardmine_jax.job.activity import waiting, working
from hardmine_jax.job.exchange import all_rows
from hardmine_jax.training.state import TrainState
from hardmine_jax.training.step import Step

AXIS = "devices"
Kind = Literal["auto", "jit", "pmap", "shard_map"]
_Tree = TypeVar("_Tree")


class CompiledStep(Protocol):
    """What jit and pmap make of a `Step`."""

    def __call__(self, state: TrainState, batch: Any, /) -> tuple[TrainState, dict[str, jax.Array]]: ...

    def lower(self, state: Any, batch: Any, /) -> jax.stages.Lowered: ...


@dataclass(frozen=True)
class Parallel:
    """A step on devices. Made by `parallelise`.

    Attributes:
      kind: "jit", "pmap" or "shard_map".
      mesh: the devices, as a mesh of the one axis `AXIS`.
      train_step: `(state, batch) -> (state, metrics)` on what `put_state` and `put_batch` returned. The
        state is donated: use only the returned one afterwards. Metrics are read with `get`.
    """

    kind: str
    mesh: Mesh
    train_step: CompiledStep

    @property
    def axis_name(self) -> str | None:
        """Name of the axis that collectives inside the step use; None under jit."""
        return None if self.kind == "jit" else AXIS

    @property
    def num_devices(self) -> int:
        return self.mesh.size

    def put_state(self, state: _Tree) -> _Tree:
        """Copies a host or one-device state onto the devices, laid out as the step returns it."""
        return jax.tree.map(self._put_leaf, state)

    def put_batch(self, batch: Any) -> Any:
        """Sends a batch of numpy arrays `[B, ...]` on its way to the devices and returns at once.

        Raises:
          ValueError: B is no multiple of the number of devices.
        """
        devices = len(self.mesh.local_devices)
        for leaf in jax.tree.leaves(batch):
            if leaf.shape[0] % devices:
                raise ValueError(
                    f"a batch of {leaf.shape[0]} examples does not split over {devices} devices:"
                    f" use a multiple of {devices}"
                )
        if self.kind == "pmap":
            batch = jax.tree.map(lambda x: np.reshape(x, (devices, -1, *x.shape[1:])), batch)
        split = self._split()
        return jax.tree.map(lambda x: jax.make_array_from_process_local_data(split, np.asarray(x)), batch)

    def get(self, tree: _Tree) -> _Tree:
        """The one-device view of a replicated state or of metrics; copies nothing."""
        one = jax.tree.map(lambda x: x.addressable_data(0), tree)
        return jax.tree.map(lambda x: x[0], one) if self.kind == "pmap" else one

    def evaluate_step(self, fn: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
        """Runs `fn(state, batch) -> per-example outputs [B, ...]` (a tree of them) on all devices.

        Returns:
          A function of a placed state and a numpy batch, giving the outputs as numpy, in the batch's order;
          in every process those of all processes' batches, one after another.
        """
        if self.kind == "pmap":
            run = jax.pmap(fn, axis_name=AXIS, devices=list(self.mesh.devices.flat))
            gather = _merge_devices
        else:
            body = fn if self.kind == "jit" else _shard_map(fn, self.mesh, out_specs=PartitionSpec(AXIS))
            # Replicated, so that every process of a larger job holds all rows.
            run = _OnMesh(jax.jit(body, out_shardings=self._everywhere()), self.mesh)
            gather = _first_copy

        compiled = False

        def evaluate(state: Any, batch: Any) -> Any:
            nonlocal compiled
            with waiting("an evaluation") if compiled else working("compiling", slack=math.inf):
                outputs = jax.tree.map(gather, run(state, self.put_batch(batch)))
            compiled = True
            return outputs

        return evaluate

    def _everywhere(self) -> NamedSharding:
        return NamedSharding(self.mesh, PartitionSpec())

    def _split(self) -> NamedSharding:
        # What pmap takes and gives is always of this process's devices.
        mesh = Mesh(np.array(self.mesh.local_devices), (AXIS,)) if self.kind == "pmap" else self.mesh
        return NamedSharding(mesh, PartitionSpec(AXIS))

    def _put_leaf(self, leaf: jax.typing.ArrayLike) -> jax.Array:
        # An explicit dtype takes off the weak type, which would cost a second compilation; the copy keeps
        # the caller's own buffers out of the donation.
        dtype = jnp.result_type(leaf)
        x = jnp.copy(leaf) if jnp.issubdtype(dtype, jax.dtypes.prng_key) else jnp.array(leaf, dtype)
        if self.kind == "pmap":
            stacked = jnp.broadcast_to(x, (len(self.mesh.local_devices), *x.shape))
            return jax.device_put(stacked, self._split())
        if jax.process_count() == 1:
            return jax.device_put(x, self._everywhere())
        # device_put would compare every leaf with the other processes'.
        copies = [jax.device_put(x, device) for device in self.mesh.local_devices]
        return jax.make_array_from_single_device_arrays(x.shape, self._everywhere(), copies)


@dataclass(frozen=True)
class _OnMesh:
    """A compiled function on a mesh of its own, also where the caller is inside `jax.set_mesh` of another."""

    compiled: Any
    mesh: Mesh

    def __call__(self, state: Any, batch: Any, /) -> Any:
        with self._alone():
            return self.compiled(state, batch)

    def lower(self, state: Any, batch: Any, /) -> jax.stages.Lowered:
        with self._alone():
            return self.compiled.lower(state, batch)

    def _alone(self) -> contextlib.AbstractContextManager[Any]:
        inside = not jax.sharding.get_abstract_mesh().empty
        return jax.set_mesh(self.mesh) if inside else contextlib.nullcontext()


def parallelise(
    make_step: Callable[[str | None], Step],
    *,
    kind: Kind = "auto",
    devices: Sequence[jax.Device] | None = None,
) -> Parallel:
    """Compiles the step that `make_step(axis_name)` builds for the devices.

    Args:
      make_step: gets the axis for collectives (synchronised BatchNorm, `make_train_step`) or None for jit.
      kind: "auto" is jit on one device and shard_map on several, which measured fastest.
      devices: all of them by default.

    Raises:
      UserError: an unknown kind.
    """
    devices = _all_devices() if devices is None else list(devices)
    if kind == "auto":
        kind = "jit" if len(devices) == 1 else "shard_map"
    mesh = Mesh(np.array(devices), (AXIS,))
    if kind == "jit":
        everywhere = NamedSharding(mesh, PartitionSpec())
        step = _OnMesh(jax.jit(make_step(None), donate_argnums=0, out_shardings=everywhere), mesh)
    elif kind == "pmap":
        step = jax.pmap(make_step(AXIS), axis_name=AXIS, devices=devices, donate_argnums=0)
    elif kind == "shard_map":
        mapped = _shard_map(make_step(AXIS), mesh, out_specs=PartitionSpec())
        step = _OnMesh(jax.jit(mapped, donate_argnums=0), mesh)
    else:
        raise UserError(f"kind={kind!r}: use one of auto, jit, pmap, shard_map")
    return Parallel(kind, mesh, step)


def _shard_map(
    fn: Callable[[Any, Any], Any], mesh: Mesh, *, out_specs: PartitionSpec
) -> Callable[[Any, Any], Any]:
    # check_vma=True would sum the gradients of replicated parameters by itself, and the step's own pmean
    # would then average sums: without it, shard_map differentiates as pmap does.
    return jax.shard_map(
        fn, mesh=mesh, in_specs=(PartitionSpec(), PartitionSpec(AXIS)), out_specs=out_specs, check_vma=False
    )


def _all_devices() -> list[jax.Device]:
    return jax.devices() if jax.process_count() == 1 else by_process(jax.devices())


def by_process(devices: Sequence[jax.Device]) -> list[jax.Device]:
    """The devices process by process, the order in which a global batch is put together.

    On a pod they may come in another one. On several slices it is slice by slice, as processes are numbered.
    The reduction needs no more than that: XLA for TPU makes of a mean over one axis a reduce-scatter within
    each slice, an exchange of these parts between slices and an all-gather, whatever the order.
    """
    return sorted(devices, key=lambda d: (d.process_index, d.id))


def _first_copy(x: jax.Array) -> np.ndarray:
    return np.asarray(x.addressable_data(0))


def _merge_devices(x: jax.Array) -> np.ndarray:
    rows = np.asarray(x)
    return all_rows(rows.reshape(-1, *rows.shape[2:]))
