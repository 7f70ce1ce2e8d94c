"""Beginning with weights that people have: a published file, or a run of their own."""

import pathlib
import sys
from collections.abc import Callable

import flax.traverse_util

from hardmine_jax import training
from hardmine_jax.models.torch_files import read_torch_file
from hardmine_jax.models.torch_weights import WarmStart, WeightsError

_SHOWN = 6


def start_from(
    path: pathlib.Path, state: training.TrainState, fill: Callable[[dict, dict], WarmStart] | None
) -> training.TrainState:
    """A fresh state with the weights of a file or of a run; what is not from there is told on stderr.

    Args:
      path: what `read_torch_file` reads, or the --workdir of a run (or a checkpoint in it).
      fill: `(state_dict, variables) -> WarmStart` of the network; None where it has no published weights.

    Raises:
      WeightsError: no such file, or weights of another network.
      CheckpointError: a folder without a checkpoint.
    """
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    if path.is_dir():
        start = take_what_fits(training.load_variables(path), variables)
    elif fill is None:
        raise WeightsError(f"{path}: there are no published weights of this network: give a run's --workdir")
    else:
        start = fill(read_torch_file(path), variables)
    print(f"starting from {path}: {describe(start)}", file=sys.stderr)
    return training.start_from(state, start.variables)


def take_what_fits(found: dict, variables: dict) -> WarmStart:
    """`variables` with all leaves of the same name and shape that another network has.

    Raises:
      WeightsError: if there is none.
    """
    old, new = (flax.traverse_util.flatten_dict(tree, sep=".") for tree in (found, variables))
    fits = {name for name, leaf in new.items() if name in old and old[name].shape == leaf.shape}
    if not fits:
        raise WeightsError(f"none of the {len(new)} weights of this network is in that checkpoint")
    filled = {name: old[name] if name in fits else leaf for name, leaf in new.items()}
    initial, unused = sorted(new.keys() - fits), sorted(old.keys() - fits)
    return WarmStart(
        flax.traverse_util.unflatten_dict(filled, sep=".") | {name: {} for name in new_empty(variables)},
        tuple(initial),
        tuple(unused),
    )


def new_empty(variables: dict) -> list[str]:
    """Collections without a leaf, which flattening would lose."""
    return [name for name, tree in variables.items() if not tree]


def describe(start: WarmStart) -> str:
    """
    >>> describe(WarmStart({}, ("head.bias", "head.weight"), ()))
    'at their initial values stay 2 (head.bias, head.weight); not used 0'
    """
    return f"at their initial values stay {_some(start.initial)}; not used {_some(start.unused)}"


def _some(names: tuple[str, ...]) -> str:
    shown = ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
    return f"{len(names)} ({shown})" if names else "0"
