"""Objects in boxes from any COCO detection JSON.

    {"images": [{"id": 1, "file_name": "a.jpg", "width": 640, "height": 480}, ...],
     "annotations": [{"id": 7, "image_id": 1, "category_id": 18, "bbox": [x, y, width, height], "iscrowd": 0},
                     ...],
     "categories": [{"id": 18, "name": "dog"}, ...]}

x and y are pixels of the image from the left edge of its first pixel. Categories are labelled 1, 2, ... in
rising order of their ids, whatever gaps those have. A crowd (`iscrowd`) is a difficult object: one box around
many. `width`, `height` and `iscrowd` may be missing; ids may be whole numbers or text.
Format: https://cocodataset.org/#format-data
"""

import os
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from hardmine_jax.data import coco_json, listing
from hardmine_jax.data.coco_json import title, whole_id
from hardmine_jax.data.code_hash import code_hash
from hardmine_jax.data.detection import records
from hardmine_jax.data.detection.records import DetectionDataset, ObjectPicture, Report
from hardmine_jax.data.problems import DataError, printable


def load(
    annotations: str | os.PathLike | None,
    images: str | os.PathLike | None,
    *,
    validation_annotations: str | os.PathLike | None = None,
    validation_images: str | os.PathLike | None = None,
    name: str = "coco_detection",
    cache_dir: str | os.PathLike | None = None,
) -> DetectionDataset:
    """The objects of all categories in a COCO detection file; images without one are background.

    `skipped` tells what was left out or odd; see `records.prepare`.

    Args:
      annotations: the JSON file.
      images: the folder that its `file_name`s are relative to; none may lead out of it.
      validation_annotations: a second file to validate on; without it about a tenth of the images of the
        first, chosen by a hash of the image's id, so that an image stays on its side when others are added.
      validation_images: the second file's folder; `images` when not given.
      name: of the dataset.
      cache_dir: where prepared data is kept; see `cache.cache_root`.

    Raises:
      DataError: missing file or folder, JSON that is no COCO file, a category id that has another name in
        the second file, no image that is listed, no object to train on.
    """
    files = [coco_json.load_file(annotations, images)]
    if validation_annotations is not None:
        files.append(coco_json.load_file(validation_annotations, validation_images or images))
    made_from = {
        **coco_json.made_from(files),
        "code": code_hash(__file__),
    }
    return records.prepare(
        name,
        made_from=made_from,
        read=lambda report: _read(files, report),
        expected=f"readable images in {files[0].folder} with objects in {files[0].path}",
        cache_dir=cache_dir,
    )


def _read(files: list[coco_json.File], report: Report) -> tuple[tuple[str, ...], records.Splits]:
    categories = _categories(files[0])
    labels = {category_id: label for label, category_id in enumerate(categories, 1)}
    everybody = list(_pictures(files[0], labels, categories, report))
    if len(files) == 1:
        train, validation = listing.tenth_apart(everybody, [str(picture.image_id) for picture in everybody])
    else:
        other = _categories(files[1])
        for category_id in categories.keys() & other.keys():
            if categories[category_id] != other[category_id]:
                raise DataError(
                    f"category {category_id} is {categories[category_id]} in {files[0].path} and "
                    f"{other[category_id]} in {files[1].path}: give files with the same categories"
                )
        train, validation = everybody, list(_pictures(files[1], labels, categories, report))
    return tuple(categories.values()), {"train": train, "validation": validation}


def _categories(file: coco_json.File) -> dict[str, str]:
    """Id, as text -> name, in rising order of the ids."""
    ids = {}
    for category in file.content["categories"]:
        category_id = whole_id(category.get("id")) if isinstance(category, dict) else None
        if category_id is not None:
            ids[category_id] = printable(title(category.get("name") or f"category {category_id}"))
    if not ids:
        raise DataError(f'{file.path} has no category with an id: expected "categories": [{{"id": 1, ...}}]')
    rising = sorted(ids, key=lambda given: (isinstance(given, str), given))
    # Results are kept by name: two categories of one name would be one.
    twice = {name for name, times in Counter(ids.values()).items() if times > 1}
    names = {key: f"{name} (id {key})" if name in twice else name for key, name in ids.items()}
    return {str(category_id): names[category_id] for category_id in rising}


def category_ids(file: coco_json.File) -> list[int | str]:
    """The categories' ids as the file has them, in the order of the labels."""
    found = (category.get("id") for category in file.content["categories"] if isinstance(category, dict))
    ids = {str(category_id): category_id for given in found if (category_id := whole_id(given)) is not None}
    return [ids[text] for text in _categories(file)]


class _Object(NamedTuple):
    box: list[float]
    label: int
    difficult: bool
    name: str


def _pictures(
    file: coco_json.File, labels: dict[str, int], titles: dict[str, str], report: Report
) -> Iterator[ObjectPicture]:
    objects = _objects(file, labels, titles, report)
    listed = [image for image in file.content["images"] if isinstance(image, dict)]
    for image in listed:
        image_id = str(whole_id(image.get("id")))
        things = objects.pop(image_id, [])
        file_name = image.get("file_name")
        path = listing.inside(file.folder, file_name)
        if path is None or not isinstance(file_name, str):
            report.skip("file_name missing, no path or outside the image folder", title(file_name))
            continue
        yield ObjectPicture(
            name=file_name,
            image_id=listing.id_number(image_id),
            image=path,
            boxes=np.array([thing.box for thing in things]).reshape(-1, 4),
            labels=np.array([thing.label for thing in things], np.int32),
            difficult=np.array([thing.difficult for thing in things], bool),
            names=tuple(thing.name for thing in things),
            size=coco_json.listed_size(image),
        )
    for image_id, lost in objects.items():
        for thing in lost:
            report.skip("annotation of an image that is not listed", f"image {image_id}#{thing.name}")


def _objects(
    file: coco_json.File, labels: dict[str, int], titles: dict[str, str], report: Report
) -> dict[str, list[_Object]]:
    """Image id, as text -> the objects annotated in it, in the order of the file."""
    objects: dict[str, list[_Object]] = {}
    for position, given in enumerate(file.content["annotations"]):
        annotation = given if isinstance(given, dict) else {}
        image_id, category = (str(whole_id(annotation.get(key))) for key in ("image_id", "category_id"))
        number = title(annotation.get("id", position))
        name = f"image {image_id}#{number}"
        if whole_id(annotation.get("image_id")) is None:
            report.skip("annotation without image_id", f"{file.path.name} annotation {position}")
        elif category not in labels:
            report.skip("object of none of the classes", name)
        else:
            shown = f"{titles[category]} {number}"
            thing = _Object(_box(annotation), labels[category], bool(annotation.get("iscrowd")), shown)
            objects.setdefault(image_id, []).append(thing)
    return objects


def _box(annotation: dict) -> list[float]:
    """xyxy; NaN where the bbox is none, for `records.box_problem` to tell."""
    try:
        x, y, width, height = (float(number) for number in annotation["bbox"])
    except (KeyError, ValueError, TypeError, OverflowError):
        return [float("nan")] * 4
    return [x, y, x + width, y + height]
