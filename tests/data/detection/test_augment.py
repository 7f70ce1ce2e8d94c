"""Boxes follow the pixels they mark: a painted rectangle is found again wherever the picture went."""

import cv2
import numpy as np
import pytest

from hardmine_jax.data.detection.augment import (
    DetectionAugmentConfig,
    augment_image,
    evaluate_image,
    flip_horizontal,
    flip_vertical,
    turn_left,
)
from hardmine_jax.data.problems import UnreadableImage

BOX = np.float32([[48, 20, 88, 52]])
PLAIN = DetectionAugmentConfig(flip_probability=0, colour=0)


def record_of(image: np.ndarray, boxes=BOX) -> dict:
    encoded = cv2.imencode(".png", image)[1].tobytes()
    labelled = {"labels": np.ones(len(boxes), np.int32), "difficult": np.zeros(len(boxes), bool)}
    return {"image": encoded, "boxes": boxes, **labelled, "name": "a", "index": 0}


def painted(height: int = 96, width: int = 144) -> dict:
    """A white rectangle on dark grey, and a box around it."""
    image = np.full((height, width, 3), 40, np.uint8)
    x1, y1, x2, y2 = BOX[0].astype(int)
    image[y1:y2, x1:x2] = 250
    return record_of(image)


def find(image: np.ndarray) -> np.ndarray:
    """xyxy of what is white, to a part of a pixel: how much of each row and column is covered."""
    cover = np.clip((image[..., 0].astype(np.float64) - 40) / 210, 0, 1)
    rows, columns = cover.max(1), cover.max(0)
    edges = []
    for profile in (columns, rows):
        inside = np.flatnonzero(profile > 0.98)
        first, last = inside[0], inside[-1] + 1
        edges.append((first - profile[:first].sum(), last + profile[last:].sum()))
    (x1, x2), (y1, y2) = edges
    return np.array([x1, y1, x2, y2])


@pytest.mark.parametrize("change", [flip_horizontal, flip_vertical])
def test_a_flip_twice_is_the_identity(change):
    rng = np.random.default_rng(0)
    image, boxes = rng.integers(0, 255, (9, 14, 3), np.uint8), rng.uniform(0, 9, (5, 4))
    once = change(image, boxes)
    assert (once[0] != image).any()
    again = change(*once)
    np.testing.assert_array_equal(again[0], image)
    np.testing.assert_allclose(again[1], boxes, atol=1e-12)


def test_four_quarter_turns_are_the_identity_and_two_are_both_flips():
    rng = np.random.default_rng(0)
    image, boxes = rng.integers(0, 255, (9, 14, 3), np.uint8), rng.uniform(0, 9, (5, 4))
    two = turn_left(*turn_left(image, boxes))
    both = flip_vertical(*flip_horizontal(image, boxes))
    for one, other in ((two, both), (turn_left(*turn_left(*two)), (image, boxes))):
        np.testing.assert_array_equal(one[0], other[0])
        np.testing.assert_allclose(one[1], other[1], atol=1e-12)


@pytest.mark.parametrize("change", [flip_horizontal, flip_vertical, turn_left])
def test_a_box_marks_the_same_pixels_after_a_change(change):
    image = np.full((96, 144, 3), 40, np.uint8)
    image[20:52, 48:88] = 250
    changed, boxes = change(image, BOX.astype(np.float64))
    np.testing.assert_array_equal(boxes[0], find(changed))


@pytest.mark.parametrize("size", [(96, 144), (48, 72), (60, 200), (200, 100), (192, 288)])
@pytest.mark.parametrize("seed", range(6))
def test_boxes_and_proposals_follow_the_pixels(size, seed):
    config = DetectionAugmentConfig(
        short_sides=(31, 48, 64, 500), vertical_flip_probability=0.5, quarter_turns=True, colour=0
    )
    made = augment_image(painted(), BOX, np.random.default_rng(seed), size=size, config=config)
    height, width = made["image_size"]
    assert made["image"].shape == (*size, 3) and height <= size[0] and width <= size[1]
    assert not made["image"][height:].any() and not made["image"][:, width:].any()
    assert made["image"][:height, :width].all()
    np.testing.assert_allclose(find(made["image"][:height, :width]), made["boxes"][0], atol=0.6)
    np.testing.assert_array_equal(made["boxes"], made["proposals"])
    area = np.prod(made["boxes"][0, 2:] - made["boxes"][0, :2])
    np.testing.assert_allclose(area, np.prod(BOX[0, 2:] - BOX[0, :2]) * made["scale"] ** 2, rtol=1e-5)


def test_the_short_side_is_chosen_and_the_canvas_caps_it():
    config = DetectionAugmentConfig(short_sides=(24, 48), flip_probability=0, colour=0)
    rng = np.random.default_rng(0)
    made = [augment_image(painted(), BOX, rng, size=(96, 144), config=config) for _ in range(20)]
    assert {tuple(shown["image_size"].tolist()) for shown in made} == {(24, 36), (48, 72)}
    capped = evaluate_image(painted(), BOX, size=(40, 40), short_side=48)
    np.testing.assert_array_equal(capped["image_size"], [27, 40])
    np.testing.assert_allclose(capped["scale"], 40 / 144, rtol=1e-6)


def test_one_to_one_changes_no_pixel():
    pixels = np.random.default_rng(0).integers(1, 255, (30, 20, 3), np.uint8)
    record = record_of(pixels, np.zeros((0, 4), np.float32))
    made = augment_image(record, np.zeros((0, 4)), np.random.default_rng(0), size=(30, 40), config=PLAIN)
    np.testing.assert_array_equal(made["image"][:, :20], pixels[..., ::-1])
    assert made["boxes"].shape == made["proposals"].shape == (0, 4) and made["scale"] == 1


def test_evaluation_maps_back_by_the_scale():
    made = evaluate_image(painted(97, 145), BOX, size=(64, 64))
    np.testing.assert_allclose(made["boxes"] / made["scale"], BOX, rtol=1e-5)
    np.testing.assert_allclose(find(made["image"][: made["image_size"][0]]), made["boxes"][0], atol=0.3)


def test_the_rng_decides_and_colour_leaves_the_border_alone():
    config = DetectionAugmentConfig()
    first, second = (
        augment_image(painted(), BOX, np.random.default_rng(4), size=(96, 200), config=config)
        for _ in range(2)
    )
    np.testing.assert_array_equal(first["image"], second["image"])
    assert not first["image"][:, 144:].any()


def test_a_line_of_pixels_survives_shrinking():
    made = evaluate_image(record_of(np.full((2, 500, 3), 9, np.uint8)), BOX, size=(32, 32))
    np.testing.assert_array_equal(made["image_size"], [1, 32])


def test_cut_bytes_are_unreadable():
    record = painted()
    record["image"] = record["image"][:-60]
    with pytest.raises(UnreadableImage, match="record a"):
        evaluate_image(record, BOX, size=(32, 32))


@pytest.mark.parametrize(
    "changes",
    [{"flip_probability": 1.5}, {"vertical_flip_probability": -1}, {"short_sides": (0,)}, {"colour": 1.0}],
)
def test_strange_numbers_are_refused(changes):
    name, value = next(iter(changes.items()))
    with pytest.raises(ValueError, match=f"{name}="):
        DetectionAugmentConfig(**{name: value})
