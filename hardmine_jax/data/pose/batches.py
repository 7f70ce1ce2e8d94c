"""From pose records to batches of crops."""

import functools

import grain
import numpy as np

from hardmine_jax.data.pose.augment import BORDER, AugmentConfig, augment, evaluate_crop
from hardmine_jax.data.records import Records
from hardmine_jax.data.stream import TrainBatches, endless_batches, ordered_batches
from hardmine_jax.pose import Skeleton


def train_batches(
    source: Records,
    *,
    batch_size: int,
    size: tuple[int, int],
    skeleton: Skeleton,
    config: AugmentConfig,
    seed: int,
    num_workers: int = 0,
    prefetch: int = 4,
    shard_index: int = 0,
    shard_count: int = 1,
) -> TrainBatches:
    """Endless batches, shuffled anew each epoch, each example augmented from (seed, its place in the stream).

    Args:
      source: records by position (`len`, `[i]`), picklable where `num_workers` > 0.
      batch_size: examples a batch, in this process; always whole, also where the source is smaller than that.
      size: (H, W) of the crops.
      seed: 0 to 2**32 - 1.
      num_workers: 0 reads in two threads of this process; else so many processes do it (the script then needs
        an `if __name__ == "__main__":` guard). The batches are the same.
      prefetch: batches made ahead, 1 or more.
      shard_index: which of `shard_count` processes this is. Their batches, one after another, are that of one
        process with `shard_count` times the batch: no example twice, none lost.

    Raises:
      ValueError: an empty source, or a number out of its range.
    """
    return endless_batches(
        source,
        functools.partial(augment, size=size, skeleton=skeleton, config=config),
        batch_size=batch_size,
        seed=seed,
        num_workers=num_workers,
        prefetch=prefetch,
        shard_index=shard_index,
        shard_count=shard_count,
    )


def evaluation_batches(
    source: Records,
    *,
    batch_size: int,
    size: tuple[int, int],
    skeleton: Skeleton,
    padding: float = 1.25,
    shard_index: int = 0,
    shard_count: int = 1,
) -> grain.IterDataset:
    """The whole source once, in order; iterate it as often as wanted.

    The last batch is filled up with "where" False, as is the place of an image that turns out unreadable.
    Every shard gets the same number of batches.

    Args:
      padding: the crop is the person's box times this.

    Raises:
      ValueError: an empty source, or a number out of its range.
    """
    padding_example = {
        "image": np.broadcast_to(np.asarray(BORDER, np.uint8), (*size, 3)),
        "keypoints": np.zeros((skeleton.num_keypoints, 2), np.float32),
        "visibility": np.zeros(skeleton.num_keypoints, np.int32),
        "index": np.int32(-1),
        "inverse": np.eye(2, 3, dtype=np.float32),
    }
    return ordered_batches(
        source,
        functools.partial(evaluate_crop, size=size, skeleton=skeleton, padding=padding),
        padding_example,
        batch_size=batch_size,
        shard_index=shard_index,
        shard_count=shard_count,
    )
