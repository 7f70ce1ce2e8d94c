"""Pictures with their people as a dataset's file describes them, and the check that they can be trained on.

Pixels are (x, y), the centre of the first pixel is (0, 0). Boxes are xyxy. Visibility: 0 not labelled or
outside the image, 1 labelled but occluded, 2 labelled and visible.

An image file is a JPEG, PNG, BMP, GIF, WebP or TIFF of at most MAX_PIXELS pixels, MAX_BYTES bytes and
MAX_SCANS scans: what states more is refused before anything is decoded.

Whatever is decoded here is upright, as every viewer shows it: turned as its EXIF orientation says. Labels
that count the pixels as stored get bytes without that orientation, see `open_image`. Pictures of 16 bits are
shown by the depth that they use: the fewest of 8, 10, 12, 14 and 16 bits that hold their largest value; the 8
highest of these are kept, so that 12 bits of a camera or a microscope are not black. Transparency is dropped.
"""

import contextlib
import itertools
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Literal, NamedTuple

import cv2
import numpy as np

from hardmine_jax.data import exif, files
from hardmine_jax.data.image_size import foreign_kind, stated_size
from hardmine_jax.data.problems import UnreadableImage

# How labels count a photograph's pixels: as it is seen, as it is stored, or as their size and reach tell.
Orientation = Literal["auto", "upright", "stored"]

# 134 million pixels: more than most cameras have, and as RGB 0.4 GB. OpenCV's own limit is 3 GB an image.
MAX_PIXELS = 2**27
MAX_BYTES = 2**28
# A progressive JPEG has about ten. Each passes over all pixels, and can be a few bytes long.
MAX_SCANS = 100


def decode_smaller(record: dict, halvings: int) -> tuple[np.ndarray, tuple[float, float]]:
    """BGR picture made smaller by about 2**halvings, and how many original pixels each one spans (x, y).

    Shrinking comes before the warp because bilinear sampling at a stride above 2 skips pixels. JPEG does it
    while decoding, which also saves most of the decoding.

    Raises:
      UnreadableImage: the bytes are no whole image.
    """
    encoded, factor = record["image"], 2**halvings
    reduced = (
        cv2.IMREAD_COLOR,
        cv2.IMREAD_REDUCED_COLOR_2,
        cv2.IMREAD_REDUCED_COLOR_4,
        cv2.IMREAD_REDUCED_COLOR_8,
    )
    image, reducible = None, False
    if why_not_decoded(encoded) is None:
        reducible = encoded.startswith(b"\xff\xd8") and not _starts_with_part(encoded, factor)
        image = _decode(encoded, reduced[halvings] if reducible else cv2.IMREAD_COLOR)
    if image is None:
        raise UnreadableImage(
            f"record {record['name']}: its {len(encoded)} bytes are no whole JPEG or PNG image"
        )
    if reducible or factor == 1:
        return image, (factor, factor)
    height, width = image.shape[:2]
    small = cv2.resize(image, (-(-width // factor), -(-height // factor)), interpolation=cv2.INTER_AREA)
    return small, (width / small.shape[1], height / small.shape[0])


def _starts_with_part(encoded: bytes, factor: int) -> bool:
    """Whether turning moves the last pixels of a reduced JPEG, which may span fewer, to the front."""
    return exif.orientation(encoded) != 1 and any(side % factor for side in stated_size(encoded) or ())


def _decode(encoded: bytes, mode: int) -> np.ndarray | None:
    """BGR, 8 bits, upright."""
    stated = exif.orientation(encoded)
    plain = np.frombuffer(encoded if stated == 1 else exif.as_stored(encoded), np.uint8)
    mode |= cv2.IMREAD_IGNORE_ORIENTATION
    try:
        image = cv2.imdecode(plain, mode | cv2.IMREAD_ANYDEPTH)
        if image is not None and image.dtype != np.uint8:
            image = _eight_bits(image) if image.dtype.itemsize == 2 else cv2.imdecode(plain, mode)
    except cv2.error:
        return None
    return image if image is None or stated == 1 else exif.turn(image, stated)


def _eight_bits(image: np.ndarray) -> np.ndarray:
    largest = int(image.max())
    depth = next(bits for bits in (8, 10, 12, 14, 16) if largest < 2**bits)
    return (np.maximum(image, 0) >> (depth - 8)).astype(np.uint8)


def jitter(image: np.ndarray, rng: np.random.Generator, strength: float) -> np.ndarray:
    """Saturation, contrast and brightness as one 3x4 matrix on the colours of each pixel."""
    saturation, contrast, brightness = rng.uniform(1 - strength, 1 + strength, 3)
    luma = np.array([0.299, 0.587, 0.114])
    mix = saturation * np.eye(3) + (1 - saturation) * luma
    middle = (1 - contrast) * float(luma @ cv2.mean(image)[:3])
    matrix = brightness * np.column_stack([contrast * mix, np.full(3, middle)])
    return cv2.transform(image, matrix.astype(np.float32))


def decode_image(encoded: bytes) -> np.ndarray | None:
    """Encoded JPEG, PNG, ... -> uint8 RGB [H, W, 3], or None if it cannot be read whole or is too large."""
    image = None if why_not_decoded(encoded) is not None else _decode(encoded, cv2.IMREAD_COLOR)
    return None if image is None else cv2.cvtColor(image, cv2.COLOR_BGR2RGB, dst=image)


def why_not_decoded(encoded: bytes) -> str | None:
    """The reason why an image is not even tried, None if it is.

    >>> why_not_decoded(b"GIF89a" + bytes([255] * 20))
    'image of more than 134,217,728 pixels'
    >>> why_not_decoded(b"P6 2 2 255 " + bytes(12))
    'image is PPM: convert it to JPEG or PNG'
    """
    size = stated_size(encoded)
    if size is None or not is_whole(encoded):
        kind = foreign_kind(encoded) if size is None else None
        return "image unreadable" if kind is None else f"image is {kind}"
    if size[0] * size[1] > MAX_PIXELS:
        return f"image of more than {MAX_PIXELS:,} pixels"
    if encoded.startswith(b"\xff\xd8") and encoded.count(b"\xff\xda") > MAX_SCANS:
        return f"image of more than {MAX_SCANS} scans"
    return None


def is_whole(encoded: bytes) -> bool:
    """False for a JPEG or PNG that was cut off; some OpenCV versions read it, grey where data is missing."""
    if encoded.startswith(b"\xff\xd8"):
        # 0xFF inside a scan is always escaped, so an end marker after the last scan's start is the real one.
        return encoded.rfind(b"\xff\xd9") > encoded.rfind(b"\xff\xda")
    if encoded.startswith(b"\x89PNG"):
        return b"IEND" in encoded[-4096:]
    return bool(encoded)


def in_threads(check: Callable, pictures: Iterable) -> Iterator:
    """`check` of each picture, in order, a thread a core; OpenCV prints nothing meanwhile."""
    with ThreadPoolExecutor(os.cpu_count()) as pool, _quiet_opencv():
        pictures = iter(pictures)
        while chunk := list(itertools.islice(pictures, 64)):
            yield from pool.map(check, chunk)


class Opened(NamedTuple):
    """An image that can be used.

    Attributes:
      encoded: the file's bytes; without their EXIF orientation where labels count pixels as stored, so that
        all that reads them sees what the labels mean.
      size: (H, W) of what decoders make of them.
      note: what is odd about it.
    """

    encoded: bytes
    size: tuple[int, int]
    note: str | None = None


def open_image(
    image: bytes | pathlib.Path,
    listed_size: tuple[int, int] | None,
    *,
    orientation: Orientation = "auto",
    extent: tuple[float, float] | None = None,
) -> Opened | str:
    """The image, or the reason why it cannot be used.

    A photograph that its EXIF orientation turns is read `upright`, as viewers and most annotation tools show
    it, or as `stored`. `auto` takes the reading that `listed_size` fits, or where none is listed the one
    whose sides `extent` fits; where both fit it is upright, and noted.

    Args:
      image: encoded, or its file.
      listed_size: (H, W) that the labels' file states.
      extent: (x, y), the largest of the labels.
    """
    try:
        encoded = image if isinstance(image, bytes) else read_file(image)
    except FileNotFoundError:
        return "image absent"
    except (OSError, ValueError):  # ValueError: a name that can be no path.
        return "image unreadable"
    decoded = decode_image(encoded)
    if decoded is None:
        return why_not_decoded(encoded) or "image unreadable"
    sizes = _readings(encoded, (decoded.shape[0], decoded.shape[1]), orientation)
    fitting = [reading for reading, size in sizes.items() if listed_size in (None, size)]
    if not fitting:
        return "image is not of the listed width and height (turned by EXIF?)"
    if listed_size is None and extent is not None:
        # Labels that reach out of both are no help.
        fitting = [reading for reading in fitting if _holds(sizes[reading], extent)] or fitting
    note = _EITHER_WAY if len(fitting) > 1 else None
    if fitting[0] == "stored":
        encoded = exif.as_stored(encoded)
    return Opened(encoded, sizes[fitting[0]], note)


def oriented(encoded: bytes, listed_size: tuple[int, int] | None, orientation: Orientation) -> bytes:
    """The bytes as `open_image` gives them, whatever they are: nothing is decoded or refused."""
    size, stated = stated_size(encoded), exif.orientation(encoded)
    if size is None or stated == 1:
        return encoded
    sizes = _readings(encoded, exif.turned_size(size, stated), orientation)
    fitting = [reading for reading, size in sizes.items() if listed_size in (None, size)] or list(sizes)
    return exif.as_stored(encoded) if fitting[0] == "stored" else encoded


_EITHER_WAY = "photograph that its EXIF turns, which its labels fit both ways (read upright)"


def _readings(
    encoded: bytes, upright: tuple[int, int], orientation: Orientation
) -> dict[Orientation, tuple[int, int]]:
    """(H, W) by the readings that `orientation` allows, the likelier first."""
    stated = exif.orientation(encoded)
    sizes: dict[Orientation, tuple[int, int]] = {"upright": upright}
    if stated != 1:
        sizes["stored"] = exif.turned_size(upright, stated)
    return sizes if orientation == "auto" or stated == 1 else {orientation: sizes[orientation]}


def _holds(size: tuple[int, int], extent: tuple[float, float]) -> bool:
    return extent[0] <= size[1] and extent[1] <= size[0]


def read_file(path: pathlib.Path) -> bytes:
    """A regular file's bytes; raises OSError where it is none, or has more than MAX_BYTES."""
    return files.read_bytes(path, max_bytes=MAX_BYTES)


@contextlib.contextmanager
def _quiet_opencv() -> Iterator[None]:
    """OpenCV would print lines of its own for each unreadable file, which is reported once at the end."""
    level = cv2.utils.logging.getLogLevel()
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    try:
        yield
    finally:
        cv2.utils.logging.setLogLevel(level)
