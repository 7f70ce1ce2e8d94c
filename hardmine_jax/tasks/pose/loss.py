"""The mined heatmap loss: targets, losses a keypoint, choice, mean."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from hardmine_jax.mining import (
    harder_than_easiest,
    masked_mean,
    over_batch,
    random_k,
    stats,
    threshold,
    top_k,
)
from hardmine_jax.pose import encode_heatmaps, heatmap_mse, image_to_heatmap
from hardmine_jax.tasks.pose.networks import NO_EARLY, OWN_INPUTS, Early, Inputs, to_network
from hardmine_jax.training import LossFunction

MiningName = Literal["none", "ohkm", "random", "threshold", "sleap"]
Over = Literal["image", "batch"]
Head = Literal["global", "refine"]


@dataclasses.dataclass(frozen=True)
class Mining:
    """Which labelled keypoints of each image carry the gradient.

    Attributes:
      kind: "ohkm" the k hardest, "random" k of them, "threshold" those above `min_loss` and at least the k
        hardest, "sleap" the joints that are at least twice as hard as the easiest one over the batch, at
        least two (`harder_than_easiest`), "none" all. Every sum is over a denominator that no label changes
        (k an image; the number of hard joints for "sleap"; K for "none" and "threshold"), so that devices
        average exactly.
      k_at: step, int32 [] -> k, a Python int or int32 [] that may be traced.
      min_loss: share of what an empty heatmap costs.
      easy_weight: of the loss over all labelled keypoints, added to the mined one: sum / (K * images).
      over: "image" k of each image; "batch" k times the images, of all devices' images together.
      hard_weight: of the mined loss.
      weights: one a keypoint, of its loss everywhere, in the choice too; None is 1.
    """

    kind: MiningName = "none"
    k_at: Callable[[jax.Array], int | jax.Array] = lambda step: 1
    min_loss: float = 0.25
    easy_weight: float = 0.0
    over: Over = "image"
    hard_weight: float = 1.0
    weights: tuple[float, ...] | None = None


@dataclasses.dataclass(frozen=True)
class Supervision:
    """What the heatmaps are to be. "global" are all but the last, "refine" is the last, as CPN calls them.

    Attributes:
      sigma: of the target Gaussians of "refine", heatmap pixels.
      early: how "global" is supervised.
      supervised: which heatmaps are in the loss; "refine" always is.
      mined: of which heatmaps only what mining keeps is; of others all labelled keypoints.
      origin: see `image_to_heatmap`.
    """

    sigma: float
    early: Early = NO_EARLY
    supervised: tuple[Head, ...] = ("global", "refine")
    mined: tuple[Head, ...] = ("refine",)
    origin: float | None = None


def make_loss(
    model: nn.Module,
    mining: Mining,
    supervision: Supervision,
    *,
    inputs: Inputs = OWN_INPUTS,
    axis_name: str | None = None,
) -> LossFunction:
    """The training loss `(params, batch_stats, batch, key, step) -> (loss, (batch_stats, metrics))`.

    Args:
      model: `model.apply(variables, images, train=True)` -> heatmaps, or a tuple of such.
      inputs: what the network takes for the image and its pixels.
      axis_name: the mapped axis, inside pmap or shard_map.

    Returns:
      The function. Its metrics, of the last heatmaps: `mse`, over all labelled keypoints whatever was kept,
      and but for "none" what `mining.stats` tells: `fraction_kept`, `loss_captured`, `entropy` [] and
      `unit_rate` [K]. These are ratios over the images of all devices together. Over micro-batches, and over
      the steps of a log line, they are averaged, a mean of ratios: a joint that is labelled nowhere in one of
      these counts as 0 there, and the entropy is that of a choice within it. Where "global" is supervised,
      `global_loss` is its loss before `early.weight`.
    """

    def loss_function(
        params: Any, batch_stats: Any, batch: dict[str, jax.Array], key: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, tuple[Any, dict[str, jax.Array]]]:
        variables = {"params": params, "batch_stats": batch_stats}
        images = to_network(batch["image"], inputs)
        heatmaps, updated = model.apply(variables, images, train=True, mutable=["batch_stats"])
        loss, metrics = mined_loss(heatmaps, batch, key, step, mining, supervision, axis_name=axis_name)
        return loss, (updated["batch_stats"], metrics)

    return loss_function


def mined_loss(
    heatmaps: Any,
    batch: dict,
    key: jax.Array,
    step: jax.Array,
    mining: Mining,
    supervision: Supervision,
    *,
    axis_name: str | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Everything between the heatmaps and the loss: targets, losses, choice, mean; see `make_loss`."""
    *first, last = jax.tree.leaves(heatmaps)
    early = supervision.early

    def one(
        heatmaps: jax.Array, sigma: float, head: Head, visible_only: bool = False
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        chosen = mining if head in supervision.mined else Mining("none", weights=mining.weights)
        seen = 2 if visible_only and chosen.kind == "none" else 1
        labelled = (batch["visibility"] >= seen) & batch["where"][:, None]
        losses = _losses(heatmaps, labelled, batch, sigma, supervision.origin)
        empty = np.pi * sigma**2 / (heatmaps.shape[1] * heatmaps.shape[2])
        return _mined_mean(losses, labelled, batch["index"], key, step, chosen, empty, axis_name)

    loss, metrics = one(last, supervision.sigma, "refine")
    if first and "global" in supervision.supervised:
        every = zip(first, early.sigmas, strict=True)
        losses = [one(heatmaps, sigma, "global", early.visible_only)[0] for heatmaps, sigma in every]
        global_loss = jnp.asarray(sum(losses) / len(losses))
        loss += early.weight * global_loss
        metrics["global_loss"] = jax.lax.stop_gradient(global_loss)
    return loss, metrics


def _losses(
    heatmaps: jax.Array, labelled: jax.Array, batch: dict, sigma: float, origin: float | None
) -> jax.Array:
    """[B, K] of one set of heatmaps over the keypoints that count, bool [B, K]."""
    height, width = heatmaps.shape[1:3]
    stride = batch["image"].shape[1] / height
    keypoints = image_to_heatmap(batch["keypoints"], stride=stride, origin=origin)
    targets = encode_heatmaps(keypoints, size=(height, width), sigma=sigma, where=labelled)
    return heatmap_mse(heatmaps, targets, where=labelled)


def _mined_mean(
    losses: jax.Array,
    labelled: jax.Array,
    index: jax.Array,
    key: jax.Array,
    step: jax.Array,
    mining: Mining,
    empty: float,
    axis_name: str | None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The mean over what is kept, and what is told of it; `empty` is what an empty heatmap costs."""
    num_images, num_keypoints = losses.shape
    # One key an image, from its index: the same draw however the batch is split over devices.
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, index) if mining.kind == "random" else None
    mse = masked_mean(losses, where=labelled, denominator=num_keypoints * num_images)
    metrics = {"mse": jax.lax.stop_gradient(mse)}
    if mining.weights is not None:
        losses = losses * np.asarray(mining.weights, losses.dtype)[None]
        mse = masked_mean(losses, where=labelled, denominator=num_keypoints * num_images)
    keep, count = _choose(losses, labelled, keys, mining, mining.k_at(step), empty, axis_name)
    loss = masked_mean(losses, where=keep, denominator=count * num_images)
    if mining.kind != "none":
        if mining.hard_weight != 1:
            loss *= mining.hard_weight
        if mining.easy_weight:
            loss += mining.easy_weight * mse
        metrics |= stats(losses, keep, labelled, axis_name=axis_name)._asdict()
    return loss, metrics


def _choose(
    losses: jax.Array,
    labelled: jax.Array,
    keys: jax.Array | None,
    mining: Mining,
    k: int | jax.Array,
    empty: float,
    axis_name: str | None,
) -> tuple[jax.Array, int | jax.Array]:
    """What is kept [B, K], and how many keypoints of an image its loss is divided by."""
    if mining.kind == "sleap":
        weighs = None if mining.weights is None else np.asarray(mining.weights) > 0
        return _hard_joints(losses, labelled, weighs, axis_name)
    if mining.kind == "random":
        return jax.vmap(lambda *one: random_k(*one[:2], k=k, where=one[2]))(keys, losses, labelled), k
    if mining.kind == "none":
        return labelled, losses.shape[-1]
    select: functools.partial[jax.Array] = functools.partial(top_k, k=k)
    count: int | jax.Array = k
    if mining.kind == "threshold":
        select, count = (
            functools.partial(threshold, min_loss=mining.min_loss * empty, min_kept=k),
            losses.shape[-1],
        )
    if mining.over == "image":
        return select(losses, where=labelled), count
    return _choose_of_all(select, losses, labelled, axis_name), count


def _choose_of_all(
    select: functools.partial[jax.Array], losses: jax.Array, labelled: jax.Array, axis_name: str | None
) -> jax.Array:
    """By the images of all devices together, each image's number times as many."""
    every = [losses, labelled]
    if axis_name is not None:
        every = [jax.lax.all_gather(array, axis_name, axis=0, tiled=True) for array in every]
    number = "k" if "k" in select.keywords else "min_kept"
    wanted = select.keywords[number] * every[0].shape[0]
    keep = over_batch(select.func)(every[0], where=every[1], **{**select.keywords, number: wanted})
    if axis_name is None:
        return keep
    first = jax.lax.axis_index(axis_name) * losses.shape[0]
    return jax.lax.dynamic_slice_in_dim(keep, first, losses.shape[0])


def _hard_joints(
    losses: jax.Array, labelled: jax.Array, weighs: np.ndarray | None, axis_name: str | None
) -> tuple[jax.Array, jax.Array]:
    """The labelled ones of joints that are hard on average over the batch, and how many joints these are."""
    known = jax.lax.stop_gradient(jnp.where(labelled, losses, 0))
    sums, counts = known.sum(axis=0), labelled.sum(axis=0, dtype=losses.dtype)
    if axis_name is not None:
        sums, counts = jax.lax.psum((sums, counts), axis_name)
    # A joint that weighs nothing would be the easiest, and all others hard beside it.
    where = counts > 0 if weighs is None else (counts > 0) & weighs
    hard = harder_than_easiest(sums / jnp.maximum(counts, 1), where=where)
    return labelled & hard[None], jnp.maximum(hard.sum(dtype=jnp.int32), 1)
