"""COCO 2017 person keypoints, and anything else in COCO keypoint JSON: mice, hands, fish.

    {"images": [{"id": 1, "file_name": "a.jpg", "width": 640, "height": 480}, ...],
     "annotations": [{"id": 7, "image_id": 1, "category_id": 1, "keypoints": [x, y, v, x, y, v, ...],
                      "bbox": [x, y, width, height], "area": 123.0, "iscrowd": 0}, ...],
     "categories": [{"id": 1, "name": "mouse", "keypoints": ["nose", "left_ear", ...],
                     "skeleton": [[1, 2], ...], "sigmas": [0.05, ...]}]}

x and y are pixels of the image, v is 0 not labelled, 1 labelled but occluded, 2 visible. `width`, `height`,
`bbox`, `area`, `iscrowd`, `skeleton` and `sigmas` may be missing. Bones in `skeleton` count keypoints from 1,
as COCO does, or from 0 when a 0 is among them. Ids may be whole numbers or text, and 1, 1.0 and "1" are the
same id. Format: https://cocodataset.org/#format-data
"""

import dataclasses
import os
import pathlib
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from hardmine_jax.data import coco_download, coco_json, listing
from hardmine_jax.data.coco_json import title, whole_id
from hardmine_jax.data.code_hash import code_hash
from hardmine_jax.data.pose import records
from hardmine_jax.data.pose.records import Person, Picture, usable
from hardmine_jax.data.problems import DataError, printable
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
# Between a capital side at either end of a name and the rest; the rest of "LEFT" and "RIGHT" is none.
_CAMEL_CASE_SIDE = r"(?<=^[LR])(?=[A-Z])(?!EFT|IGHT)|(?<=[a-z])(?=[LR]$)"


def load(
    annotations: str | os.PathLike | None,
    images: str | os.PathLike | None,
    *,
    validation_annotations: str | os.PathLike | None = None,
    validation_images: str | os.PathLike | None = None,
    category: str | int | None = None,
    sigmas: Sequence[float] | None = None,
    flip_pairs: Iterable[tuple[str | int, str | int]] | None = None,
    edges: Iterable[tuple[str | int, str | int]] | None = None,
    name: str = "coco",
    cache_dir: str | os.PathLike | None = None,
) -> records.PoseDataset:
    """The individuals of one category in a COCO keypoint file.

    Args:
      annotations: the JSON file.
      images: the folder that its `file_name`s are relative to; none may lead out of it.
      validation_annotations: a second file to validate on; without it about a tenth of the images of the
        first, chosen by a hash of the image's id, so that an image stays on its side when others are added.
      validation_images: the second file's folder; `images` when not given.
      category: name or id; needed only when several categories have keypoints.
      sigmas: one OKS constant a keypoint; else the category's `sigmas`, else COCO's own when the keypoints
        are COCO's 17, in any order, else DEFAULT_SIGMA for each.
      flip_pairs: pairs of names or indices that a mirror swaps; else see `infer_flip_pairs`.
      edges: pairs of names or indices; else the category's `skeleton`.
      name: of the dataset.
      cache_dir: where prepared data is kept; see `cache.cache_root`.

    Raises:
      DataError: missing file or folder, JSON that is no COCO keypoint file, no image that is listed, nobody
        usable to train on.
    """
    files = [coco_json.load_file(annotations, images)]
    if validation_annotations is not None:
        files.append(coco_json.load_file(validation_annotations, validation_images or images))
    options = {
        "category": category,
        "sigmas": None if sigmas is None else [float(sigma) for sigma in sigmas],
        "flip_pairs": None if flip_pairs is None else [list(pair) for pair in flip_pairs],
        "edges": None if edges is None else [list(pair) for pair in edges],
    }
    made_from = {
        **coco_json.made_from(files),
        "code": code_hash(__file__),
        **options,
    }
    dataset = records.prepare(
        name,
        made_from=made_from,
        read=lambda skip: _read(files, options, skip),
        expected=f"readable images in {files[0].folder} with labelled keypoints in {files[0].path}",
        cache_dir=cache_dir,
    )
    chosen = find_category(files[0].content["categories"], category, files[0].path)
    return dataclasses.replace(dataset, categories=(written_category(chosen),))


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
        name="coco2017",
        cache_dir=cache_dir,
    )


def infer_flip_pairs(names: Sequence[str]) -> tuple[tuple[int, int], ...]:
    """Pairs of names that differ in left against right, in any case: `left`/`right` anywhere in the name, a
    single `l`/`r` that no letter touches, or a capital one at the name's start or end (LAnkle, earR).

    >>> infer_flip_pairs(("nose", "left_ear", "right_ear", "PawR", "l-hip", "r-hip", "leftmost"))
    ((1, 2), (4, 5))
    >>> infer_flip_pairs(("RAnkle", "LAnkle", "earL", "earR", "Nose"))
    ((1, 0), (2, 3))
    """
    lower = [re.sub(_CAMEL_CASE_SIDE, "_", name).lower() for name in names]
    mirrored = [re.sub(r"left|(?<![a-z])l(?![a-z])", _right, name) for name in lower]
    return tuple(
        (index, lower.index(partner))
        for index, partner in enumerate(mirrored)
        if partner != lower[index] and partner in lower
    )


def _right(left: re.Match) -> str:
    return "right" if left[0] == "left" else "r"


def _read(files: list[coco_json.File], options: dict, skip: records.Skip) -> tuple[Skeleton, records.Splits]:
    skeleton, everybody = _read_file(files[0], options, skip)
    if len(files) == 1:
        train, validation = listing.tenth_apart(everybody, [str(picture.image_id) for picture in everybody])
    else:
        train, (other, validation) = everybody, _read_file(files[1], options, skip)
        if other.names != skeleton.names:
            raise DataError(f"{files[1].path} has keypoints {other.names}, {files[0].path} {skeleton.names}")
    return skeleton, {"train": usable(train, skip), "validation": usable(validation, skip)}


def _read_file(file: coco_json.File, options: dict, skip: records.Skip) -> tuple[Skeleton, list[Picture]]:
    path, folder, content = file
    category = find_category(content["categories"], options["category"], path)
    skeleton = _skeleton(category, options, path)
    annotations = of_category(content["annotations"], category, path)
    people = _people(annotations, skeleton.num_keypoints, path, skip)
    pictures = list(_pictures(content["images"], people, folder, skip))
    for image_id, lost in people.items():
        for person in lost:
            skip("annotation of an image that is not listed", f"image {image_id}#{person.annotation_id}")
    if pictures and not any(os.path.isfile(picture.image) for picture in pictures):
        raise DataError(
            f"none of the {len(pictures)} images that {path} lists is there: expected {pictures[0].image!s}"
        )
    return skeleton, pictures


def _pictures(
    images: list, people: dict[str, list[Person]], folder: pathlib.Path, skip: records.Skip
) -> Iterator[Picture]:
    """The images that show somebody; takes those out of `people`."""
    for image in images:
        image_id = str(whole_id(image.get("id"))) if isinstance(image, dict) else ""
        labelled = people.pop(image_id, ())
        if not labelled:
            continue
        name = image.get("file_name")
        image_file = listing.inside(folder, name)
        if image_file is None:
            skip("file_name missing, no path or outside the image folder", title(name))
        else:
            number = listing.id_number(image_id)
            yield Picture(name, number, image_file, tuple(labelled), coco_json.listed_size(image))


def find_category(categories: list, wanted: str | int | None, path: pathlib.Path) -> dict:
    """The one category with keypoints that is wanted, by name or id, or that there is; else DataError."""
    posed = [c for c in categories if isinstance(c, dict) and _is_posed(c)]
    names, ids = [title(c.get("name")) for c in posed], [str(whole_id(c["id"])) for c in posed]
    counts = [len(c["keypoints"]) for c in posed]
    listed = ", ".join(
        f"{name} (id {number}, {count} keypoints)"
        for name, number, count in zip(names, ids, counts, strict=True)
    )
    if not posed:
        raise DataError(f'{path} has no category with "keypoints": expected their names in "categories"')
    if wanted is not None:
        posed = [c for c, *known in zip(posed, names, ids, strict=True) if title(wanted) in known]
    if len(posed) != 1:
        what = "several categories with keypoints" if wanted is None else f"not one category {wanted!r}"
        raise DataError(f"{path} has {what}: choose the category by name or id among {listed}")
    return posed[0]


def written_category(category: dict) -> coco_json.Category:
    """Id and name of one that `find_category` found."""
    category_id = whole_id(category["id"])
    assert category_id is not None, "`find_category` finds none without an id"
    return coco_json.Category(category_id, printable(title(category.get("name"))))


def _is_posed(category: dict) -> bool:
    names = category.get("keypoints")
    return whole_id(category.get("id")) is not None and isinstance(names, list) and len(names) > 0


def _skeleton(category: dict, options: dict, path: pathlib.Path) -> Skeleton:
    try:
        names = tuple(printable(title(name)) for name in category["keypoints"])
        bones = category.get("skeleton") or []
        first = 0 if any(0 in bone for bone in bones) else 1
        edges = tuple(tuple(end - first for end in bone) for bone in bones)
        if options["edges"] is not None:
            edges = _indices(options["edges"], names)
        flip_pairs = infer_flip_pairs(names)
        if options["flip_pairs"] is not None:
            flip_pairs = _indices(options["flip_pairs"], names)
        known = dict(zip(COCO_SKELETON.names, COCO_SKELETON.sigmas, strict=True))
        default = tuple(known[name] if known.keys() == set(names) else DEFAULT_SIGMA for name in names)
        sigmas = options["sigmas"] or category.get("sigmas") or default
        return Skeleton(names, flip_pairs, sigmas, edges)
    except (ValueError, TypeError) as error:
        raise DataError(f"category {title(category.get('name'))} of {path}: {error}") from error


def _indices(pairs: list, names: tuple[str, ...]) -> tuple[tuple[int, int], ...]:
    unknown = [end for pair in pairs for end in pair if isinstance(end, str) and end not in names]
    if unknown:
        raise ValueError(f"no keypoints {unknown} among {names}")

    def index(end: Any) -> Any:
        return names.index(end) if isinstance(end, str) else end

    # What is no pair of indices, the skeleton refuses.
    return tuple(tuple(index(end) for end in pair) for pair in pairs)


def of_category(annotations: list, category: dict, path: pathlib.Path) -> list[tuple[int, dict]]:
    """(place in the file, annotation) of the category, or of none; what is no annotation becomes {}."""
    wanted = str(whole_id(category["id"]))
    entries = [entry if isinstance(entry, dict) else {} for entry in annotations]
    ids = [str(whole_id(entry.get("category_id", category["id"]))) for entry in entries]
    if ids and wanted not in ids:
        found = ", ".join(sorted(set(ids))[:10])
        raise DataError(
            f"no annotation in {path} is of category {title(category.get('name'))} (id {wanted}): their "
            f"category_id is {found}"
        )
    return [(place, entries[place]) for place, text in enumerate(ids) if text == wanted]


def _people(
    annotations: list[tuple[int, dict]], num_keypoints: int, path: pathlib.Path, skip: records.Skip
) -> dict[str, list[Person]]:
    """Image id, as text -> the people labelled in it, in the order of the file."""
    people: dict[str, list[Person]] = {}
    for position, annotation in annotations:
        image_id = whole_id(annotation.get("image_id"))
        person = _person(annotation, position, num_keypoints)
        if image_id is None:
            skip("annotation without image_id", f"{path.name} annotation {position}")
        elif isinstance(person, str):
            skip(person, f"image {image_id}#{title(annotation.get('id', position))}")
        else:
            people.setdefault(str(image_id), []).append(person)
    return people


def _person(annotation: dict, position: int, num_keypoints: int) -> Person | str:
    """The person, or the reason why there is none."""
    if annotation.get("iscrowd"):
        return "crowd (iscrowd)"
    if annotation.get("num_keypoints") == 0:
        return "no labelled joint"
    try:
        points = np.array(annotation.get("keypoints"), np.float64).reshape(num_keypoints, 3)
        box = None if annotation.get("bbox") is None else np.array(annotation["bbox"], np.float64).reshape(4)
        area = None if annotation.get("area") is None else float(annotation["area"])
    except (ValueError, TypeError, OverflowError):
        return f"keypoints, bbox or area that are not numbers, or not {num_keypoints} x 3 and 4 of them"
    if box is not None:
        with np.errstate(over="ignore", invalid="ignore"):  # `usable` skips boxes that are not finite.
            box = np.concatenate([box[:2], box[:2] + box[2:]])
    visibility = np.clip(np.where(np.isfinite(points).all(-1), points[:, 2], 0), 0, 2).astype(np.int32)
    if not visibility.any():
        return "no labelled joint"
    annotation_id = whole_id(annotation.get("id"))
    if not (isinstance(annotation_id, int) and listing.is_int64(annotation_id)):
        annotation_id = position
    return Person(points[:, :2], visibility, box, area, annotation_id)
