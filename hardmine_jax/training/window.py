"""Metrics between two log points: left on the device until asked for, so that no step waits for the host."""

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hardmine_jax.job.ending import NonFiniteError
from hardmine_jax.training.state import TrainState


class Window:
    """Collects the metrics of every step, and the speed of those that had nothing to compile.

    Args:
      batch_size: examples in a step, over all devices and processes.
      get: takes metrics off the devices (`Parallel.get`).
      speed: images a second -> what else is to be logged of the speed.
    """

    def __init__(
        self,
        batch_size: int,
        get: Callable[[Any], Any],
        speed: Callable[[float], dict[str, float]] | None = None,
    ):
        self._batch_size, self._get, self._speed = batch_size, get, speed
        self._metrics: list[tuple[int, dict]] = []
        self._timed, self._compiled = 0, False
        self._total_steps, self._total_seconds = 0, 0.0

    def add(self, step: int, metrics: dict) -> None:
        self._metrics.append((step, metrics))
        self._timed += 1
        # Each step in flight holds a batch: two are enough to keep a device busy.
        if len(self._metrics) > 2:
            jax.block_until_ready(self._metrics[-3][1])
        if not self._compiled:
            jax.block_until_ready(metrics)
            self._compiled = True
            self.restart()

    def restart(self) -> None:
        """Starts the clock again: after evaluation and saving, which are not the speed of training."""
        self._timed, self._started = 0, time.perf_counter()

    def flush(self) -> dict[str, np.ndarray]:
        """Means over the steps since the last flush, and their `images_per_second` (not for the first step).

        Raises:
          NonFiniteError: naming the first step that was not finite, the loss before other metrics.
        """
        fetched = jax.device_get([self._get(metrics) for _, metrics in self._metrics])
        seconds = time.perf_counter() - self._started
        for (step, _), values in zip(self._metrics, fetched, strict=True):
            for name in sorted(values, key=lambda name: name != "loss"):
                bad = ~np.isfinite(values[name])
                if bad.any():
                    raise NonFiniteError(step, name, float(np.ravel(values[name])[np.argmax(bad)]))
        means = {name: np.mean([values[name] for values in fetched], axis=0) for name in fetched[0]}
        self._metrics = []
        if self._timed:
            images_per_second = self._timed * self._batch_size / seconds
            more = {} if self._speed is None else self._speed(images_per_second)
            means |= {"images_per_second": np.asarray(images_per_second)}
            means |= {name: np.asarray(value) for name, value in more.items()}
            self._total_steps += self._timed
            self._total_seconds += seconds
        return means

    def images_per_second(self) -> float:
        """Over everything timed so far; 0.0 when nothing was."""
        return self._total_steps * self._batch_size / self._total_seconds if self._total_seconds else 0.0


def check_state(step: int, state: TrainState) -> None:
    """Raises NonFiniteError for weights, averages of them or batch statistics that are NaN or infinite.

    Metrics are of the weights before the update: what the last update spoiled, they do not show.

    Args:
      state: one-device state (`Parallel.get`).
    """
    trees = {name: getattr(state, name) for name in ("params", "batch_stats", "ema_params")}
    finite = jax.device_get(jax.tree.leaves(_all_finite(trees)))
    if not all(finite):
        path, leaf = jax.tree_util.tree_leaves_with_path(trees)[finite.index(False)]
        values = np.ravel(leaf)
        bad = values[np.argmin(np.isfinite(values))]
        raise NonFiniteError(step, jax.tree_util.keystr(path, simple=True, separator="/"), float(bad))


@jax.jit
def _all_finite(tree: Any) -> Any:
    return jax.tree.map(lambda x: jnp.isfinite(x).all(), tree)
