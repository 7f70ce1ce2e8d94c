"""How detection records and their proposals become images of static shape, for `stream.endless_batches` and
`stream.ordered_batches`.

A batch is a dictionary of numpy arrays; boxes are xyxy in pixels of "image":
  image u8 [B, H, W, 3] RGB, the picture in the top left corner, 0 beside it
  image_size i32 [B, 2] (height, width of the picture); scale f32 [B] (these pixels per original pixel)
  boxes f32 [B, M, 4], labels i32 [B, M], difficult bool [B, M], crowd bool [B, M], boxes_where bool [B, M]:
    the objects, and what is left alone (label 0, difficult and crowd); see `records.py`
  proposals f32 [B, P, 4], proposals_where bool [B, P]: best first
  index i32 [B] (position in the source, -1 on padding), where bool [B] (False on padding)
Where a `where` is False the boxes, labels, difficult and crowd are 0.
"""

import functools
from collections.abc import Callable
from typing import Protocol

import numpy as np

from hardmine_jax.data.detection.augment import DetectionAugmentConfig, augment_image, evaluate_image
from hardmine_jax.data.stream import Augment, Reading


class ProposalsByPosition(Protocol):
    """`[i]` -> proposals f32 [P, 4] xyxy in pixels of the original image."""

    def __getitem__(self, index: int, /) -> np.ndarray: ...


# By a record's "index", its position in the source.
Proposals = ProposalsByPosition | Callable[[int], np.ndarray]


def train_images(
    proposals: Proposals,
    *,
    size: tuple[int, int],
    config: DetectionAugmentConfig,
    max_boxes: int,
    max_proposals: int,
) -> Augment:
    """`(record, rng) -> example`, varied as `config` says.

    Args:
      proposals: of a record, by its "index"; picklable where several processes read.
      size: (H, W) of the canvas all images fit on.
      max_boxes: M; at least `source.objects_per_image.max()`: an object that is not told would be trained as
        background, so none is cut.
      max_proposals: P; of more, the first are kept.

    Raises:
      ValueError: a number out of its range; while reading, an image with more objects than `max_boxes`.
    """
    _check(size, max_boxes, max_proposals)
    return functools.partial(
        _train_example,
        proposals=proposals,
        size=size,
        config=config,
        max_boxes=max_boxes,
        max_proposals=max_proposals,
    )


def evaluation_images(
    proposals: Proposals,
    *,
    size: tuple[int, int],
    max_boxes: int,
    max_proposals: int,
    short_side: int | None = None,
) -> Reading:
    """Images that are not varied.

    Args:
      short_side: see `augment.evaluate_image`.
      others: as for `train_images`.

    Raises:
      ValueError: as `train_images`.
    """
    _check(size, max_boxes, max_proposals)
    read = functools.partial(
        _evaluation_example,
        proposals=proposals,
        size=size,
        short_side=short_side,
        max_boxes=max_boxes,
        max_proposals=max_proposals,
    )
    nothing = {
        "image": np.zeros((*size, 3), np.uint8),
        "image_size": np.zeros(2, np.int32),
        "scale": np.float32(1),
        "boxes": np.zeros((0, 4), np.float32),
        "proposals": np.zeros((0, 4), np.float32),
    }
    unlabelled = {"labels": np.zeros(0, np.int32), "difficult": np.zeros(0, bool), "index": -1}
    return Reading(read, _padded(nothing, unlabelled, max_boxes=max_boxes, max_proposals=max_proposals))


def _check(size: tuple[int, int], max_boxes: int, max_proposals: int) -> None:
    if min(size) < 1 or max_boxes < 1 or max_proposals < 1:
        raise ValueError(
            f"size={size}, max_boxes={max_boxes} and max_proposals={max_proposals} must be 1 or more"
        )


def _train_example(
    record: dict,
    rng: np.random.Generator,
    *,
    proposals: Proposals,
    size: tuple[int, int],
    config: DetectionAugmentConfig,
    max_boxes: int,
    max_proposals: int,
) -> dict:
    shown = augment_image(
        record, _proposals_of(record, proposals, max_proposals), rng, size=size, config=config
    )
    return _padded(shown, record, max_boxes=max_boxes, max_proposals=max_proposals)


def _evaluation_example(
    record: dict,
    *,
    proposals: Proposals,
    size: tuple[int, int],
    short_side: int | None,
    max_boxes: int,
    max_proposals: int,
) -> dict:
    found = _proposals_of(record, proposals, max_proposals)
    shown = evaluate_image(record, found, size=size, short_side=short_side)
    return _padded(shown, record, max_boxes=max_boxes, max_proposals=max_proposals)


def _proposals_of(record: dict, proposals: Proposals, max_proposals: int) -> np.ndarray:
    find = proposals if callable(proposals) else proposals.__getitem__
    return np.asarray(find(record["index"]), np.float32).reshape(-1, 4)[:max_proposals]


def _padded(shown: dict, record: dict, *, max_boxes: int, max_proposals: int) -> dict:
    """`shown` with boxes and proposals in static shapes, and what the record says of its objects."""
    count = len(record["labels"])
    if count > max_boxes:
        raise ValueError(
            f"{record['name']} shows {count} objects > max_boxes={max_boxes}: give max_boxes={count} or more"
        )
    boxes, proposals = _rows(shown["boxes"], max_boxes), _rows(shown["proposals"], max_proposals)
    # Sides of no length, where a corner was clipped away, have no logarithm to regress to.
    boxes_where = np.all(boxes[:, 2:] > boxes[:, :2], axis=-1)
    proposals_where = np.all(proposals[:, 2:] > proposals[:, :2], axis=-1)
    return {
        "image": shown["image"],
        "image_size": shown["image_size"],
        "scale": shown["scale"],
        "boxes": np.where(boxes_where[:, None], boxes, np.float32(0)),
        "labels": np.where(boxes_where, _rows(record["labels"], max_boxes), np.int32(0)),
        "difficult": boxes_where & _rows(record["difficult"], max_boxes),
        # Records that are not from a file may do without.
        "crowd": boxes_where & _rows(record.get("crowd", np.zeros(count, bool)), max_boxes),
        "boxes_where": boxes_where,
        "proposals": np.where(proposals_where[:, None], proposals, np.float32(0)),
        "proposals_where": proposals_where,
        "index": np.int32(record["index"]),
    }


def _rows(values: np.ndarray, count: int) -> np.ndarray:
    rows = np.zeros((count, *values.shape[1:]), values.dtype)
    rows[: len(values)] = values
    return rows
