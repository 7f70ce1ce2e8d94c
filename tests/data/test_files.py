"""A pipe or a device where a file should be: refused before anything waits for it."""

import os

import pytest

from hardmine_jax.data import coco_json, files, images
from hardmine_jax.data.pose import mpii, person_boxes
from hardmine_jax.errors import UserError
from hardmine_jax.models.torch_files import read_torch_file
from hardmine_jax.tasks import compare, photos
from hardmine_jax.tasks.pose import config


def _load_boxes(path):
    person_boxes.load(path, None, num_keypoints=3)


READERS = {
    "annotations.json": lambda path: coco_json.load_file(path, path.parent),
    "boxes.json": _load_boxes,
    "config.json": lambda path: config.load_config(path.parent),
    "result.json": lambda path: compare.read_run(path.parent),
    "weights.npz": read_torch_file,
    "weights.pth": read_torch_file,
    "photo.jpg": photos.read_photo,
    "annot/train.json": lambda path: mpii.load(path.parents[1]),
}


@pytest.mark.parametrize("kind", ["pipe", "device"])
@pytest.mark.parametrize("name", READERS)
def test_no_reader_waits_for_a_pipe_or_reads_a_device(tmp_path, name, kind):
    path = tmp_path / name
    for folder in (path.parent, tmp_path / "images"):
        folder.mkdir(exist_ok=True)
    if name == "result.json":
        (tmp_path / "config.json").write_text('{"config": {"seed": 0}}')
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero")
    with pytest.raises(UserError):
        READERS[name](path)
    with pytest.raises(OSError, match="no regular file"):
        files.read_bytes(path)
    assert images.open_image(path, None) == "image unreadable"


def test_a_file_is_read_whole_up_to_a_limit(tmp_path):
    (tmp_path / "a").write_bytes(b"12345")
    (tmp_path / "link").symlink_to("a")
    assert files.read_bytes(tmp_path / "link", max_bytes=5) == b"12345"
    with pytest.raises(OSError, match="has more than 4 bytes"):
        files.read_bytes(tmp_path / "a", max_bytes=4)
    with pytest.raises(FileNotFoundError):
        files.read_bytes(tmp_path / "absent")
