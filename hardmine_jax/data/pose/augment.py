"""From a record to a network's input: decode, one affine crop, colour; numpy and OpenCV on the host.

Pixels are `(x, y)`, centre of the first pixel 0.0; images u8 `[H, W, 3]` RGB; sizes `(H, W)`. Visibility: 0
unlabelled or outside the picture, 1 hidden, 2 seen.
"""

import dataclasses
import math

import cv2
import numpy as np

from hardmine_jax.data.images import decode_smaller, jitter
from hardmine_jax.errors import UserError
from hardmine_jax.pose import Skeleton
from hardmine_jax.pose.affine import (
    affine_matrix,
    apply_affine,
    box_to_centre_scale,
    flip_keypoints,
    half_body,
    invert_affine,
)

# What lies outside the photograph; ImageNet's mean colour, so that it is near 0 after normalisation.
BORDER = (124, 116, 104)


@dataclasses.dataclass(frozen=True)
class AugmentConfig:
    """How a training example is varied (defaults: SimpleBaseline and HRNet, arXiv:1804.06208 section 4.1).

    Attributes:
      scale: the crop's sides are multiplied by a normal number around 1, deviation `scale`, cut off there.
      rotation: standard deviation in degrees, cut off at 2 * rotation.
      rotation_probability: how many examples are turned at all.
      flip_probability: how many are mirrored, left and right names changing places.
      half_body_probability: how many show the upper or the lower half of the body only.
      half_body_min: visible keypoints that a body needs to be halved.
      colour: strength of brightness, contrast and saturation changes; 0.2 is 80 to 120 %, 0 is off.
      padding: the crop is the person's box times this.

    Raises:
      UserError: a probability outside 0..1, a scale outside 0..1 (1 excluded), or another negative number.
    """

    scale: float = 0.35
    rotation: float = 45.0
    rotation_probability: float = 0.6
    flip_probability: float = 0.5
    half_body_probability: float = 0.3
    half_body_min: int = 8
    colour: float = 0.2
    padding: float = 1.25

    def __post_init__(self) -> None:
        for name in ("rotation_probability", "flip_probability", "half_body_probability"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"{name}={getattr(self, name)} is no probability: give 0 to 1")
        if not (0 <= self.scale < 1 and 0 <= self.colour < 1):
            raise UserError(f"scale={self.scale} and colour={self.colour} must be in 0..1, 1 excluded")
        if not (self.rotation >= 0 and self.padding > 0 and self.half_body_min >= 1):
            wanted = "rotation >= 0, padding > 0 and half_body_min >= 1"
            raise UserError(f"{self} must have {wanted}")


def augment(
    record: dict,
    rng: np.random.Generator,
    *,
    size: tuple[int, int],
    skeleton: Skeleton,
    config: AugmentConfig,
) -> dict:
    """A randomly varied crop of one person.

    Args:
      record: see `data/pose/records.py`; "image" is encoded bytes.
      rng: the only source of chance: the same state gives the same bits.
      size: (H, W) of the crop.
      skeleton: of the record's keypoints.

    Returns:
      {"image": u8 [H, W, 3] RGB, "keypoints": f32 [K, 2] in pixels of the crop, "visibility": i32 [K] (0
      where the crop misses the joint; its keypoint is then (0, 0)), "index": i32, "inverse": f32 [2, 3] from
      pixels of the crop to those of the original}.

    Raises:
      UnreadableImage: the bytes are no whole image.
    """
    box, padding = record["box"], config.padding
    upper = upper_body(skeleton)
    halve = rng.random() < config.half_body_probability
    if halve and upper and np.count_nonzero(record["visibility"]) >= config.half_body_min:
        half = half_body(record["keypoints"], record["visibility"], upper, rng)
        # Joints that happen to fall close together are no half of a body; enlarged they would show nothing.
        if half is not None and _longer_side(half) >= 0.3 * _longer_side(box):
            # HRNet's wider margin: this box is tight around joints, not around the body.
            box, padding = half, 1.5
    centre, sides = box_to_centre_scale(box, aspect=size[1] / size[0], padding=padding)
    sides = sides * np.clip(1 + config.scale * rng.standard_normal(), 1 - config.scale, 1 + config.scale)
    turn = rng.random() < config.rotation_probability
    rotation = turn * config.rotation * float(np.clip(rng.standard_normal(), -2, 2))
    flip = rng.random() < config.flip_probability
    example = _crop(
        record, affine_matrix(centre, sides, rotation, size=size), size=size, skeleton=skeleton, flip=flip
    )
    if config.colour:
        example["image"] = jitter(example["image"], rng, config.colour)
    return example


def evaluate_crop(record: dict, *, size: tuple[int, int], skeleton: Skeleton, padding: float = 1.25) -> dict:
    """The person's box, padded, upright and as it is; arguments and result as in `augment`."""
    centre, sides = box_to_centre_scale(record["box"], aspect=size[1] / size[0], padding=padding)
    return _crop(
        record, affine_matrix(centre, sides, 0.0, size=size), size=size, skeleton=skeleton, flip=False
    )


def upper_body(skeleton: Skeleton) -> tuple[int, ...]:
    """Keypoints of the upper half by name: all but hips and what hangs on them.

    A skeleton without such names (a hand, a fish) has no halves: the answer is empty.
    """
    lower = ("hip", "knee", "ankle", "foot", "heel", "toe")
    upper = tuple(
        i for i, name in enumerate(skeleton.names) if not any(word in name.lower() for word in lower)
    )
    return upper if len(upper) < skeleton.num_keypoints else ()


def _longer_side(box: np.ndarray) -> float:
    return max(box[2] - box[0], box[3] - box[1])


def _crop(record: dict, matrix: np.ndarray, *, size: tuple[int, int], skeleton: Skeleton, flip: bool) -> dict:
    height, width = size
    keypoints = apply_affine(matrix, record["keypoints"].astype(np.float64))
    visibility = record["visibility"]
    if flip:
        keypoints, visibility = flip_keypoints(keypoints, visibility, width=width, skeleton=skeleton)
        matrix = np.array([[-1.0, 0.0, width - 1], [0.0, 1.0, 0.0]]) @ np.vstack([matrix, [0.0, 0.0, 1.0]])
    inside = ((keypoints >= -0.5) & (keypoints <= np.array([width, height]) - 0.5)).all(-1)
    labelled = (visibility > 0) & inside
    return {
        "image": _warp(record, matrix, size),
        "keypoints": np.where(labelled[:, None], keypoints, 0.0).astype(np.float32),
        "visibility": np.where(labelled, visibility, 0).astype(np.int32),
        "index": np.int32(record["index"]),
        "inverse": invert_affine(matrix).astype(np.float32),
    }


def _warp(record: dict, matrix: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    shrink = 1 / math.sqrt(abs(np.linalg.det(matrix[:, :2])))
    image, (step_x, step_y) = decode_smaller(record, min(int(math.log2(max(shrink, 1.0))), 3))
    # Pixel i of the smaller picture covers the pixels around (i + 0.5) * step - 0.5 of the original.
    matrix = matrix @ np.array([[step_x, 0, (step_x - 1) / 2], [0, step_y, (step_y - 1) / 2], [0, 0, 1]])
    crop = cv2.warpAffine(image, matrix, size[::-1], flags=cv2.INTER_LINEAR, borderValue=BORDER[::-1])
    return cv2.cvtColor(crop, cv2.COLOR_BGR2RGB)
