"""Optimizer and learning-rate schedule from plain fields. Time is counted in steps (optimizer updates)."""

from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from hardmine_jax.errors import UserError


@dataclass(frozen=True)
class OptimizerConfig:
    """What the papers give as a line of their training section.

    Attributes:
      name: sgd is Nesterov momentum; in adam and sgd the decay is part of the gradient (as in torch), in
        adamw it is decoupled.
      learning_rate: the peak.
      schedule: after the warm-up; "step" multiplies by `factor` at each milestone, "cosine" falls to 0.
      warmup_steps: linear from `learning_rate / warmup_steps`.
      milestones: fractions of the run, between 0 and 1.
      factor: of the "step" schedule.
      momentum: of sgd.
      weight_decay: on kernels only: not on biases, nor on scales of a normalisation.
      clip_norm: largest global L2 norm of the gradient; None does not clip.
    """

    name: Literal["adam", "adamw", "sgd"] = "adam"
    learning_rate: float = 1e-3
    schedule: Literal["constant", "step", "cosine"] = "cosine"
    warmup_steps: int = 0
    milestones: tuple[float, ...] = (170 / 210, 200 / 210)
    factor: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 0.0
    clip_norm: float | None = None

    def __post_init__(self) -> None:
        choices = {"name": ("adam", "adamw", "sgd"), "schedule": ("constant", "step", "cosine")}
        for field, allowed in choices.items():
            if getattr(self, field) not in allowed:
                raise UserError(f"{field}={getattr(self, field)!r}: use one of {', '.join(allowed)}")
        limits = {
            "learning_rate": (self.learning_rate > 0, "> 0"),
            "warmup_steps": (self.warmup_steps >= 0, ">= 0"),
            "milestones": (
                list(self.milestones) == sorted(self.milestones) and all(0 < m < 1 for m in self.milestones),
                "ascending fractions of the run between 0 and 1",
            ),
            "factor": (self.factor > 0, "> 0"),
            "momentum": (0 <= self.momentum < 1, "at least 0 and below 1"),
            "weight_decay": (self.weight_decay >= 0, ">= 0"),
            "clip_norm": (self.clip_norm is None or self.clip_norm > 0, "> 0, or None"),
        }
        for field, (fine, wanted) in limits.items():
            if not fine:
                raise UserError(f"{field}={getattr(self, field)}: has to be {wanted}")


def make_schedule(config: OptimizerConfig, *, steps: int) -> optax.Schedule:
    """`rate(t) = learning_rate * min(1, (t + 1) / warmup_steps) * decay(t)`, t = updates done so far.

    >>> rate = make_schedule(OptimizerConfig(learning_rate=1.0, schedule="step", milestones=(0.5,)), steps=10)
    >>> round(float(rate(4)), 3), round(float(rate(5)), 3)
    (1.0, 0.1)

    Raises:
      UserError: the warm-up is as long as the run.
    """
    warmup = config.warmup_steps
    if warmup and warmup >= steps:
        raise UserError(f"warmup_steps={warmup} >= steps={steps}: shorten the warm-up or train longer")

    def rate(step: jax.typing.ArrayLike) -> jax.Array:
        t = jnp.asarray(step, jnp.float32)
        decay: float | jax.Array = 1.0
        if config.schedule == "cosine":
            progress = jnp.clip((t - warmup) / (steps - warmup), 0.0, 1.0)
            decay = 0.5 * (1.0 + jnp.cos(jnp.pi * progress))
        elif config.schedule == "step":
            for milestone in config.milestones:
                decay *= jnp.where(t >= round(milestone * steps), config.factor, 1.0)
        return config.learning_rate * jnp.minimum(1.0, (t + 1.0) / max(warmup, 1)) * decay

    return rate


def make_optimizer(config: OptimizerConfig, *, steps: int) -> optax.GradientTransformation:
    """clip -> (coupled decay) -> adam or momentum -> (decoupled decay) -> learning rate."""
    decay = optax.identity()
    if config.weight_decay:
        decay = optax.add_decayed_weights(config.weight_decay, mask=_kernels)
    inner = {
        "adam": lambda: optax.chain(decay, optax.scale_by_adam()),
        "adamw": lambda: optax.chain(optax.scale_by_adam(), decay),
        "sgd": lambda: optax.chain(decay, optax.trace(decay=config.momentum, nesterov=config.momentum > 0)),
    }[config.name]()
    clip = optax.clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity()
    return optax.chain(clip, inner, optax.scale_by_learning_rate(make_schedule(config, steps=steps)))


def _kernels(params: Any) -> Any:
    return jax.tree.map(lambda p: p.ndim > 1, params)
