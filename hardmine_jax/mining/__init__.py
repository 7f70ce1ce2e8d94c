"""Selectors (losses -> keep), soft schemes (losses -> weights), and what is done with them.

Vocabulary and contract: `mining/types.py`.
"""

from hardmine_jax.mining import hard_pool
from hardmine_jax.mining.focal_weights import focal_weights
from hardmine_jax.mining.ghm_weights import ghm_weights, gradient_histogram
from hardmine_jax.mining.global_top_k import global_top_k
from hardmine_jax.mining.hard_negatives import hard_negatives
from hardmine_jax.mining.harder_than_easiest import harder_than_easiest
from hardmine_jax.mining.importance_weights import importance_weights
from hardmine_jax.mining.masked_mean import masked_mean
from hardmine_jax.mining.mine import Mined, mine
from hardmine_jax.mining.non_max import non_max
from hardmine_jax.mining.random_k import random_k
from hardmine_jax.mining.schedule import schedule
from hardmine_jax.mining.stats import Stats, stats
from hardmine_jax.mining.threshold import threshold
from hardmine_jax.mining.top_k import top_k
from hardmine_jax.mining.types import Selector

__all__ = [
    # Selectors: which units count. Bool.
    "Selector",
    "global_top_k",
    "hard_negatives",
    "harder_than_easiest",
    "non_max",
    "random_k",
    "threshold",
    "top_k",
    # Soft schemes: how much each counts. Float.
    "focal_weights",
    "ghm_weights",
    "gradient_histogram",
    "importance_weights",
    # Around them.
    "Mined",
    "Stats",
    "hard_pool",
    "masked_mean",
    "mine",
    "schedule",
    "stats",
]
