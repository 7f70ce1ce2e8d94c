"""How a photograph is to be turned before it is shown: the EXIF orientation of encoded images.

    1 as stored   3 by 180 degrees   6 by 90 clockwise   8 by 90 counter-clockwise
    2 mirrored    4 mirrored, then 3   5 mirrored, then 8   7 mirrored, then 6

JPEG, PNG, WebP and TIFF can carry one. OpenCV's versions differ in which of these they obey, and none lets
TIFF be read as stored: images are turned here, and decoders get bytes that ask for nothing.
Format: EXIF 2.32, section 4.6.4, tag 0x0112; PNG's eXIf and WebP's EXIF chunk hold the same.
"""

import struct
import zlib
from typing import NamedTuple

import numpy as np

_ORIENTATION = 0x0112
# More segments or chunks than any encoder writes; each could be a few bytes long.
_MAX_PARTS = 2**17


class _Place(NamedTuple):
    """Where the two bytes of the orientation stand, `<` or `>`, and the PNG chunk around them, if one is."""

    start: int
    order: str
    chunk: slice | None = None


def orientation(encoded: bytes) -> int:
    """1 to 8; 1 where none is stated, or none that exists.

    >>> orientation(b"\\xff\\xd8\\xff\\xd9")
    1
    """
    place = _find(encoded)
    stated = 1 if place is None else struct.unpack_from(f"{place.order}H", encoded, place.start)[0]
    return stated if 1 <= stated <= 8 else 1


def as_stored(encoded: bytes) -> bytes:
    """The same image with orientation 1: every reader shows its pixels as they are stored."""
    place = _find(encoded)
    if place is None:
        return encoded
    changed = bytearray(encoded)
    struct.pack_into(f"{place.order}H", changed, place.start, 1)
    if place.chunk is not None:
        struct.pack_into(">I", changed, place.chunk.stop, zlib.crc32(changed[place.chunk]))
    return bytes(changed)


def turn(image: np.ndarray, stated: int) -> np.ndarray:
    """[H, W, ...] as stored -> as it is to be seen.

    >>> turn(np.array([[1, 2, 3], [4, 5, 6]]), 6)
    array([[4, 1],
           [5, 2],
           [6, 3]])
    """
    down, across, swap = _TURNS[stated]
    image = image[::-1] if down else image
    image = image[:, ::-1] if across else image
    return np.ascontiguousarray(image.swapaxes(0, 1) if swap else image)


def turned_size(size: tuple[int, int], stated: int) -> tuple[int, int]:
    """(H, W) of `turn`'s result; its own inverse."""
    return (size[1], size[0]) if _TURNS[stated][2] else size


# Rows from below, columns from the right, then rows as columns.
_TURNS = {
    1: (False, False, False),
    2: (False, True, False),
    3: (True, True, False),
    4: (True, False, False),
    5: (False, False, True),
    6: (True, False, True),
    7: (True, True, True),
    8: (False, True, True),
}


def _find(encoded: bytes) -> _Place | None:
    try:
        if encoded.startswith(b"\xff\xd8"):
            return _in_jpeg(encoded)
        if encoded.startswith(b"\x89PNG"):
            return _in_chunks(encoded, first=8, name=b"eXIf", order=">", extra=4)
        if encoded.startswith(b"RIFF") and encoded[8:12] == b"WEBP":
            return _in_chunks(encoded, first=12, name=b"EXIF", order="<", extra=0)
        if encoded.startswith((b"II*\0", b"MM\0*")):
            return _in_tiff(encoded, 0)
    except struct.error:
        pass
    return None


def _in_jpeg(encoded: bytes) -> _Place | None:
    place = 2
    for _ in range(_MAX_PARTS):
        # As libjpeg does: bytes between segments are passed over, 0xFF may stand several times.
        place = encoded.find(b"\xff", place)
        while place >= 0 and encoded[place : place + 1] == b"\xff":
            place += 1
        if place < 0 or place >= len(encoded):
            return None
        marker = encoded[place]
        place += 1
        if marker in (0xD9, 0xDA):
            return None
        if marker <= 0x01 or 0xD0 <= marker <= 0xD8:
            continue
        (length,) = struct.unpack_from(">H", encoded, place)
        if marker == 0xE1 and encoded[place + 2 : place + 8] == b"Exif\0\0":
            found = _in_tiff(encoded, place + 8)
            if found is not None:
                return found
        place += max(length, 2)
    return None


def _in_chunks(encoded: bytes, *, first: int, name: bytes, order: str, extra: int) -> _Place | None:
    """Of PNG, whose chunks state their length first and end with `extra` bytes, or RIFF: the name first."""
    place = first
    for _ in range(_MAX_PARTS):
        start = place + 8
        head = encoded[place:start]
        if len(head) < 8:
            return None
        (length,) = struct.unpack_from(f"{order}I", head, 0 if extra else 4)
        if head[4:] == name if extra else head[:4] == name:
            inner = start + 6 if encoded[start : start + 6] == b"Exif\0\0" else start
            found = _in_tiff(encoded, inner)
            if found is None or not extra:
                return found
            if start + length + extra > len(encoded):
                return None
            return found._replace(chunk=slice(place + 4, start + length))
        place = start + length + extra + (0 if extra else length % 2)
    return None


def _in_tiff(encoded: bytes, start: int) -> _Place | None:
    """In the first directory of the TIFF header at `start`."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(encoded[start : start + 4])
    if order is None:
        return None
    directory = start + struct.unpack_from(f"{order}I", encoded, start + 4)[0]
    (count,) = struct.unpack_from(f"{order}H", encoded, directory)
    for entry in range(directory + 2, directory + 2 + 12 * count, 12):
        tag, kind, values = struct.unpack_from(f"{order}HHI", encoded, entry)
        if (tag, kind, values) == (_ORIENTATION, 3, 1):
            struct.unpack_from(f"{order}H", encoded, entry + 8)
            return _Place(entry + 8, order)
    return None
