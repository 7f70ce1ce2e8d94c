"""Top-down pose as a task: the mined loss, prediction, and scores in the pixels of the original images.

Crops are `[B, H, W, 3]`, keypoints `[..., K, 2]` (x, y). A network's heatmaps are a whole number of times
smaller than the crops, 4 as a rule.
"""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from pose_networks import NO_EARLY, Early

from hardmine_jax.data.person_boxes import PersonBoxes
from hardmine_jax.data.problems import UnreadableImage
from hardmine_jax.mining import masked_mean, random_k, stats, threshold, top_k
from hardmine_jax.models import normalise_images
from hardmine_jax.pose import (
    Skeleton,
    decode_heatmaps,
    encode_heatmaps,
    flip_heatmaps,
    heatmap_mse,
    heatmap_to_image,
    image_to_heatmap,
    oks,
    pck_correct,
)
from hardmine_jax.pose.affine import apply_affine, box_to_centre_scale
from hardmine_jax.pose.coco_eval import coco_average_precision
from hardmine_jax.pose.coco_results import coco_results

Head = Literal["global", "refine"]


@dataclasses.dataclass(frozen=True)
class Inputs:
    """What a network takes for the image and its pixels; other people's networks differ from those made here.

    Attributes:
      origin: see `heatmap_to_image`; 0 for networks that the released code of SimpleBaseline, HRNet or
        Hourglass trained, by default the middle of the pixels that a heatmap pixel covers.
      flip_shift: of the flip test, see `flip_heatmaps`; 1 for those.
      channels: order of the colours; SimpleBaseline's released networks take bgr.
    """

    origin: float | None = None
    flip_shift: int = 0
    channels: Literal["rgb", "bgr"] = "rgb"


OWN_INPUTS = Inputs()


def to_network(images: jax.Array, inputs: Inputs) -> jax.Array:
    """uint8 [B, H, W, 3] RGB -> what the network takes, float32."""
    # The released code keeps the means in the order of RGB, whatever the image's is.
    return normalise_images(images[..., ::-1] if inputs.channels == "bgr" else images)


def make_loss(
    model: nn.Module,
    *,
    mining: str,
    k: int | jax.Array,
    min_loss: float,
    sigma: float,
    early: Early = NO_EARLY,
    supervised: Sequence[Head] = ("global", "refine"),
    mined: Sequence[Head] = ("refine",),
    inputs: Inputs = OWN_INPUTS,
    axis_name: str | None = None,
) -> Callable[..., tuple[jax.Array, tuple[dict, dict]]]:
    """The training loss `(params, batch_stats, batch, key) -> (loss, (batch_stats, metrics))`.

    Args:
      model: `model.apply(variables, images, train=True)` -> heatmaps, or a tuple of such: "global" are all
        but the last, "refine" is the last, as CPN calls them.
      mining: what is kept of each image's labelled keypoints: "ohkm" the k hardest, "random" k of them,
        "threshold" those above `min_loss` and at least the k hardest, "none" all. Every sum is over a
        denominator that no label changes (k an image; K for "none" and "threshold"), so that devices average
        exactly.
      k: a Python int, or int32 [] that may be traced.
      min_loss: share of what an empty heatmap costs.
      sigma: of the target Gaussians of "refine", heatmap pixels.
      early: how "global" is supervised.
      supervised: which heatmaps are in the loss; "refine" always is.
      mined: of which heatmaps only what mining keeps is; of others all labelled keypoints.
      inputs: what the network takes for the image and its pixels.
      axis_name: the mapped axis, inside pmap or shard_map.

    Returns:
      The function. Its metrics, of the last heatmaps: `mse`, over all labelled keypoints whatever was kept,
      and but for "none" what `mining.stats` tells: `fraction_kept`, `loss_captured`, `entropy` [] and
      `unit_rate` [K]. These are
      ratios over the images of all devices together. Over micro-batches, and over the steps of a log line,
      they are averaged, a mean of ratios: a joint that is labelled nowhere in one of these counts as 0 there,
      and the entropy is that of a choice within it. Where "global" is supervised, `global_loss` is its loss
      before `early.weight`.
    """

    def loss_function(params, batch_stats, batch, key):
        variables = {"params": params, "batch_stats": batch_stats}
        images = to_network(batch["image"], inputs)
        heatmaps, updated = model.apply(variables, images, train=True, mutable=["batch_stats"])
        loss, metrics = mined_loss(
            heatmaps, batch, key, mining=mining, k=k, min_loss=min_loss, sigma=sigma, early=early,
            supervised=supervised, mined=mined, origin=inputs.origin, axis_name=axis_name,
        )  # fmt: skip
        return loss, (updated["batch_stats"], metrics)

    return loss_function


def mined_loss(
    heatmaps: Any,
    batch: dict,
    key: jax.Array,
    *,
    mining: str,
    k: int | jax.Array,
    min_loss: float,
    sigma: float,
    early: Early = NO_EARLY,
    supervised: Sequence[Head] = ("global", "refine"),
    mined: Sequence[Head] = ("refine",),
    origin: float | None = None,
    axis_name: str | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Everything between the heatmaps and the loss: targets, losses, choice, mean; see `make_loss`."""
    *first, last = jax.tree.leaves(heatmaps)

    def one(heatmaps, sigma, head, visible_only=False):
        kind = mining if head in mined else "none"
        seen = 2 if visible_only and kind == "none" else 1
        labelled = (batch["visibility"] >= seen) & batch["where"][:, None]
        return _head_loss(
            heatmaps, labelled, batch, key, mining=kind, k=k, min_loss=min_loss, sigma=sigma, origin=origin,
            axis_name=axis_name,
        )  # fmt: skip

    loss, metrics = one(last, sigma, "refine")
    if first and "global" in supervised:
        every = zip(first, early.sigmas, strict=True)
        losses = [one(heatmaps, sigma, "global", early.visible_only)[0] for heatmaps, sigma in every]
        global_loss = sum(losses) / len(losses)
        loss += early.weight * global_loss
        metrics["global_loss"] = jax.lax.stop_gradient(global_loss)
    return loss, metrics


def _head_loss(
    heatmaps: jax.Array,
    labelled: jax.Array,
    batch: dict,
    key: jax.Array,
    *,
    mining: str,
    k: int | jax.Array,
    min_loss: float,
    sigma: float,
    origin: float | None,
    axis_name: str | None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The loss of one set of heatmaps over the keypoints that count, bool [B, K]."""
    size = heatmaps.shape[1:3]
    stride = batch["image"].shape[1] / size[0]
    keypoints = image_to_heatmap(batch["keypoints"], stride=stride, origin=origin)
    targets = encode_heatmaps(keypoints, size=size, sigma=sigma, where=labelled)
    losses = heatmap_mse(heatmaps, targets, where=labelled)
    num_images, num_keypoints = losses.shape
    empty = np.pi * sigma**2 / (size[0] * size[1])
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, batch["index"]) if mining == "random" else None
    keep, count = _choose(losses, labelled, keys, mining=mining, k=k, min_loss=min_loss * empty)
    loss = masked_mean(losses, where=keep, denominator=count * num_images)
    mse = masked_mean(losses, where=labelled, denominator=num_keypoints * num_images)
    metrics = {"mse": jax.lax.stop_gradient(mse)}
    if mining != "none":
        metrics |= stats(losses, keep, labelled, axis_name=axis_name)._asdict()
    return loss, metrics


def _choose(
    losses: jax.Array,
    labelled: jax.Array,
    keys: jax.Array | None,
    *,
    mining: str,
    k: int | jax.Array,
    min_loss: float,
) -> tuple[jax.Array, int | jax.Array]:
    """What is kept [B, K], and how many keypoints of an image its loss is divided by."""
    if mining == "ohkm":
        return top_k(losses, k=k, where=labelled), k
    if mining == "random":
        # One key an image, from its index: the same draw however the batch is split over devices.
        return jax.vmap(lambda *one: random_k(*one[:2], k=k, where=one[2]))(keys, losses, labelled), k
    if mining == "threshold":
        return threshold(losses, min_loss=min_loss, min_kept=k, where=labelled), losses.shape[-1]
    return labelled, losses.shape[-1]


def make_predict(
    model: nn.Module,
    skeleton: Skeleton,
    *,
    sigma: float,
    decode: str,
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


@dataclasses.dataclass(frozen=True)
class People:
    """Everybody of a split, without the pictures: what predictions are compared with, original pixels.

    Attributes:
      rows: int [N], positions in the source.
      keypoints: float [N, K, 2].
      visibility: int [N, K]; 0 not labelled, 1 occluded, 2 visible.
      box: float [N, 4], the dataset's own, xyxy.
      area: float [N]; image_id, annotation_id: int [N]; names: N strings.
    """

    rows: np.ndarray
    keypoints: np.ndarray
    visibility: np.ndarray
    box: np.ndarray
    area: np.ndarray
    image_id: np.ndarray
    annotation_id: np.ndarray
    names: tuple[str, ...]

    @property
    def labelled(self) -> np.ndarray:
        return self.visibility > 0

    @property
    def boxes(self) -> np.ndarray:
        """Tight boxes around the labelled keypoints, xyxy [N, 4]; the dataset's where that is a point."""
        points, where = self.keypoints, self.labelled[..., None]
        low = np.where(where, points, np.inf).min(1)
        high = np.where(where, points, -np.inf).max(1)
        tight = np.concatenate([low, high], axis=-1)
        return np.where((high > low).any(-1, keepdims=True), tight, self.box)


def read_people(source: Sequence[dict], rows: Iterable[int], *, skip_unreadable: bool = False) -> People:
    """The labels of some records of a source."""
    names = ("index", "keypoints", "visibility", "box", "area", "image_id", "annotation_id", "name")
    people = []
    # One record at a time: its picture is dropped before the next is read.
    for row in rows:
        try:
            record = source[int(row)]
        except UnreadableImage:
            if not skip_unreadable:
                raise
            continue
        people.append([record[name] for name in names])
    *columns, labels = zip(*people, strict=True)
    return People(*(np.stack(column) for column in columns), labels)


def mean_pose(people: People) -> np.ndarray:
    """[K, 2]: where each keypoint lies on average in the box around a person, as a share of its sides."""
    boxes, where = people.boxes[:, None], people.labelled
    shares = (people.keypoints - boxes[..., :2]) / np.maximum(boxes[..., 2:] - boxes[..., :2], 1e-6)
    counts = np.maximum(where.sum(0), 1)[:, None]
    return np.where(where[..., None], shares, 0.0).sum(0) / counts


def place_pose(pose: np.ndarray, people: People) -> np.ndarray:
    """The same pose [K, 2] in everybody's box: [N, K, 2]."""
    boxes = people.boxes[:, None]
    return boxes[..., :2] + pose * (boxes[..., 2:] - boxes[..., :2])


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


def correct_keypoints(predicted: np.ndarray, people: People, *, fraction: float) -> np.ndarray:
    """bool [N, K]: within `fraction` of the longer side of the box around the person's labelled keypoints."""
    boxes = people.boxes
    reference = np.maximum(boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1])
    where, target = people.labelled, np.where(people.labelled[..., None], people.keypoints, 0.0)
    return np.asarray(
        pck_correct(jnp.asarray(predicted), jnp.asarray(target), reference=jnp.asarray(reference),
                    fraction=fraction, where=jnp.asarray(where))
    )  # fmt: skip


def pck(predicted: np.ndarray, people: People, *, fraction: float = 0.1) -> float | None:
    """Share of everybody's labelled keypoints that `correct_keypoints` finds right."""
    return _share(correct_keypoints(predicted, people, fraction=fraction), people.labelled)


def score(predicted: np.ndarray, scores: np.ndarray, people: People, skeleton: Skeleton) -> dict:
    """The numbers of result.json: `pck` and its parts, `pck@0.2`, COCO's `ap`, `per_joint`."""
    visible, occluded = people.visibility == 2, people.visibility == 1
    correct = correct_keypoints(predicted, people, fraction=0.1)
    per_joint = {
        name: {
            "pck": _share(correct[:, j], people.labelled[:, j]),
            "pck_visible": _share(correct[:, j], visible[:, j]),
            "pck_occluded": _share(correct[:, j], occluded[:, j]),
            "count": int(people.labelled[:, j].sum()),
        }
        for j, name in enumerate(skeleton.names)
    }
    return {
        "pck": _share(correct, people.labelled),
        "pck@0.2": pck(predicted, people, fraction=0.2),
        "pck_visible": _share(correct, visible),
        "pck_occluded": _share(correct, occluded),
        **average_precision(predicted, scores, people, skeleton),
        "per_joint": per_joint,
    }


_COCO_NAMES = {
    "AP": "ap", "AP50": "ap50", "AP75": "ap75", "APM": "ap_medium", "APL": "ap_large",
    "AR": "ar", "AR50": "ar50", "AR75": "ar75", "ARM": "ar_medium", "ARL": "ar_large",
}  # fmt: skip


def average_precision(
    predicted: np.ndarray, scores: np.ndarray, people: People, skeleton: Skeleton
) -> dict[str, float]:
    """COCO's keypoint AP and AR, boxes from the ground truth; a person's score is its mean keypoint score."""
    predictions = [
        {
            "image_id": int(people.image_id[row]),
            "keypoints": np.column_stack([predicted[row], scores[row]]).ravel(),
            "score": float(scores[row].mean()),
        }
        for row in range(len(people.names))
    ]
    measured = coco_average_precision(predictions, coco_annotations(people), sigmas=skeleton.sigmas)
    names = ("AP", "AP50", "AP75", "AR")
    return {_COCO_NAMES[name]: measured[name] for name in names}


def coco_annotations(people: People) -> list[dict]:
    """The people as COCO annotations: the ground truth of a dataset that has no COCO file."""
    return [
        {
            "image_id": int(people.image_id[row]),
            "keypoints": np.column_stack([people.keypoints[row], people.visibility[row]]).ravel(),
            "area": float(people.area[row]),
        }
        for row in range(len(people.names))
    ]


def score_boxes(
    rows: np.ndarray,
    predicted: np.ndarray,
    scores: np.ndarray,
    boxes: PersonBoxes,
    annotations: Sequence[dict],
    skeleton: Skeleton,
    *,
    size: tuple[int, int],
    padding: float,
) -> dict[str, float]:
    """COCO's AP and AR of the predictions on a detector's boxes, by the published procedure.

    People are scored by box and keypoints, copies are taken out by OKS over the areas of the crops, 20 an
    image remain; see `coco_results`.

    Args:
      rows: [N], positions in `boxes`; predicted [N, K, 2] original pixels and scores [N, K] are
        `predict_people`'s.
      annotations: everything labelled on the images of `boxes`, crowds and people without labels too.
      size: (H, W) of the crops; padding: of the boxes.

    Returns:
      ap, ap50, ap75, ap_medium, ap_large, and the same of ar.
    """
    crops = [box_to_centre_scale(box, aspect=size[1] / size[0], padding=padding) for box in boxes.boxes[rows]]
    results = coco_results(
        boxes.image_ids[rows],
        predicted,
        scores,
        box_scores=boxes.scores[rows],
        areas=np.array([sides.prod() for _, sides in crops]),
        sigmas=skeleton.sigmas,
    )
    measured = coco_average_precision(results, annotations, sigmas=skeleton.sigmas)
    return {short: measured[name] for name, short in _COCO_NAMES.items()}


def mean_oks(predicted: np.ndarray, people: People, skeleton: Skeleton) -> np.ndarray:
    """[N] object keypoint similarity of each person, to rank examples by."""
    target = np.where(people.labelled[..., None], people.keypoints, 0.0)
    arrays = (jnp.asarray(x) for x in (predicted, target))
    return np.asarray(
        oks(*arrays, area=jnp.asarray(people.area), sigmas=jnp.asarray(skeleton.sigmas),
            where=jnp.asarray(people.labelled))
    )  # fmt: skip


def _share(correct: np.ndarray, where: np.ndarray) -> float | None:
    """Share of True among the places that count; None where none does."""
    return float(correct[where].mean()) if where.any() else None
