"""Pictures with their people as a dataset's file describes them, and the check that they can be trained on.

Pixels are (x, y), the centre of the first pixel is (0, 0). Boxes are xyxy. Visibility: 0 not labelled or
outside the image, 1 labelled but occluded, 2 labelled and visible.

An image file is a JPEG, PNG, BMP, GIF, WebP or TIFF of at most MAX_PIXELS pixels, MAX_BYTES bytes and
MAX_SCANS scans: what states more is refused before anything is decoded.
"""

import contextlib
import itertools
import os
import pathlib
import stat
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np

from hardmine_jax.data.image_size import stated_size
from hardmine_jax.data.problems import UnreadableImage

# 134 million pixels: more than most cameras have, and as RGB 0.4 GB. OpenCV's own limit is 3 GB an image.
MAX_PIXELS = 2**27
MAX_BYTES = 2**28
# A progressive JPEG has about ten. Each passes over all pixels, and can be a few bytes long.
MAX_SCANS = 100


def decode_smaller(record: dict, halvings: int) -> tuple[np.ndarray, tuple[float, float]]:
    """BGR picture made smaller by about 2**halvings, and how many original pixels each one spans (x, y).

    Shrinking comes before the warp because bilinear sampling at a stride above 2 skips pixels. JPEG does it
    while decoding, which also saves most of the decoding. EXIF orientation is ignored, as by `decode_image`.

    Raises:
      UnreadableImage: the bytes are no whole image.
    """
    encoded, factor = record["image"], 2**halvings
    is_jpeg = encoded.startswith(b"\xff\xd8")
    reduced = (
        cv2.IMREAD_COLOR,
        cv2.IMREAD_REDUCED_COLOR_2,
        cv2.IMREAD_REDUCED_COLOR_4,
        cv2.IMREAD_REDUCED_COLOR_8,
    )
    mode = reduced[halvings] if is_jpeg else cv2.IMREAD_COLOR
    image = None
    if why_not_decoded(encoded) is None:
        with contextlib.suppress(cv2.error):
            image = cv2.imdecode(np.frombuffer(encoded, np.uint8), mode | cv2.IMREAD_IGNORE_ORIENTATION)
    if image is None:
        raise UnreadableImage(
            f"record {record['name']}: its {len(encoded)} bytes are no whole JPEG or PNG image"
        )
    if is_jpeg or factor == 1:
        return image, (factor, factor)
    height, width = image.shape[:2]
    small = cv2.resize(image, (-(-width // factor), -(-height // factor)), interpolation=cv2.INTER_AREA)
    return small, (width / small.shape[1], height / small.shape[0])


def jitter(image: np.ndarray, rng: np.random.Generator, strength: float) -> np.ndarray:
    """Saturation, contrast and brightness as one 3x4 matrix on the colours of each pixel."""
    saturation, contrast, brightness = rng.uniform(1 - strength, 1 + strength, 3)
    luma = np.array([0.299, 0.587, 0.114])
    mix = saturation * np.eye(3) + (1 - saturation) * luma
    middle = (1 - contrast) * float(luma @ cv2.mean(image)[:3])
    matrix = brightness * np.column_stack([contrast * mix, np.full(3, middle)])
    return cv2.transform(image, matrix.astype(np.float32))


def decode_image(encoded: bytes) -> np.ndarray | None:
    """Encoded JPEG, PNG, ... -> uint8 RGB [H, W, 3], or None if it cannot be read whole or is too large.

    The EXIF orientation is not applied: keypoints of COCO and LSP are in the pixels as they are stored.
    """
    if why_not_decoded(encoded) is not None:
        return None
    try:
        flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
        image = cv2.imdecode(np.frombuffer(encoded, np.uint8), flags)
    except cv2.error:
        return None
    return None if image is None else cv2.cvtColor(image, cv2.COLOR_BGR2RGB, dst=image)


def why_not_decoded(encoded: bytes) -> str | None:
    """The reason why an image is not even tried, None if it is.

    >>> why_not_decoded(b"GIF89a" + bytes([255] * 20))
    'image of more than 134,217,728 pixels'
    """
    size = stated_size(encoded)
    if size is None or not is_whole(encoded):
        return "image unreadable"
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


def open_image(
    image: bytes | pathlib.Path, listed_size: tuple[int, int] | None
) -> tuple[bytes, tuple[int, int]] | str:
    """The image's bytes and its (H, W), or the reason why it cannot be used."""
    try:
        encoded = image if isinstance(image, bytes) else read_file(image)
    except FileNotFoundError:
        return "image absent"
    except (OSError, ValueError):  # ValueError: a name that can be no path.
        return "image unreadable"
    decoded = decode_image(encoded)
    if decoded is None:
        return why_not_decoded(encoded) or "image unreadable"
    size = decoded.shape[:2]
    if listed_size not in (None, size):
        return "image is not of the listed width and height (turned by EXIF?)"
    return encoded, size


def read_file(path: pathlib.Path) -> bytes:
    """A regular file's bytes, behind a link too; raises OSError where it is none, or of more than MAX_BYTES.

    A device or a pipe that a data set's link leads to would never end.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise OSError(f"{path} is no regular file")
    if status.st_size > MAX_BYTES:
        raise OSError(f"{path} has more than {MAX_BYTES:,} bytes")
    return path.read_bytes()


@contextlib.contextmanager
def _quiet_opencv() -> Iterator[None]:
    """OpenCV would print lines of its own for each unreadable file, which is reported once at the end."""
    level = cv2.utils.logging.getLogLevel()
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    try:
        yield
    finally:
        cv2.utils.logging.setLogLevel(level)
