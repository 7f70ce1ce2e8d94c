"""PASCAL VOC folders: small made-up ones with every flaw, and 292 real microscope images."""

import pathlib
import re

import cv2
import numpy as np
import pytest

from hardmine_jax.data.detection import voc
from hardmine_jax.data.problems import DataError

HEIGHT, WIDTH = 40, 60


def thing(title="cell", box=(11, 6, 20, 25), difficult=0) -> str:
    corners = zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
    return (
        f"<object><name>{title}</name><difficult>{difficult}</difficult><bndbox>"
        + "".join(f"<{name}>{value}</{name}>" for name, value in corners)
        + "</bndbox></object>"
    )


def annotation(*objects: str, filename="elsewhere.jpg", size=(WIDTH, HEIGHT)) -> str:
    width, height = size
    sides = f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>"
    return f"<annotation><filename>{filename}</filename>{sides}{''.join(objects)}</annotation>"


def write_image(path: pathlib.Path, seed: int = 0) -> bytes:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = np.random.default_rng(seed).integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8)
    encoded = cv2.imencode(path.suffix, image)[1].tobytes()
    path.write_bytes(encoded)
    return encoded


class Folder:
    """A VOC folder under construction: add images one by one, then load."""

    def __init__(self, root: pathlib.Path):
        self.root = root
        self.lists: dict[str, list[str]] = {"train": [], "val": []}
        for name in ("JPEGImages", "Annotations", "ImageSets/Main"):
            (root / name).mkdir(parents=True)

    def add(self, name: str, xml: str | None, *, split: str = "train", image: str | None = ".jpg") -> None:
        self.lists[split].append(name)
        if xml is not None:
            (self.root / "Annotations" / f"{name}.xml").write_text(xml)
        if image is not None:
            write_image(self.root / "JPEGImages" / f"{name}{image}", len(self.lists[split]))

    def load(self, **options):
        for name, lines in self.lists.items():
            (self.root / "ImageSets" / "Main" / f"{name}.txt").write_text("\n".join(lines) + "\n")
        return voc.load(self.root, cache_dir=self.root.parent / "cache", **options)


@pytest.fixture
def folder(tmp_path) -> Folder:
    made = Folder(tmp_path / "voc")
    made.add("good", annotation(thing("dog"), thing("cat", (1, 1, 60, 40), 1)))
    made.add("seen", annotation(thing("cat", (31, 11, 31.5, 40))), split="val")
    return made


def test_corners_count_from_one_and_belong_to_the_box(folder):
    dataset = folder.load()
    record = dataset.train[0]
    assert dataset.classes == ("cat", "dog") and dataset.skipped.report() == "skipped nothing"
    np.testing.assert_array_equal(record["boxes"], np.float32([[10, 5, 20, 25], [0, 0, 60, 40]]))
    np.testing.assert_array_equal(record["labels"], [2, 1])
    np.testing.assert_array_equal(record["difficult"], [False, True])
    assert record["image"] == (folder.root / "JPEGImages" / "good.jpg").read_bytes()
    assert (record["name"], record["image_id"], record["index"]) == ("good", 1, 0)
    types = {key: getattr(value, "dtype", type(value)) for key, value in record.items()}
    assert types == {
        "image": bytes, "boxes": np.float32, "labels": np.int32, "difficult": np.bool_,
        "crowd": np.bool_, "image_id": np.int64, "name": str, "index": int,
    }  # fmt: skip
    np.testing.assert_array_equal(dataset.validation[0]["boxes"], np.float32([[30, 10, 31.5, 40]]))


BAD_BOXES = {
    "box of no area": (20, 20, 20, 20),
    "box inverted": (30, 10, 20, 20),
    "box outside the image": (70, 10, 90, 20),
    "box that is no finite number": ("nan", 10, 90, "x"),
}


def test_every_flaw_is_counted_and_named_and_none_ends_the_run(folder, tmp_path):
    bad = [thing(f"bad{number}", box) for number, box in enumerate(BAD_BOXES.values())]
    folder.add("boxes", annotation(thing(), *bad))
    folder.add("flat", annotation(thing("cell", (5, 5, 5, 30)), thing("cell", (7, 7, 8, 8))))
    folder.add("outgrown", annotation(thing("cell", (51, 31, 80, 50))))
    folder.add("nothing", annotation())
    folder.add("unannotated", None)
    folder.add("cut", annotation(thing()))
    cut = folder.root / "JPEGImages" / "cut.jpg"
    cut.write_bytes(cut.read_bytes()[:-300])
    folder.add("lost", annotation(thing()), image=None)
    folder.add("turned", annotation(thing(), size=(HEIGHT, WIDTH)))
    folder.add("nameless", annotation(thing(" ")))
    folder.add("boxless", annotation("<object><name>cell</name></object>", thing()))
    folder.add("broken", "<annotation><object>")
    folder.add("nonsense", "")
    folder.add("new", annotation(thing("zebra")), split="val")
    for _ in range(2):  # The second comes from the cache.
        dataset = folder.load()
        assert dataset.skipped.reasons == {
            "annotation absent": ("unannotated",),
            "object without a name": ("nameless",),
            "annotation unreadable": (
                "broken: no element found: line 1, column 20",
                "nonsense: no element found: line 1, column 0",
            ),
            "box of no area": ("boxes#bad0", "flat#cell"),
            "box outside the image": ("boxes#bad2",),
            "box that is no finite number": ("boxes#bad3", "boxless#cell"),
            "image unreadable": ("cut",),
            "image absent": ("lost",),
            "image is not of the listed width and height (turned by EXIF?)": ("turned",),
        }
        noted = dict(dataset.skipped.noted)
        assert noted.pop("box inverted (corners swapped back)") == ("boxes#bad1",)
        assert noted == {
            "box reaches out of the image (clipped)": ("outgrown#cell",),
            "image with no object (all background)": ("nothing",),
            "class never seen in training": ("bad0", "bad2", "bad3", "zebra"),
        }
        names = [record["name"] for record in dataset.train]
        assert names == ["good", "boxes", "flat", "outgrown", "nothing", "nameless", "boxless"]
        np.testing.assert_array_equal(dataset.train[3]["boxes"], np.float32([[50, 30, 60, 40]]))
        assert dataset.train[4]["boxes"].shape == (0, 4) and dataset.train[4]["labels"].shape == (0,)
        # With what is left alone: the places of boxes that cannot be used, and of what has no name.
        np.testing.assert_array_equal(dataset.train.objects_per_image, [2, 4, 2, 1, 0, 1, 2])
        np.testing.assert_array_equal(dataset.train.targets_per_image, [1, 2, 1, 1, 0, 0, 1])
    assert "kept, but noted 7 records" in dataset.skipped.report()


POLYGON = "<polygon><x1>10</x1><y1>8</y1><x2>31</x2><y2>8</y2><x3>20</x3><y3>26</y3></polygon>"
POINTS = "<polygon><pt><x>10</x><y>8</y></pt><pt><x>31</x><y>26</y></pt></polygon>"
TURNED = "<robndbox><cx>20.5</cx><cy>17</cy><w>18</w><h>21</h><angle>1.5707963</angle></robndbox>"


@pytest.mark.parametrize("outline", [POLYGON, POINTS, TURNED])
def test_an_outline_takes_the_place_of_a_box(folder, outline):
    folder.add("outline", annotation(f"<object><name>cell</name>{outline}</object>"))
    record = folder.load().train[1]
    np.testing.assert_allclose(record["boxes"], [[10, 8, 31, 26]], atol=1e-4)
    assert record["labels"].all() and not record["difficult"].any()


def test_an_object_without_a_usable_box_is_never_background(folder):
    folder.add("swapped", annotation(thing("dog", (20, 25, 11, 6))))
    folder.add("line", annotation(thing("dog", (11, 20, 30, 20))))
    folder.add("nameless", annotation(thing(" ")))
    folder.add("point", annotation(thing("dog", (20, 20, 20, 20))))
    folder.add("point and dog", annotation(thing("dog", (20, 20, 20, 20)), thing("dog")))
    folder.add("nowhere", annotation("<object><name>dog</name></object>"))
    folder.add("elsewhere", annotation(thing("dog", (90, 90, 99, 99))))
    folder.add("judged", annotation("<object><name>dog</name></object>"), split="val")
    dataset = folder.load()
    records = {record["name"]: record for record in dataset.train}
    assert set(records) == {"good", "swapped", "line", "nameless", "point and dog"}
    np.testing.assert_array_equal(records["swapped"]["boxes"], [[10, 5, 20, 25]])
    assert records["swapped"]["labels"].all()
    for name, box in (("line", [11, 10.5, 30, 29.5]), ("nameless", [10, 5, 20, 25])):
        np.testing.assert_array_equal(records[name]["boxes"], [box])
        assert records[name]["difficult"].all() and records[name]["crowd"].all()
        assert not records[name]["labels"].any()
    both = records["point and dog"]
    np.testing.assert_array_equal(both["boxes"], [[0, 0, WIDTH, HEIGHT], [10, 5, 20, 25]])
    assert both["crowd"].tolist() == [True, False] and both["labels"].tolist() == [0, 2]
    reasons = dataset.skipped.reasons
    assert reasons["image left out of training (the place of an object in it is unknown)"] == (
        "point",
        "nowhere",
    )
    assert reasons["image left out of training (all its boxes lie outside of it)"] == ("elsewhere",)
    # What is evaluated stays what it was.
    assert [record["name"] for record in dataset.validation] == ["seen", "judged"]


@pytest.mark.parametrize(
    "line",
    [
        "a.jpg",
        "a.xml",
        "a.JPG",
        "JPEGImages/a.jpg",
        "./JPEGImages/a.jpg",
        "/data/VOC2007/JPEGImages/a.jpg",
        "JPEGImages\\a.jpg",
        "JPEGImages/a.jpg Annotations/a.xml",
        "JPEGImages/a.jpg\tAnnotations/a.xml",
        "VOC/JPEGImages/a.jpg,VOC/Annotations/a.xml",
        "a  1",
        "a",
    ],
)
def test_a_list_may_name_files(folder, line):
    folder.add("a", annotation(thing()))
    folder.lists["train"] = [line]
    dataset = folder.load()
    assert dataset.skipped.count == 0 and [record["name"] for record in dataset.train] == ["a"]


def test_a_pair_names_its_own_image(folder):
    folder.add("a b", annotation(thing()), image=None)
    encoded = write_image(folder.root / "JPEGImages" / "photo 1.png")
    folder.lists["train"] = ["JPEGImages/photo 1.png Annotations/a b.xml"]
    assert folder.load().train[0]["image"] == encoded


@pytest.mark.parametrize("filename", ["photo1", "photo1.png", "C:\\pictures\\photo1.png", "../x/photo1.jpg"])
def test_a_file_name_with_or_without_ending_or_folders(folder, filename):
    folder.add("a", annotation(thing(), filename=filename), image=None)
    encoded = write_image(folder.root / "JPEGImages" / "photo1.png")
    assert folder.load().train[1]["image"] == encoded


def test_corners_that_count_from_zero(folder):
    folder.add("zero", annotation(thing("dog", (0, 0, 59, 39)), thing("dog", (10, 5, 19, 24))))
    noted = folder.load().skipped.noted
    reason = "box that begins at pixel 0, where VOC's begin at 1 (counted from 0?)"
    assert noted[reason] == ("zero#dog",)
    for corners, expected in (
        ("from_0", [[0, 0, 60, 40], [10, 5, 20, 25]]),
        ("edges", [[0, 0, 59, 39], [10, 5, 19, 24]]),
    ):
        dataset = folder.load(corners=corners)
        np.testing.assert_array_equal(dataset.train[1]["boxes"], expected)
        assert reason not in dataset.skipped.noted
    with pytest.raises(ValueError, match="corners='one'"):
        folder.load(corners="one")


def test_boxes_as_parts_of_the_picture(tmp_path):
    folder = Folder(tmp_path / "relative")
    for name, split in (("a", "train"), ("b", "val")):
        folder.add(name, annotation(thing("cell", (0.25, 0.1, 0.5, 1.0))), split=split)
    dataset = folder.load()
    np.testing.assert_array_equal(dataset.train[0]["boxes"], np.float32([[15, 4, 30, 40]]))
    assert dataset.skipped.noted["boxes in 0..1, taken for parts of the picture's width and height"] == (
        "a",
        "b",
    )


@pytest.mark.parametrize(
    "encoding", ["gb2312", "GBK", "gb18030", "big5", "Shift_JIS", "euc-kr", "windows-1252", "UTF8", "utf-16"]
)
def test_encodings(folder, encoding):
    title = {"big5": "細胞", "Shift_JIS": "細胞", "euc-kr": "세포", "windows-1252": "é"}.get(encoding, "细胞")
    folder.add("a", "")
    text = f'<?xml version="1.0" encoding="{encoding}"?>' + annotation(thing(title))
    (folder.root / "Annotations" / "a.xml").write_bytes(text.encode(encoding))
    assert title in folder.load().classes


@pytest.mark.parametrize(
    "content, why",
    [
        (annotation(thing("nut & bolt")).encode(), "line 1, column [0-9]+; a bare & is written &amp;"),
        (
            annotation(thing("细胞")).encode("gb2312"),
            "no UTF-8, and no other encoding is declared: line 1, column",
        ),
        (
            b'<?xml version="1.0" encoding="gb2312"?>\n<a>\xff\xff</a>',
            "no gb2312 as it declares: line 2, column 3",
        ),
        (b'<?xml version="1.0" encoding="martian"?><a/>', "unknown encoding|not known"),
        (b"<annotation>\n<object></annotation>", "mismatched tag: line 2"),
    ],
)
def test_why_an_annotation_is_unreadable(folder, content, why):
    folder.add("a", "")
    (folder.root / "Annotations" / "a.xml").write_bytes(content)
    (named,) = folder.load().skipped.reasons["annotation unreadable"]
    assert re.search(f"^a: .*({why})", named)


def test_entities_are_refused(folder):
    bomb = '<!DOCTYPE a [<!ENTITY b "bbbb"><!ENTITY c "&b;&b;&b;">]>'
    folder.add("bomb", bomb + annotation(thing("&c;")))
    wide = folder.root / "Annotations" / "wide.xml"
    folder.add("wide", "")
    wide.write_bytes((bomb + annotation(thing())).encode("utf-16"))
    assert folder.load().skipped.reasons == {"annotation with a DOCTYPE": ("bomb", "wide")}


def test_no_name_leads_out_of_the_folder(folder):
    write_image(folder.root / "secret.jpg")
    (folder.root / "out.xml").write_text(annotation(thing()))
    folder.lists["train"].append("../out")
    folder.add("pointer", annotation(thing(), filename="../secret.jpg"), image=None)
    skipped = folder.load().skipped
    assert skipped.reasons == {
        "name that leads out of the folder": ("../out",),
        "image absent": ("pointer",),
    }


def test_the_file_name_in_an_annotation_counts_where_no_image_has_its_name(folder):
    folder.add("other", annotation(thing(), filename="inside.png"), image=None)
    folder.add("capital", annotation(thing()), image=".PNG")
    encoded = write_image(folder.root / "JPEGImages" / "inside.png")
    dataset = folder.load()
    assert dataset.skipped.count == 0 and dataset.train[1]["image"] == encoded
    assert dataset.train[2]["image"].startswith(b"\x89PNG")


def test_given_classes_are_the_labels(folder):
    dataset = folder.load(classes=["dog", "horse"])
    np.testing.assert_array_equal(dataset.train[0]["labels"], [1])
    assert dataset.classes == ("dog", "horse")
    assert dataset.skipped.reasons == {"object of none of the classes": ("good#cat", "seen#cat")}
    assert dataset.skipped.noted["class never seen in training"] == ("horse",)


def test_a_list_of_one_class_and_a_picture_in_both_lists(folder):
    folder.lists["train"] = ["good  1", "good -1", ""]
    folder.lists["val"].append("good")
    dataset = folder.load()
    assert [record["name"] for record in dataset.train] == ["good"]
    assert dataset.skipped.noted == {"image in the training and in the validation list": ("good",)}
    assert dataset.validation[1]["image_id"] == dataset.train[0]["image_id"]


def test_without_lists_a_hash_of_the_names_splits(folder):
    for number in range(30):
        folder.add(f"image {number}", annotation(thing()))
    folder.add("unlabelled", None)
    (folder.root / "ImageSets" / "Main").rmdir()
    dataset = voc.load(folder.root)
    train, validation = (
        {record["name"] for record in source} for source in (dataset.train, dataset.validation)
    )
    assert train.isdisjoint(validation) and len(train | validation) == 32 and 1 <= len(validation) <= 9
    assert dataset.skipped.reasons == {"annotation absent": ("unlabelled",)}
    (folder.root / "Annotations" / f"{sorted(train)[0]}.xml").unlink()
    fewer = voc.load(folder.root)
    assert {record["name"] for record in fewer.validation} == validation


def test_unusable_folders_are_one_clear_error(folder, tmp_path):
    for given, message in (
        (None, "voc needs data_dir"),
        (tmp_path / "absent", "no folder"),
        (folder.root / "JPEGImages", "no folder JPEGImages in"),
    ):
        with pytest.raises(DataError, match=message) as caught:
            voc.load(given)
        assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match=r"no list test.txt in .*: choose among train, val"):
        folder.load()
        folder.load(train="test")
    folder.lists["train"] = ["nothing"]
    folder.add("nothing", annotation())
    with pytest.raises(DataError, match=r"voc: no object to train on \(kept, but noted .*expected annotated"):
        folder.load()
    folder.lists = {"train": ["a"], "val": ["b"]}
    with pytest.raises(DataError, match=r"none of the 2 annotations .*annotation absent, a"):
        folder.load()


def test_real_blood_cells(bccd_dir):
    dataset = voc.load(bccd_dir)
    assert dataset.classes == ("Platelets", "RBC", "WBC")
    assert (len(dataset.train), len(dataset.validation)) == (205, 87)
    assert dataset.skipped.reasons == {"box of no area": ("BloodImage_00343#RBC", "BloodImage_00338#RBC")}
    assert dataset.skipped.noted == {}
    counts = [
        np.bincount(np.concatenate([source[index]["labels"] for index in range(len(source))]))
        for source in (dataset.train, dataset.validation)
    ]
    # Two boxes are clicks: all of their pictures but the other cells is left alone.
    np.testing.assert_array_equal(counts, [[1, 209, 2381, 214], [1, 83, 967, 87]])
    assert dataset.train.objects_per_image.max() == 28 and dataset.validation.objects_per_image.max() == 30
    first = dataset.train[0]
    assert first["boxes"].min() >= 0 and (first["boxes"] <= np.float32([640, 480, 640, 480])).all()
