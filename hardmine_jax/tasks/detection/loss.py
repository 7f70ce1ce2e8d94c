"""The mined loss of Fast R-CNN.

Images are uint8 [B, H, W, 3]. The trunk runs once a batch; the RoI head is what mining repeats.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from hardmine_jax.detection import fast_rcnn_losses, focal_losses, smooth_l1
from hardmine_jax.mining import masked_mean, mine, stats
from hardmine_jax.mining.fit import fit
from hardmine_jax.models import normalise_images
from hardmine_jax.tasks.detection.predict import apply_head, apply_trunk
from hardmine_jax.tasks.detection.rois import Mining, Rois, choose_rois, draw_rois, make_rois
from hardmine_jax.training import LossFunction


def make_loss(model: nn.Module, mining: Mining) -> LossFunction:
    """The training loss `(params, batch_stats, batch, key, step) -> (loss, (batch_stats, metrics))`.

    Every sum over RoIs is divided by a fixed number an image, so that devices average exactly.

    Returns:
      The function. Its metrics: `fraction_kept` of the RoIs, `foreground_share` of the kept ones, and where
        the losses of all are known `loss_captured`, the kept ones' part of their sum.
    """

    def loss_function(
        params: Any, batch_stats: Any, batch: dict[str, jax.Array], key: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, tuple[Any, dict[str, jax.Array]]]:
        variables = {"params": params, "batch_stats": batch_stats}
        images = normalise_images(batch["image"])
        features, updated = model.apply(
            variables, images, train=True, method="features", mutable=["batch_stats"]
        )
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, batch["index"])
        rois = make_rois(batch)
        one = make_image_loss(model, mining)
        losses, metrics = jax.vmap(one, (None, 0, 0, 0))(variables, features, rois, keys)
        metrics = jax.tree.map(lambda x: jax.lax.stop_gradient(x.mean(0)), metrics)
        return losses.mean(), (updated.get("batch_stats", {}), metrics)

    return loss_function


def make_image_loss(model: nn.Module, mining: Mining) -> Callable[..., tuple[jax.Array, dict]]:
    """`(variables, features [h, w, F], rois [N], key) -> (loss [], metrics)` of one image."""
    head_losses = make_head_losses(model, focal=mining.kind == "focal", train=True)

    def choose(losses: jax.Array, rois: Rois) -> jax.Array:
        return choose_rois(losses, rois, mining)

    def image_loss(
        variables: dict, features: jax.Array, rois: Rois, key: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        sample_key, dropout_key = jax.random.split(key)
        # One key a RoI: found hard under one dropout mask, it is to be learned from under the same.
        keys = jax.random.split(dropout_key, len(rois.boxes)) if model.dropout else None
        if mining.kind == "ohem":
            seen = {}

            def select(losses: jax.Array, rois: Rois, *_: Any) -> jax.Array:
                # The losses of the read-only pass, for the statistics: nobody else gets to see them.
                seen["losses"], seen["keep"] = losses, choose(losses, rois)
                return seen["keep"]

            hard = mine(head_losses, select, capacity=mining.k, in_axes=(None, None, 0, 0))
            mined = hard(variables, features, rois, keys)
            loss = masked_mean(mined.losses, where=mined.keep, denominator=mining.k)
            return loss, _describe(rois, seen["keep"], seen["losses"])
        if mining.kind in ("random", "bootstrap"):
            keep = draw_rois(sample_key, rois, mining)
            chosen = fit(keep.astype(jnp.float32), keep, capacity=mining.k)
            few, few_keys = jax.tree.map(lambda x: x[chosen.indices], (rois, keys))
            losses = head_losses(variables, features, few, few_keys)
            loss = masked_mean(losses, where=chosen.keep, denominator=mining.k)
            return loss, _describe(rois, keep)
        losses = head_losses(variables, features, rois, keys)
        keep = choose(losses, rois)
        denominator = len(losses) if mining.kind == "all" else mining.k
        return masked_mean(losses, where=keep, denominator=denominator), _describe(rois, keep, losses)

    return image_loss


def make_head_losses(model: nn.Module, *, focal: bool, train: bool) -> Callable[..., jax.Array]:
    """`(variables, features [h, w, F], rois [n], keys [n] or None) -> losses [n]`, pooling included.

    Boxes carry the units, the feature map is shared: so no gradient of the pooled features is ever made for
    RoIs that were not chosen.
    """

    def head_losses(variables: dict, features: jax.Array, rois: Rois, keys: jax.Array | None) -> jax.Array:
        logits, deltas = apply_head(model, variables, features, rois.boxes, train=train, keys=keys)
        if not focal:
            return fast_rcnn_losses(logits, deltas, rois.labels, rois.targets)
        box = smooth_l1(_own_deltas(deltas, rois.labels) - rois.targets).sum(-1)
        return focal_losses(logits[..., 1:], rois.labels) + jnp.where(rois.labels > 0, box, 0.0)

    return head_losses


def make_choice(model: nn.Module, mining: Mining) -> Callable[[dict, dict], dict[str, jax.Array]]:
    """`(variables, batch) -> {"keep" bool [B, N], "boxes" [B, N, 4], "labels" [B, N]}`: what this network
    would be trained on, without dropout; draws are the same each time."""
    head_losses = make_head_losses(model, focal=mining.kind == "focal", train=False)

    def choice(variables: dict, batch: dict) -> dict[str, jax.Array]:
        features = apply_trunk(model, variables, batch["image"])

        def one(features: jax.Array, rois: Rois, index: jax.Array) -> jax.Array:
            if mining.kind in ("random", "bootstrap"):
                return draw_rois(jax.random.fold_in(jax.random.key(0), index), rois, mining)
            return choose_rois(head_losses(variables, features, rois, None), rois, mining)

        rois = make_rois(batch)
        keep = jax.vmap(one)(features, rois, batch["index"])
        return {"keep": keep, "boxes": rois.boxes, "labels": rois.labels}

    return choice


def _own_deltas(deltas: jax.Array, labels: jax.Array) -> jax.Array:
    """[n, C, 4] -> [n, 4], those of the RoI's own class."""
    row = jnp.maximum(labels - 1, 0)
    return jnp.take_along_axis(deltas, row[:, None, None], axis=1)[:, 0]


def _describe(rois: Rois, keep: jax.Array, losses: jax.Array | None = None) -> dict[str, Any]:
    """What was kept of one image."""
    described = stats(keep.astype(jnp.float32) if losses is None else losses, keep, rois.where)
    count = jnp.maximum(keep.sum(), 1)
    metrics = {
        "fraction_kept": described.fraction_kept,
        "foreground_share": (keep & (rois.labels > 0)).sum() / count,
    }
    return metrics if losses is None else {**metrics, "loss_captured": described.loss_captured}
