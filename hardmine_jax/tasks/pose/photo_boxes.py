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
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from hardmine_jax.data import files
from hardmine_jax.data.coco_json import Category, is_true, listed_size, whole_id
from hardmine_jax.data.pose.person_boxes import Key, category_key, read_box
from hardmine_jax.data.problems import printable
from hardmine_jax.tasks.photos import InputError

_EXPECTED = (
    '[{"file_name": "photo.jpg", "bbox": [x, y, width, height], "score": 0.9}, ...], a list of COCO '
    "detections, or a COCO file with images and annotations"
)
Skip = Callable[[str, str], None]


class Box(NamedTuple):
    """Where a person is: xyxy in pixels, and how sure the detector was; ids where the file gives any, and the
    (H, W) of the image where it lists that."""

    corners: tuple[float, float, float, float]
    score: float = 1.0
    image_id: int | str | None = None
    category_id: int | str | None = None
    image_size: tuple[int, int] | None = None


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
    sizes = _image_sizes(images)
    titles = _category_names(content.get("categories", []) if isinstance(content, dict) else [])
    boxes: Boxes = {}
    for position, entry in enumerate(entries):
        found = _read_entry(entry, names, shared, titles, filters)
        if isinstance(found, str):
            skip(found, f"box {position}{_of_photo(entry)}")
        else:
            key, box = found
            box = box._replace(image_size=sizes.get(str(box.image_id)))
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


def _image_sizes(images: object) -> dict[str, tuple[int, int] | None]:
    listed = [image for image in images if isinstance(image, dict)] if isinstance(images, list) else []
    return {str(whole_id(image.get("id"))): listed_size(image) for image in listed}


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


Keyed = dict[str | int, list[tuple[tuple[int, int], int]]]


def share_out(keys: Collection[str | int], paths: Sequence[pathlib.Path]) -> list[str | int | None]:
    """For each photo the key that is its own, None where there is none.

    Keys that are the end of a photo's path come first, the longest before others. Where no folder of a key
    is found so, the files lie elsewhere, and how many parts of the paths agree decides; a line on stderr says
    so.

    Raises:
      InputError: a key that may be of several photos, or a photo of several keys.
    """
    owned: list[str | int | None] = [None] * len(paths)
    _settle(_whole_ends(keys, paths), paths, owned)
    if any(key is not None and max(map(len, _readings(key))) > 1 for key in owned):
        return owned
    before, taken = list(owned), set(owned)
    loose = _common_ends([key for key in keys if key not in taken], paths, owned)
    _settle(loose, paths, owned)
    moved = [place for place, key in enumerate(owned) if key != before[place]]
    if moved:
        first = f"{paths[moved[0]]} takes those of {owned[moved[0]]}"
        more = f", and {len(moved) - 1} more likewise" if len(moved) > 1 else ""
        print(f"note: boxes of a file in another folder: {printable(first)}{more}", file=sys.stderr)
    return owned


def _settle(found: Keyed, paths: Sequence[pathlib.Path], owned: list[str | int | None]) -> None:
    """Gives each photo the key that fits it best, of those that fit no other better; fills `owned`.

    Args:
      found: key -> (how well it fits, place of the photo).
    """
    by_place: dict[int, list[tuple[tuple[int, int], str | int]]] = {}
    for key, fits in found.items():
        for fit, place in fits:
            by_place.setdefault(place, []).append((fit, key))
    claims: Keyed = {}
    for place, choices in by_place.items():
        best = max(fit for fit, _ in choices)
        key, *others = dict.fromkeys(key for fit, key in choices if fit == best)
        if others:
            raise InputError(f"{paths[place]} may be {_either([key, *others])} of the boxes: {_ADVICE}")
        claims.setdefault(key, []).append((best, place))
    for key, claimed in claims.items():
        best = max(fit for fit, _ in claimed)
        place, *rest = [place for fit, place in claimed if fit == best]
        if rest:
            either = _either([paths[one] for one in (place, *rest)])
            raise InputError(f"{printable(str(key))} of the boxes may be {either}: {_ADVICE}")
        owned[place] = key


def _whole_ends(keys: Iterable[str | int], paths: Sequence[pathlib.Path]) -> Keyed:
    """Keys that are the end of a path: (number of parts, how much to the letter the last one is)."""
    by_end: dict[int, dict[tuple[str, ...], list[tuple[int, int]]]] = {}

    def ends_of(length: int) -> dict[tuple[str, ...], list[tuple[int, int]]]:
        if length not in by_end:
            ends = by_end.setdefault(length, {})
            for place, path in enumerate(paths):
                *folders, name = _parts(os.path.abspath(path))
                stem = _composed(path.stem)
                for letter, last in ((2, name), (1, stem), *((0, number) for number in _number(stem))):
                    end = (*folders[len(folders) - length + 1 :], last)
                    ends.setdefault(end, []).append((letter, place))
        return by_end[length]

    found: Keyed = {}
    for key in keys:
        fits: dict[int, int] = {}
        for *folders, last in _readings(key):
            ends = ends_of(len(folders) + 1)
            # A number says nothing of zeros before it.
            letters = [
                (0 if isinstance(key, int) else letter, place)
                for letter, place in ends.get((*folders, last), ())
            ]
            letters += [
                (0, place) for number in _number(last) for _, place in ends.get((*folders, number), ())
            ]
            for letter, place in letters:
                fits[place] = max(letter, fits.get(place, 0))
        found[key] = [((len(_readings(key)[0]), letter), place) for place, letter in fits.items()]
    return found


def _common_ends(
    keys: Iterable[str | int], paths: Sequence[pathlib.Path], owned: Sequence[str | int | None]
) -> Keyed:
    """Keys and photos without the other that have the file's name in common: (number of equal parts, 0)."""
    by_end: dict[tuple[str, ...], list[int]] = {}
    parts = [_parts(os.path.abspath(path)) for path in paths]
    for place in (place for place, key in enumerate(owned) if key is None):
        for length in (1, 2):
            by_end.setdefault(tuple(parts[place][-length:]), []).append(place)
    found: Keyed = {}
    for key in keys:
        for reading in _readings(key):
            # The folder's name too, where there is such a photo: many are called alike.
            places = by_end.get(tuple(reading[-2:])) or by_end.get((reading[-1],), [])
            equal = [_count_equal(reading[::-1], parts[place][::-1]) for place in places]
            found.setdefault(key, []).extend(
                ((count, 0), place) for count, place in zip(equal, places, strict=True)
            )
    return found


def _count_equal(one: Sequence[str], other: Sequence[str]) -> int:
    pairs = zip(one, other, strict=False)
    return len(list(itertools.takewhile(lambda pair: pair[0] == pair[1], pairs)))


def _readings(key: str | int) -> list[list[str]]:
    """The parts of a key as a path; a name may come from Windows or from an address."""
    texts = dict.fromkeys((str(key), urllib.parse.unquote(str(key))))
    return [parts for text in texts if (parts := _parts(text))] or [[""]]


def _parts(text: str) -> list[str]:
    return [part for part in _composed(text).replace("\\", "/").split("/") if part not in ("", ".")]


def _composed(text: str) -> str:
    # Some systems write an accent as a letter of its own.
    return unicodedata.normalize("NFC", text)


def _number(text: str) -> list[str]:
    # Python refuses numbers of thousands of digits.
    return [str(int(text))] if text.isdecimal() and len(text) < 300 else []


def _either(names: Sequence[object]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return " or ".join(printable(str(name)) for name in names[:3]) + more
