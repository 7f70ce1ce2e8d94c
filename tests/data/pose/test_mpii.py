"""MPII in the usual JSON layout, a miniature of it; PCKh against the released formula in plain numpy."""

import json

import cv2
import numpy as np
import pytest
import scipy.io

from hardmine_jax.data.pose import mpii
from hardmine_jax.data.pose.augment import evaluate_crop
from hardmine_jax.data.problems import DataError
from hardmine_jax.tasks.pose.protocol import score_heads

HEIGHT, WIDTH = 200, 300


def _person(image, rng, **changes) -> dict:
    joints = rng.uniform(20, 180, (16, 2))
    where = rng.random(16) < 0.8
    where[:2] = True
    joints[~where] = -1
    entry = {
        "image": image,
        "center": [float(rng.uniform(80, 120)), 90.0],
        "scale": 0.8,
        "joints": joints.tolist(),
        "joints_vis": where.astype(int).tolist(),
    }
    return entry | changes


def _matrix(path, people, rng) -> dict:
    """gt_valid.mat as the released evaluation reads it."""
    corners = rng.integers(20, 100, (2, len(people)))
    content = {
        "dataset_joints": np.array(
            [["rank", "rkne", "rhip", "lhip", "lkne", "lank", "pelv", "thor", "neck", "head", "rwri", "relb",
              "rsho", "lsho", "lelb", "lwri"]],
            object,
        ),
        "headboxes_src": np.stack([corners, corners + rng.integers(15, 40, corners.shape)]).astype(np.uint16),
        "pos_gt_src": np.array([entry["joints"] for entry in people]).transpose(1, 2, 0),
        "jnt_missing": 1 - np.array([entry["joints_vis"] for entry in people]).T,
    }  # fmt: skip
    scipy.io.savemat(path, content)
    return content


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "annot").mkdir()
    (tmp_path / "images").mkdir()
    names = [f"{number:09d}.jpg" for number in (15601864, 4812305, 33016482)]
    for name in names:
        cv2.imwrite(str(tmp_path / "images" / name), rng.integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8))
    train = [_person(names[0], rng), _person(names[1], rng), _person(names[0], rng)]
    valid = [_person(names[2], rng) for _ in range(5)]
    (tmp_path / "annot" / "train.json").write_text(json.dumps(train))
    (tmp_path / "annot" / "valid.json").write_text(json.dumps(valid))
    _matrix(tmp_path / "annot" / "gt_valid.mat", valid, rng)
    return tmp_path


def _read(folder, name="train") -> list[dict]:
    return json.loads((folder / "annot" / f"{name}.json").read_text())


def _change(folder, place, name="train", **changes):
    entries = _read(folder, name)
    entries[place] |= changes
    (folder / "annot" / f"{name}.json").write_text(json.dumps(entries))


def test_skeleton_has_mpii_joints_in_mpii_order():
    skeleton = mpii.MPII_SKELETON
    assert skeleton.num_keypoints == 16 and len(skeleton.flip_pairs) == 6
    assert [skeleton.names[joint] for joint in (0, 6, 7, 9, 15)] == [
        "right_ankle", "pelvis", "thorax", "head_top", "left_wrist",
    ]  # fmt: skip
    for pair in skeleton.flip_pairs:
        sides = {skeleton.names[joint] for joint in pair}
        assert {name.replace("left", "right") for name in sides} == {max(sides)}
        assert len({skeleton.sigmas[joint] for joint in pair}) == 1


def test_records_are_the_files_entries_counted_from_zero(folder):
    dataset = mpii.load(folder)
    assert (dataset.name, len(dataset.train), len(dataset.validation)) == ("mpii", 3, 5)
    assert dataset.skeleton == mpii.MPII_SKELETON and dataset.skipped.count == 0
    # The people of an image stand together.
    assert [int(dataset.train[row]["annotation_id"]) for row in range(3)] == [0, 2, 1]
    for row in range(3):
        record = dataset.train[row]
        entry = _read(folder)[int(record["annotation_id"])]
        where = np.array(entry["joints_vis"]) == 1
        assert record["name"] == entry["image"] and record["image_id"] == int(entry["image"][:-4])
        np.testing.assert_array_equal(record["visibility"], 2 * where)
        joints = np.array(entry["joints"])[where] - 1
        np.testing.assert_allclose(record["keypoints"][where], joints, rtol=1e-6)
        assert record["area"] == pytest.approx(np.prod(np.ptp(joints, axis=0)), rel=1e-5)


def test_the_padded_box_is_the_released_crop(folder):
    record = mpii.load(folder).train[0]
    entry = _read(folder)[0]
    # As `dataset/mpii.py` of the released code: down by 15 scales, 1.25 times as large, counted from 0.
    centre = np.array(entry["center"]) + [0, 15 * entry["scale"]] - 1
    side = 1.25 * entry["scale"] * 200
    inverse = evaluate_crop(record, size=(256, 256), skeleton=mpii.MPII_SKELETON)["inverse"]
    np.testing.assert_allclose(inverse[:, :2], np.eye(2) * side / 256, rtol=1e-5)
    np.testing.assert_allclose(inverse @ [127.5, 127.5, 1], centre, rtol=1e-5)


def test_a_centre_that_is_not_known_stays(folder):
    _change(folder, 0, center=[-1, -1], scale=1.0)
    np.testing.assert_allclose(mpii.load(folder).train[0]["box"], [-102, -102, 98, 98])


def test_what_cannot_be_used_is_named(folder):
    entries = _read(folder)
    changes = [
        {"joints_vis": [0] * 16}, {"joints": [[1, 2]]}, {"scale": None}, {"image": "../000.jpg"},
        {"image": 5}, {"image": "absent.jpg"}, {"scale": float("nan")}, {"joints": [[500.0, 5.0]] * 16},
    ]  # fmt: skip
    entries += [_person("004812305.jpg", np.random.default_rng(1)) | change for change in changes] + ["text"]
    (folder / "annot" / "train.json").write_text(json.dumps(entries))
    dataset = mpii.load(folder)
    assert len(dataset.train) == 3
    counts = {reason: len(names) for reason, names in dataset.skipped.reasons.items()}
    assert counts == {
        "no labelled joint": 1,
        "joints, joints_vis, center or scale that are not numbers, or not 16 x 2, 16, 2 and 1 of them": 2,
        "image missing, no path or outside the image folder": 3,
        "image absent": 1,
        "box or area that is no finite number": 1,
        "no labelled joint inside the image": 1,
    }
    assert dataset.skipped.reasons["no labelled joint"] == ("004812305.jpg#3",)


def test_the_same_folder_is_not_prepared_again_and_a_changed_one_is(folder, capfd):
    first = mpii.load(folder)
    assert "preparing mpii" in capfd.readouterr().err
    assert mpii.load(folder).folder == first.folder
    assert capfd.readouterr() == ("", "")
    (folder / "images" / "notes.txt").write_text("another file beside the pictures")
    assert mpii.load(folder).folder == first.folder
    _change(folder, 1, scale=0.5)
    assert mpii.load(folder).folder != first.folder


def test_missing_parts_are_named(folder, tmp_path_factory):
    with pytest.raises(DataError, match="mpii needs data_dir, DIR with DIR/annot/train.json"):
        mpii.load(None)
    empty = tmp_path_factory.mktemp("empty")
    with pytest.raises(DataError, match=f"no folder {empty / 'annot'}"):
        mpii.load(empty)
    (folder / "annot" / "valid.json").unlink()
    with pytest.raises(DataError, match="no file .*valid.json: expected DIR/annot/train.json"):
        mpii.load(folder)
    (folder / "annot" / "valid.json").write_text("{}")
    with pytest.raises(DataError, match="valid.json is no list of people"):
        mpii.load(folder)
    (folder / "annot" / "valid.json").write_text("[")
    with pytest.raises(DataError, match="valid.json is no JSON"):
        mpii.load(folder)


def test_no_image_at_all_is_an_error(folder):
    for path in (folder / "images").iterdir():
        path.unlink()
    with pytest.raises(DataError, match="none of the 3 images that .*annot lists is in"):
        mpii.load(folder)


def _released(predicted, content, fraction) -> tuple[np.ndarray, float]:
    """(PCKh of each joint, weighted mean without pelvis and thorax), in per cent, from 1-based pixels."""
    visible = 1 - content["jnt_missing"]
    distance = np.linalg.norm(predicted.transpose(1, 2, 0) + 1 - content["pos_gt_src"], axis=1)
    heads = np.float64(content["headboxes_src"])
    sizes = 0.6 * np.linalg.norm(heads[1] - heads[0], axis=0)
    correct = (distance / sizes <= fraction) * visible
    pckh = 100 * correct.sum(1) / visible.sum(1)
    counts = visible.sum(1).astype(float)
    counts[6:8] = 0
    return pckh, (pckh * counts / counts.sum()).sum()


@pytest.mark.parametrize("size", ["of the matrix", "of the entries"])
def test_pckh_is_the_released_formula(tmp_path, size):
    rng = np.random.default_rng(3)
    (tmp_path / "annot").mkdir()
    (tmp_path / "images").mkdir()
    people = [_person("1.jpg", rng) for _ in range(60)]
    content = _matrix(tmp_path / "annot" / "gt_valid.mat", people, rng)
    if size == "of the entries":
        (tmp_path / "annot" / "gt_valid.mat").unlink()
        heads = content["headboxes_src"].transpose(2, 0, 1).reshape(-1, 4).tolist()
        people = [entry | {"headbox": head} for entry, head in zip(people, heads, strict=True)]
    (tmp_path / "annot" / "valid.json").write_text(json.dumps(people))
    truth = mpii.load_truth(tmp_path)
    predicted = truth.keypoints + rng.normal(0, 4, (60, 16, 2)) * rng.choice([0.2, 1, 4], (60, 16, 1))
    order = rng.permutation(60)
    scores = score_heads(predicted[order], order, truth)
    for fraction in (0.5, 0.1, 0.11):
        joints, mean = _released(predicted, content, fraction)
        assert 100 * scores[f"pckh@{fraction}"] == pytest.approx(mean)
        assert 5 < mean < 95
    joints, _ = _released(predicted, content, 0.5)
    pairs = {"head": (9, 9), "shoulder": (12, 13), "elbow": (11, 14), "wrist": (10, 15), "hip": (2, 3),
             "knee": (1, 4), "ankle": (0, 5)}  # fmt: skip
    for name, (right, left) in pairs.items():
        assert 100 * scores[name] == pytest.approx(0.5 * (joints[right] + joints[left]))


def test_perfect_predictions_score_one_and_nobody_none(folder):
    truth = mpii.load_truth(folder)
    dataset = mpii.load(folder)
    ids = np.array([dataset.validation[row]["annotation_id"] for row in range(5)])
    predicted = np.stack([dataset.validation[row]["keypoints"] for row in range(5)])
    assert set(score_heads(predicted, ids, truth).values()) == {1.0}
    assert set(score_heads(predicted[:0], ids[:0], truth).values()) == {None}


def test_heads_that_do_not_fit_are_refused(folder):
    path = folder / "annot" / "gt_valid.mat"
    content = scipy.io.loadmat(path)
    for change in ({"jnt_missing": content["jnt_missing"][:, :4]}, {"headboxes_src": np.zeros((4, 1, 5))}):
        scipy.io.savemat(
            path, {name: content[name] for name in ("pos_gt_src", "jnt_missing", "headboxes_src")} | change
        )
        with pytest.raises(DataError, match="does not belong to valid.json and its 5 people"):
            mpii.load_truth(folder)
    path.write_bytes(b"no matrix " * 50)
    with pytest.raises(DataError, match="cannot be read as a MATLAB file"):
        mpii.load_truth(folder)
    path.unlink()
    with pytest.raises(DataError, match='no .*gt_valid.mat, and not every entry of .* a "headbox"'):
        mpii.load_truth(folder)


def test_one_person_without_the_last_axis(folder):
    people = _read(folder, "valid")[:1]
    (folder / "annot" / "valid.json").write_text(json.dumps(people))
    content = _matrix(folder / "annot" / "gt_valid.mat", people, np.random.default_rng(5))
    truth = mpii.load_truth(folder)
    assert truth.keypoints.shape == (1, 16, 2)
    np.testing.assert_allclose(truth.keypoints[0] + 1, content["pos_gt_src"][..., 0])
