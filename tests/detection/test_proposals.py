"""Selective search through OpenCV: boxes of what is there, the same bits each time."""

import sys

import numpy as np
import pytest

from hardmine_jax.detection import proposals
from hardmine_jax.detection.proposals import selective_search


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    """A red and a green rectangle on a noisy grey ground."""
    pixels = np.random.default_rng(0).integers(100, 110, (64, 80, 3)).astype(np.uint8)
    pixels[10:30, 8:40] = (220, 30, 20)
    pixels[35:60, 50:70] = (10, 200, 40)
    return pixels


def contains(boxes: np.ndarray, box) -> bool:
    return bool((np.abs(boxes - np.float32(box)).max(-1) <= 1.5).any())


@pytest.mark.parametrize("mode", ["single", "fast", "quality"])
def test_what_is_there_is_found(image, mode):
    boxes = selective_search(image, mode=mode)
    assert boxes.dtype == np.float32 and boxes.ndim == 2 and boxes.shape[1] == 4
    assert (boxes[:, 2:] > boxes[:, :2]).all() and boxes.min() >= 0
    assert (boxes <= np.float32([80, 64, 80, 64])).all() and len(np.unique(boxes, axis=0)) == len(boxes)
    assert contains(boxes, (8, 10, 40, 30)) and contains(boxes, (50, 35, 70, 60))


def test_each_time_the_same_and_a_limit_takes_the_first(image):
    noisy = np.random.default_rng(1).integers(0, 255, (48, 48, 3), np.uint8)
    for picture in (image, noisy):
        first = selective_search(picture, base_k=50)
        for _ in range(3):
            np.testing.assert_array_equal(selective_search(picture, base_k=50), first)
        np.testing.assert_array_equal(selective_search(picture, base_k=50, max_proposals=3), first[:3])


def test_the_order_depends_on_the_boxes_alone_and_prefers_the_large():
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 50, (400, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(1, 50, (400, 2))], -1)
    order = proposals._order(boxes)
    np.testing.assert_array_equal(np.sort(order), np.arange(400))
    areas = np.prod(boxes[:, 2:] - boxes[:, :2], -1)[order]
    assert areas[:100].mean() > 1.5 * areas[-100:].mean()


def test_the_rank_is_the_place_by_area_times_a_random_number():
    boxes = np.float32([[0, 0, 5, 1], [3, 2, 5, 5], [1, 4, 3, 5], [9, 1, 9.5, 9], [2, 2, 4, 5], [0, 7, 1, 8]])
    areas = [(x2 - x1) * (y2 - y1) for x1, y1, x2, y2 in boxes]
    largest_first = sorted(range(6), key=lambda i: (-areas[i], i))
    chance = np.random.default_rng(0).random(6)
    ranks = {box: chance[place] * (place + 1) for place, box in enumerate(largest_first)}
    assert proposals._order(boxes).tolist() == sorted(ranks, key=ranks.get)


def test_the_least_numbers_are_taken(image):
    assert len(selective_search(image[:12, :12], base_k=1, max_proposals=1)) == 1


def test_small_boxes_are_left_out(image):
    boxes = selective_search(image, min_size=15)
    assert len(boxes) and (boxes[:, 2:] - boxes[:, :2]).min() >= 15
    assert selective_search(image, min_size=500).shape == (0, 4)


def test_one_pixel_and_one_colour():
    for shape in ((1, 1, 3), (40, 40, 3)):
        boxes = selective_search(np.full(shape, 7, np.uint8))
        assert boxes.shape[1] == 4 and boxes.dtype == np.float32


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "slow"}, "mode='slow': choose one of single, fast, quality"),
        ({"max_proposals": 0}, "max_proposals=0"),
        ({"base_k": 0}, "base_k=0"),
        ({"image": np.zeros((4, 4), np.uint8)}, r"uint8 \[4, 4\]"),
        ({"image": np.zeros((4, 4, 3), np.float32)}, "float32"),
    ],
)
def test_strange_arguments_are_refused(image, options, message):
    options = {"image": image, **options}
    with pytest.raises(ValueError, match=message):
        selective_search(options.pop("image"), **options)


def test_without_contrib_modules_the_error_says_what_to_install(image, monkeypatch):
    proposals._segmentation.cache_clear()
    monkeypatch.setitem(sys.modules, "cv2.ximgproc", None)
    with pytest.raises(ImportError, match="pip install opencv-contrib-python-headless"):
        selective_search(image)
