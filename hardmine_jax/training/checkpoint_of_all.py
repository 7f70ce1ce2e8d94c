"""What is restored, in every process of a job, of which the first alone reads."""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.traverse_util
import jax
import numpy as np

from hardmine_jax.job.exchange import broadcast_arrays, from_main, is_main
from hardmine_jax.training.named_arrays import from_tree, named, to_tree
from hardmine_jax.training.state import TrainState


class Restored(NamedTuple):
    """A training state as it was saved (numpy leaves), and where its input iterator stood."""

    step: int
    state: TrainState
    iterator_state: Any


def shared(find: Callable[[TrainState], Restored | None], template: TrainState) -> Restored | None:
    """What `find(template)` gives in process 0, in every process."""
    if jax.process_count() == 1:
        return find(template)
    restored = find(template) if is_main() else None

    def about() -> tuple[int, Any] | None:
        return None if restored is None else (restored.step, restored.iterator_state)

    said = from_main(about, "restored")
    if said is None:
        return None
    state = template if restored is None else restored.state
    arrays = broadcast_arrays({name: np.asarray(x) for name, x in named(to_tree(state)).items()})
    tree = flax.traverse_util.unflatten_dict(arrays, sep="/")
    return Restored(said[0], from_tree(template, tree), said[1])
