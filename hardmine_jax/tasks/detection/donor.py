"""A run whose weights another one begins with: which of its classes are which of the new one's."""

from collections.abc import Iterable, Sequence

from hardmine_jax.tasks.names import sources_by_name
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
    found = sources_by_name(ours, theirs, what="class")
    # The background comes before the classes; of each class there are four deltas.
    logits = Places(-1, len(theirs) + 1, (0, *_spread(found.row, 1, after=1)))
    deltas = Places(-1, 4 * len(theirs), tuple(_spread(found.row, 4)))
    places = {
        f"params.{layer}.{kind}": where
        for layer, where in (("class_logits", logits), ("box_deltas", deltas))
        for kind in ("kernel", "bias")
    }
    return Outputs(places, found.random, f"; classes taken over by name: {found.told}")


def _spread(row: Iterable[int], count: int, *, after: int = 0) -> Iterable[int]:
    """`count` places for each, or as many -1."""
    return (-1 if source < 0 else after + count * source + part for source in row for part in range(count))
