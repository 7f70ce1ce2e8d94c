"""Selectors (losses -> keep) and the mean over what they keep. Vocabulary and contract: `mining/types.py`."""

from hardmine_jax.mining.masked_mean import masked_mean
from hardmine_jax.mining.random_k import random_k
from hardmine_jax.mining.threshold import threshold
from hardmine_jax.mining.top_k import top_k
from hardmine_jax.mining.types import Selector

__all__ = ["Selector", "masked_mean", "random_k", "threshold", "top_k"]
