"""From images to keypoints in pixels of the originals."""

from collections.abc import Callable, Iterable
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from hardmine_jax.pose import Skeleton, decode_heatmaps, flip_heatmaps, heatmap_to_image
from hardmine_jax.pose.affine import apply_affine
from hardmine_jax.tasks.pose.networks import OWN_INPUTS, Inputs, to_network


def make_predict(
    model: nn.Module,
    skeleton: Skeleton,
    *,
    sigma: float,
    decode: Literal["dark", "quarter", "argmax"],
    flip_test: bool,
    inputs: Inputs = OWN_INPUTS,
    with_second: bool = False,
) -> Callable[[dict, jax.Array], dict[str, jax.Array]]:
    """`(variables, images uint8 [B, H, W, 3]) -> {"keypoints" [B, K, 2] crop pixels, "scores" [B, K]}`.

    Of heatmaps supervised one after another the last ones are the prediction.

    Args:
      flip_test: averages the heatmaps with those of the mirrored image, as all the papers do.
      inputs: what the network takes for the image and its pixels.
      with_second: adds "second_scores" [B, K], see `second_scores`.
    """

    def predict_heatmaps(variables: dict, images: jax.Array) -> jax.Array:
        return jax.tree.leaves(model.apply(variables, to_network(images, inputs), train=False))[-1]

    def predict(variables: dict, images: jax.Array) -> dict[str, jax.Array]:
        heatmaps = predict_heatmaps(variables, images)
        if flip_test:
            mirrored = predict_heatmaps(variables, images[:, :, ::-1])
            heatmaps = (heatmaps + flip_heatmaps(mirrored, skeleton=skeleton, shift=inputs.flip_shift)) / 2
        keypoints, scores = decode_heatmaps(heatmaps, method=decode, blur_sigma=sigma)
        second = {"second_scores": second_scores(heatmaps, keypoints, skeleton)} if with_second else {}
        stride = images.shape[1] / heatmaps.shape[1]
        keypoints = heatmap_to_image(keypoints, stride=stride, origin=inputs.origin)
        return {"keypoints": keypoints, "scores": scores, **second}

    return predict


# Of the longer side of the heatmaps: within it a second peak is the same one, or its shoulder.
_APART = 0.15


def second_scores(heatmaps: jax.Array, keypoints: jax.Array, skeleton: Skeleton) -> jax.Array:
    """[B, K]: height of each keypoint's second peak, away from its first and from that of its other side.

    Left is easily taken for right; somebody else's keypoint is elsewhere.

    Args:
      heatmaps: [B, H, W, K]; keypoints: [B, K, 2] their maxima, heatmap pixels.
    """
    height, width = heatmaps.shape[1:3]
    peaks = heatmaps >= nn.max_pool(heatmaps, (3, 3), padding="SAME")
    y, x = jnp.mgrid[:height, :width]
    places = jnp.stack([x, y], axis=-1)[None, :, :, None].astype(keypoints.dtype)
    for points in (keypoints, keypoints[:, jnp.array(skeleton.flip_permutation)]):
        distances = jnp.linalg.norm(places - points[:, None, None], axis=-1)
        peaks &= distances > _APART * max(height, width)
    return jnp.where(peaks, heatmaps, 0.0).max((1, 2))


def show_several(
    scores: np.ndarray, seconds: np.ndarray, *, min_score: float = 0.1, ratio: float = 0.5
) -> np.ndarray:
    """bool [B]: most keypoints that are found have a second place that is at least half as likely.

    Args:
      scores, seconds: [B, K], see `make_predict`; min_score: from which on a keypoint is found.
    """
    found = scores >= min_score
    doubled = found & (seconds >= ratio * scores)
    return (2 * doubled.sum(1) > found.sum(1)) & (doubled.sum(1) >= min(2, scores.shape[1]))


def predict_people(
    predict: Callable[[dict], dict[str, np.ndarray]], batches: Iterable[dict]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Runs over evaluation batches: rows [N], keypoints [N, K, 2] in original pixels, scores [N, K]."""
    rows, keypoints, scores = [], [], []
    for batch in batches:
        outputs, where = predict(batch), batch["where"]
        points = apply_affine(
            batch["inverse"].astype(np.float64), np.asarray(outputs["keypoints"], np.float64)
        )
        rows.append(batch["index"][where])
        keypoints.append(points[where])
        scores.append(np.asarray(outputs["scores"])[where])
    return np.concatenate(rows), np.concatenate(keypoints), np.concatenate(scores)
