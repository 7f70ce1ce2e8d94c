"""How pose records become crops, for `stream.endless_batches` and `stream.ordered_batches`.

endless_batches(source, train_crops(size, skeleton, config), batch_size=32, seed=0)
ordered_batches(source, evaluation_crops(size, skeleton), batch_size=32)
"""

import functools

import numpy as np

from hardmine_jax.data.pose.augment import BORDER, AugmentConfig, augment, evaluate_crop
from hardmine_jax.data.stream import Augment, Reading
from hardmine_jax.pose import Skeleton


def train_crops(size: tuple[int, int], skeleton: Skeleton, config: AugmentConfig) -> Augment:
    """`(record, rng) -> example`: crops of (H, W) = `size`, varied as `config` says; see `augment`."""
    return functools.partial(augment, size=size, skeleton=skeleton, config=config)


def evaluation_crops(size: tuple[int, int], skeleton: Skeleton, padding: float = 1.25) -> Reading:
    """Crops of (H, W) = `size` that are not varied: the person's box times `padding`."""
    nothing = {
        "image": np.broadcast_to(np.asarray(BORDER, np.uint8), (*size, 3)),
        "keypoints": np.zeros((skeleton.num_keypoints, 2), np.float32),
        "visibility": np.zeros(skeleton.num_keypoints, np.int32),
        "index": np.int32(-1),
        "inverse": np.eye(2, 3, dtype=np.float32),
    }
    return Reading(functools.partial(evaluate_crop, size=size, skeleton=skeleton, padding=padding), nothing)
