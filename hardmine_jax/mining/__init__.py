"""Selectors (losses -> keep), soft schemes (losses -> weights), and what is done with them.

Vocabulary and contract: `mining/types.py`.
"""

from hardmine_jax.mining import hard_pool, score_table
from hardmine_jax.mining.emphasis_weights import emphasis_weights
from hardmine_jax.mining.focal_weights import focal_weights
from hardmine_jax.mining.ghm_weights import ghm_weights, gradient_histogram
from hardmine_jax.mining.global_top_k import global_top_k
from hardmine_jax.mining.hard_negatives import hard_negatives
from hardmine_jax.mining.harder_than_easiest import harder_than_easiest
from hardmine_jax.mining.importance_weights import importance_weights
from hardmine_jax.mining.joint_sample import joint_sample
from hardmine_jax.mining.kept_indices import kept_indices
from hardmine_jax.mining.masked_mean import masked_mean
from hardmine_jax.mining.mine import Mined, mine
from hardmine_jax.mining.non_max import non_max
from hardmine_jax.mining.over_batch import over_batch
from hardmine_jax.mining.prune_weights import prune_weights
from hardmine_jax.mining.quota_top_k import quota_top_k
from hardmine_jax.mining.random_k import random_k
from hardmine_jax.mining.rank_sample import rank_sample
from hardmine_jax.mining.schedule import schedule
from hardmine_jax.mining.stats import Stats, stats
from hardmine_jax.mining.threshold import threshold
from hardmine_jax.mining.top_fraction import top_fraction
from hardmine_jax.mining.top_k import top_k
from hardmine_jax.mining.triplets import Triplets, batch_hard, semi_hard
from hardmine_jax.mining.types import Selector

__all__ = [
    # Selectors: which units count. Bool.
    "Selector",
    "global_top_k",
    "hard_negatives",
    "harder_than_easiest",
    "joint_sample",
    "non_max",
    "over_batch",
    "quota_top_k",
    "random_k",
    "rank_sample",
    "threshold",
    "top_fraction",
    "top_k",
    # Soft schemes: how much each counts. Float.
    "emphasis_weights",
    "focal_weights",
    "ghm_weights",
    "gradient_histogram",
    "importance_weights",
    "prune_weights",
    # Pairs of a batch.
    "Triplets",
    "batch_hard",
    "semi_hard",
    # Around them.
    "Mined",
    "Stats",
    "hard_pool",
    "kept_indices",
    "masked_mean",
    "mine",
    "schedule",
    "score_table",
    "stats",
]
