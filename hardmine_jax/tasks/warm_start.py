"""Beginning with weights that people have: a published file, or a run of their own."""

import pathlib
import sys
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import flax.traverse_util
import numpy as np

from hardmine_jax import training
from hardmine_jax.models.torch_files import read_torch_file
from hardmine_jax.models.torch_weights import WarmStart, WeightsError

_SHOWN = 6


class Places(NamedTuple):
    """Where along an axis of a weight another network's entries go.

    Attributes:
      axis: over the outputs.
      length: of that axis there.
      sources: for each place here the place there; -1 for what the other network does not have.
    """

    axis: int
    length: int
    sources: tuple[int, ...]


class Outputs(NamedTuple):
    """Which outputs of another run's network are which of this one's, by their names.

    Attributes:
      places: by the weight's name with dots; empty where all are the same in the same order.
      random: names of this network's outputs that the other does not have.
      said: for people, on how they were matched.
    """

    places: Mapping[str, Places] = MappingProxyType({})
    random: tuple[str, ...] = ()
    said: str = ""


# `(folder of a run) -> its outputs`, None where their names are not known.
FindOutputs = Callable[[pathlib.Path], Outputs | None]
_BY_ORDER = "; the names of its outputs are not known: where they fit they are taken in their order"


def start_from(
    path: pathlib.Path,
    state: training.TrainState,
    fill: Callable[[dict, dict], WarmStart] | None,
    *,
    find_outputs: FindOutputs = lambda path: None,
    complete: bool = False,
) -> training.TrainState:
    """A fresh state with the weights of a file or of a run; what is not from there is told on stderr.

    Args:
      path: what `read_torch_file` reads, or the --workdir of a run (or a checkpoint in it).
      fill: `(state_dict, variables) -> WarmStart` of the network; None where it has no published weights.
      find_outputs: how the outputs of a run are matched by name.
      complete: nothing may stay at its initial value, since it is not going to be trained.

    Raises:
      WeightsError: no such file, or weights of another network; not all of them, where `complete`.
      CheckpointError: a folder without a checkpoint.
    """
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    outputs = None
    if path.is_dir():
        outputs = find_outputs(path)
        places = {} if outputs is None else outputs.places
        start = take_what_fits(training.load_variables(path), variables, places)
    elif fill is None:
        raise WeightsError(f"{path}: there are no published weights of this network: give a run's --workdir")
    else:
        start = fill(read_torch_file(path), variables)
    random = () if outputs is None else outputs.random
    if complete and (start.initial or random):
        raise WeightsError(
            f"{path} does not have all weights of this network: {describe(start)}{_named(random)}. There is "
            "nothing to score until that is trained: leave out --eval-only"
        )
    said = _BY_ORDER if outputs is None else outputs.said
    print(f"starting from {path}: {describe(start)}{said}{_named(random)}", file=sys.stderr)
    return training.start_from(state, start.variables)


def take_what_fits(
    found: dict, variables: dict, places: Mapping[str, Places] = MappingProxyType({})
) -> WarmStart:
    """`variables` with all leaves of the same name and shape that another network has.

    Args:
      found: the other network's; places: for leaves over outputs, which of them go where.

    Raises:
      WeightsError: if there is none.
    """
    old, new = (flax.traverse_util.flatten_dict(tree, sep=".") for tree in (found, variables))
    filled = {name: _filled(old.get(name), leaf, places.get(name)) for name, leaf in new.items()}
    fits = {name for name, leaf in filled.items() if leaf is not None}
    if not fits:
        raise WeightsError(f"none of the {len(new)} weights of this network is in that checkpoint")
    whole = {name: leaf if filled[name] is None else filled[name] for name, leaf in new.items()}
    initial, unused = sorted(new.keys() - fits), sorted(old.keys() - fits)
    return WarmStart(
        flax.traverse_util.unflatten_dict(whole, sep=".") | {name: {} for name in new_empty(variables)},
        tuple(initial),
        tuple(unused),
    )


def _filled(old: Any, new: Any, places: Places | None) -> Any:
    """The other network's leaf for `new`, None where there is none that fits."""
    if old is None or places is None:
        return old if old is not None and old.shape == new.shape else None
    axis = places.axis % max(new.ndim, 1)
    expected = (*new.shape[:axis], places.length, *new.shape[axis + 1 :])
    sources = np.array(places.sources)
    if old.shape != expected or new.shape[axis] != len(sources) or (sources < 0).all():
        return None
    taken = np.array(new)
    here = np.flatnonzero(sources >= 0)
    index = (slice(None),) * axis
    taken[(*index, here)] = np.asarray(old)[(*index, sources[here])]
    return taken


def new_empty(variables: dict) -> list[str]:
    """Collections without a leaf, which flattening would lose."""
    return [name for name, tree in variables.items() if not tree]


def describe(start: WarmStart) -> str:
    """
    >>> describe(WarmStart({}, ("head.bias", "head.weight"), ()))
    'at their initial values stay 2 (head.bias, head.weight); not used 0'
    """
    return f"at their initial values stay {_some(start.initial)}; not used {_some(start.unused)}"


def _named(random: Sequence[str]) -> str:
    return f"; outputs of random weights: {_some(tuple(random))}" if random else ""


def _some(names: tuple[str, ...]) -> str:
    shown = ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
    return f"{len(names)} ({shown})" if names else "0"
