"""Preparation, cache and random access, with small made-up pictures."""

import os
import pathlib
import pickle
import subprocess
import sys
import threading
import time

import cv2
import numpy as np
import pytest

from hardmine_jax.data import cache, images
from hardmine_jax.data.pose import augment, records
from hardmine_jax.data.problems import DataError, gather
from hardmine_jax.pose import Skeleton

SKELETON = Skeleton(("nose", "left_ear", "right_ear"), ((1, 2),), (0.05, 0.05, 0.05), ((0, 1), (0, 2)))


def encoded(seed: int, extension: str = ".jpg", size=(40, 60)) -> bytes:
    image = np.random.default_rng(seed).integers(0, 255, (*size, 3), np.uint8)
    return cv2.imencode(extension, image)[1].tobytes()


def person(seed: int = 0, **changes) -> records.Person:
    keypoints = np.random.default_rng(seed).uniform(5, 35, (3, 2)).astype(np.float32)
    return records.Person(keypoints, np.array([2, 1, 2]), annotation_id=seed)._replace(**changes)


def picture(number: int, num_people: int = 1, extension: str = ".jpg") -> records.Picture:
    people = tuple(person(10 * number + place) for place in range(num_people))
    return records.Picture(f"{number}{extension}", number, encoded(number, extension), people)


def prepare(train, validation=(), *, cache_dir, made_from=None, calls=None) -> records.PoseDataset:
    def read(skip):
        if calls is not None:
            calls.append(1)
        splits = {"train": records.usable(train, skip), "validation": records.usable(validation, skip)}
        return SKELETON, splits

    made_from = made_from or {"version": 1}
    return records.prepare("toy", made_from=made_from, read=read, expected="people", cache_dir=cache_dir)


def test_one_record_a_person_in_order_with_the_bytes_of_the_file(tmp_path):
    pictures = [picture(0, 2), picture(1, 1, ".png"), picture(2, 3)]
    dataset = prepare(pictures, [picture(3)], cache_dir=tmp_path)
    expected = [(shown, someone) for shown in pictures for someone in shown.people]
    assert len(dataset.train) == 6 and len(dataset.validation) == 1
    for index, (shown, someone) in enumerate(expected):
        record = dataset.train[index]
        assert record["image"] == shown.image
        assert (record["name"], record["image_id"], record["index"]) == (shown.name, shown.image_id, index)
        assert record["annotation_id"] == someone.annotation_id
        np.testing.assert_array_equal(record["keypoints"], someone.keypoints)
        np.testing.assert_array_equal(record["visibility"], someone.visibility)
        tight = [*someone.keypoints.min(0), *someone.keypoints.max(0)]
        np.testing.assert_array_equal(record["box"], np.float32(tight))
        area = (record["box"][2] - record["box"][0]) * (record["box"][3] - record["box"][1])
        np.testing.assert_allclose(record["area"], area, rtol=1e-6)
    types = {key: getattr(value, "dtype", type(value)) for key, value in record.items()}
    assert types == {
        "image": bytes, "keypoints": np.float32, "visibility": np.int32, "box": np.float32,
        "area": np.float32, "image_id": np.int64, "annotation_id": np.int64, "name": str, "index": int,
    }  # fmt: skip
    assert dataset.skeleton == SKELETON and dataset.skipped.count == 0


def test_files_are_those_of_a_tensorflow_dataset_and_nothing_imports_tensorflow(tmp_path):
    import tensorflow_datasets as tfds

    dataset = prepare([picture(0, 2), picture(1)], cache_dir=tmp_path)
    builder = tfds.builder_from_directory(os.fspath(dataset.folder / "examples"))
    assert builder.info.splits["train"].num_examples == 2
    assert builder.info.file_format.value == "array_record"
    example = next(iter(builder.as_data_source("train")))
    assert example["image"].shape == (40, 60, 3) and example["keypoints"].shape == (2, 3, 2)
    assert "tensorflow" not in sys.modules


def test_index_outside_is_an_error_and_negative_counts_from_the_end(tmp_path):
    source = prepare([picture(0, 3)], cache_dir=tmp_path).train
    assert source[-1]["index"] == 2
    for index in (3, -4):
        with pytest.raises(IndexError, match=f"record {index} of 3"):
            source[index]
    assert len(list(source)) == 3


def test_empty_validation_is_allowed(tmp_path):
    assert len(prepare([picture(0)], cache_dir=tmp_path).validation) == 0


def test_source_pickles_small_and_reads_the_same_elsewhere(tmp_path):
    source = prepare([picture(number) for number in range(20)], cache_dir=tmp_path).train
    source[0]
    packed = pickle.dumps(source)
    assert len(packed) < 5_000
    file = tmp_path / "source.pickle"
    file.write_bytes(packed)
    code = "import pickle, sys; s = pickle.load(open(sys.argv[1], 'rb')); print(len(s), s[7]['image_id'])"
    output = subprocess.run([sys.executable, "-c", code, file], capture_output=True, text=True, check=True)
    assert output.stdout.split() == ["20", "7"]
    assert repr(pickle.loads(packed)) == repr(source)


def test_many_threads_read_the_same(tmp_path):
    source = prepare([picture(number) for number in range(30)], cache_dir=tmp_path).train
    wrong = []

    def read():
        wrong.extend(index for index in range(30) if source[index]["image_id"] != index)

    threads = [threading.Thread(target=read) for _ in range(4)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert not wrong


def test_same_sources_come_from_the_cache_and_other_options_do_not(tmp_path, capfd):
    calls = []
    first = prepare([picture(0)], cache_dir=tmp_path, calls=calls)
    out, err = capfd.readouterr()
    assert out == "" and err.count("\n") == 1 and "preparing toy" in err and str(first.folder) in err
    again = prepare([picture(0)], cache_dir=tmp_path, calls=calls)
    assert capfd.readouterr() == ("", "")
    assert len(calls) == 1 and again.folder == first.folder
    assert prepare([picture(0)], cache_dir=tmp_path, made_from={"version": 2}).folder != first.folder


def bad_pictures(folder: pathlib.Path) -> list[records.Picture]:
    (folder / "cut.jpg").write_bytes(encoded(1)[:-200])
    (folder / "cut.png").write_bytes(encoded(1, ".png")[:-200])
    (folder / "text.jpg").write_text("no image at all")
    (folder / "empty.jpg").touch()
    (folder / "folder.jpg").mkdir()
    names = ["cut.jpg", "cut.png", "text.jpg", "empty.jpg", "folder.jpg", "absent.jpg"]
    return [records.Picture(name, 0, folder / name, (person(),)) for name in names]


def test_bad_records_are_counted_with_their_names_also_from_the_cache(tmp_path, capfd):
    pictures = bad_pictures(tmp_path)
    nobody = person(visibility=np.zeros(3, int))
    outside = person(keypoints=np.array([[70.0, 5], [5, 50], [np.nan, 5]]))
    flat = person(2, box=np.array([5.0, 5, 5, 20]))
    pictures.append(picture(1)._replace(people=(person(), nobody, outside, flat)))
    for _ in range(2):
        dataset = prepare(pictures, cache_dir=tmp_path / "cache")
        assert dataset.skipped.reasons == {
            "image unreadable": ("cut.jpg", "cut.png", "text.jpg", "folder.jpg"),
            "image is an empty file": ("empty.jpg",),
            "image absent": ("absent.jpg",),
            "no labelled joint inside the image": ("1.jpg#0", "1.jpg#0"),
        }
        assert dataset.skipped.noted == {"box of no area (made around the joints)": ("1.jpg#2",)}
        assert dataset.skipped.count == 8 and len(dataset.train) == 2
    report = dataset.skipped.report(num_names=2)
    # What is absent is not waited for by what is decoded.
    start = (
        "skipped 8 records: 1 image absent (absent.jpg); 4 image unreadable (cut.jpg, cut.png, ...); 1 image"
    )
    assert report.startswith(start)
    assert report.endswith(". kept, but noted 1 record: 1 box of no area (made around the joints) (1.jpg#2)")
    assert "\n" not in report
    assert capfd.readouterr().err.count("\n") == 1


def test_a_box_of_no_area_is_made_around_the_joints_and_others_are_told_apart(tmp_path):
    along_a_line = np.array([[5.0, 20], [9, 20], [30, 20]])
    people = (
        person(1, keypoints=along_a_line),
        person(2, keypoints=along_a_line, box=np.array([1.0, 15, 35, 25])),
        person(3, visibility=np.array([2, 0, 0])),
        person(4, box=np.array([5.0, 5, 30, 5])),
        person(5, box=np.array([0.0, 0, 1e30, 1e30])),
        person(6, box=np.array([0.0, 0, np.inf, 9])),
        person(7, box=np.array([-1e200, -1e200, 1e200, 1e200]), area=np.nan),
        person(8, area=1e300),
        person(9, area=np.inf),
    )
    dataset = prepare([picture(0)._replace(people=people)], cache_dir=tmp_path)
    assert dataset.skipped.reasons == {
        "box or area that is no finite number": ("0.jpg#5", "0.jpg#6", "0.jpg#7", "0.jpg#8"),
    }
    assert dataset.skipped.noted == {"box of no area (made around the joints)": ("0.jpg#4",)}
    found = {int(record["annotation_id"]): record for record in dataset.train}
    assert sorted(found) == [1, 2, 3, 4, 9] and all(np.isfinite(one["area"]) for one in found.values())
    # A tenth of the longer side; a single point gets a quarter of the image's shorter side.
    np.testing.assert_allclose(found[1]["box"], [2.5, 17.5, 32.5, 22.5])
    np.testing.assert_allclose(
        found[3]["box"], np.tile(found[3]["keypoints"][0], 2) + [-5, -5, 5, 5], rtol=1e-6
    )
    points = found[4]["keypoints"]
    margin = 0.1 * (points.max(0) - points.min(0)).max()
    wanted = [*points.min(0) - margin, *points.max(0) + margin]
    np.testing.assert_allclose(found[4]["box"], wanted, rtol=1e-5)
    assert found[4]["area"] == pytest.approx((wanted[2] - wanted[0]) * (wanted[3] - wanted[1]), rel=1e-4)


def test_a_box_that_holds_none_of_its_joints_is_skipped_with_the_likely_cause(tmp_path):
    points = np.array([[12.0, 10], [30, 20], [50, 30]])
    size = np.array([60, 40] * 2)
    boxes = {
        1: [10, 5, 55, 35],
        2: points.min(0).tolist() * 2 + np.array([0, 0, 1, 1]),  # One joint in it is enough.
        3: [52, 5, 58, 9],
        4: [500, 600, 700, 800],
        5: np.array([10, 5, 55, 35]) / size,
        6: [51, 31, 58, 38],  # Joints inside only by the room that a crop has.
    }
    people = [person(number, keypoints=points, box=np.array(box, float)) for number, box in boxes.items()]
    shares = person(7, keypoints=points / size[:2], box=np.array([10, 5, 55, 35]) / size)
    people += [
        shares,
        shares._replace(box=None, annotation_id=8),
        person(9, keypoints=points / 60, box=np.array(boxes[1])),
    ]
    dataset = prepare([picture(0)._replace(people=tuple(people))], cache_dir=tmp_path)
    start, noted = (
        "box that holds no labelled joint",
        "labels between 0 and 1 (shares of the image instead of pixels?)",
    )
    assert dataset.skipped.reasons == {
        f"{start} (of the picture in another size, or of another?)": ("0.jpg#3", "0.jpg#4"),
        f"{start} (shares of the image instead of pixels?)": ("0.jpg#5", "0.jpg#9"),
    }
    assert dataset.skipped.noted == {noted: ("0.jpg#7", "0.jpg#8")}
    assert [int(record["annotation_id"]) for record in dataset.train] == [1, 2, 6, 7, 8]


def test_an_image_of_another_size_than_listed_is_skipped(tmp_path):
    listed = [picture(number)._replace(size=size) for number, size in enumerate([(40, 60), (60, 40), None])]
    dataset = prepare(listed, cache_dir=tmp_path)
    assert [record["name"] for record in dataset.train] == ["0.jpg", "2.jpg"]
    reason = "image is not of the listed width and height (turned by EXIF?)"
    assert dataset.skipped.reasons == {reason: ("1.jpg",)}


@pytest.mark.parametrize("extension", [".jpg", ".png"])
def test_an_image_one_pixel_wide_can_be_cropped(tmp_path, extension):
    someone = person(keypoints=np.array([[0.0, 5], [0.0, 30], [0.4, 99]]), box=np.array([-0.5, 0, 0.5, 39]))
    shown = records.Picture("thin", 0, encoded(0, extension, (40, 1)), (someone,))
    dataset = prepare([shown, shown._replace(people=(someone._replace(box=None),))], cache_dir=tmp_path)
    assert not dataset.skipped and len(dataset.train) == 2
    record = dataset.train[0]
    np.testing.assert_array_equal(record["visibility"], [2, 1, 0])
    example = augment.evaluate_crop(record, size=(32, 8), skeleton=SKELETON)
    assert example["image"].shape == (32, 8, 3) and np.isfinite(example["keypoints"]).all()


def test_names_that_would_break_a_line_or_a_print_are_escaped():
    names = gather([("absent", name) for name in ("a b.jpg", "é.jpg", "a\nb.jpg", "\ud800.jpg", "\0")])
    assert names.reasons["absent"] == ("a b.jpg", "é.jpg", r"a\nb.jpg", r"\ud800.jpg", r"\x00")


def test_joints_outside_the_image_become_unlabelled(tmp_path):
    keypoints = np.array([[-0.4, 39.4], [59.6, 10.0], [20.0, 20.0]])
    source = prepare([picture(0)._replace(people=(person(keypoints=keypoints),))], cache_dir=tmp_path).train
    np.testing.assert_array_equal(source[0]["visibility"], [2, 0, 2])
    np.testing.assert_array_equal(source[0]["keypoints"][1], [0, 0])
    np.testing.assert_allclose(source[0]["box"], [-0.4, 20, 20, 39.4], rtol=1e-6)


def test_nobody_usable_is_an_error_that_leaves_no_cache(tmp_path):
    with pytest.raises(DataError, match=r"nobody to train on \(skipped 6 records.*expected people"):
        prepare(bad_pictures(tmp_path), cache_dir=tmp_path / "cache")
    assert list((tmp_path / "cache").rglob("*")) == [tmp_path / "cache" / "toy"]


def test_a_process_killed_half_way_leaves_nothing_that_looks_complete(tmp_path):
    code = f"""
import os, sys
sys.path.insert(0, {os.fspath(pathlib.Path(__file__).parent)!r})
from test_records import picture, prepare
def pictures():
    for number in range(200):
        if number == 150:
            os._exit(9)
        yield picture(number)
prepare(pictures(), cache_dir={os.fspath(tmp_path)!r})
"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 9
    assert [path.name.endswith(".tmp") for path in (tmp_path / "toy").iterdir()] == [True]
    assert len(prepare([picture(number) for number in range(3)], cache_dir=tmp_path).train) == 3


def test_two_processes_at_once_both_end_well(tmp_path):
    code = f"""
import sys
sys.path.insert(0, {os.fspath(pathlib.Path(__file__).parent)!r})
from test_records import picture, prepare
print(prepare([picture(n) for n in range(200)], cache_dir={os.fspath(tmp_path)!r}).train[199]["name"])
"""
    command = [sys.executable, "-c", code]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(2)]
    for process in both:
        out, err = process.communicate()
        assert process.returncode == 0, err
        assert out == b"199.jpg\n"
    assert len(list((tmp_path / "toy").iterdir())) == 1


def test_a_race_lost_after_building_keeps_the_winner(tmp_path):
    folder = tmp_path / "toy" / "abc"

    def build(temporary):
        folder.mkdir()
        (folder / "who").write_text("the other")
        (temporary / "who").write_text("me")

    cache.build_once(folder, build)
    assert (folder / "who").read_text() == "the other"
    assert [path.name for path in folder.parent.iterdir()] == ["abc"]


def test_abandoned_folders_go_and_young_ones_stay(tmp_path):
    old, young = tmp_path / ".a.x.tmp", tmp_path / ".b.x.tmp"
    for left in (old, young):
        left.mkdir()
    os.utime(old, (1, 1))
    cache.build_once(tmp_path / "new", lambda temporary: None)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".b.x.tmp", "new"]


def test_what_a_killed_process_was_making_goes_and_what_another_makes_stays(tmp_path):
    def build(temporary):
        os.utime(temporary, (1e9, time.time() - 100))
        cache.build_once(tmp_path / "other", lambda temporary: None)
        assert temporary.exists()

    killed = tmp_path / ".a.x.tmp"
    killed.mkdir()
    os.utime(killed, (1e9, time.time() - 100))
    cache.build_once(tmp_path / "new", build)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "other"]


def flip(path, content):
    path.write_bytes(content[:-2] + bytes([content[-2] ^ 1]) + content[-1:])


def cut(path, content):
    path.write_bytes(content[: len(content) // 2])


def empty(path, content):
    path.write_bytes(b"")


def lose(path, content):
    path.unlink()


@pytest.mark.parametrize("damage", [flip, cut, empty, lose])
def test_damage_to_any_prepared_file_is_one_error_and_no_wrong_data(tmp_path, damage):
    folder = prepare([picture(0)], [picture(1)], cache_dir=tmp_path).folder
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "contents.json")
    assert len(files) >= 6
    for path in files:
        content = path.read_bytes()
        damage(path, content)
        if damage is not flip or ".array_record" not in path.name:
            with pytest.raises(DataError, match=f"{folder} is damaged: delete that folder"):
                prepare([picture(0)], [picture(1)], cache_dir=tmp_path)
        path.write_bytes(content)
    assert len(prepare([picture(0)], [picture(1)], cache_dir=tmp_path).train) == 1


@pytest.mark.parametrize("kilobytes", [60, 200])
def test_a_cache_on_a_full_disk_is_one_error_that_says_what_to_do(tmp_path, small_disk, kilobytes):
    disk = small_disk(1)
    (disk.path / "filler").write_bytes(bytes(2**20 - 1024 * kilobytes))
    with pytest.raises(DataError, match="No space left on device.*: make room there, or set HARDMINE_CACHE"):
        prepare([picture(number, num_people=3) for number in range(60)], cache_dir=disk.path / "cache")
    assert not list((disk.path / "cache").rglob(".*.tmp"))


def test_a_cache_without_a_home_or_with_a_name_that_is_no_utf8(tmp_path, monkeypatch):
    with pytest.raises(DataError, match="a name that is not in UTF-8: set HARDMINE_CACHE"):
        cache.cache_root(os.fsdecode(os.fsencode(tmp_path) + b"/\xff"))

    def nobody(*_):
        raise KeyError("no such user")

    for name in ("HOME", "HARDMINE_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", nobody)
    with pytest.raises(DataError, match="no folder for the cache .*: set HARDMINE_CACHE"):
        cache.cache_root()
    assert cache.cache_root(tmp_path) == tmp_path


def test_damaged_cache_says_which_folder_to_delete(tmp_path):
    dataset = prepare([picture(0)], cache_dir=tmp_path)
    for shard in (dataset.folder / "examples").glob("*array_record*"):
        shard.unlink()
    (dataset.folder / "examples" / "dataset_info.json").unlink()
    with pytest.raises(DataError, match=f"{dataset.folder} is damaged: delete that folder"):
        dataset.train[0]
    (dataset.folder / "summary.json").write_text("{")
    with pytest.raises(DataError, match=f"{dataset.folder} is damaged: delete that folder"):
        prepare([picture(0)], cache_dir=tmp_path)


def test_unwritable_cache_is_one_clear_line(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="cannot write the cache .*HARDMINE_CACHE"):
        prepare([picture(0)], cache_dir=tmp_path / "file")


@pytest.mark.parametrize("module", [records, images])
def test_another_version_of_the_shared_code_is_other_data(tmp_path, change_code, module):
    folder = prepare([picture(0)], cache_dir=tmp_path).folder
    change_code(module)
    assert prepare([picture(0)], cache_dir=tmp_path).folder != folder


def test_files_hash_sees_these_files_and_no_others(tmp_path):
    files = [tmp_path / "a.jpg", tmp_path / "b.jpg", tmp_path / ("x" * 300)]
    files[0].write_bytes(b"1234")
    before = cache.files_hash(files)
    (tmp_path / "output.png").touch()
    assert cache.files_hash([*files[::-1], *files]) == before
    files[1].touch()
    there = cache.files_hash(files)
    files[0].write_bytes(b"12345")
    assert len({before, there, cache.files_hash(files)}) == 3


def test_cache_root(tmp_path, monkeypatch):
    monkeypatch.setenv("HARDMINE_CACHE", str(tmp_path / "environment"))
    assert cache.cache_root() == tmp_path / "environment"
    assert cache.cache_root(tmp_path / "given") == tmp_path / "given"
    monkeypatch.delenv("HARDMINE_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache.cache_root() == tmp_path / ".cache" / "hardmine_jax"


def test_folder_hash_sees_every_change_even_with_the_old_time(tmp_path):
    folder = tmp_path / "images"
    (folder / "deep").mkdir(parents=True)
    file = folder / "deep" / "a.jpg"
    file.write_bytes(b"1234")
    seen = [cache.folder_hash(folder)]
    assert cache.folder_hash(folder) == seen[0]
    times = (file.stat().st_atime_ns, file.stat().st_mtime_ns)
    file.write_bytes(b"5678")
    os.utime(file, ns=times)
    seen.append(cache.folder_hash(folder))
    os.utime(file)
    seen.append(cache.folder_hash(folder))
    (folder / "b.jpg").symlink_to(tmp_path / "nothing")
    seen.append(cache.folder_hash(folder))
    file.rename(folder / "a.jpg")
    seen.append(cache.folder_hash(folder))
    assert len(set(seen)) == len(seen)


def test_folder_hash_ends_on_links_in_circles_and_follows_links(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "link").symlink_to(tmp_path / "real")
    (tmp_path / "real" / "back").symlink_to(tmp_path / "images")
    before = cache.folder_hash(tmp_path / "images")
    (tmp_path / "real" / "a.jpg").touch()
    assert cache.folder_hash(tmp_path / "images") != before
