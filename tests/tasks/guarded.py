"""Training steps that may move nothing between host and device by themselves."""

import dataclasses
from typing import Any, NamedTuple

import jax

from hardmine_jax.training import sharding


class GuardedStep(NamedTuple):
    """A compiled step, called where an implicit transfer is an error."""

    step: Any

    def __call__(self, state, batch):
        with jax.transfer_guard("disallow"):
            return self.step(state, batch)

    def lower(self, state, batch):
        return self.step.lower(state, batch)


def parallelise(make_step, **more):
    """`training.parallelise` with such a step."""
    parallel = sharding.parallelise(make_step, **more)
    return dataclasses.replace(parallel, train_step=GuardedStep(parallel.train_step))
