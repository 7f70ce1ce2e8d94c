"""Which categories of a COCO keypoint file are trained on, and the skeleton that they have in common."""

import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

from hardmine_jax.data import coco_json
from hardmine_jax.data.coco_json import Category, title, whole_id, whole_number
from hardmine_jax.data.pose.sided_names import infer_flip_pairs
from hardmine_jax.data.problems import DataError, printable
from hardmine_jax.pose import Skeleton

# Names or ids, "all", or None for the only one there is.
Wanted = str | int | Sequence[str | int] | None


def find_categories(file: coco_json.File, wanted: Wanted) -> list[dict]:
    """The categories with keypoints that are wanted, by names or ids, or the one that there is.

    "all" are all of them. Several must have the same keypoints. Where none has names of keypoints, those that
    the annotations agree on the number of get `keypoint_1`, `keypoint_2`, ...

    Raises:
      DataError: there is no such category, or several where one is meant, or with other keypoints.
    """
    named, unnamed = _posed(file)
    names = [] if wanted is None else [wanted] if isinstance(wanted, str | int) else list(wanted)
    posed = named or unnamed
    if not all(_called(posed, name) for name in names):
        posed = named + unnamed
    if not posed:
        found = sorted(set().union(*_counts(file.content["annotations"]).values()))[:10]
        raise DataError(
            f'{file.path} has no category with "keypoints": expected their names in "categories", or '
            f"annotations that all have as many (theirs have {' or '.join(map(str, found)) or 'none'})"
        )
    chosen = _chosen(posed, names, file.path)
    for other in chosen:
        if other["keypoints"] != chosen[0]["keypoints"]:
            raise DataError(
                f"{file.path}: category {title(other.get('name'))} has other keypoints than "
                f"{title(chosen[0].get('name'))}: choose categories of the same among {_listed(posed)}"
            )
    return chosen


def written_categories(categories: Iterable[dict]) -> tuple[Category, ...]:
    """Ids and names of those that `find_categories` found."""
    ids = [(whole_id(one["id"]), printable(title(one.get("name")))) for one in categories]
    return tuple(Category(number, name) for number, name in ids if number is not None)


def _chosen(posed: list[dict], names: Sequence[str | int], path: pathlib.Path) -> list[dict]:
    if not names and len(posed) > 1:
        raise DataError(
            f"{path} has several categories with keypoints: choose the category by name or id, several "
            f"of the same keypoints, or all, among {_listed(posed)}"
        )
    if not names or (list(names) == ["all"] and not _called(posed, "all")):
        return posed
    chosen: dict[str, dict] = {}
    for name in names:
        found = _called(posed, name)
        if len(found) != 1:
            raise DataError(
                f"{path} has not one category {name!r}: choose the category by name or id among "
                f"{_listed(posed)}"
            )
        chosen[str(whole_id(found[0]["id"]))] = found[0]
    return list(chosen.values())


def _listed(posed: list[dict]) -> str:
    return ", ".join(
        f"{title(one.get('name'))} (id {whole_id(one['id'])}, {len(one['keypoints'])} keypoints)"
        for one in posed
    )


def _called(posed: list[dict], name: str | int) -> list[dict]:
    """Those of that name or id."""
    wanted = title(name)
    return [one for one in posed if wanted in (title(one.get("name")), str(whole_id(one["id"])))]


def _posed(file: coco_json.File) -> tuple[list[dict], list[dict]]:
    """Categories with names of keypoints, and those whose annotations agree on how many there are."""
    categories = [one for one in file.content["categories"] if isinstance(one, dict)]
    known = [one for one in categories if whole_id(one.get("id")) is not None]
    named = [one for one in known if _has_names(one)]
    rest = [one for one in known if not _has_names(one)]
    if known and not rest:
        return named, []
    counts = _counts(file.content["annotations"])
    if not file.content["categories"]:
        rest = [{"id": number, "name": f"category {number}"} for number in counts if number != "None"]
    anybody = counts.get("None", set())
    unnamed = []
    for one in rest:
        found = counts.get(str(whole_id(one["id"])), set()) | anybody
        if len(found) == 1:
            numbered = [f"keypoint_{number}" for number in range(1, min(found) + 1)]
            unnamed.append(one | {"keypoints": numbered})
    return named, unnamed


def _has_names(category: dict) -> bool:
    return isinstance(category.get("keypoints"), list) and len(category["keypoints"]) > 0


def _counts(annotations: list) -> dict[str, set[int]]:
    """Id of a category, as text -> how many keypoints its annotations have."""
    counts: dict[str, set[int]] = {}
    for entry in annotations:
        points = entry.get("keypoints") if isinstance(entry, dict) else None
        if isinstance(points, list) and points and len(points) % 3 == 0:
            counts.setdefault(str(whole_id(entry.get("category_id"))), set()).add(len(points) // 3)
    return counts


def of_categories(
    annotations: list, categories: Sequence[dict], path: pathlib.Path
) -> list[tuple[int, dict]]:
    """(place in the file, annotation) of the categories, or of none; what is no annotation becomes {}."""
    wanted = [str(whole_id(category["id"])) for category in categories]
    entries = [entry if isinstance(entry, dict) else {} for entry in annotations]
    ids = [str(whole_id(entry.get("category_id", wanted[0]))) for entry in entries]
    if ids and not set(wanted) & set(ids):
        found = ", ".join(sorted(set(ids))[:10])
        those = ", ".join(
            f"{title(category.get('name'))} (id {number})"
            for category, number in zip(categories, wanted, strict=True)
        )
        raise DataError(f"no annotation in {path} is of category {those}: their category_id is {found}")
    chosen = set(wanted)
    return [(place, entries[place]) for place, text in enumerate(ids) if text in chosen]


def make_skeleton(
    categories: Sequence[dict], options: dict, path: pathlib.Path, *, known: dict[str, float], sigma: float
) -> tuple[Skeleton, list[str]]:
    """The skeleton of the categories' keypoints, and the lines of their "skeleton" that join no two of them.

    Args:
      options: `edges`, `flip_pairs` and `sigmas` as `coco.load` takes them, over the file's own.
      known: sigmas of keypoints that are exactly these; `sigma` of all others.
    """
    category = categories[0]
    left_out: list[str] = []
    try:
        names = tuple(printable(title(name)) for name in category["keypoints"])
        if options["edges"] is not None:
            edges = _indices(options["edges"], names)
        else:
            edges, left_out = drawn_edges(category.get("skeleton"), names)
        flip_pairs = infer_flip_pairs(names)
        if options["flip_pairs"] is not None:
            flip_pairs = _indices(options["flip_pairs"], names)
        default = tuple(known[name] if known.keys() == set(names) else sigma for name in names)
        sigmas = options["sigmas"] or category.get("sigmas") or default
        return Skeleton(names, flip_pairs, sigmas, edges), left_out
    except (ValueError, TypeError) as error:
        raise DataError(f"category {title(category.get('name'))} of {path}: {error}") from error


def drawn_edges(skeleton: object, names: Sequence[str]) -> tuple[tuple[tuple[int, int], ...], list[str]]:
    """The edges of a category's "skeleton" as indices, and what in it joins no two keypoints.

    Ends are names, or numbers that count from 1, or from 0 where a 0 is among them; pairs, or one flat list.

    >>> drawn_edges([[1, 2], ["b", "c"], [3, 9]], ("a", "b", "c"))
    (((0, 1), (1, 2)), ['3-9'])
    >>> drawn_edges([0, 1, 1, 2], ("a", "b", "c"))
    (((0, 1), (1, 2)), [])
    """
    pairs, places = _lines(skeleton), {name: place for place, name in enumerate(names)}
    numbers = {whole_number(end) for pair in pairs for end in pair if title(end) not in places}
    first = 0 if 0 in numbers else 1

    def place_of(end: object) -> int:
        number = whole_number(end)
        return places.get(printable(title(end)), -1 if number is None else number - first)

    edges, left_out = [], []
    for pair in pairs:
        ends = tuple(map(place_of, pair[:3]))
        if len(ends) == 2 and ends[0] != ends[1] and all(0 <= end < len(names) for end in ends):
            edges.append((ends[0], ends[1]))
        else:
            left_out.append("-".join(map(title, pair[:3])))
    return tuple(dict.fromkeys(edges)), left_out


def _lines(skeleton: object) -> list[list]:
    """Two by two where the list is flat; what is no list stands alone."""
    lines = skeleton if isinstance(skeleton, list) else [skeleton] if skeleton else []
    if not any(isinstance(line, list | dict) for line in lines):
        return [lines[place : place + 2] for place in range(0, len(lines), 2)]
    return [line if isinstance(line, list) else [line] for line in lines]


def _indices(pairs: Iterable, names: tuple[str, ...]) -> tuple[tuple[int, int], ...]:
    pairs = [list(pair) for pair in pairs]
    unknown = [end for pair in pairs for end in pair if isinstance(end, str) and end not in names]
    if unknown:
        raise ValueError(f"no keypoints {unknown} among {names}")

    def index(end: Any) -> Any:
        return names.index(end) if isinstance(end, str) else end

    # What is no pair of indices, the skeleton refuses.
    return tuple(tuple(index(end) for end in pair) for pair in pairs)
