"""LSP: real pictures, a hundred of them in folders of links, and every folder that is none."""

import os
import pathlib
import pickle

import numpy as np
import pytest
import scipy.io

from hardmine_jax.data.images import decode_image
from hardmine_jax.data.pose import lspet
from hardmine_jax.data.problems import DataError

NUM = 100


@pytest.fixture
def subset(lspet_dir, tmp_path):
    """The first hundred people, images as links."""
    return make_folder(tmp_path / "lspet", joints_of(lspet_dir)[:, :, :NUM], lspet_dir)


def joints_of(folder: pathlib.Path) -> np.ndarray:
    return scipy.io.loadmat(folder / "joints.mat")["joints"]


def make_folder(folder: pathlib.Path, joints, source: pathlib.Path, name="im{:05d}.jpg") -> pathlib.Path:
    (folder / "images").mkdir(parents=True)
    scipy.io.savemat(folder / "joints.mat", {"joints": joints})
    for number in range(1, joints.shape[2] + 1):
        (folder / "images" / name.format(number)).symlink_to(source / "images" / f"im{number:05d}.jpg")
    return folder


def test_skeleton_has_lsp_joints_in_lsp_order():
    skeleton = lspet.LSP_SKELETON
    assert skeleton.num_keypoints == 14
    assert skeleton.names[0] == "right_ankle" and skeleton.names[13] == "head_top"
    for left, right in skeleton.flip_pairs:
        sides = {skeleton.names[left], skeleton.names[right]}
        assert {name.replace("left", "right") for name in sides} == {max(sides)}
        assert skeleton.sigmas[left] == skeleton.sigmas[right]
    assert len(skeleton.flip_pairs) == 6


def test_records_are_the_files_and_the_matrix(subset, lspet_dir):
    dataset = lspet.load(subset, num_validation=20)
    joints = joints_of(lspet_dir)
    assert (dataset.name, len(dataset.train), len(dataset.validation)) == ("lspet", 80, 20)
    assert dataset.skeleton == lspet.LSP_SKELETON and dataset.skipped.count == 0
    for source, first in ((dataset.train, 0), (dataset.validation, 80)):
        for index in (0, 7, 19):
            record = source[index]
            position = first + index
            assert record["name"] == f"im{position + 1:05d}.jpg" and record["image_id"] == position + 1
            assert record["image"] == (lspet_dir / "images" / record["name"]).read_bytes()
            where = record["visibility"] == 2
            assert set(np.unique(record["visibility"])) <= {0, 2}
            # Outside the image they count as not labelled.
            assert (where <= (joints[:, 2, position] > 0)).all()
            np.testing.assert_allclose(record["keypoints"][where], joints[where, :2, position], rtol=1e-6)
            tight = [*joints[where, :2, position].min(0), *joints[where, :2, position].max(0)]
            np.testing.assert_allclose(record["box"], tight, rtol=1e-6)
            area = np.prod(record["box"][2:] - record["box"][:2])
            np.testing.assert_allclose(record["area"], area, rtol=1e-5)
            height, width = decode_image(record["image"]).shape[:2]
            assert (record["keypoints"][where] <= np.array([width - 0.5, height - 0.5])).all()


def test_same_folder_is_not_prepared_again_and_a_touched_image_is(subset, capfd):
    first = lspet.load(subset, num_validation=20)
    assert f"preparing lspet in {first.folder}" in capfd.readouterr().err
    assert lspet.load(subset, num_validation=20).folder == first.folder
    assert lspet.load(os.path.relpath(subset), num_validation=20).folder == first.folder
    assert capfd.readouterr() == ("", "")
    assert lspet.load(subset, num_validation=21).folder != first.folder
    image = subset / "images" / "im00003.jpg"
    content = image.read_bytes()
    image.unlink()
    image.write_bytes(content)
    second = lspet.load(subset, num_validation=20)
    assert second.folder != first.folder
    os.utime(image)
    assert lspet.load(subset, num_validation=20).folder not in (first.folder, second.folder)


def test_another_folder_and_changed_joints_are_other_data(subset, lspet_dir, tmp_path):
    joints = joints_of(lspet_dir)[:, :, :NUM]
    other = make_folder(tmp_path / "other", joints, lspet_dir)
    first = lspet.load(subset, num_validation=20)
    assert lspet.load(other, num_validation=20).folder != first.folder
    times = os.stat(subset / "joints.mat")
    scipy.io.savemat(subset / "joints.mat", {"joints": joints + 1})
    os.utime(subset / "joints.mat", ns=(times.st_atime_ns, times.st_mtime_ns))
    moved = lspet.load(subset, num_validation=20)
    assert moved.folder != first.folder
    where = (first.train[0]["visibility"] > 0) & (moved.train[0]["visibility"] > 0)
    shift = moved.train[0]["keypoints"][where] - first.train[0]["keypoints"][where]
    np.testing.assert_allclose(shift, 1, atol=1e-4)


def test_absent_cut_and_unlabelled_records_are_skipped_with_their_names(lspet_dir, tmp_path):
    joints = joints_of(lspet_dir)[:, :, :NUM].copy()
    joints[:, 2, 4] = 0
    joints[:, 2, 5] = 0
    joints[9, 2, 5] = 1
    joints[9, :2, 5] = 20
    folder = make_folder(tmp_path / "lspet", joints, lspet_dir)
    for number in (1, 2, 95):
        (folder / "images" / f"im{number:05d}.jpg").unlink()
    cut = folder / "images" / "im00003.jpg"
    content = cut.read_bytes()
    cut.unlink()
    cut.write_bytes(content[: len(content) // 2])
    for _ in range(2):
        dataset = lspet.load(folder, num_validation=10)
        assert dataset.skipped.reasons == {
            "image absent": ("im00001.jpg", "im00002.jpg", "im00095.jpg"),
            "image unreadable": ("im00003.jpg",),
            "no labelled joint inside the image": ("im00005.jpg",),
        }
        # im00006.jpg has a single joint: its box is made around it.
        assert (len(dataset.train), len(dataset.validation)) == (86, 9)


def test_original_lsp_layout_flags_occlusion(lspet_dir, tmp_path):
    joints = joints_of(lspet_dir)[:, :, :12].transpose(1, 0, 2).copy()
    joints[:2] = np.clip(joints[:2], 10, 80) + np.arange(14)[None, :, None]
    joints[2] = 0
    joints[2, 3:6] = 1
    folder = make_folder(tmp_path / "lsp", joints, lspet_dir, name="im{:04d}.jpg")
    dataset = lspet.load(folder, num_validation=2)
    assert (len(dataset.train), len(dataset.validation)) == (10, 2)
    record = dataset.train[3]
    np.testing.assert_array_equal(record["visibility"], [2] * 3 + [1] * 3 + [2] * 8)
    np.testing.assert_allclose(record["keypoints"], joints[:2, :, 3].T, rtol=1e-6)
    assert record["name"] == "im0004.jpg"


def test_one_person_without_the_last_axis(lspet_dir, tmp_path):
    scipy.io.savemat(tmp_path / "joints.mat", {"joints": joints_of(lspet_dir)[:, :, 0]})
    keypoints, visibility = lspet.read_joints(tmp_path / "joints.mat")
    assert keypoints.shape == (1, 14, 2) and visibility.shape == (1, 14)


def test_source_pickles(subset):
    source = lspet.load(subset, num_validation=20).train
    assert pickle.loads(pickle.dumps(source))[11]["name"] == source[11]["name"]


def test_no_folder_given_says_where_to_get_it():
    message = (
        "needs data_dir, DIR with DIR/joints.mat .*Leeds Sports Pose Extended, sam.johnson.io/research/lspet"
    )
    with pytest.raises(DataError, match=message):
        lspet.load(None)


def test_missing_parts_are_named(tmp_path):
    with pytest.raises(DataError, match=f"no folder {tmp_path / 'nowhere'}: .*joints.mat.*sam.johnson.io"):
        lspet.load(tmp_path / "nowhere")
    with pytest.raises(DataError, match=f"no joints.mat in {tmp_path}"):
        lspet.load(tmp_path)
    (tmp_path / "joints.mat").touch()
    with pytest.raises(DataError, match=f"no folder images in {tmp_path}"):
        lspet.load(tmp_path)


HDF5 = b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(124) + b"\x00\x02IM" + b"\x89HDF\r\n\x1a\n".ljust(400)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"joints": np.zeros((14, 2, 5))}, r"shape \[14, 2, 5\], expected \[14, 3, N\]"),
        ({"joints": np.zeros((5, 5))}, r"shape \[5, 5, 1\], expected \[14, 3, N\]"),
        ({"joints": np.zeros((14, 3, 2, 2))}, r"shape \[14, 3, 2, 2\], expected"),
        ({"joints": np.zeros((14, 3, 0))}, r"shape \[14, 3, 0\], expected"),
        ({"joints": "text"}, "expected numbers of shape"),
        ({"points": np.zeros((14, 3, 5))}, "holds no variable joints"),
        (b"", "cannot be read as a MATLAB file"),
        (b"this is text, longer than a MATLAB header of 128 bytes " * 9, "cannot be read as a MATLAB"),
        (HDF5, "is a MATLAB v7.3 .* save it again"),
    ],
)
def test_strange_joints_are_one_clear_line(tmp_path, capfd, content, message):
    (tmp_path / "images").mkdir()
    path = tmp_path / "joints.mat"
    path.write_bytes(content) if isinstance(content, bytes) else scipy.io.savemat(path, content)
    with pytest.raises(DataError, match=message) as caught:
        lspet.load(tmp_path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_cut_off_matrix_is_a_data_error(subset):
    path = subset / "joints.mat"
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(DataError, match="cannot be read as a MATLAB file"):
        lspet.load(subset)


def test_every_image_absent_is_an_error(tmp_path, capfd):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "im99999.jpg").touch()
    scipy.io.savemat(tmp_path / "joints.mat", {"joints": np.ones((14, 3, 30))})
    message = f"none of the 30 images of .* is in {tmp_path / 'images'}: expected im00001.jpg ... im00030.jpg"
    with pytest.raises(DataError, match=message):
        lspet.load(tmp_path, num_validation=5)
    assert capfd.readouterr() == ("", "")


def test_no_image_usable_is_an_error(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "im00001.jpg").touch()
    scipy.io.savemat(tmp_path / "joints.mat", {"joints": np.ones((14, 3, 30))})
    with pytest.raises(DataError, match="nobody to train on .*29 image absent .*1 image is an empty file"):
        lspet.load(tmp_path, num_validation=5)


def test_validation_that_leaves_nobody_is_refused(subset):
    with pytest.raises(DataError, match=f"lists {NUM} people: num_validation=100 leaves none"):
        lspet.load(subset, num_validation=100)
    with pytest.raises(ValueError, match="num_validation=-1 < 0"):
        lspet.load(subset, num_validation=-1)


def test_validation_by_default_is_a_thousand_or_a_tenth_of_few(subset):
    dataset = lspet.load(subset)
    assert (len(dataset.train), len(dataset.validation)) == (90, 10)
    assert dataset.validation[0]["name"] == "im00091.jpg"
    counts = {1: 0, 2: 1, 11: 2, 1000: 100, 1999: 200, 2000: 1000, 8000: 1000, 10_000: 1000}
    assert {num_people: lspet._usual_validation(num_people) for num_people in counts} == counts


def test_another_version_of_the_code_is_other_data(subset, change_code):
    folder = lspet.load(subset).folder
    change_code(lspet)
    assert lspet.load(subset).folder != folder


@pytest.mark.slow
def test_the_whole_set(lspet_dir):
    dataset = lspet.load(lspet_dir)
    assert (len(dataset.train), len(dataset.validation), dataset.skipped.count) == (7000, 1000, 0)
    assert dataset.validation[0]["name"] == "im07001.jpg"
