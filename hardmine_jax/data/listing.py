"""What a dataset's files list: names that stay inside their folder, ids, and a split where none is given."""

import hashlib
import os
import pathlib
import re
import urllib.parse
from collections.abc import Sequence
from typing import TypeVar

_Item = TypeVar("_Item")


def inside(folder: pathlib.Path, name: object) -> pathlib.Path | None:
    """The file `name` of the folder, or None where the name leads out.

    Where there is no such file, `\\` separates folders, as Windows writes it, or `%20` stands for a space, as
    in an address, if that leads to a file. A link inside the folder may lead anywhere, and is followed:
    whoever made the folder put it there (data sets are often kept as links), no annotation file can, and
    nothing here unpacks links.

    Args:
      folder: absolute, without `..`.

    >>> inside(pathlib.Path("/data"), "a/b.jpg").as_posix(), inside(pathlib.Path("/data"), "../b.jpg")
    ('/data/a/b.jpg', None)
    """
    path = path_inside(folder, name)
    return None if path is None else pathlib.Path(path)


def path_inside(folder: pathlib.Path, name: object) -> str | None:
    """`inside` as text: a file may list a million names, and a path takes ten times as long to make."""
    if not isinstance(name, str):
        return None
    base = os.fspath(folder)
    path = _joined(base, name)
    if "\\" in name or "%" in name:
        slashes = name.replace("\\", "/")
        for other in (name, slashes, urllib.parse.unquote(name), urllib.parse.unquote(slashes)):
            found = _joined(base, other)
            if found is not None and os.path.isfile(found):
                return found
    return path


def _joined(base: str, name: str) -> str | None:
    if "\0" in name or not _is_utf8(name):
        return None
    path = os.path.normpath(os.path.join(base, name))
    return path if path.startswith(base.rstrip(os.sep) + os.sep) and path != base else None


def _is_utf8(name: str) -> bool:
    """False for half a surrogate pair, which JSON can hold and neither a file system nor a record can."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def id_number(image_id: str) -> int:
    """The id itself where it is a number of 64 bits, else 63 bits that depend on the id alone.

    >>> id_number("-7"), id_number("a") == id_number("a") != id_number("b")
    (-7, True)
    """
    if re.fullmatch(r"0|-?[1-9][0-9]{0,18}", image_id) and is_int64(int(image_id)):
        return int(image_id)
    return int.from_bytes(_digest(image_id, 8)) >> 1


def is_int64(number: int) -> bool:
    return -(2**63) <= number < 2**63


def tenth_apart(items: Sequence[_Item], keys: Sequence[str]) -> tuple[list[_Item], list[_Item]]:
    """Items to train on and about a tenth to validate on; both get one as soon as there are two.

    A hash of its key alone places an item, so that it stays on its side when others are added.
    """
    if len(items) < 2:
        return list(items), []
    places = [_place(key) for key in keys]
    threshold = min(max(0.1, min(places)), sorted(places)[-2])
    train = [item for item, place in zip(items, places, strict=True) if place > threshold]
    validation = [item for item, place in zip(items, places, strict=True) if place <= threshold]
    return train, validation


def _place(key: str) -> float:
    """A number in [0, 1) that depends on the key alone."""
    return int.from_bytes(_digest(key, 6)) / 2.0**48


def _digest(text: str, size: int) -> bytes:
    return hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=size).digest()
