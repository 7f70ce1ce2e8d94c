"""What the processes of a job tell each other; in a single process each function gives back what it got.

Every process calls the same functions in the same order. Small values are of JSON, and bytes, and go through
the coordinator; arrays go through the devices.
"""

import contextlib
import itertools
import json
import socket
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

# jax.distributed gives its key-value store to nobody; orbax reads it from here too.
from jax._src import distributed as _runtime
from jax.experimental import multihost_utils

from hardmine_jax.errors import UserError
from hardmine_jax.job.activity import waiting
from hardmine_jax.job.json_state import decode_json, encode_json

_WAIT_MILLISECONDS = 5000
_numbers = itertools.count()


def is_main() -> bool:
    """Whether this process is the one that prints and writes files: process 0, or the only one."""
    return jax.process_index() == 0


def client() -> Any:
    """The runtime's key-value store, which all processes of the job see."""
    return _runtime.global_state.client


def from_main(compute: Callable[[], Any], what: str) -> Any:
    """What `compute()` gives in process 0, which alone runs it.

    Args:
      what: a few words for the key, to tell calls apart.
    """
    if jax.process_count() == 1:
        return compute()
    key = _next_key(what)
    if is_main():
        client().key_value_set(key, json.dumps(encode_json(compute())))
    return decode_json(json.loads(_wait(key)))


def gather(value: Any, what: str) -> list:
    """Every process's value, by its number."""
    if jax.process_count() == 1:
        return [value]
    key = _next_key(what)
    client().key_value_set(f"{key}/{jax.process_index()}", json.dumps(encode_json(value)))
    return [decode_json(json.loads(_wait(f"{key}/{number}"))) for number in range(jax.process_count())]


def barrier(what: str) -> None:
    """Returns when every process has come here. Its time has no limit: a dead process ends the job."""
    if jax.process_count() == 1:
        return
    key = _next_key(what)
    client().key_value_set(f"{key}/{jax.process_index()}", "")
    if is_main():
        for number in range(jax.process_count()):
            _wait(f"{key}/{number}")
        client().key_value_set(f"{key}/all", "")
    _wait(f"{key}/all")


def check_same(values: dict[str, Any]) -> None:
    """Raises UserError naming the first of the values that is not the same in every process."""
    first, *others = gather(values, "check")
    for number, other in enumerate(others, start=1):
        for name in values:
            if other.get(name) != first.get(name):
                raise UserError(
                    f"{name}: process 0 has {_short(first.get(name))}, process {number} has "
                    f"{_short(other.get(name))}: start every process with the same flags, code and data"
                )


@contextlib.contextmanager
def first_of_host() -> Iterator[None]:
    """On each machine one process goes through the body before its others do: what it prepares is theirs."""
    hosts = gather(socket.gethostname(), "hosts")
    first = hosts.index(hosts[jax.process_index()]) == jax.process_index()
    if not first:
        barrier("one of each host")
    yield
    if first:
        barrier("one of each host")


def all_rows(tree: Any) -> Any:
    """Numpy arrays `[B, ...]` of every process one after another; as many rows in each."""
    if jax.process_count() == 1:
        return tree
    with waiting("a step"):
        return multihost_utils.process_allgather(tree, tiled=True)


def broadcast_arrays(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Process 0's arrays, bit for bit; the others give arrays of the same names, shapes and types."""
    if jax.process_count() == 1:
        return arrays
    # One vector of integers: one program to compile, and no -0.0 that a sum turns into 0.0.
    parts = [np.ascontiguousarray(x).reshape(-1).view(np.uint8) for x in arrays.values()]
    sent = np.concatenate([*parts, np.zeros(-sum(map(len, parts)) % 4, np.uint8)]).view(np.uint32)
    with waiting("what process 0 sends"):
        received = np.asarray(multihost_utils.broadcast_one_to_all(sent)).view(np.uint8)
    ends = np.cumsum([len(part) for part in parts])
    cut = [received[end - len(part) : end].copy() for end, part in zip(ends, parts, strict=True)]
    return {name: part.view(x.dtype).reshape(x.shape)
            for (name, x), part in zip(arrays.items(), cut, strict=True)}  # fmt: skip


def _next_key(what: str) -> str:
    return f"hardmine/{next(_numbers)}/{what}"


def _wait(key: str) -> str:
    with waiting(key):
        while True:
            try:
                # In pieces, between which Ctrl-C is heard.
                return client().blocking_key_value_get(key, _WAIT_MILLISECONDS)
            except jax.errors.JaxRuntimeError as error:
                if "timed out" not in str(error):
                    raise


def _short(value: Any) -> str:
    text = json.dumps(encode_json(value))
    return text if len(text) <= 100 else f"{text[:100]} ..."
