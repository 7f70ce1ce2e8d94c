"""Datasets of people (or mice, hands, fish) with keypoints, and of objects in boxes: one file a dataset, and
the way to batches.

Needs the `train` extra. Import what is needed by name: `from hardmine_jax.data.pose import lspet`.
"""
