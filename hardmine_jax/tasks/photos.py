"""Photographs that prediction is asked about: reading them, their ids and names, writing pictures of them."""

import itertools
import os
import pathlib
import sys
from collections import Counter
from collections.abc import Collection, Sequence

import cv2
import numpy as np

from hardmine_jax.data.images import Orientation, decode_image, oriented, read_file, why_not_decoded
from hardmine_jax.data.problems import printable
from hardmine_jax.errors import UserError

_SHOWN = 4


class InputError(UserError):
    """Something that was given cannot be used; one line."""


def read_photo(
    path: pathlib.Path, orientation: Orientation = "upright", listed_size: tuple[int, int] | None = None
) -> tuple[bytes, np.ndarray]:
    """A file's bytes, and its pixels, u8 [H, W, 3] RGB, upright or as they are stored.

    Where pixels are wanted as stored the bytes come without their EXIF orientation: all read them so.

    Args:
      listed_size: (H, W) that somebody says it has, which "auto" goes by.

    Raises:
      InputError: it is missing, or no whole image.
    """
    try:
        encoded = oriented(read_file(path), listed_size, orientation)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from error
    image = decode_image(encoded)
    if image is None:
        reason = why_not_decoded(encoded) or "image unreadable"
        raise InputError(f"{path}: {reason}: not a whole image that OpenCV reads (JPEG, PNG, ...)")
    return encoded, image


def once_each(paths: Sequence[pathlib.Path]) -> list[pathlib.Path]:
    """The paths without those that name a file for the second time; a line on stderr tells of them."""
    kept: dict[str, pathlib.Path] = {}
    for path in paths:
        first = kept.setdefault(os.path.abspath(path), path)
        if first is not path:
            print(f"note: {printable(str(path))} is given twice: it counts once", file=sys.stderr)
    return list(kept.values())


def number_photos(paths: Sequence[pathlib.Path], *, taken: Collection[int] = ()) -> list[int]:
    """An id for each file, different from all others: its name where that is a number, else a free number.

    That is its place, from 1, or one after all places. Where two names are one number neither has it, and a
    line on stderr says so.

    Args:
      taken: ids that are given to something else.

    >>> number_photos([pathlib.Path(name) for name in ("x.jpg", "1.jpg", "0042.jpg", "y.jpg")])
    [5, 1, 42, 4]
    """
    claims = [_number(path) for path in paths]
    times = Counter(claims)
    ids = [None if claim in taken or times[claim] > 1 else claim for claim in claims]
    used = {*taken, *claims}
    later = (number for number in itertools.count(len(paths) + 1) if number not in used)
    for place, one in enumerate(ids):
        if one is None:
            ids[place] = place + 1 if place + 1 not in used else next(later)
    numbers = [one for one in ids if one is not None]
    shared = [place for place, claim in enumerate(claims) if claim is not None and times[claim] > 1]
    if shared:
        listed = ", ".join(f"{printable(str(paths[place]))} {numbers[place]}" for place in shared[:_SHOWN])
        more = f" and {len(shared) - _SHOWN} more" if len(shared) > _SHOWN else ""
        what = f"{len(shared)} files have a number for a name that another one has"
        print(f"note: {what}; as image_id they get: {listed}{more}", file=sys.stderr)
    return numbers


def _number(path: pathlib.Path) -> int | None:
    # As records have ids: in 64 bits.
    number = int(path.stem) if path.stem.isdecimal() else 2**63
    return number if number < 2**63 else None


def picture_names(paths: Sequence[pathlib.Path]) -> list[str]:
    """Names of the pictures, each different; files of one name, in several folders or of several kinds, are
    numbered.

    >>> picture_names([pathlib.Path(name) for name in ("a/x.jpg", "y.jpg", "b/x.jpg", "x_1.jpg")])
    ['x_2', 'y', 'x_3', 'x_1']
    """
    # Not by capitals alone: some file systems do not tell them apart.
    times = Counter(path.stem.casefold() for path in paths)
    used = {stem for stem, count in times.items() if count == 1}
    counts = {stem: itertools.count(1) for stem in times}
    names = []
    for path in paths:
        stem = path.stem.casefold()
        name = path.stem if times[stem] == 1 else f"{path.stem}_{next(counts[stem])}"
        while times[stem] > 1 and name.casefold() in used:
            name = f"{path.stem}_{next(counts[stem])}"
        used.add(name.casefold())
        names.append(name)
    return names


def file_names(paths: Sequence[pathlib.Path]) -> list[str]:
    """The ends of the paths that tell the files apart: the name alone, with folders before it where needed.

    >>> file_names([pathlib.Path(name) for name in ("a/x.jpg", "y.jpg", "b/x.jpg")])
    ['a/x.jpg', 'y.jpg', 'b/x.jpg']
    """
    parts = [pathlib.Path(os.path.abspath(path)).parts for path in paths]
    names: list[str] = [""] * len(paths)
    left, length = set(range(len(paths))), 0
    while left:
        length += 1
        ends = {place: "/".join(parts[place][-length:]) for place in left}
        times = Counter(ends.values())
        for place, end in ends.items():
            if times[end] == 1 or length >= len(parts[place]):
                names[place] = end
                left.discard(place)
    return names


def check_outputs(outputs: Sequence[pathlib.Path], photos: Sequence[pathlib.Path]) -> None:
    """Raises InputError where a picture would be written over one of the photos."""
    given = {os.path.realpath(path) for path in photos}
    for output in outputs:
        if os.path.realpath(output) in given:
            raise InputError(
                f"{output} is one of the images, and would be written over: choose another --output"
            )


def write_png(path: pathlib.Path, image: np.ndarray) -> None:
    """Writes u8 [H, W, 3] RGB."""
    path.write_bytes(cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))[1].tobytes())
