"""MATLAB's .mat files of version 5 to 7: arrays of numbers by name.

Read here and not by SciPy, whose reader crashes the process on some damaged files. A file has at most
MAX_BYTES, also once unpacked. Format: "MAT-File Format", The MathWorks, chapter 1 (level 5).
"""

import math
import os
import pathlib
import struct
import zlib
from collections.abc import Collection, Iterator

import numpy as np

from hardmine_jax.data.problems import DataError

# The largest that is read here, LSP's extended joints, has 4 MB.
MAX_BYTES = 2**28
_HEADER_BYTES, _VERSION_5, _HDF5 = 128, 0x0100, 0x0200
_INT8, _INT32, _UINT32, _MATRIX, _COMPRESSED = 1, 5, 6, 14, 15
# How numbers are stored, and the class that they have: MATLAB stores whole doubles in fewer bytes.
_STORED = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
_CLASSES = {6: "f8", 7: "f4", 8: "i1", 9: "u1", 10: "i2", 11: "u2", 12: "i4", 13: "u4", 14: "i8", 15: "u8"}
_COMPLEX = 0x800


class _Version73(Exception):
    pass


def load(path: str | os.PathLike, names: Collection[str], *, where: str) -> dict[str, np.ndarray]:
    """The variables of these names that the file has; what holds no real numbers is an empty object array.

    Args:
      where: where to get the file again, for the error.

    Raises:
      DataError: no MATLAB file, a damaged or too large one, or one of version 7.3 (which is HDF5).
    """
    try:
        if os.path.getsize(path) > MAX_BYTES:
            raise ValueError(f"more than {MAX_BYTES:,} bytes")
        return {name: x for name, x in _variables(pathlib.Path(path).read_bytes()) if name in names}
    except _Version73 as error:
        advice = "save it again in MATLAB with save(..., '-v7')"
        raise DataError(f"{path} is a MATLAB v7.3 (HDF5) file, not read here: {advice}") from error
    except (OSError, ValueError, struct.error, zlib.error) as error:
        problem = f"{path} cannot be read as a MATLAB file of version 5 to 7 ({error})"
        raise DataError(f"{problem}: get it again ({where})") from error


def _variables(content: bytes) -> Iterator[tuple[str, np.ndarray]]:
    order = ">" if content[126:128] == b"MI" else "<"
    (version,) = struct.unpack_from(f"{order}H", content, 124)
    if version == _HDF5:
        raise _Version73
    if version != _VERSION_5 or content[126:128] not in (b"MI", b"IM"):
        raise ValueError("it does not begin like one")
    left = MAX_BYTES
    for kind, data in _elements(content[_HEADER_BYTES:], order):
        if kind == _COMPRESSED:
            data = _unpack(data, left)
            left -= len(data)
            ((kind, data),) = _elements(data, order)
        if kind == _MATRIX and (variable := _variable(data, order)):
            yield variable


def _elements(content: bytes, order: str) -> Iterator[tuple[int, bytes]]:
    """(kind, data) of each; data of up to four bytes may stand in the tag."""
    place = 0
    while place < len(content):
        kind, size = struct.unpack_from(f"{order}II", content, place)
        start, kind, size = (place + 4, kind & 0xFFFF, kind >> 16) if kind >> 16 else (place + 8, kind, size)
        end = start + size
        if end > (len(content) if start > place + 4 else place + 8):
            raise ValueError("it is cut off")
        yield kind, content[start:end]
        # The others are padded to multiples of eight.
        place = end if kind == _COMPRESSED else end + (place - end) % 8


def _unpack(packed: bytes, limit: int) -> bytes:
    unpack = zlib.decompressobj()
    data = unpack.decompress(packed, limit + 1)
    if len(data) > limit:
        raise ValueError(f"more than {MAX_BYTES:,} bytes once unpacked")
    if not unpack.eof:
        raise ValueError("it is cut off")
    return data


def _variable(data: bytes, order: str) -> tuple[str, np.ndarray] | None:
    """(name, array), None for MATLAB's own kinds of objects, which begin otherwise."""
    elements = [*_elements(data, order)]
    if [kind for kind, _ in elements[:3]] != [_UINT32, _INT32, _INT8]:
        return None
    (flags, *_), shape, letters = (
        np.frombuffer(part, order + _STORED[kind]).tolist() for kind, part in elements[:3]
    )
    name = bytes(letters).decode("latin1")
    dtype = _CLASSES.get(flags & 0xFF)
    if dtype is None or flags & _COMPLEX or len(elements) != 4 or elements[3][0] not in _STORED:
        return name, np.zeros(0, object)
    numbers = np.frombuffer(elements[3][1], order + _STORED[elements[3][0]])
    if min(shape, default=0) < 0 or math.prod(shape) != len(numbers):
        raise ValueError(f"{len(numbers)} numbers for {name} of shape {shape}")
    return name, numbers.reshape(shape, order="F").astype(dtype)
