"""Boxes of people for photographs that prediction is asked about: reading them, and which photo each is of.

A key is what a box says of its photo: a file name, with folders or without, or an image id. Paths are
compared from their ends: `a/001.jpg` is of the file whose path ends so, and of no other where there is one.
"""

import itertools
import json
import os
import pathlib
import sys
import unicodedata
import urllib.parse
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from hardmine_jax.data import files
from hardmine_jax.data.coco_json import Category, is_true, whole_id
from hardmine_jax.data.pose.person_boxes import Key, category_key, read_box
from hardmine_jax.data.problems import printable
from hardmine_jax.tasks.photos import InputError

_EXPECTED = (
    '[{"file_name": "photo.jpg", "bbox": [x, y, width, height], "score": 0.9}, ...], a list of COCO '
    "detections, or a COCO file with images and annotations"
)
Skip = Callable[[str, str], None]


class Box(NamedTuple):
    """Where a person is: xyxy in pixels, and how sure the detector was; ids where the file gives any."""

    corners: tuple[float, float, float, float]
    score: float = 1.0
    image_id: int | str | None = None
    category_id: int | str | None = None


# By key: the image id that the first of them has, if any, and the boxes.
Boxes = dict[str | int, tuple[int | str | None, list[Box]]]


class Filters(NamedTuple):
    """Which boxes are taken.

    Attributes:
      min_score: boxes with a lower score are left out; None for all.
      category: id or name of the boxes' category; None for all.
      known: the run's categories: a box of the name of one has its id.
    """

    min_score: float | None = None
    category: str | None = None
    known: Sequence[Category] = ()


_NO_FILTERS = Filters()


def read_boxes(
    path: pathlib.Path, *, filters: Filters = _NO_FILTERS, skip: Skip = lambda reason, name: None
) -> Boxes:
    """Boxes of a COCO JSON by what they say of their photo.

    Args:
      skip: called with a reason and a name for each box that is left out.

    Raises:
      InputError: no such file, or no JSON of that kind.
    """
    content = _read(path)
    entries = content["annotations"] if isinstance(content, dict) else content
    images = content.get("images", []) if isinstance(content, dict) else []
    names, shared = _image_names(images)
    titles = _category_names(content.get("categories", []) if isinstance(content, dict) else [])
    boxes: Boxes = {}
    for position, entry in enumerate(entries):
        found = _read_entry(entry, names, shared, titles, filters)
        if isinstance(found, str):
            skip(found, f"box {position}{_of_photo(entry)}")
        else:
            key, box = found
            boxes.setdefault(key, (box.image_id, []))[1].append(box)
    return boxes


def _read(path: pathlib.Path) -> Any:
    try:
        content = json.loads(files.read_bytes(path).decode("utf-8-sig"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is no JSON ({error}): expected boxes as {_EXPECTED}") from error
    lists = content.values() if isinstance(content, dict) else [content]
    if isinstance(content, dict) and not isinstance(content.get("annotations"), list):
        raise InputError(f"{path} has no list of annotations: expected boxes as {_EXPECTED}")
    if not isinstance(content, dict | list) or not any(isinstance(one, list) for one in lists):
        raise InputError(f"{path} is no list of boxes: expected {_EXPECTED}")
    return content


def _image_names(images: object) -> tuple[dict[str, str], set[str]]:
    """File names by image id as text, and the ids that files of several names share."""
    names: dict[str, str] = {}
    shared = set()
    for image in images if isinstance(images, list) else []:
        image_id = whole_id(image.get("id")) if isinstance(image, dict) else None
        name = image.get("file_name") if isinstance(image, dict) else None
        if image_id is None or not isinstance(name, str):
            continue
        if names.setdefault(str(image_id), name) != name:
            shared.add(str(image_id))
    return names, shared


def _category_names(categories: object) -> dict[str, str]:
    listed = categories if isinstance(categories, list) else []
    return {
        str(whole_id(one.get("id"))): one["name"].casefold()
        for one in listed
        if isinstance(one, dict) and isinstance(one.get("name"), str)
    }


def _read_entry(
    entry: object, names: Mapping[str, str], shared: set[str], titles: Mapping[str, str], filters: Filters
) -> tuple[str | int, Box] | str:
    """The key and the box of an entry, or the reason why there is none."""
    if not isinstance(entry, dict):
        return "no object of names and values"
    if is_true(entry.get("iscrowd")):
        return "crowd (iscrowd)"
    given = entry.get("image_id")
    image_id = whole_id(given)
    if given is not None and image_id is None:
        return "image_id that is neither a whole number nor text"
    named = isinstance(entry.get("file_name"), str)
    name = entry["file_name"] if named else names.get(str(image_id))
    if not isinstance(name, str) and image_id is None:
        return "neither file_name nor image_id"
    if not named and str(image_id) in shared:
        return "image_id that images of several names share"
    found = read_box(entry, score=1.0)
    if isinstance(found, str):
        return found
    corners, score = found
    if filters.min_score is not None and not score >= filters.min_score:
        return f"score below {filters.min_score:g}"
    category = category_key(entry)
    if category is not None and category.name is None:
        category = category._replace(name=titles.get(str(category.id)))
    if filters.category is not None and not (category and category.is_called(filters.category)):
        return "another category"
    x1, y1, x2, y2 = corners
    category_id = _category_id(entry, category, filters.known)
    key = name if isinstance(name, str) else image_id
    assert key is not None
    return key, Box((x1, y1, x2, y2), score, image_id, category_id)


def _category_id(entry: dict, category: Key | None, known: Sequence[Category]) -> int | str | None:
    """The run's for one of its names, else the file's own."""
    for one in known:
        if category is not None and category.name == one.name.casefold():
            return one.id
    return whole_id(entry.get("category_id"))


def _of_photo(entry: object) -> str:
    photo = entry.get("file_name", entry.get("image_id")) if isinstance(entry, dict) else None
    return f" of {photo}" if isinstance(photo, str | int) else ""


_ADVICE = "give each box a file_name with as many folders as tell the files apart"


class _Agreement(NamedTuple):
    """How well a key fits a path: all of the key, so many parts from the end, the last part to the letter."""

    whole: bool
    parts: int
    letter: int


def share_out(keys: Iterable[str | int], paths: Sequence[pathlib.Path]) -> list[str | int | None]:
    """For each photo the key that is its own, None where there is none.

    Raises:
      InputError: a key that may be of several photos, or a photo of several keys.
    """
    claims: dict[str | int, list[tuple[_Agreement, int]]] = {}
    for place, found in _agreements(keys, paths).items():
        best = max(found.values())
        ties = [key for key, agreement in found.items() if agreement == best]
        if len(ties) > 1:
            raise InputError(f"{paths[place]} may be {_either(ties)} of the boxes: {_ADVICE}")
        claims.setdefault(ties[0], []).append((best, place))
    owned: list[str | int | None] = [None] * len(paths)
    loose = []
    for key, claimed in claims.items():
        best = max(agreement for agreement, _ in claimed)
        place, *others = [place for agreement, place in claimed if agreement == best]
        if others:
            either = _either([paths[place], *(paths[other] for other in others)])
            raise InputError(f"{printable(str(key))} of the boxes may be {either}: {_ADVICE}")
        owned[place] = key
        loose += [] if best.whole else [f"{paths[place]} takes those of {key}"]
    if loose:
        more = f", and {len(loose) - 1} more likewise" if len(loose) > 1 else ""
        print(f"note: boxes of a file in another folder: {printable(loose[0])}{more}", file=sys.stderr)
    return owned


def _agreements(
    keys: Iterable[str | int], paths: Sequence[pathlib.Path]
) -> dict[int, dict[str | int, _Agreement]]:
    """For each photo, by its place, the keys that it may have."""
    # By the last part alone, so that many keys and many photos are not compared each with each.
    by_last: dict[str, set[int]] = {}
    for place, path in enumerate(paths):
        name, stem = _composed(path.name), _composed(path.stem)
        for last in (name, stem, *_numbers([stem])):
            by_last.setdefault(last, set()).add(place)
    found: dict[int, dict[str | int, _Agreement]] = {}
    for key in keys:
        lasts = [parts[-1] for parts in _readings(key)]
        for place in sorted({place for last in lasts + _numbers(lasts) for place in by_last.get(last, ())}):
            agreements = [_agreement(parts, paths[place], key) for parts in _readings(key)]
            found.setdefault(place, {})[key] = max(agreements)
    return found


def _readings(key: str | int) -> list[list[str]]:
    """The parts of a key as a path; a name may come from Windows or from an address."""
    texts = dict.fromkeys(_composed(text) for text in (str(key), urllib.parse.unquote(str(key))))
    split = [[part for part in text.replace("\\", "/").split("/") if part not in ("", ".")] for text in texts]
    return [parts for parts in split if parts]


def _numbers(texts: Sequence[str]) -> list[str]:
    # Python refuses numbers of thousands of digits.
    return [str(int(text)) for text in texts if text.isdecimal() and len(text) < 300]


def _composed(text: str) -> str:
    # Some systems write an accent as a letter of its own.
    return unicodedata.normalize("NFC", text)


def _agreement(parts: Sequence[str], path: pathlib.Path, key: str | int) -> _Agreement:
    there = [_composed(part) for part in pathlib.Path(os.path.abspath(path)).parts]
    pairs = zip(parts[-2::-1], there[-2::-1], strict=False)
    same = 1 + len(list(itertools.takewhile(lambda pair: pair[0] == pair[1], pairs)))
    letter = 2 if parts[-1] == there[-1] else int(parts[-1] == _composed(path.stem))
    # A number says nothing of zeros before it.
    return _Agreement(same == len(parts), same, 0 if isinstance(key, int) else letter)


def _either(names: Sequence[object]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return " or ".join(printable(str(name)) for name in names[:3]) + more
