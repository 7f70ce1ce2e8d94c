"""A run whose weights another one begins with: which of its classes are which of the new one's."""

import contextlib
import pathlib
from collections.abc import Callable, Iterable, Sequence

from hardmine_jax.data.problems import DataError
from hardmine_jax.tasks.config_json import find_workdir
from hardmine_jax.tasks.names import match_names
from hardmine_jax.tasks.warm_start import Outputs, Places


def match_outputs(theirs: Sequence[str], ours: Sequence[str]) -> Outputs:
    """Where the outputs of a network of the classes `theirs` go in one of `ours`: by name, whatever their
    order.

    >>> outputs = match_outputs(("dog", "cat"), ("cat", "cow"))
    >>> outputs.random, outputs.places["params.class_logits.bias"].sources
    (('cow',), (0, 2, -1))
    """
    if tuple(theirs) == tuple(ours):
        return Outputs()
    sources = dict.fromkeys(range(len(ours)), -1)
    with contextlib.suppress(DataError):
        matched = match_names(ours, theirs, what="class")
        sources |= dict(zip(matched.ours, matched.theirs, strict=True))
    row = tuple(sources.values())
    # The background comes before the classes; of each class there are four deltas.
    logits = Places(-1, len(theirs) + 1, (0, *_spread(row, 1, after=1)))
    deltas = Places(-1, 4 * len(theirs), tuple(_spread(row, 4)))
    places = {
        f"params.{layer}.{kind}": where
        for layer, where in (("class_logits", logits), ("box_deltas", deltas))
        for kind in ("kernel", "bias")
    }
    random = tuple(name for name, source in zip(ours, row, strict=True) if source < 0)
    return Outputs(places, random, f"; classes taken over by name: {len(row) - len(random)} of {len(row)}")


def _spread(row: Iterable[int], count: int, *, after: int = 0) -> Iterable[int]:
    """`count` places for each, or as many -1."""
    return (-1 if source < 0 else after + count * source + part for source in row for part in range(count))


def read_classes(
    path: pathlib.Path, load: Callable[[pathlib.Path], tuple[object, tuple[str, ...]]]
) -> tuple[str, ...] | None:
    """The classes of the run at a path; None where that is no run of this task.

    Args:
      load: of a workdir, `config.load_config`.
    """
    try:
        return load(find_workdir(path, script="hardmine detection train"))[1]
    except DataError:
        return None
