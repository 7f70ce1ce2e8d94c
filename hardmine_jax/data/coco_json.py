"""What all COCO JSON files have in common, whatever is annotated: reading one, its images, ids and sizes."""

import json
import math
import os
import pathlib
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from hardmine_jax.data import cache, listing
from hardmine_jax.data.problems import DataError

_SHAPE = 'a JSON object with the lists "images", "annotations" and "categories"'


class File(NamedTuple):
    """A COCO file's path and content, and the folder that its file names are relative to."""

    path: pathlib.Path
    folder: pathlib.Path
    content: dict


class Category(NamedTuple):
    """What is annotated: its id as the file writes it, and its name."""

    id: int | str
    name: str


def load_file(annotations: str | os.PathLike | None, images: str | os.PathLike | None) -> File:
    """Reads the JSON; raises DataError where it, or the folder, is none."""
    if annotations is None or images is None:
        missing = "annotations" if annotations is None else "images"
        raise DataError(f"coco needs annotations, a JSON, and images, a folder: {missing} is missing")
    path, folder = (pathlib.Path(given).expanduser().resolve() for given in (annotations, images))
    if not path.is_file():
        raise DataError(f"no file {path}: give a COCO JSON")
    if not folder.is_dir():
        raise DataError(f"no folder {folder}: give the one that the file names in {path} are relative to")
    return File(path, folder, _load_json(path))


def made_from(files: Sequence[File]) -> dict:
    """What records read from these files follow from, for a cache's fingerprint."""
    return {
        "files": [[os.fspath(file.path), cache.file_hash(file.path)] for file in files],
        # Not the whole folder: a run may write its own output there.
        "images": [[os.fspath(file.folder), cache.files_hash(_listed_images(file))] for file in files],
    }


def _listed_images(file: File) -> list[str]:
    names = (image.get("file_name") for image in file.content["images"] if isinstance(image, dict))
    return [path for name in names if (path := listing.path_inside(file.folder, name)) is not None]


class Listed(NamedTuple):
    """The images of a file.

    Attributes:
      images: id, as text -> the entry in "images", in the order of the file.
      ambiguous: id, as text -> the file names of several entries with that one id. Nobody can know which of
        them an annotation belongs to: they are not among `images`.
      without_id: file names of entries that have none.
      files: file name, as given -> ids, of files that stand under several ids.
    """

    images: dict[str, dict]
    ambiguous: dict[str, tuple[str, ...]]
    without_id: tuple[str, ...]
    files: dict[str, tuple[str, ...]]


def listed_images(file: File) -> Listed:
    """The entries of "images", each id once; two entries with one id and one file are one."""
    images: dict[str, dict] = {}
    shown: dict[str, dict[str, str]] = {}
    ids: dict[str, list[str]] = {}
    without_id = []
    for image in file.content["images"]:
        if not isinstance(image, dict):
            continue
        image_id, name = whole_id(image.get("id")), title(image.get("file_name"))
        if image_id is None:
            without_id.append(name)
            continue
        path = os.path.normpath(name.replace("\\", "/"))
        images.setdefault(str(image_id), image)
        shown.setdefault(str(image_id), {})[path] = name
        ids.setdefault(path, []).append(str(image_id))
    ambiguous = {one: tuple(names.values()) for one, names in shown.items() if len(names) > 1}
    several = {path: tuple(dict.fromkeys(found)) for path, found in ids.items()}
    return Listed(
        {one: image for one, image in images.items() if one not in ambiguous},
        ambiguous,
        tuple(without_id),
        {path: found for path, found in several.items() if len(found) > 1 and path != "None"},
    )


def whole_id(given: object) -> int | str | None:
    """An id as a JSON file gives it: text and whole numbers, 1.0 (as pandas writes it) as 1; else None.

    >>> whole_id(7), whole_id(7.0), whole_id("a7"), whole_id(7.5), whole_id(None), whole_id(True)
    (7, 7, 'a7', None, None, None)
    >>> whole_id("7.0")
    '7'
    """
    if type(given) is int:
        return given
    if isinstance(given, float) and given.is_integer():
        return int(given)
    if isinstance(given, str) and (match := re.fullmatch(r"(-?[0-9]+)\.0+", given)):
        return match[1]
    return given if isinstance(given, int | str) and not isinstance(given, bool) else None


def whole_number(given: object) -> int | None:
    """A whole number as a JSON file gives it, also as text; else None.

    >>> whole_number("640"), whole_number(640.0), whole_number("640.0"), whole_number("x"), whole_number(None)
    (640, 640, 640, None, None)
    """
    found = whole_id(given.strip() if isinstance(given, str) else given)
    if isinstance(found, str):
        return int(found) if re.fullmatch(r"-?[0-9]{1,19}", found) else None
    return found


def is_true(given: object) -> bool:
    """A flag such as `iscrowd` as a JSON file gives it: a number, its text or a word; absent is False.

    >>> [is_true(given) for given in (0, "0", "0.0", "false", None, "", float("nan"), [])]
    [False, False, False, False, False, False, False, False]
    >>> [is_true(given) for given in (1, "1", 1.0, True, "true", "Yes")]
    [True, True, True, True, True, True]
    """
    if isinstance(given, str):
        word = given.strip().lower()
        if word in ("", "false", "no", "n", "f", "off", "none", "null"):
            return False
        try:
            given = float(word)
        except ValueError:
            return True
    if isinstance(given, float) and math.isnan(given):
        return False
    return bool(given)


def numbers(given: object) -> np.ndarray | None:
    """Numbers as a JSON file gives them -> float64 [N]; None where these are none.

    That is a list, nested or not, each a number, its text, or null for NaN; or the text of such a list.

    >>> numbers([1, "2.5", None]), numbers("[1, 2]"), numbers([1, "x"]), numbers({"x": 1})
    (array([1. , 2.5, nan]), array([1., 2.]), None, None)
    """
    if isinstance(given, str):
        given = [word for word in re.split(r"[\s,;()\[\]]+", given) if word]
    if not isinstance(given, list):
        return None
    try:
        return np.array(given, np.float64).ravel()
    except (ValueError, TypeError, OverflowError):
        return None


def title(given: object) -> str:
    """A name or an id as the file gives it, as text; what is neither only by its kind.

    >>> title("mouse"), title(7), title(None), title([[["deep"]]])
    ('mouse', '7', 'None', 'a list')
    """
    # Lists can be nested too deep to be printed.
    plain = given is None or isinstance(given, str | int | float)
    return str(given) if plain else f"a {type(given).__name__}"


def listed_size(image: dict) -> tuple[int, int] | None:
    """The listed (height, width); some tools leave them out, or write 0, null or text."""
    height, width = (whole_number(image.get(side)) for side in ("height", "width"))
    return (height, width) if height and width and min(height, width) > 0 else None


def _load_json(path: pathlib.Path) -> dict:
    try:
        with open(path, encoding="utf-8-sig") as file:
            # Outlines are most of an official file, and used where there is no box alone.
            content = json.load(file, object_hook=_without_segmentation)
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path} is no JSON ({error}): expected {_SHAPE}") from error
    keys = content if isinstance(content, dict) else {}
    missing = [key for key in ("images", "annotations", "categories") if not isinstance(keys.get(key), list)]
    if missing:
        raise DataError(f"{path} is no COCO file, it lacks {' and '.join(missing)}: expected {_SHAPE}")
    return content


def _without_segmentation(content: dict) -> dict:
    if "segmentation" in content and has_area(numbers(content.get("bbox"))):
        del content["segmentation"]
    return content


def has_area(bbox: np.ndarray | None) -> bool:
    """Whether these are the four numbers (x, y, width, height) of a box with an area."""
    return bbox is not None and len(bbox) == 4 and bool(np.isfinite(bbox).all() and (bbox[2:] != 0).all())


def id_number(given: object) -> int | None:
    """An image's id in a JSON file as records have it; None where it is none."""
    image_id = whole_id(given)
    return None if image_id is None else listing.id_number(str(image_id))
