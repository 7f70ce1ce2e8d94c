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
from typing import NamedTuple

import cv2
import numpy as np

from hardmine_jax.data.image_size import stated_size

# 134 million pixels: more than most cameras have, and as RGB 0.4 GB. OpenCV's own limit is 3 GB an image.
MAX_PIXELS = 2**27
MAX_BYTES = 2**28
# A progressive JPEG has about ten. Each passes over all pixels, and can be a few bytes long.
MAX_SCANS = 100


class Person(NamedTuple):
    """One labelled person: keypoints [K, 2], visibility [K], box [4] xyxy, area in square pixels.

    `box` None means the tight box around the labelled keypoints, `area` None the area of the box.
    """

    keypoints: np.ndarray
    visibility: np.ndarray
    box: np.ndarray | None = None
    area: float | None = None
    annotation_id: int = 0


class Picture(NamedTuple):
    """One image, as encoded bytes or the path of a file, with its people.

    `size` is the (H, W) that the people's pixels refer to, None where nobody says; see `usable`.
    """

    name: str
    image_id: int
    image: bytes | pathlib.Path
    people: tuple[Person, ...]
    size: tuple[int, int] | None = None


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


def usable(pictures: Iterable[Picture], skip: Callable[[str, str], None]) -> Iterator[Picture]:
    """Reads and decodes every image and passes on, in order, what can be trained on, images as bytes.

    Calls `skip(reason, name)` for each image that is absent, unreadable or not of the picture's `size`, and
    each person without a labelled keypoint inside the image or without a box of some area. Keypoints outside
    the image become visibility 0.
    """
    for picture, problems in in_threads(_check, pictures):
        for reason, name in problems:
            skip(reason, name)
        if picture.people:
            yield picture


def in_threads(check: Callable, pictures: Iterable) -> Iterator:
    """`check` of each picture, in order, a thread a core; OpenCV prints nothing meanwhile."""
    with ThreadPoolExecutor(os.cpu_count()) as pool, _quiet_opencv():
        pictures = iter(pictures)
        while chunk := list(itertools.islice(pictures, 64)):
            yield from pool.map(check, chunk)


def _check(picture: Picture) -> tuple[Picture, list[tuple[str, str]]]:
    opened = open_image(picture.image, picture.size)
    if isinstance(opened, str):
        return picture._replace(people=()), [(opened, picture.name)]
    encoded, size = opened
    people, problems = [], []
    for given in picture.people:
        person = _complete(given, *size)
        problem = _problem(person, boxed=given.box is not None)
        if problem:
            single = len(picture.people) == 1
            problems.append((problem, picture.name if single else f"{picture.name}#{person.annotation_id}"))
        else:
            people.append(person)
    return picture._replace(image=encoded, people=tuple(people)), problems


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


def _complete(person: Person, height: int, width: int) -> Person:
    """The person with keypoints outside the image unlabelled, and with box and area filled in."""
    x, y = np.moveaxis(np.asarray(person.keypoints, np.float64), -1, 0)
    inside = (x >= -0.5) & (x <= width - 0.5) & (y >= -0.5) & (y <= height - 0.5)  # False for NaN too.
    labelled = inside & (np.asarray(person.visibility) > 0)
    keypoints = np.where(labelled[:, None], person.keypoints, 0.0)
    box = tight_box(keypoints, labelled) if person.box is None else np.asarray(person.box, np.float64)
    visibility = np.where(labelled, person.visibility, 0)
    # Numbers beyond float32 become infinite, and `_problem` tells.
    with np.errstate(over="ignore", invalid="ignore"):
        area = person.area
        if area is None or not 0 < area < np.inf:
            area = (box[2] - box[0]) * (box[3] - box[1])
        box, area = np.float32(box), float(np.float32(area))
    return Person(np.float32(keypoints), np.int32(visibility), box, area, person.annotation_id)


def tight_box(keypoints: np.ndarray, where: np.ndarray) -> np.ndarray:
    """xyxy [4] around the keypoints [K, 2] that take part; zeros where none does.

    >>> tight_box(np.array([[1.0, 2.0], [5.0, 9.0], [99.0, 99.0]]), np.array([True, True, False]))
    array([1., 2., 5., 9.])
    """
    if not where.any():
        return np.zeros(4)
    return np.concatenate([keypoints[where].min(0), keypoints[where].max(0)])


def _problem(person: Person, *, boxed: bool) -> str | None:
    if not person.visibility.any():
        return "no labelled joint inside the image"
    if not np.isfinite([*person.box, person.area]).all():
        return "box or area that is no finite number"
    if (person.box[2:] <= person.box[:2]).any():
        return "box of no area" if boxed else "joints span no area and there is no bbox"
    return None


@contextlib.contextmanager
def _quiet_opencv() -> Iterator[None]:
    """OpenCV would print lines of its own for each unreadable file, which is reported once at the end."""
    level = cv2.utils.logging.getLogLevel()
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    try:
        yield
    finally:
        cv2.utils.logging.setLogLevel(level)
