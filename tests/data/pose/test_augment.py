"""Crops: keypoints stay on what they mark, matrices come back, chance comes from the generator alone."""

import cv2
import numpy as np
import pytest

from hardmine_jax.data.exif import as_stored
from hardmine_jax.data.pose.augment import BORDER, AugmentConfig, augment, evaluate_crop, upper_body
from hardmine_jax.data.problems import UnreadableImage
from hardmine_jax.pose import Skeleton, apply_affine

SKELETON = Skeleton(
    names=("head", "left_hand", "right_hand", "left_hip", "right_hip", "left_foot", "right_foot"),
    flip_pairs=((1, 2), (3, 4), (5, 6)),
    sigmas=(0.1,) * 7,
    edges=(),
)
STILL = AugmentConfig(
    scale=0.0,
    rotation=0.0,
    flip_probability=0.0,
    half_body_probability=0.0,
    colour=0.0,
    rotation_probability=0.0,
)
# One colour a keypoint, far from each other and from the grey behind.
COLOURS = np.array(
    [(250, 0, 0), (0, 250, 0), (0, 0, 250), (250, 250, 0), (250, 0, 250), (0, 250, 250), (255, 255, 255)]
)


def dotted_record(*, width: int = 300, height: int = 260, radius: int = 4, extension: str = ".png") -> dict:
    """A grey picture with a dot of its own colour on each keypoint."""
    scale = width / 300
    keypoints = scale * np.array(
        [(150, 40), (215, 110), (85, 115), (175, 140), (125, 140), (180, 220), (110, 225)]
    )
    image = np.full((height, width, 3), 60, np.uint8)
    # A circle of OpenCV is only where its centre is a whole pixel.
    keypoints = np.rint(keypoints)
    for point, colour in zip(keypoints.astype(int), COLOURS.tolist(), strict=True):
        cv2.circle(image, point.tolist(), radius, colour[::-1], -1)
    return {
        "image": cv2.imencode(extension, image)[1].tobytes(),
        "keypoints": keypoints.astype(np.float32),
        "visibility": np.array([2, 2, 1, 2, 1, 2, 2], np.int32),
        "box": scale * np.array([80, 30, 220, 230], np.float32),
        "name": "dots",
        "index": 11,
    }


def dot_centre(image: np.ndarray, colour: np.ndarray) -> tuple[np.ndarray, int]:
    """Centre of gravity of the pixels near a colour, and how many there are."""
    near = np.abs(image.astype(int) - colour).max(-1) < 90
    rows, columns = np.nonzero(near)
    return np.array([columns.mean(), rows.mean()]) if len(rows) else np.zeros(2), len(rows)


def check_dots(example: dict, colours: np.ndarray, *, tolerance: float, margin: float = 6) -> int:
    height, width = example["image"].shape[:2]
    checked = 0
    for joint in np.flatnonzero(example["visibility"]):
        point = example["keypoints"][joint]
        # A dot that the border cuts has its centre of gravity elsewhere.
        if (point < margin).any() or (point > np.array([width, height]) - margin).any():
            continue
        centre, count = dot_centre(example["image"], colours[joint])
        assert count > 0, SKELETON.names[joint]
        np.testing.assert_allclose(centre, point, atol=tolerance)
        checked += 1
    return checked


@pytest.mark.parametrize("size", [(128, 128), (128, 96), (96, 160)])
def test_keypoints_stay_on_the_picture_they_mark(size):
    record, checked = dotted_record(), 0
    config = AugmentConfig(scale=0.3, rotation=40, flip_probability=0.5, half_body_min=5, colour=0.0)
    for seed in range(40):
        example = augment(record, np.random.default_rng(seed), size=size, skeleton=SKELETON, config=config)
        flipped = np.linalg.det(example["inverse"][:, :2]) < 0
        colours = COLOURS[list(SKELETON.flip_permutation)] if flipped else COLOURS
        checked += check_dots(example, colours, tolerance=1.0)
    assert checked > 120


@pytest.mark.parametrize("extension", [".png", ".jpg"])
@pytest.mark.parametrize("width", [300, 601, 1203, 2406, 4001])
def test_large_pictures_are_made_smaller_first_without_shifting(width, extension):
    """Most widths are no multiple of the reduction: the last pixel then spans less."""
    record = dotted_record(
        width=width, height=width * 260 // 300 + 1, radius=5 * width // 300, extension=extension
    )
    example = evaluate_crop(record, size=(128, 128), skeleton=SKELETON)
    assert check_dots(example, COLOURS, tolerance=0.35, margin=3) == 7


def test_shrinking_averages_instead_of_skipping():
    """A fine chequerboard becomes even grey; sampled pixel by pixel it would become black and white."""
    for extension in (".png", ".jpg"):
        board = (np.indices((1000, 1000)).sum(0) % 2 * 255).astype(np.uint8)
        record = dotted_record()
        record["image"] = cv2.imencode(extension, cv2.merge((board,) * 3))[1].tobytes()
        record["box"] = np.array([100, 100, 900, 900], np.float32)
        crop = evaluate_crop(record, size=(64, 64), skeleton=SKELETON, padding=1.0)["image"]
        assert abs(crop.mean() - 127) < 6 and crop.std() < 12


def test_evaluation_shows_the_padded_box():
    record = dotted_record()
    example = evaluate_crop(record, size=(128, 96), skeleton=SKELETON, padding=1.25)
    corners = apply_affine(example["inverse"], np.array([[-0.5, -0.5], [95.5, 127.5]]))
    # The box of 140x200 keeps its height, the width follows from 96:128: 1.25 * (150, 200) around (150, 130).
    np.testing.assert_allclose(corners, [[150 - 93.75, 130 - 125], [150 + 93.75, 130 + 125]], atol=1e-3)


def test_augmentation_without_anything_is_the_evaluation_crop():
    record = dotted_record()
    still = augment(record, np.random.default_rng(0), size=(96, 96), skeleton=SKELETON, config=STILL)
    plain = evaluate_crop(record, size=(96, 96), skeleton=SKELETON)
    assert still.keys() == plain.keys()
    for name in still:
        np.testing.assert_array_equal(still[name], plain[name])


def test_inverse_leads_back_to_the_original():
    record = dotted_record()
    for seed in range(30):
        example = augment(
            record, np.random.default_rng(seed), size=(128, 96), skeleton=SKELETON, config=AugmentConfig()
        )
        flipped = np.linalg.det(example["inverse"][:, :2]) < 0
        original = record["keypoints"][list(SKELETON.flip_permutation)] if flipped else record["keypoints"]
        inside = example["visibility"] > 0
        back = apply_affine(example["inverse"], example["keypoints"])
        np.testing.assert_allclose(back[inside], original[inside], atol=2e-2)


def test_joints_outside_the_crop_become_unlabelled_and_others_keep_their_visibility():
    record = dotted_record()
    record["box"] = np.array([100, 60, 200, 160], np.float32)
    example = evaluate_crop(record, size=(100, 100), skeleton=SKELETON, padding=1.0)
    np.testing.assert_array_equal(example["visibility"], [0, 0, 0, 2, 1, 0, 0])
    np.testing.assert_array_equal(example["keypoints"][[0, 1, 2, 5, 6]], 0.0)
    unlabelled = {**dotted_record(), "visibility": np.zeros(7, np.int32)}
    assert not evaluate_crop(unlabelled, size=(64, 64), skeleton=SKELETON)["visibility"].any()


def test_a_flip_mirrors_picture_and_names_and_twice_is_nothing():
    record = dotted_record()
    flip = AugmentConfig(**{**vars(STILL), "flip_probability": 1.0})
    rng = np.random.default_rng(0)
    plain = augment(record, rng, size=(128, 128), skeleton=SKELETON, config=STILL)
    mirrored = augment(record, rng, size=(128, 128), skeleton=SKELETON, config=flip)
    # OpenCV interpolates at 1/32 pixel, so the mirrored grid is not the same to the last bit.
    assert np.abs(mirrored["image"][:, ::-1].astype(int) - plain["image"]).mean() < 1.0
    permutation = list(SKELETON.flip_permutation)
    expected = plain["keypoints"][permutation] * (-1, 1) + (127, 0)
    np.testing.assert_allclose(mirrored["keypoints"], expected, atol=1e-3)
    np.testing.assert_array_equal(mirrored["visibility"], plain["visibility"][permutation])

    again = dict(record, image=cv2.imencode(".png", mirrored["image"][..., ::-1])[1].tobytes())
    again.update(keypoints=mirrored["keypoints"], visibility=mirrored["visibility"])
    again["box"] = np.array([-0.5, -0.5, 127.5, 127.5], np.float32)
    whole = AugmentConfig(**{**vars(flip), "padding": 1.0})
    twice = augment(again, rng, size=(128, 128), skeleton=SKELETON, config=whole)
    np.testing.assert_allclose(twice["keypoints"], plain["keypoints"], atol=1e-3)
    np.testing.assert_array_equal(twice["visibility"], plain["visibility"])
    assert np.abs(twice["image"].astype(int) - plain["image"]).mean() < 1.0


def test_the_same_generator_gives_the_same_bits():
    record = dotted_record()
    for seed in range(5):
        first, again = (
            augment(
                record, np.random.default_rng(seed), size=(64, 64), skeleton=SKELETON, config=AugmentConfig()
            )
            for _ in range(2)
        )
        for name in first:
            np.testing.assert_array_equal(first[name], again[name])


def test_scale_and_rotation_keep_their_limits():
    record = dotted_record()
    config = AugmentConfig(
        scale=0.25, rotation=20, rotation_probability=0.5, half_body_probability=0, colour=0
    )
    zooms, turns = [], []
    for seed in range(400):
        inverse = augment(
            record, np.random.default_rng(seed), size=(16, 16), skeleton=SKELETON, config=config
        )["inverse"]
        zooms.append(np.sqrt(abs(np.linalg.det(inverse[:, :2]))))
        # The second row is the same with and without a flip, but for its sign.
        turns.append(np.degrees(np.arcsin(np.clip(inverse[1, 0] / zooms[-1], -1, 1))))
    zooms = np.array(zooms) / (1.25 * 200 / 16)
    assert 0.75 - 1e-3 <= zooms.min() < 0.8 and 1.2 < zooms.max() <= 1.25 + 1e-3
    turns = np.array(turns)
    assert np.abs(turns).max() <= 40 + 1e-2 and np.abs(turns).max() > 30
    assert 0.42 < (np.abs(turns) < 1e-3).mean() < 0.58


def test_half_bodies_show_a_half_larger():
    record = dotted_record()
    config = AugmentConfig(**{**vars(STILL), "half_body_probability": 1.0, "half_body_min": 4})
    seen = set()
    for seed in range(20):
        example = augment(
            record, np.random.default_rng(seed), size=(64, 64), skeleton=SKELETON, config=config
        )
        assert abs(np.linalg.det(example["inverse"][:, :2])) < (1.25 * 200 / 64) ** 2
        seen.add(tuple(example["visibility"] > 0))
    assert len(seen) == 2
    few = AugmentConfig(**{**vars(config), "half_body_min": 8})
    example = augment(record, np.random.default_rng(0), size=(64, 64), skeleton=SKELETON, config=few)
    assert (example["visibility"] > 0).all()


def test_upper_body_goes_by_names():
    assert upper_body(SKELETON) == (0, 1, 2)
    assert upper_body(Skeleton(("wrist", "thumb"), (), (0.1, 0.1), ())) == ()


def test_colour_changes_colours_within_its_strength_and_nothing_else():
    record = dotted_record()
    plain = evaluate_crop(record, size=(64, 64), skeleton=SKELETON)
    config = AugmentConfig(**{**vars(STILL), "colour": 0.2})
    means = []
    for seed in range(50):
        example = augment(
            record, np.random.default_rng(seed), size=(64, 64), skeleton=SKELETON, config=config
        )
        np.testing.assert_array_equal(example["keypoints"], plain["keypoints"])
        means.append(example["image"].mean() / plain["image"].mean())
    assert 0.78 < min(means) < 0.9 and 1.1 < max(means) < 1.22


def test_outside_the_photograph_is_the_border_colour():
    record = dotted_record()
    record["box"] = np.array([-200, 0, 0, 200], np.float32)
    example = evaluate_crop(record, size=(64, 64), skeleton=SKELETON, padding=1.0)
    np.testing.assert_array_equal(example["image"][:, :62], np.broadcast_to(BORDER, (64, 62, 3)))


@pytest.mark.parametrize(
    "damage", [lambda b: b"", lambda b: b[: len(b) // 2], lambda b: b"no picture at all"]
)
@pytest.mark.parametrize("extension", [".png", ".jpg"])
def test_an_unreadable_image_is_named(damage, extension):
    record = dotted_record(extension=extension)
    record["image"] = damage(record["image"])
    with pytest.raises(UnreadableImage, match="record dots"):
        evaluate_crop(record, size=(64, 64), skeleton=SKELETON)


def test_a_record_whose_keypoints_are_in_the_pixels_as_stored_is_not_turned():
    """`records.usable` takes the camera's note to turn the picture out of the bytes, which else is obeyed."""
    record = dotted_record(extension=".jpg")
    exif = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"
    segment = b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif
    turned = {**record, "image": record["image"][:2] + segment + record["image"][2:]}
    turned_by_opencv = cv2.imdecode(np.frombuffer(turned["image"], np.uint8), cv2.IMREAD_COLOR)
    assert turned_by_opencv.shape[:2] == (300, 260)
    stored = {**turned, "image": as_stored(turned["image"])}
    expected, example, upright = (
        evaluate_crop(one, size=(64, 64), skeleton=SKELETON)["image"] for one in (record, stored, turned)
    )
    np.testing.assert_array_equal(example, expected)
    assert (upright != expected).any()


@pytest.mark.parametrize(
    "wrong",
    [{"flip_probability": 1.5}, {"scale": 1.0}, {"colour": -0.1}, {"rotation": -1.0}, {"padding": 0.0}],
)
def test_a_configuration_that_means_nothing_is_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        AugmentConfig(**wrong)
