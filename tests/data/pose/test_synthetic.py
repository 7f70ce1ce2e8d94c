"""Rendered people: the same bits from the same seed, and labels that tell the truth about the pixels."""

import errno
import sys

import cv2
import numpy as np
import pytest

from hardmine_jax.data.images import decode_image
from hardmine_jax.data.pose import figures, outfits, raycast, rendering, scenes, synthetic
from hardmine_jax.data.pose.augment import AugmentConfig
from hardmine_jax.data.pose.batches import train_crops
from hardmine_jax.data.pose.coco import COCO_SKELETON
from hardmine_jax.data.problems import UnreadableImage
from hardmine_jax.data.stream import endless_batches

SIZE = 160


@pytest.fixture(scope="module")
def rendered() -> list[scenes.Scene]:
    return [scenes.render_scene(np.random.default_rng((0, 0, i)), size=SIZE) for i in range(150)]


def test_the_same_seed_gives_the_same_bits_and_another_other_ones():
    first, again, other = (scenes.render(np.random.default_rng(seed)) for seed in (3, 3, 4))
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a, b)
    assert (first[0] != other[0]).mean() > 0.5


def test_shapes_and_types(rendered):
    for scene in rendered:
        assert scene.image.shape == (SIZE, SIZE, 3) and scene.image.dtype == np.uint8
        assert scene.keypoints.shape == (17, 2) and scene.keypoints.dtype == np.float32
        assert scene.visibility.shape == (17,) and scene.visibility.dtype == np.int32


def test_a_size_too_small_for_a_face_is_refused():
    with pytest.raises(ValueError, match="size=32 < 64"):
        scenes.render(np.random.default_rng(0), size=32)


def test_keypoints_are_in_the_picture_exactly_where_visibility_is_not_zero(rendered):
    for scene in rendered:
        inside = ((scene.keypoints >= -0.5) & (scene.keypoints <= SIZE - 0.5)).all(-1)
        assert inside[scene.visibility > 0].all()
        np.testing.assert_array_equal(scene.keypoints[scene.visibility == 0], 0.0)


def test_visibility_is_what_the_pixels_show(rendered):
    for scene in rendered:
        for joint in np.flatnonzero(scene.visibility):
            column, row = np.rint(scene.keypoints[joint]).astype(int)
            owner = figures.PARTS[scene.parts[row, column]]
            assert (scene.visibility[joint] == 2) == (owner in figures.OWNERS[joint])
            # Nothing of the room shows where a joint is: a body is behind every hidden one.
            if scene.visibility[joint] == 1 and joint > figures.RIGHT_EAR:
                assert owner != "background", COCO_SKELETON.names[joint]


def test_an_occluder_hides_the_colours_below_it(monkeypatch):
    """The same scene without occluders differs where the map of parts says there is one, and there alone."""
    compared = 0
    for seed in range(12):
        with monkeypatch.context() as patch:
            patch.setattr(scenes, "_develop", lambda rng, image: image)
            covered = scenes.render_scene(np.random.default_rng(seed))
            patch.setattr(scenes, "_occlude", lambda *arguments: None)
            bare = scenes.render_scene(np.random.default_rng(seed))
        where = covered.parts == figures.PART["occluder"]
        np.testing.assert_array_equal(covered.image[~where], bare.image[~where])
        np.testing.assert_array_equal(covered.parts[~where], bare.parts[~where])
        assert (covered.visibility <= bare.visibility).all()
        if where.any():
            assert (covered.image[where] != bare.image[where]).any(-1).mean() > 0.95
            compared += 1
    assert compared >= 4


def test_a_body_hides_its_own_far_side():
    """From the left, the right shoulder and hip are behind the body; from the front nothing is hidden."""
    rng = np.random.default_rng(0)
    pose = figures.Pose((0, 0), (6, 6), (0, 0), (0, 0), (80, 80), (10, 10), 0.0)
    figure = figures.pose_figure(rng, pose, outfits.sample_outfit(rng))
    seen = {}
    for name, yaw in (("front", 0.0), ("left side", -90.0), ("back", 180.0)):
        camera = raycast.Camera(figures._turn_y(yaw), 5.0, 130.0, np.array([80.0, 90.0]), (0.0, 0.0, 1.0))
        canvas = raycast.Canvas(
            np.zeros((SIZE, SIZE, 3), np.float32),
            np.full((SIZE, SIZE), -1e9, np.float32),
            np.zeros((SIZE, SIZE), np.uint8),
        )
        placed = raycast.draw_figure(canvas, figure, camera)
        seen[name] = placed, scenes._look(placed[:, :2], canvas.parts)[1]
    face = [figures.NOSE, figures.LEFT_EYE, figures.RIGHT_EYE]
    limbs = range(figures.LEFT_SHOULDER, 17)
    placed, visibility = seen["front"]
    assert (visibility[face] == 2).all() and (visibility[limbs] == 2).all()
    # Who faces the camera has the left hand on the picture's right; who turns away, on its left.
    assert (placed[5::2, 0] > placed[6::2, 0]).all()
    placed, visibility = seen["back"]
    assert (visibility[face] == 1).all()
    assert (placed[5::2, 0] < placed[6::2, 0]).all()
    placed, visibility = seen["left side"]
    # The arms are stretched out sideways: the left one points at the camera, its hand before its shoulder.
    assert visibility[figures.LEFT_HIP] == 2
    assert (visibility[[figures.RIGHT_HIP, figures.RIGHT_SHOULDER, figures.RIGHT_EAR]] == 1).all()


def test_the_box_holds_the_labelled_joints_and_the_area_is_part_of_it(rendered):
    for scene in rendered:
        x1, y1, x2, y2 = scene.box
        labelled = scene.keypoints[scene.visibility > 0]
        # Ears and noses are their own solids' centres, so every joint lies in the silhouette.
        assert (labelled >= (x1 - 1, y1 - 1)).all() and (labelled <= (x2 + 1, y2 + 1)).all()
        assert 0.08 * (x2 - x1) * (y2 - y1) < scene.area <= (x2 - x1) * (y2 - y1)


def test_the_box_ends_at_the_edges_of_the_outermost_pixels():
    silhouette = np.zeros((9, 9), bool)
    silhouette[2:4, 3] = True
    np.testing.assert_array_equal(scenes._tight_box(silhouette), [2.5, 1.5, 3.5, 3.5])


def test_it_is_no_toy(rendered):
    """Every joint is often seen and often hidden; people stand, lie and hang upside down, near and far."""
    visibility = np.stack([scene.visibility for scene in rendered])
    assert (visibility == 2).mean(0).min() > 0.25
    assert (visibility == 1).mean(0).min() > 0.03
    assert 0 < (visibility == 0).mean() < 0.1
    shoulders, hips = (np.stack([s.keypoints[j : j + 2].mean(0) for s in rendered]) for j in (5, 11))
    angle = np.degrees(np.arctan2(*(hips - shoulders).T))
    assert (np.abs(angle) < 45).mean() > 0.6
    assert (np.abs(angle) > 60).mean() > 0.06
    sides = np.stack([max(s.box[2:] - s.box[:2]) for s in rendered]) / SIZE
    assert np.percentile(sides, 5) > 0.4 and np.percentile(sides, 95) > 0.8 and sides.std() > 0.08


def test_figures_stand_out_from_what_is_behind_them(rendered):
    """The step in colour across the silhouette is well above the room's own."""
    across, elsewhere = [], []
    for scene in rendered[:60]:
        body = (scene.parts > figures.PART["occluder"]).astype(np.uint8)
        rim = cv2.morphologyEx(body, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8)) > 0
        slope = np.abs(np.diff(scene.image.astype(np.float32), axis=1, prepend=0)).sum(-1)
        across.append(slope[rim].mean())
        elsewhere.append(slope[:, 1:][(scene.parts == 0)[:, 1:] & ~rim[:, 1:]].mean())
    assert np.median(across) > 2 * np.median(elsewhere)


def test_processes_render_what_one_does_in_the_same_order():
    for alone, together in zip(
        rendering.examples(5, 0, 7, processes=1), rendering.examples(5, 0, 7, processes=2), strict=True
    ):
        assert alone.image == together.image
        np.testing.assert_array_equal(alone.keypoints, together.keypoints)
        np.testing.assert_array_equal(alone.visibility, together.visibility)


def test_a_rendering_process_that_dies_is_an_error_not_a_short_dataset(monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(RuntimeError, match="example 0 of 4 died"):
        list(rendering.examples(0, 0, 4, processes=2))


def test_load_gives_records_by_seed_and_keeps_splits_apart(tmp_path):
    dataset = synthetic.load(seed=1, num_train=6, num_validation=3, cache_dir=tmp_path)
    assert (len(dataset.train), len(dataset.validation), dataset.skipped.count) == (6, 3, 0)
    assert dataset.skeleton == COCO_SKELETON
    for split, number in ((dataset.train, 0), (dataset.validation, 1)):
        for index in range(len(split)):
            record, expected = split[index], rendering.example(1, number, index)
            assert record["image"] == expected.image and record["index"] == index
            np.testing.assert_array_equal(record["keypoints"], expected.keypoints)
            np.testing.assert_array_equal(record["visibility"], expected.visibility)
            np.testing.assert_array_equal(record["box"], expected.box)
            assert record["area"] == expected.area
            assert decode_image(record["image"]).shape == (SIZE, SIZE, 3)
    identities = [
        r["annotation_id"] for s in (dataset.train, dataset.validation) for r in map(s.__getitem__, range(3))
    ]
    assert len(set(identities)) == 6


def test_a_longer_dataset_begins_with_the_shorter_one_and_the_cache_tells_them_apart(tmp_path):
    short = synthetic.load(num_train=2, num_validation=1, cache_dir=tmp_path)
    long = synthetic.load(num_train=3, num_validation=1, cache_dir=tmp_path)
    other = synthetic.load(seed=9, num_train=2, num_validation=1, cache_dir=tmp_path)
    assert len({short.folder, long.folder, other.folder}) == 3
    assert [long.train[i]["image"] for i in range(2)] == [short.train[i]["image"] for i in range(2)]
    assert other.train[0]["image"] != short.train[0]["image"]
    assert short.train[0]["image"] != short.validation[0]["image"]


@pytest.mark.parametrize("module", [synthetic, figures, scenes, rendering])
def test_another_renderer_is_another_cache_entry(tmp_path, change_code, module):
    before = synthetic.load(num_train=1, num_validation=1, cache_dir=tmp_path)
    change_code(module)
    assert synthetic.load(num_train=1, num_validation=1, cache_dir=tmp_path).folder != before.folder


@pytest.mark.parametrize("numbers", [{"num_train": 0}, {"num_validation": 0}, {"seed": -1}])
def test_numbers_that_make_no_dataset_are_refused(numbers, tmp_path):
    with pytest.raises(ValueError, match="must be >= 1"):
        synthetic.load(**numbers, cache_dir=tmp_path)


def readable(source) -> list[int]:
    """Which records can be read."""
    found = []
    for index in range(len(source)):
        try:
            found.append(int(source[index]["index"]))
        except UnreadableImage:
            continue
    return found


def test_storage_that_is_away_is_no_damage(tmp_path, monkeypatch):
    train = synthetic.load(num_train=2, num_validation=1, cache_dir=tmp_path).train
    answers = [RuntimeError("Input/output error reading"), RuntimeError("chunk data hash mismatch"), None]

    class Examples:
        def __getitem__(self, index):
            answer = answers.pop(0)
            if answer is not None:
                raise answer

    monkeypatch.setattr(train._examples, "_examples", Examples())
    with pytest.raises(OSError, match="cannot read just now") as raised:
        train[0]
    assert raised.value.errno == errno.EIO
    for said in ("hash mismatch", "the file is too short"):
        with pytest.raises(UnreadableImage, match=said):
            train[0]


def test_a_damaged_example_is_passed_over_in_training_and_named_elsewhere(tmp_path, caplog):
    def load():
        return synthetic.load(num_train=12, num_validation=1, cache_dir=tmp_path)

    folder = load().folder
    (file,) = (folder / "examples").glob("*-train.array_record-*")
    whole = file.read_bytes()
    # Between the examples' bytes there are empty ones.
    for place in range(len(whole) // 2, len(whole), 997):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        if len(readable(load().train)) == 11:
            break
    (lost,) = {*range(12)} - {*readable(load().train)}
    with pytest.raises(
        UnreadableImage, match=rf"{folder} is damaged: delete that folder .*: example {lost} of train"
    ):
        load().train[lost]
    crops = train_crops((32, 32), COCO_SKELETON, AugmentConfig())
    batches = endless_batches(load().train, crops, batch_size=12, seed=0)
    expected = sorted([*({*range(12)} - {lost}), (lost + 1) % 12])
    assert sorted(next(batches)["index"].tolist()) == expected
    assert batches.unreadable == {lost} and f"record {lost} cannot be read any more" in caplog.text
    batches.close()
