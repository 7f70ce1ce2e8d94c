"""Objects in boxes from any COCO detection JSON.

    {"images": [{"id": 1, "file_name": "a.jpg", "width": 640, "height": 480}, ...],
     "annotations": [{"id": 7, "image_id": 1, "category_id": 18, "bbox": [x, y, width, height], "iscrowd": 0},
                     ...],
     "categories": [{"id": 18, "name": "dog"}, ...]}

x and y are pixels of the image from the left edge of its first pixel. Categories are labelled 1, 2, ... in
rising order of their ids, whatever gaps those have. A crowd (`iscrowd`) is a difficult object: one box around
many. `width`, `height` and `iscrowd` may be missing; ids may be whole numbers or text, and so may all
numbers. Without a bbox of some area the box is that around the "segmentation". A file all of whose boxes lie
in 0..1 (Azure ML exports such) has parts of the picture's width and height for its numbers. An object whose
category is not listed is left alone by training, as those with bad boxes are (`regions.py`).
Format: https://cocodataset.org/#format-data
"""

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

from hardmine_jax.data import coco_json, listing
from hardmine_jax.data.coco_json import has_area, numbers, title, whole_id
from hardmine_jax.data.code_hash import code_hash
from hardmine_jax.data.detection import records
from hardmine_jax.data.detection.outlines import outline_box
from hardmine_jax.data.detection.records import DetectionDataset, Listed, ObjectPicture
from hardmine_jax.data.detection.regions import are_relative
from hardmine_jax.data.images import Orientation
from hardmine_jax.data.problems import DataError, Report, printable


def load(
    annotations: str | os.PathLike | None,
    images: str | os.PathLike | None,
    *,
    validation_annotations: str | os.PathLike | None = None,
    validation_images: str | os.PathLike | None = None,
    name: str = "coco_detection",
    orientation: Orientation = "auto",
    cache_dir: str | os.PathLike | None = None,
) -> DetectionDataset:
    """The objects of all categories in a COCO detection file; images without one are background.

    `skipped` tells what was left out or odd; see `records.prepare`. Besides: images that share an id, of
    which nobody knows whose the annotations are.

    Args:
      annotations: the JSON file.
      images: the folder that its `file_name`s are relative to; none may lead out of it.
      validation_annotations: a second file to validate on, whose categories are matched by name; without it
        about a tenth of the images of the first, chosen by a hash of the image's id, so that an image stays
        on its side when others are added.
      validation_images: the second file's folder; `images` when not given.
      name: of the dataset.
      orientation: how the boxes count the pixels of a photograph that its EXIF turns, see
        `images.open_image`.
      cache_dir: where prepared data is kept; see `cache.cache_root`.

    Raises:
      DataError: missing file or folder, JSON that is no COCO file, an id of two categories, no category that
        both files name, no image that is listed, no object to train on.
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
        orientation=orientation,
        cache_dir=cache_dir,
    )


def _read(files: list[coco_json.File], report: Report) -> Listed:
    ids = categories(files[0])
    labels = {name: label for label, name in enumerate(ids, 1)}
    everybody = list(_pictures(files[0], labels, report))
    if len(files) == 1:
        train, validation = listing.tenth_apart(everybody, [str(picture.image_id) for picture in everybody])
    else:
        _check_same(files, report)
        train, validation = everybody, list(_pictures(files[1], labels, report))
    return Listed(tuple(ids), {"train": train, "validation": validation}, tuple(ids.values()))


def _check_same(files: list[coco_json.File], report: Report) -> None:
    """Notes what only the second file names; raises DataError where the two have nothing in common."""
    first, second = (categories(file) for file in files)
    if first.keys() & second.keys():
        for name in second.keys() - first.keys():
            report.note("class that the file to train on lacks", name)
        return
    for name, category_id in second.items():
        for other, other_id in first.items():
            if str(category_id) == str(other_id):
                raise DataError(
                    f"category {category_id} is {other} in {files[0].path} and {name} in {files[1].path}: "
                    "give files with the same categories"
                )
    raise DataError(
        f"no category of {files[1].path} ({', '.join(second)}) is in {files[0].path} ({', '.join(first)}): "
        "give files with the same categories"
    )


def categories(file: coco_json.File) -> dict[str, int | str]:
    """Name -> id as the file has it, in rising order of the ids: that of the labels.

    Raises:
      DataError: there is none, or two have one id.
    """
    names: dict[int | str, str] = {}
    for category in file.content["categories"]:
        category_id = whole_id(category.get("id")) if isinstance(category, dict) else None
        if category_id is None:
            continue
        name = printable(title(category.get("name") or f"category {category_id}"))
        if names.setdefault(category_id, name) != name:
            raise DataError(
                f"{file.path} has two categories of id {category_id}, {names[category_id]} and {name}: "
                "nobody knows which an annotation means"
            )
    if not names:
        raise DataError(f'{file.path} has no category with an id: expected "categories": [{{"id": 1, ...}}]')
    # Results are kept by name: two categories of one name would be one.
    twice = {name for name, times in Counter(names.values()).items() if times > 1}
    rising = sorted(names, key=lambda given: (isinstance(given, str), given))
    return {names[key] if names[key] not in twice else f"{names[key]} (id {key})": key for key in rising}


class _Object(NamedTuple):
    box: np.ndarray
    label: int
    crowd: bool
    name: str


def _pictures(file: coco_json.File, labels: Mapping[str, int], report: Report) -> Iterator[ObjectPicture]:
    """Args: labels: by the name of the category."""
    listed = coco_json.listed_images(file)
    for image_id, names in listed.ambiguous.items():
        for name in names:
            report.skip("image whose id another image has too", f"{name} (id {image_id})")
    for nameless in listed.without_id:
        report.skip("image without an id", nameless)
    relative = are_relative(_corners(one) for one in file.content["annotations"] if isinstance(one, dict))
    objects = _objects(file, labels, report)
    for image_id, image in listed.images.items():
        things = objects.pop(image_id, [])
        file_name = image.get("file_name")
        path = listing.inside(file.folder, file_name)
        if path is None or not isinstance(file_name, str):
            report.skip("file_name missing, no path or outside the image folder", title(file_name))
            continue
        crowd = np.array([thing.crowd for thing in things], bool)
        yield ObjectPicture(
            name=file_name,
            image_id=listing.id_number(image_id),
            image=path,
            boxes=np.array([thing.box for thing in things]).reshape(-1, 4),
            labels=np.array([thing.label for thing in things], np.int32),
            difficult=crowd,
            names=tuple(thing.name for thing in things),
            size=coco_json.listed_size(image),
            crowd=crowd,
            relative=relative,
        )
    for image_id, lost in objects.items():
        for thing in lost if image_id not in listed.ambiguous else ():
            report.skip("annotation of an image that is not listed", f"image {image_id}#{thing.name}")


def _objects(file: coco_json.File, labels: Mapping[str, int], report: Report) -> dict[str, list[_Object]]:
    """Image id, as text -> the objects annotated in it, in the order of the file."""
    titles = {str(category_id): name for name, category_id in categories(file).items()}
    objects: dict[str, list[_Object]] = {}
    for position, given in enumerate(file.content["annotations"]):
        annotation = given if isinstance(given, dict) else {}
        image_id, category = (str(whole_id(annotation.get(key))) for key in ("image_id", "category_id"))
        number = title(annotation.get("id", position))
        if whole_id(annotation.get("image_id")) is None:
            report.skip("annotation without image_id", f"{file.path.name} annotation {position}")
            continue
        name = titles.get(category, "of no category")
        label = labels.get(name, 0)
        if not label:
            report.skip("object of none of the classes", f"image {image_id}#{number}")
        box, crowd = _corners(annotation), coco_json.is_true(annotation.get("iscrowd"))
        objects.setdefault(image_id, []).append(_Object(box, label, crowd, f"{name} {number}"))
    return objects


def _corners(annotation: dict) -> np.ndarray:
    """xyxy [4], of the outline where the bbox is none; NaN where there is neither, for `regions.py` to
    tell."""
    bbox = numbers(annotation.get("bbox"))
    outline = None if has_area(bbox) else outline_box(annotation.get("segmentation"))
    if outline is not None:
        return outline
    if bbox is None or len(bbox) != 4:
        return np.full(4, np.nan)
    with np.errstate(over="ignore"):
        return np.concatenate([bbox[:2], bbox[:2] + bbox[2:]])
