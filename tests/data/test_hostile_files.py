"""Files made to do harm: paths that lead out of the data, bombs, names that are no names, archives."""

import io
import json
import os
import pathlib
import struct
import zipfile

import cv2
import numpy as np
import pytest

from hardmine_jax.data import cache, coco_download, coco_json, listing
from hardmine_jax.data.detection import coco as coco_detection
from hardmine_jax.data.detection import voc
from hardmine_jax.data.pose import coco as coco_keypoints
from hardmine_jax.data.pose import mpii, person_boxes
from hardmine_jax.data.problems import DataError, printable

SECRET = "secret.png"
WAYS_OUT = [
    "../secret.png", "a/../../secret.png", "./../secret.png", "a/./../../secret.png", "..", "", ".", "\0",
    "\ud800.png", "/etc/hostname", None, 5, ["a.png"], {"a": 1},
]  # fmt: skip


def write_image(path: pathlib.Path) -> pathlib.Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8)
    assert cv2.imwrite(str(path), image)
    return path


@pytest.fixture
def images(tmp_path) -> pathlib.Path:
    """A folder with good.png in it, and beside it a picture that is nobody's business."""
    write_image(tmp_path / SECRET)
    (tmp_path / "images" / "a").mkdir(parents=True)
    write_image(tmp_path / "images" / "good.png")
    return tmp_path / "images"


def ways_out(images: pathlib.Path) -> list:
    return [*WAYS_OUT, str(images.parent / SECRET), f"{images}/../{SECRET}"]


def coco(names: list, **category) -> dict:
    annotation = {"category_id": 1, "bbox": [1, 2, 30, 20], "keypoints": [5, 6, 2, 30, 20, 2]}
    return {
        "images": [{"id": number, "file_name": name} for number, name in enumerate(names)],
        "annotations": [annotation | {"id": n, "image_id": n} for n in range(len(names))],
        "categories": [{"id": 1, "name": "mouse", "keypoints": ["nose", "tail"]} | category],
    }


def write(path: pathlib.Path, content) -> pathlib.Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


@pytest.mark.parametrize("load", [coco_keypoints.load, coco_detection.load], ids=["keypoints", "detection"])
def test_coco_names_do_not_leave_the_folder(images, load, tmp_path):
    names = [*ways_out(images), "good.png"]
    dataset = load(write(tmp_path / "a.json", coco(names)), images)
    assert len(dataset.train) + len(dataset.validation) == 1
    reason = "file_name missing, no path or outside the image folder"
    assert len(dataset.skipped.reasons[reason]) == len(names) - 1
    file = coco_json.load_file(tmp_path / "a.json", images)
    shown = person_boxes.CocoImages(file)
    assert [*shown.ids] == [len(names) - 1] and shown.read(len(names) - 1)[0] == "good.png"


def test_mpii_names_do_not_leave_the_folder(images):
    person = {"center": [30, 20], "scale": 0.2, "joints": [[n + 1, 2 * n + 1] for n in range(16)],
              "joints_vis": [1] * 16}  # fmt: skip
    names = [*ways_out(images), "good.png"]
    for split in ("train", "valid"):
        people = [person | {"image": name} for name in names]
        write(images.parent / "annot" / f"{split}.json", people)
    dataset = mpii.load(images.parent)
    assert [dataset.train[row]["name"] for row in range(len(dataset.train))] == ["good.png"]
    reason = "image missing, no path or outside the image folder"
    assert len(dataset.skipped.reasons[reason]) == 2 * (len(names) - 1)


def test_voc_names_do_not_leave_the_folder(tmp_path):
    write_image(tmp_path / "secret.jpg")
    write(tmp_path / "secret.xml", _xml("elsewhere"))
    folder = tmp_path / "voc"
    write_image(folder / "JPEGImages" / "good.png")
    for name, filename in (("good", "x"), ("pointer", "../../secret.jpg"), ("long", "y" * 300 + ".jpg")):
        write(folder / "Annotations" / f"{name}.xml", _xml(filename))
    listed = ["good", "pointer", "long", "../../secret", f"{tmp_path}/secret", "z" * 300]
    write(folder / "ImageSets" / "Main" / "train.txt", "\n".join(listed))
    write(folder / "ImageSets" / "Main" / "val.txt", "")
    dataset = voc.load(folder)
    assert [dataset.train[row]["name"] for row in range(len(dataset.train))] == ["good"]
    out = "name that leads out of the folder"
    assert dataset.skipped.reasons[out] == ("../../secret", f"{tmp_path}/secret")
    assert dataset.skipped.reasons["image absent"] == ("pointer", "long")


def _xml(filename: str, title: str = "dog") -> str:
    corners = "<xmin>3</xmin><ymin>4</ymin><xmax>30</xmax><ymax>20</ymax>"
    thing = f"<object><name>{title}</name><bndbox>{corners}</bndbox></object>"
    return f"<annotation><filename>{filename}</filename>{thing}</annotation>"


def test_links_that_the_owner_made_are_followed(images):
    (images / "link.png").symlink_to(images.parent / SECRET)
    assert listing.inside(images, "link.png") == images / "link.png"
    # Through a link to a folder and up again is inside, whatever the link leads to.
    (images / "elsewhere").symlink_to("/")
    assert listing.inside(images, "elsewhere/../good.png") == images / "good.png"


def test_folders_nested_deeper_than_the_stack_are_listed(tmp_path):
    empty, deepest = cache.folder_hash(tmp_path), os.path.join(tmp_path, *["d"] * 1500)
    for depth in range(1, 1501):
        os.mkdir(os.path.join(tmp_path, *["d"] * depth))
    try:
        assert cache.folder_hash(tmp_path) == empty
        with open(f"{deepest}/file", "w"):
            assert cache.folder_hash(tmp_path) != empty
        os.remove(f"{deepest}/file")
    finally:
        os.removedirs(deepest)  # pytest's own removal is recursive.


@pytest.mark.parametrize("depth", [30, 900, 960, 980, 995, 100_000])
def test_deep_nesting_in_json_is_skipped_or_refused(images, depth, tmp_path):
    content = coco(["good.png", "good.png"], name="DEEP")
    content["images"][0]["file_name"] = content["annotations"][0]["id"] = "DEEP"
    content["annotations"][1]["bbox"] = "DEEP"
    text = json.dumps(content).replace('"DEEP"', "[" * depth + "]" * depth)
    for load in (coco_keypoints.load, coco_detection.load):
        with pytest.raises(DataError):
            load(write(tmp_path / "a.json", text), images)


def test_the_last_of_a_key_given_twice_counts(images, tmp_path):
    text = json.dumps(coco(["good.png"])).replace('"bbox": ', '"bbox": "first", "bbox": ')
    assert len(coco_detection.load(write(tmp_path / "a.json", text), images).train) == 1


@pytest.mark.parametrize("number", ["9" * 5000, "1e400", "-1e400", "NaN", "1" + "0" * 400])
def test_huge_numbers_are_skipped_or_refused(images, number, tmp_path):
    text = json.dumps(coco(["good.png"])).replace("30", number)
    for load in (coco_keypoints.load, coco_detection.load):
        with pytest.raises(DataError) as caught:
            load(write(tmp_path / "a.json", text), images)
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 2500


BOMB = "<!DOCTYPE x [" + "".join(f'<!ENTITY e{n} "{f"&e{n - 1};" * 20}">' for n in range(1, 12)) + "]>"


@pytest.mark.parametrize(
    ("before", "reason"),
    [
        (BOMB, "annotation with a DOCTYPE"), ("<a>" * 200_000, "annotation unreadable"),
        ('<!DOCTYPE x SYSTEM "file:///dev/zero">', "annotation with a DOCTYPE"),
        ('<?xml version="1.0" encoding="rot13"?>', "annotation unreadable"),
        ('<?xml version="1.0" encoding="idna"?>', "annotation unreadable"),
    ],
    ids=["laughs", "nested", "external", "rot13", "idna"],
)  # fmt: skip
def test_hostile_xml_is_skipped(tmp_path, before, reason):
    for name in ("bad", "good", "other"):
        write_image(tmp_path / "JPEGImages" / f"{name}.png")
        write(tmp_path / "Annotations" / f"{name}.xml", _xml("x"))
    write(tmp_path / "Annotations" / "bad.xml", before + _xml("&e11;" if before == BOMB else "x"))
    (tmp_path / "Annotations" / "endless.xml").symlink_to("/dev/zero")
    dataset = voc.load(tmp_path)
    expected = {reason: ["bad"], "annotation unreadable": ["endless"]}
    expected["annotation unreadable"] += ["bad"] if reason == "annotation unreadable" else []
    # After the name stands why it is unreadable.
    found = {
        why: sorted(name.split(":")[0] for name in names) for why, names in dataset.skipped.reasons.items()
    }
    assert found == {why: sorted(names) for why, names in expected.items()}


def test_names_of_classes_and_keypoints_can_be_printed(images, tmp_path):
    strange = "a\nb\u202e\ud800\x1b[31m"
    path = write(tmp_path / "a.json", coco(["good.png"], name=strange, keypoints=[strange, "tail"]))
    clean = "a\\nb\\u202e\\ud800\\x1b[31m"
    assert coco_detection.load(path, images).classes == (clean,)
    assert coco_keypoints.load(path, images).skeleton.names == (clean, "tail")
    assert coco_keypoints.load(path, images, category=strange, name="again").skeleton.names[0] == clean
    persian = "می\u200cخواهم"
    assert printable(persian) == persian


def test_two_categories_of_one_name_stay_two(images, tmp_path):
    content = coco(["good.png"])
    content["categories"] += [{"id": 2, "name": "mouse"}, {"id": 3, "name": "rat"}]
    classes = coco_detection.load(write(tmp_path / "a.json", content), images).classes
    assert classes == ("mouse (id 1)", "mouse (id 2)", "rat")


def test_an_error_is_one_line_of_some_length(images, tmp_path):
    content = coco(["good.png"], name="x\n" * 10_000)
    content["annotations"][0]["category_id"] = 5
    with pytest.raises(DataError) as caught:
        coco_keypoints.load(write(tmp_path / "a.json", content), images)
    assert str(caught.value).isprintable() and len(str(caught.value)) <= 2000


def _archive(path: pathlib.Path, members: dict[str, bytes]) -> pathlib.Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def test_archives_write_nothing_outside_and_no_links(tmp_path):
    link = zipfile.ZipInfo("way_out")
    link.external_attr = 0o120777 << 16
    names = {"../up": b"1", "/root": b"2", "a/../../b": b"3", link: b"/etc", "way_out2/passwd": b"4"}
    path = _archive(tmp_path / "a.zip", names)
    coco_download._unpack(path, "url", tmp_path / "deep" / "into")
    assert {entry.name for entry in tmp_path.iterdir()} == {"a.zip", "deep"}
    assert [entry.name for entry in (tmp_path / "deep").iterdir()] == ["into"]
    found = [*(tmp_path / "deep").rglob("*")]
    assert len([entry for entry in found if entry.is_file()]) == 5
    assert not any(entry.is_symlink() for entry in found)


def test_a_bomb_of_an_archive_is_refused_and_forgotten(tmp_path):
    path = _archive(tmp_path / "a.zip", {"a": bytes(10**7)})
    with pytest.raises(DataError, match="no whole zip archive .it would unpack to 10,000,000 bytes"):
        coco_download._unpack(path, "url", tmp_path / "into")
    assert not path.exists() and not (tmp_path / "into").exists()


def test_an_archive_whose_headers_lie_is_a_data_error(tmp_path):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a", b"x" * 100)
    content = bytearray(buffer.getvalue())
    entry = content.index(b"PK\x01\x02")
    lies = ((8, 1), (10, 99), (42, 0xFFFFFFF0), (24, 0x7FFFFFF))
    for place, number in ((entry + offset, number) for offset, number in lies):
        changed = content.copy()
        struct.pack_into("<H" if place < entry + 12 else "<I", changed, place, number)
        (tmp_path / "a.zip").write_bytes(changed)
        with pytest.raises(DataError, match="no whole zip archive"):
            coco_download._unpack(tmp_path / "a.zip", "url", tmp_path / "into")
