"""Bootstrapping: the old hard negative mining, in rounds of training and of looking for false positives.

Round 1 trains on the objects and on backgrounds drawn at random, so many an image. After each round the
network looks at all training images, and the background proposals that it takes for objects go into the
pool, which the next round draws its backgrounds from. Sung and Poggio, 1998, section 2.4. A proposal is known
by one number, image * max_proposals + its place among the image's proposals.
"""

import json
import pathlib
import time
from collections.abc import Callable, Iterable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from hardmine_jax import training
from hardmine_jax.data.problems import DataError
from hardmine_jax.data.stream import TrainBatches
from hardmine_jax.job import exchange
from hardmine_jax.job.activity import working
from hardmine_jax.job.exchange import all_rows
from hardmine_jax.mining import hard_pool
from hardmine_jax.tasks.config_json import write_json
from hardmine_jax.tasks.run import Opened, warn_of_errors

# A false positive is a background proposal that some class claims at this score.
_MIN_SCORE = 0.1


def round_ends(steps: int, rounds: int) -> list[int]:
    """The step after which each round ends.

    >>> round_ends(100, 3)
    [33, 67, 100]
    """
    return [round(steps * (number + 1) / rounds) for number in range(rounds)]


def fit_in_rounds(
    fit: Callable[..., training.FitResult],
    opened: Opened,
    ends: Sequence[int],
    batches: "PooledBatches",
    grow: Callable[[training.TrainState, int], None],
    *,
    get: Callable,
) -> training.FitResult:
    """The training in rounds, before each of which but the first `grow(state, number)` adds to the pool.

    Args:
      fit: `(state, end=step)` -> what `training.fit` gives.
      opened: where the run stands.
      ends: what `round_ends` gives.
      get: takes a state off the devices.
    """
    state, step = opened.state, opened.step
    for number, end in enumerate(ends):
        if step >= end and end < ends[-1]:
            continue
        # A run that goes on within a round has its pool already.
        if number and step < end and number > batches.number:
            grow(state, number)
        fitted = fit(state, end=end)
        state, step = get(fitted.state), fitted.step
        if fitted.stopped:
            break
    return fitted


class PooledBatches:
    """Training batches that say which proposals are in the pool: "pool" bool [B, P].

    Its position, which goes into the checkpoints, holds the pool: a run that goes on draws from the same one.

    Args:
      batches: the training stream; keeps the order of an image's proposals.
      pool: of the first round.
      max_proposals: P.
    """

    def __init__(self, batches: TrainBatches, pool: hard_pool.HardPool, *, max_proposals: int):
        self._batches, self.max_proposals = batches, max_proposals
        self.number = 0
        self.set_pool(pool, number=0)

    def set_pool(self, pool: hard_pool.HardPool, *, number: int) -> None:
        """The pool of a round, counted from 0."""
        self.pool, self.number = pool, number
        self._members = np.sort(np.asarray(pool.negatives.indices))

    def __next__(self) -> dict[str, np.ndarray]:
        batch = next(self._batches)
        places = np.arange(self.max_proposals, dtype=np.int64)
        wanted = batch["index"].astype(np.int64)[:, None] * self.max_proposals + places
        found = np.searchsorted(self._members, wanted).clip(max=len(self._members) - 1)
        return {**batch, "pool": self._members[found] == wanted}

    @property
    def unreadable(self) -> set[int]:
        return self._batches.unreadable

    def get_state(self) -> dict:
        arrays = [np.asarray(array).tobytes() for array in self.pool.negatives]
        return {**self._batches.get_state(), "round": self.number, "pool": arrays}

    def set_state(self, state: dict) -> None:
        self._batches.set_state(state)
        kinds = (np.int32, np.float32, np.int32)
        arrays = map(np.frombuffer, state["pool"], kinds)
        ranked = hard_pool.Ranked(*(jnp.asarray(array) for array in arrays))
        self.set_pool(hard_pool.HardPool(ranked, None), number=state["round"])

    def close(self) -> None:
        self._batches.close()


def first_pool(counts: Iterable[int], *, an_image: int, max_proposals: int, seed: int) -> hard_pool.HardPool:
    """Random proposals of each image, `an_image` of the first `counts[image]`; room for as many again.

    Objects among them do no harm: what trains as background is decided by overlap.
    """
    drawn = []
    for image, count in enumerate(counts):
        rng, count = np.random.default_rng((seed, image)), min(count, max_proposals)
        places = rng.choice(count, min(an_image, count), replace=False)
        drawn.append(image * max_proposals + np.sort(places))
    indices = np.concatenate(drawn).astype(np.int32)
    pool = hard_pool.init(max(1, 2 * an_image * len(drawn)))
    if not len(indices):
        return pool
    return hard_pool.update(pool, jnp.asarray(indices), jnp.zeros(len(indices)))


def grow_pool(
    pool: hard_pool.HardPool, search: Callable[[dict], dict], batches: Iterable[dict], *, max_proposals: int
) -> tuple[hard_pool.HardPool, dict]:
    """Looks at all images and takes in the false positives.

    Args:
      search: batch -> what `predict.false_positives` gives.
      batches: of all training images, as for evaluation.

    Returns:
      The pool, and what to write down: false positives found, members, seconds.
    """
    started, found = time.perf_counter(), 0
    update = jax.jit(hard_pool.update)
    with working("a search for false positives"):
        for batch in batches:
            outputs = search(batch)
            # Outputs are of all processes' images already: every process grows the same pool.
            index, usable = all_rows((batch["index"], batch["where"]))
            indices = index[:, None] * max_proposals + outputs["slots"]
            where = outputs["where"] & (outputs["scores"] >= _MIN_SCORE) & usable[:, None]
            found += int(where.sum())
            indices = np.where(where, indices, -1).astype(np.int32)
            pool = update(pool, indices.ravel(), outputs["scores"].ravel().astype(np.float32))
    members = int((np.asarray(pool.negatives.indices) >= 0).sum())
    seconds = round(time.perf_counter() - started, 3)
    return pool, {"false_positives": found, "members": members, "seconds": seconds}


def grow(
    workdir: pathlib.Path,
    batches: PooledBatches,
    search: Callable[[dict], dict],
    images: Iterable[dict],
    *,
    number: int,
    step: int,
) -> None:
    """The pool of a round, counted from 0; what was found goes to rounds.json. See `grow_pool`."""
    pool, found = grow_pool(batches.pool, search, images, max_proposals=batches.max_proposals)
    batches.set_pool(pool, number=number)
    rounds = exchange.from_main(lambda: read_rounds(workdir), "rounds")
    found = {"round": number + 1, "after_step": step, **found}
    with warn_of_errors(workdir / "rounds.json"):
        write_json(workdir / "rounds.json", [*rounds[: number - 1], found])
    print(f"round {number + 1}: {found['false_positives']} false positives, {found['members']} in the pool")


def read_rounds(workdir: pathlib.Path) -> list[dict]:
    """What was found before each round but the first; see `grow_pool`.

    Raises:
      DataError: rounds.json is damaged.
    """
    path = workdir / "rounds.json"
    try:
        rounds = json.loads(path.read_text()) if path.exists() else []
    except (ValueError, RecursionError):
        rounds = None
    if not isinstance(rounds, list) or not all(isinstance(found, dict) for found in rounds):
        raise DataError(f"{path} is damaged: move it out of the way, what it says of rounds before is lost")
    return rounds
