"""Some records of a source: which, and how to read them as a source of their own."""

from typing import Any

import numpy as np

from hardmine_jax.data.records import Records


class Rows:
    """Some records of a source, renumbered from 0."""

    def __init__(self, source: Records, rows: np.ndarray):
        self._source, self._rows = source, rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {**self._source[int(self._rows[index])], "index": index}


class Joined:
    """The records of two sources, one after the other, renumbered from 0."""

    def __init__(self, first: Records, second: Records):
        self._sources = first, second

    def __len__(self) -> int:
        return sum(map(len, self._sources))

    def __getitem__(self, index: int) -> dict:
        first, second = self._sources
        record = first[index] if index < len(first) else second[index - len(first)]
        return {**record, "index": index}


def evenly_spaced(length: int, count: int) -> np.ndarray:
    """At most `count` of 0 .. length - 1. Not the first ones: neighbours are often frames of one scene.

    >>> evenly_spaced(9, 3), evenly_spaced(2, 5)
    (array([0, 4, 8]), array([0, 1]))
    """
    return np.unique(np.linspace(0, length - 1, min(count, length)).astype(int))
