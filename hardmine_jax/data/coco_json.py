"""What all COCO JSON files have in common, whatever is annotated: reading one, its images, ids and sizes."""

import json
import os
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

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


def _listed_images(file: File) -> list[pathlib.Path]:
    names = (image.get("file_name") for image in file.content["images"] if isinstance(image, dict))
    return [path for name in names if (path := listing.inside(file.folder, name)) is not None]


def whole_id(given: object) -> int | str | None:
    """An id as a JSON file gives it: text and whole numbers, 1.0 (as pandas writes it) as 1; else None.

    >>> whole_id(7), whole_id(7.0), whole_id("a7"), whole_id(7.5), whole_id(None), whole_id(True)
    (7, 7, 'a7', None, None, None)
    """
    if isinstance(given, float) and given.is_integer():
        return int(given)
    return given if isinstance(given, int | str) and not isinstance(given, bool) else None


def title(given: object) -> str:
    """A name or an id as the file gives it, as text; what is neither only by its kind.

    >>> title("mouse"), title(7), title(None), title([[["deep"]]])
    ('mouse', '7', 'None', 'a list')
    """
    # Lists can be nested too deep to be printed.
    plain = given is None or isinstance(given, str | int | float)
    return str(given) if plain else f"a {type(given).__name__}"


def listed_size(image: dict) -> tuple[int, int] | None:
    """The listed (height, width); some tools leave them out, or write 0 or null."""
    height, width = (whole_id(image.get(side)) for side in ("height", "width"))
    if isinstance(height, int) and isinstance(width, int) and min(height, width) > 0:
        return height, width
    return None


def _load_json(path: pathlib.Path) -> dict:
    try:
        with open(path, encoding="utf-8-sig") as file:
            # Outlines are most of an official file, and never used.
            content = json.load(file, object_hook=_without_segmentation)
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path} is no JSON ({error}): expected {_SHAPE}") from error
    keys = content if isinstance(content, dict) else {}
    missing = [key for key in ("images", "annotations", "categories") if not isinstance(keys.get(key), list)]
    if missing:
        raise DataError(f"{path} is no COCO file, it lacks {' and '.join(missing)}: expected {_SHAPE}")
    return content


def _without_segmentation(content: dict) -> dict:
    content.pop("segmentation", None)
    return content


def id_number(given: object) -> int | None:
    """An image's id in a JSON file as records have it; None where it is none."""
    image_id = whole_id(given)
    return None if image_id is None else listing.id_number(str(image_id))
