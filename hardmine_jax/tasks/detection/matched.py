"""A dataset seen through a run's eyes: of its classes those that the run has, by name, in the run's order."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from hardmine_jax.data.records import Records
from hardmine_jax.tasks.names import Matched


class MatchedObjects:
    """The records of a source with the objects of the classes that both have, labelled in the run's order."""

    def __init__(self, source: Records, matched: Matched, num_classes: int):
        self._source = source
        self._labels = _table(matched.theirs, num_classes)

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> dict:
        record = self._source[index]
        labels = self._labels[record["labels"]]
        columns: dict[str, np.ndarray] = {"labels": labels}
        columns |= {name: record[name] for name in ("boxes", "difficult", "crowd") if name in record}
        return {**record, **{name: array[labels > 0] for name, array in columns.items()}}


def matched_predict(
    predict: Callable[[dict, dict], dict[str, jax.Array]], matched: Matched, num_classes: int
) -> Callable[[dict, dict], dict[str, jax.Array]]:
    """`(variables, batch) -> detections`, labelled as `MatchedObjects` are.

    Args:
      predict: of the run with its `num_classes`, made to look for the matched ones alone.
    """
    labels = _table(matched.ours, num_classes)

    def predict_common(variables: dict, batch: dict) -> dict[str, jax.Array]:
        found = predict(variables, batch)
        return {**found, "labels": jnp.asarray(labels)[found["labels"]]}

    return predict_common


def _table(places: Sequence[int], num_classes: int) -> np.ndarray:
    """int32 [C + 1]: from a label to the matched one, 0 for the background and what is not matched."""
    table = np.zeros(num_classes + 1, np.int32)
    table[np.array(places) + 1] = np.arange(1, len(places) + 1)
    return table
