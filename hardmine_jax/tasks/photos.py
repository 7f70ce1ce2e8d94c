"""Photographs that prediction is asked about: reading them, their ids and names, writing pictures of them."""

import pathlib
from collections.abc import Sequence

import cv2
import numpy as np

from hardmine_jax.data.images import Orientation, decode_image, oriented, read_file, why_not_decoded
from hardmine_jax.errors import UserError


class InputError(UserError):
    """Something that was given cannot be used; one line."""


def read_photo(path: pathlib.Path, orientation: Orientation = "upright") -> tuple[bytes, np.ndarray]:
    """A file's bytes, and its pixels, u8 [H, W, 3] RGB, upright or as they are stored.

    Where pixels are wanted as stored the bytes come without their EXIF orientation: all read them so.

    Raises:
      InputError: it is missing, or no whole image.
    """
    try:
        encoded = oriented(read_file(path), None, orientation)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from error
    image = decode_image(encoded)
    if image is None:
        reason = why_not_decoded(encoded) or "image unreadable"
        raise InputError(f"{path}: {reason}: not a whole image that OpenCV reads (JPEG, PNG, ...)")
    return encoded, image


def photo_id(path: pathlib.Path, position: int) -> int:
    """The file's name where that is a number, else its place on the command line, from 1."""
    return int(path.stem) if path.stem.isdecimal() else position


def picture_names(paths: Sequence[pathlib.Path]) -> list[str]:
    """Names of the pictures; files of one name in several folders are numbered.

    >>> picture_names([pathlib.Path("a/x.jpg"), pathlib.Path("y.jpg"), pathlib.Path("b/x.jpg")])
    ['x_1', 'y', 'x_2']
    """
    stems = [path.stem for path in paths]
    return [
        stem if stems.count(stem) == 1 else f"{stem}_{stems[: place + 1].count(stem)}"
        for place, stem in enumerate(stems)
    ]


def write_png(path: pathlib.Path, image: np.ndarray) -> None:
    """Writes u8 [H, W, 3] RGB."""
    path.write_bytes(cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))[1].tobytes())
