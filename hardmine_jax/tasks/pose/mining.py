"""What the flags about mining ask for, and which of them go together."""

import math
from typing import TYPE_CHECKING

import jax

from hardmine_jax.errors import UserError
from hardmine_jax.mining import schedule
from hardmine_jax.pose import Skeleton
from hardmine_jax.tasks.flags import flag
from hardmine_jax.tasks.pose.loss import Mining

if TYPE_CHECKING:
    from hardmine_jax.tasks.pose.config import Config

# Of SLEAP's loss: the mined part, and the whole one.
_HARD, _EASY = 5.0, 1.0
_MOST = 1e9


def mining_of(config: "Config", skeleton: Skeleton) -> Mining:
    """What --mining and the flags beside it ask for."""
    steps, k = max(1, round(config.k_steps * config.run.length)), config.k
    assert k is not None, "no k: `settle` fills it in"

    def k_at(step: jax.Array) -> int | jax.Array:
        if config.k_schedule == "constant":
            return k
        return schedule(step, start=skeleton.num_keypoints, k=k, steps=steps, shape=config.k_schedule)

    hard, easy = (_HARD, _EASY) if config.mining == "sleap" else (1.0, 0.0)
    return Mining(
        config.mining,
        k_at,
        config.min_loss,
        easy if config.easy_weight is None else config.easy_weight,
        config.mining_over or "image",
        hard if config.hard_weight is None else config.hard_weight,
        weights_of(config, skeleton),
    )


def weights_of(config: "Config", skeleton: Skeleton) -> tuple[float, ...] | None:
    """One a keypoint, as --keypoint-weights has it; raises UserError for what is no name and no weight."""
    if config.keypoint_weights is None:
        return None
    weights, told = dict.fromkeys(skeleton.names, 1.0), set()
    for item in config.keypoint_weights:
        name, equals, weight = item.rpartition("=")
        if not equals or name in told:
            raise UserError(f"--keypoint-weights {item}: give NAME=WEIGHT, once for each keypoint")
        told.add(name)
        if name not in weights:
            names = ", ".join(skeleton.names)
            raise UserError(f"--keypoint-weights {item}: {name} is none of the keypoints {names}")
        try:
            weights[name] = float(weight)
        except ValueError:
            weights[name] = math.nan
        if not 0 <= weights[name] <= _MOST:
            raise UserError(f"--keypoint-weights {item}: {weight} must be a number from 0 to {_MOST:g}")
    if not any(weights.values()):
        raise UserError("--keypoint-weights: all are 0, and nothing would be learned: give one above 0")
    return tuple(weights.values())


def check_mining(config: "Config", skeleton: Skeleton) -> None:
    """Raises UserError for flags that mean nothing to the chosen mining."""
    kind, weights_of_losses = config.mining, ("easy_weight", "hard_weight")
    if kind in ("none", "sleap") and config.k_schedule != "constant":
        why = "keeps all" if kind == "none" else "has no k"
        raise UserError(
            f"--k-schedule {config.k_schedule} means nothing to --mining {kind}, which {why}: drop one"
        )
    for name in weights_of_losses:
        weight = getattr(config, name)
        if weight is not None and not 0 <= weight < math.inf:
            raise UserError(f"{flag(name)} {weight} must be at least 0 and finite")
        if kind == "none" and weight:
            raise UserError(
                f"{flag(name)} {weight} means nothing to --mining none, which keeps all: drop one"
            )
    if config.hard_weight == 0 and not (
        _EASY if kind == "sleap" and config.easy_weight is None else config.easy_weight
    ):
        raise UserError("--hard-weight 0 leaves nothing to learn from: add --easy-weight, or drop it")
    wanted = {"none": (), "random": ("image",), "sleap": ("batch",)}.get(kind, ("image", "batch"))
    if config.mining_over is not None and config.mining_over not in wanted:
        raise UserError(f"--mining-over {config.mining_over} is not what --mining {kind} does: drop one")
    weights_of(config, skeleton)
