"""From a detection record to a network's input: decode, resize, mirror, turn, colour; boxes go along.

Boxes are xyxy, half open: the left edge of the first pixel is 0.0, the right edge of the last is the width.
The picture stands in the top left corner of the static canvas, what is left of it is 0.
"""

import dataclasses

import cv2
import numpy as np

from hardmine_jax.data.images import decode_smaller, jitter
from hardmine_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class DetectionAugmentConfig:
    """How a training image is varied (defaults: Fast R-CNN, arXiv:1504.08083 section 2.3, and colour).

    Attributes:
      short_sides: pixels that the shorter side is resized to, one of them at random each time; never so much
        that the picture would outgrow the canvas. Empty: always as large as the canvas holds.
      flip_probability: how many are mirrored left to right.
      vertical_flip_probability: how many are mirrored top to bottom; for pictures without an up.
      quarter_turns: turn by 0, 90, 180 or 270 degrees, each as often; for pictures without an up.
      colour: strength of brightness, contrast and saturation changes; 0.2 is 80 to 120 %, 0 is off.

    Raises:
      UserError: a probability outside 0..1, a short side below 1, a colour outside 0..1 (1 excluded).
    """

    short_sides: tuple[int, ...] = ()
    flip_probability: float = 0.5
    vertical_flip_probability: float = 0.0
    quarter_turns: bool = False
    colour: float = 0.2

    def __post_init__(self) -> None:
        for name in ("flip_probability", "vertical_flip_probability"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"{name}={getattr(self, name)} is no probability: give 0 to 1")
        if any(side < 1 for side in self.short_sides):
            raise UserError(f"short_sides={self.short_sides} must be 1 pixel or more each")
        if not 0 <= self.colour < 1:
            raise UserError(f"colour={self.colour} must be in 0..1, 1 excluded")


def augment_image(
    record: dict,
    proposals: np.ndarray,
    rng: np.random.Generator,
    *,
    size: tuple[int, int],
    config: DetectionAugmentConfig,
) -> dict:
    """A randomly varied picture on the canvas.

    Args:
      record: see `data/detection/records.py`; "image" is encoded bytes.
      proposals: [P, 4] in pixels of the original.
      rng: the only source of chance: the same state gives the same bits.
      size: (H, W) of the canvas.

    Returns:
      {"image": u8 [H, W, 3] RGB, "image_size": i32 [2] (height, width of the picture in it), "scale": f32
      (pixels of the canvas per original pixel), "boxes": f32 [M, 4], "proposals": f32 [P, 4]}, both in pixels
      of the canvas and clipped to the picture.

    Raises:
      UnreadableImage: the bytes are no whole image.
    """
    short_side = int(rng.choice(config.short_sides)) if config.short_sides else None
    turns = int(rng.integers(4)) if config.quarter_turns else 0
    flip = rng.random() < config.flip_probability
    vertical = rng.random() < config.vertical_flip_probability
    image, scale = _resized(record, size, short_side, turned=turns % 2 == 1)
    boxes = np.concatenate([record["boxes"], proposals]).astype(np.float64) * scale
    if flip:
        image, boxes = flip_horizontal(image, boxes)
    if vertical:
        image, boxes = flip_vertical(image, boxes)
    for _ in range(turns):
        image, boxes = turn_left(image, boxes)
    if config.colour:
        image = jitter(np.ascontiguousarray(image), rng, config.colour)
    return _on_canvas(image, boxes, scale, len(record["boxes"]), size)


def evaluate_image(
    record: dict, proposals: np.ndarray, *, size: tuple[int, int], short_side: int | None = None
) -> dict:
    """The picture as it is, resized; arguments and result as in `augment_image`.

    Args:
      short_side: pixels that the shorter side is resized to, at most what the canvas holds; None: that.
    """
    image, scale = _resized(record, size, short_side, turned=False)
    boxes = np.concatenate([record["boxes"], proposals]).astype(np.float64) * scale
    return _on_canvas(image, boxes, scale, len(record["boxes"]), size)


def flip_horizontal(image: np.ndarray, boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Image [H, W, 3] and boxes [N, 4], mirrored left to right.

    >>> flip_horizontal(np.zeros((8, 10, 3)), np.array([[0.0, 2.0, 3.0, 4.0]]))[1]
    array([[ 7.,  2., 10.,  4.]])
    """
    x1, y1, x2, y2 = np.moveaxis(boxes, -1, 0)
    width = image.shape[1]
    return image[:, ::-1], np.stack([width - x2, y1, width - x1, y2], -1)


def flip_vertical(image: np.ndarray, boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Image [H, W, 3] and boxes [N, 4], mirrored top to bottom."""
    x1, y1, x2, y2 = np.moveaxis(boxes, -1, 0)
    height = image.shape[0]
    return image[::-1], np.stack([x1, height - y2, x2, height - y1], -1)


def turn_left(image: np.ndarray, boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Image [H, W, 3] -> [W, H, 3] and boxes [N, 4], turned by 90 degrees against the clock."""
    x1, y1, x2, y2 = np.moveaxis(boxes, -1, 0)
    width = image.shape[1]
    return np.rot90(image), np.stack([y1, width - x2, y2, width - x1], -1)


def _resized(
    record: dict, size: tuple[int, int], short_side: int | None, *, turned: bool
) -> tuple[np.ndarray, float]:
    """RGB picture that fits the canvas, after a quarter turn where `turned`, and its scale."""
    image, _ = decode_smaller(record, 0)
    height, width = image.shape[:2]
    canvas_height, canvas_width = size[::-1] if turned else size
    scale = min(canvas_height / height, canvas_width / width)
    if short_side is not None:
        scale = min(scale, short_side / min(height, width))
    if scale != 1:
        method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
        # A size rounded to whole pixels would not be at exactly this scale; factors are.
        factors = {"fx": max(scale, 1 / width), "fy": max(scale, 1 / height)}
        image = cv2.resize(image, None, **factors, interpolation=method)
    return cv2.cvtColor(image[:canvas_height, :canvas_width], cv2.COLOR_BGR2RGB), scale


def _on_canvas(
    image: np.ndarray, boxes: np.ndarray, scale: float, num_objects: int, size: tuple[int, int]
) -> dict:
    height, width = image.shape[:2]
    canvas = np.zeros((*size, 3), np.uint8)
    canvas[:height, :width] = image
    boxes = np.clip(boxes, 0, [width, height, width, height]).astype(np.float32)
    return {
        "image": canvas,
        "image_size": np.array([height, width], np.int32),
        "scale": np.float32(scale),
        "boxes": boxes[:num_objects],
        "proposals": boxes[num_objects:],
    }
