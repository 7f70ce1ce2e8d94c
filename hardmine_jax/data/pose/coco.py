"""COCO 2017 person keypoints, and anything else in COCO keypoint JSON: mice, hands, fish.

    {"images": [{"id": 1, "file_name": "a.jpg", "width": 640, "height": 480}, ...],
     "annotations": [{"id": 7, "image_id": 1, "category_id": 1, "keypoints": [x, y, v, x, y, v, ...],
                      "bbox": [x, y, width, height], "area": 123.0, "iscrowd": 0}, ...],
     "categories": [{"id": 1, "name": "mouse", "keypoints": ["nose", "left_ear", ...],
                     "skeleton": [[1, 2], ...], "sigmas": [0.05, ...]}]}

x and y are pixels of the image, v is 0 not labelled, 1 labelled but occluded, 2 visible; a v between, a
score, is labelled. `width`, `height`, `bbox`, `area`, `iscrowd`, `skeleton`, `sigmas` and the names of the
keypoints may be missing. Bones in `skeleton` name keypoints or count them from 1, as COCO does, or from 0
when a 0 is among them; what joins no two of them is not drawn. Numbers may be text, ids whole numbers or
text, and 1, 1.0 and "1" are the same id. Format: https://cocodataset.org/#format-data
"""

import dataclasses
import os
import pathlib
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from hardmine_jax.data import coco_download, coco_json, listing
from hardmine_jax.data.coco_json import is_true, title, whole_id, whole_number
from hardmine_jax.data.code_hash import code_hash
from hardmine_jax.data.images import Orientation
from hardmine_jax.data.pose import records
from hardmine_jax.data.pose.coco_categories import (
    Wanted,
    find_categories,
    make_skeleton,
    of_categories,
    written_categories,
)
from hardmine_jax.data.pose.records import Person, Picture, check_point_side, usable
from hardmine_jax.data.pose.sided_names import infer_flip_pairs as infer_flip_pairs
from hardmine_jax.data.problems import DataError, Report
from hardmine_jax.pose import Skeleton

# Sigmas: the official evaluation's, https://cocodataset.org/#keypoints-eval
COCO_SKELETON = Skeleton(
    names=(
        "nose", "left_eye", "right_eye", "left_ear", "right_ear", "left_shoulder", "right_shoulder",
        "left_elbow", "right_elbow", "left_wrist", "right_wrist", "left_hip", "right_hip", "left_knee",
        "right_knee", "left_ankle", "right_ankle",
    ),
    flip_pairs=((1, 2), (3, 4), (5, 6), (7, 8), (9, 10), (11, 12), (13, 14), (15, 16)),
    sigmas=(
        0.026, 0.025, 0.025, 0.035, 0.035, 0.079, 0.079, 0.072, 0.072, 0.062, 0.062, 0.107, 0.107, 0.087,
        0.087, 0.089, 0.089,
    ),
    edges=(
        (15, 13), (13, 11), (16, 14), (14, 12), (11, 12), (5, 11), (6, 12), (5, 6), (5, 7), (6, 8), (7, 9),
        (8, 10), (1, 2), (0, 1), (0, 2), (1, 3), (2, 4), (3, 5), (4, 6),
    ),
)  # fmt: skip
# Where nobody says how precisely a keypoint can be labelled: the mean over COCO's 17.
DEFAULT_SIGMA = 0.067


def load(
    annotations: str | os.PathLike | None,
    images: str | os.PathLike | None,
    *,
    validation_annotations: str | os.PathLike | None = None,
    validation_images: str | os.PathLike | None = None,
    category: Wanted = None,
    sigmas: Sequence[float] | None = None,
    flip_pairs: Iterable[tuple[str | int, str | int]] | None = None,
    edges: Iterable[tuple[str | int, str | int]] | None = None,
    orientation: Orientation = "auto",
    point_side: float | None = None,
    name: str = "coco",
    cache_dir: str | os.PathLike | None = None,
) -> records.PoseDataset:
    """The individuals of one category in a COCO keypoint file, or of several with the same keypoints.

    `skipped` tells what was left out or odd: of pictures and people see `records.usable`; besides, entries of
    "images" with one id and several files, crowds, and what is no annotation of the category.

    Args:
      annotations: the JSON file.
      images: the folder that its `file_name`s are relative to; none may lead out of it.
      validation_annotations: a second file to validate on; without it about a tenth of the images of the
        first, chosen by a hash of the image's id, so that an image stays on its side when others are added.
      validation_images: the second file's folder; `images` when not given.
      category: name or id, several of them, or "all"; needed only when several categories have keypoints.
      sigmas: one OKS constant a keypoint; else the category's `sigmas`, else COCO's own when the keypoints
        are COCO's 17, in any order, else DEFAULT_SIGMA for each.
      flip_pairs: pairs of names or indices that a mirror swaps; else see
        `sided_names.infer_flip_pairs`.
      edges: pairs of names or indices; else the category's `skeleton`.
      orientation: how the labels count the pixels of photographs that EXIF turns; see `images.open_image`.
      point_side: pixels; see `records.usable`.
      name: of the dataset.
      cache_dir: where prepared data is kept; see `cache.cache_root`.

    Raises:
      DataError: missing file or folder, JSON that is no COCO keypoint file, no image that is listed, nobody
        usable to train on.
    """
    files = [coco_json.load_file(annotations, images)]
    if validation_annotations is not None:
        files.append(coco_json.load_file(validation_annotations, validation_images or images))
    check_point_side(point_side)
    options = {
        "category": category if category is None or isinstance(category, str | int) else list(category),
        "sigmas": None if sigmas is None else [float(sigma) for sigma in sigmas],
        "flip_pairs": None if flip_pairs is None else [list(pair) for pair in flip_pairs],
        "edges": None if edges is None else [list(pair) for pair in edges],
        "orientation": orientation,
        "point_side": point_side,
    }
    made_from = {
        **coco_json.made_from(files),
        "code": code_hash(__file__),
        **options,
    }
    dataset = records.prepare(
        name,
        made_from=made_from,
        read=lambda report: _read(files, options, report),
        expected=f"readable images in {files[0].folder} with labelled keypoints in {files[0].path}",
        cache_dir=cache_dir,
    )
    categories = written_categories(find_categories(files[0], category))
    return dataclasses.replace(dataset, categories=categories)


def load_official(
    data_dir: str | os.PathLike | None = None,
    *,
    cache_dir: str | os.PathLike | None = None,
    base_url: str = coco_download.BASE_URL,
) -> records.PoseDataset:
    """COCO 2017 person keypoints: train2017 to train, val2017 to validate.

    Args:
      data_dir: a folder with annotations/person_keypoints_{train,val}2017.json, train2017/ and val2017/;
        without one the archives are downloaded from `base_url` (20 GB, unpacked 20 more, prepared 20 more).
      cache_dir: where downloads and prepared data are kept; see `cache.cache_root`.
      base_url: where the archives lie.
    """
    if data_dir is None:
        data_dir = coco_download.download(base_url=base_url, cache_dir=cache_dir)
    folder = pathlib.Path(data_dir).expanduser()
    return load(
        folder / "annotations" / "person_keypoints_train2017.json",
        folder / "train2017",
        validation_annotations=folder / "annotations" / "person_keypoints_val2017.json",
        validation_images=folder / "val2017",
        category="person",
        # As the released code reads them, which the published scores are of.
        orientation="stored",
        name="coco2017",
        cache_dir=cache_dir,
    )


def _read(files: list[coco_json.File], options: dict, report: Report) -> tuple[Skeleton, records.Splits]:
    skeleton, everybody = _read_file(files[0], options, report)
    if len(files) == 1:
        # By the file, so that one that stands under two ids is on one side.
        ids: dict[object, int] = {}
        keys = [str(ids.setdefault(picture.image, picture.image_id)) for picture in everybody]
        train, validation = listing.tenth_apart(everybody, keys)
    else:
        train, (other, validation) = everybody, _read_file(files[1], options, report)
        if other.names != skeleton.names:
            raise DataError(f"{files[1].path} has keypoints {other.names}, {files[0].path} {skeleton.names}")
        if other.sigmas != skeleton.sigmas:
            report.note(f"sigmas other than those of {files[0].path.name}, which count", files[1].path.name)
    trained = {picture.image for picture in train}
    for picture in validation:
        if picture.image in trained:
            report.note("picture in training and in validation", picture.name)
    made = {"orientation": options["orientation"], "point_side": options["point_side"]}
    splits = {"train": train, "validation": validation}
    return skeleton, {split: usable(pictures, report, **made) for split, pictures in splits.items()}


def _read_file(file: coco_json.File, options: dict, report: Report) -> tuple[Skeleton, list[Picture]]:
    path, folder, content = file
    categories = find_categories(file, options["category"])
    known = dict(zip(COCO_SKELETON.names, COCO_SKELETON.sigmas, strict=True))
    skeleton, left_out = make_skeleton(categories, options, path, known=known, sigma=DEFAULT_SIGMA)
    for line in left_out:
        report.note("line of the skeleton that joins no two keypoints (not drawn)", line)
    listed = coco_json.listed_images(file)
    annotations = of_categories(content["annotations"], categories, path)
    people = _people(annotations, skeleton.num_keypoints, path, report)
    for image_id, names in listed.ambiguous.items():
        for name in names:
            report.skip("image whose id other images have, too", f"{name} (id {image_id})")
        for person in people.pop(image_id, ()):
            report.skip(
                "annotation of an id that several images have", f"image {image_id}#{person.annotation_id}"
            )
    for name in listed.without_id:
        report.skip("image without an id", name)
    pictures = list(_pictures(listed, people, folder, report))
    for image_id, lost in people.items():
        for person in lost:
            report.skip(
                "annotation of an image that is not listed", f"image {image_id}#{person.annotation_id}"
            )
    if pictures and not any(os.path.isfile(picture.image) for picture in pictures):
        raise DataError(
            f"none of the {len(pictures)} images that {path} lists is there: expected {pictures[0].image!s}"
        )
    return skeleton, pictures


def _pictures(
    listed: coco_json.Listed, people: dict[str, list[Person]], folder: pathlib.Path, report: Report
) -> Iterator[Picture]:
    """The images that show somebody; takes those out of `people`."""
    for file, ids in listed.files.items():
        if len(people.keys() & set(ids)) > 1:
            report.note("image file listed under several ids", f"{file} (ids {', '.join(ids[:5])})")
    for image_id, image in listed.images.items():
        labelled = people.pop(image_id, ())
        if not labelled:
            continue
        name = image.get("file_name")
        image_file = listing.inside(folder, name)
        if image_file is None or not isinstance(name, str):
            report.skip("file_name missing, no path or outside the image folder", title(name))
        else:
            number = listing.id_number(image_id)
            yield Picture(name, number, image_file, tuple(labelled), coco_json.listed_size(image))


def _people(
    annotations: list[tuple[int, dict]], num_keypoints: int, path: pathlib.Path, report: Report
) -> dict[str, list[Person]]:
    """Image id, as text -> the people labelled in it, in the order of the file."""
    people: dict[str, list[Person]] = {}
    for position, annotation in annotations:
        image_id = whole_id(annotation.get("image_id"))
        person = _person(annotation, position, num_keypoints)
        if image_id is None:
            report.skip("annotation without image_id", f"{path.name} annotation {position}")
            continue
        name = f"image {image_id}#{title(annotation.get('id', position))}"
        if isinstance(person, str):
            report.skip(person, name)
            continue
        whole = np.ceil(person.visibility)
        if (whole != person.visibility).any():
            report.note("visibility that is not 0, 1 or 2 (a score? above 0 is labelled)", name)
        person = person._replace(visibility=whole.astype(np.int32))
        people.setdefault(str(image_id), []).append(person)
    return people


def _person(annotation: dict, position: int, num_keypoints: int) -> Person | str:
    """The person, visibility as the file has it, or the reason why there is none."""
    if is_true(annotation.get("iscrowd")):
        return "crowd (iscrowd)"
    if whole_number(annotation.get("num_keypoints")) == 0:
        return "no labelled joint (num_keypoints 0)"
    points = _numbers(annotation, "keypoints", 3 * num_keypoints)
    if isinstance(points, str):
        return points
    # Some tools write an empty box where there is none, others NaN.
    box = None if annotation.get("bbox") in (None, [], "") else _numbers(annotation, "bbox", 4)
    if isinstance(box, str):
        return box
    area = None if annotation.get("area") is None else _numbers({"area": [annotation["area"]]}, "area", 1)
    if isinstance(area, str):
        return area
    if box is not None and np.isnan(box).all():
        box = None
    if box is not None:
        with np.errstate(over="ignore", invalid="ignore"):  # `usable` skips boxes that are not finite.
            box = np.concatenate([box[:2], box[:2] + box[2:]])
    points = points.reshape(num_keypoints, 3)
    visibility = np.clip(np.where(np.isfinite(points).all(-1), points[:, 2], 0), 0, 2)
    if not visibility.any():
        return "no labelled joint"
    size = None if area is None else float(area[0])
    return Person(points[:, :2], visibility, box, size, id_of_annotation(annotation, position))


def id_of_annotation(annotation: dict, position: int) -> int:
    """As records have it: its own where that is a number of 64 bits, else its place in the file."""
    number = whole_number(annotation.get("id"))
    return position if number is None or not listing.is_int64(number) else number


def _numbers(annotation: dict, field: str, count: int) -> np.ndarray | str:
    """float64 [count], or the reason why these are none."""
    given = annotation.get(field)
    found = None if given is None else coco_json.numbers(given)
    if found is None:
        return f"no {field}" if given is None else f"{field} with what is no number"
    return found if len(found) == count else f"{field} of {len(found)} numbers (wanted {count})"
