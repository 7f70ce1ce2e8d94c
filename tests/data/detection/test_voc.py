"""PASCAL VOC folders: small made-up ones with every flaw, and 292 real microscope images."""

import pathlib

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
        "image_id": np.int64, "name": str, "index": int,
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
            "annotation unreadable": ("broken", "nonsense"),
            "box of no area": ("boxes#bad0", "flat#cell"),
            "box inverted": ("boxes#bad1",),
            "box outside the image": ("boxes#bad2",),
            "box that is no finite number": ("boxes#bad3", "boxless#cell"),
            "image unreadable": ("cut",),
            "image absent": ("lost",),
            "image is not of the listed width and height (turned by EXIF?)": ("turned",),
        }
        assert dataset.skipped.noted == {
            "box reaches out of the image (clipped)": ("outgrown#cell",),
            "image with no object (all background)": ("nothing", "nameless"),
            "class never seen in training": ("bad0", "bad1", "bad2", "bad3", "zebra"),
        }
        names = [record["name"] for record in dataset.train]
        assert names == ["good", "boxes", "flat", "outgrown", "nothing", "nameless", "boxless"]
        np.testing.assert_array_equal(dataset.train[3]["boxes"], np.float32([[50, 30, 60, 40]]))
        assert dataset.train[4]["boxes"].shape == (0, 4) and dataset.train[4]["labels"].shape == (0,)
        np.testing.assert_array_equal(dataset.train.objects_per_image, [2, 1, 1, 1, 0, 0, 1])
    assert "kept, but noted 8 records" in dataset.skipped.report()


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
    np.testing.assert_array_equal(counts, [[0, 209, 2381, 214], [0, 83, 967, 87]])
    assert dataset.train.objects_per_image.max() == 28 and dataset.validation.objects_per_image.max() == 30
    first = dataset.train[0]
    assert first["boxes"].min() >= 0 and (first["boxes"] <= np.float32([640, 480, 640, 480])).all()
