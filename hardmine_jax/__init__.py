"""Hard example mining for JAX: losses for each unit, a choice of the hard ones, a mean over those.

    losses = per_unit_loss(prediction, target)       # [..., N], never reduced over units
    keep = mining.top_k(losses, k=8, where=labelled)  # [..., N] bool, no gradient
    loss = mining.masked_mean(losses, where=keep)     # []

`mining`, `pose` and `detection` come with this import. `hardmine_jax.models` needs the `models` extra,
`hardmine_jax.data` and `hardmine_jax.training` need the `train` extra; they are imported by name.
"""

from hardmine_jax import detection, mining, pose

__version__ = "0.1.0"
__all__ = ["detection", "mining", "pose"]
