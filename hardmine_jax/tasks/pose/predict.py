"""From images to keypoints in pixels of the originals."""

from collections.abc import Callable, Iterable
from typing import Literal

import flax.linen as nn
import jax
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
) -> Callable[[dict, jax.Array], dict[str, jax.Array]]:
    """`(variables, images uint8 [B, H, W, 3]) -> {"keypoints" [B, K, 2] crop pixels, "scores" [B, K]}`.

    Of heatmaps supervised one after another the last ones are the prediction.

    Args:
      flip_test: averages the heatmaps with those of the mirrored image, as all the papers do.
      inputs: what the network takes for the image and its pixels.
    """

    def predict_heatmaps(variables: dict, images: jax.Array) -> jax.Array:
        return jax.tree.leaves(model.apply(variables, to_network(images, inputs), train=False))[-1]

    def predict(variables: dict, images: jax.Array) -> dict[str, jax.Array]:
        heatmaps = predict_heatmaps(variables, images)
        if flip_test:
            mirrored = predict_heatmaps(variables, images[:, :, ::-1])
            heatmaps = (heatmaps + flip_heatmaps(mirrored, skeleton=skeleton, shift=inputs.flip_shift)) / 2
        keypoints, scores = decode_heatmaps(heatmaps, method=decode, blur_sigma=sigma)
        stride = images.shape[1] / heatmaps.shape[1]
        keypoints = heatmap_to_image(keypoints, stride=stride, origin=inputs.origin)
        return {"keypoints": keypoints, "scores": scores}

    return predict


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
