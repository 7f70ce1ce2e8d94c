"""Hard example mining for JAX: losses for each unit, a choice of the hard ones, a mean over those.

    losses = per_unit_loss(prediction, target)       # [..., N], never reduced over units
    keep = mining.top_k(losses, k=8, where=labelled)  # [..., N] bool, no gradient
    loss = mining.masked_mean(losses, where=keep)     # []

`mining`, `pose` and `detection` come with this import, each when it is first used. `hardmine_jax.models`
needs the `models` extra, `hardmine_jax.data` and `hardmine_jax.training` need the `train` extra; they are
imported by name.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hardmine_jax import detection, mining, pose

__version__ = "0.1.0"
__all__ = ["detection", "mining", "pose"]


def __getattr__(name: str) -> Any:
    # The command `hardmine` imports this module too, and answers before jax is there.
    if name in __all__:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
