"""One annotation of PASCAL VOC's kind, as its XML has it, and what it says of boxes.

    <annotation> <filename> <size> <width> <height>
      <object> <name> <difficult> <bndbox> <xmin> <ymin> <xmax> <ymax>

An object without a usable <bndbox> has the box of its outline, where there is one: <polygon> with <x1> <y1>
<x2> ... (RectLabel) or with <pt> <x> <y> (LabelMe), <robndbox> with <cx> <cy> <w> <h> <angle> in radians
(roLabelImg).
"""

import codecs
import pathlib
import re
import xml.etree.ElementTree as ElementTree
from typing import Literal, NamedTuple, NoReturn, get_args
from xml.parsers import expat

import numpy as np

from hardmine_jax.data.images import read_file
from hardmine_jax.data.problems import printable

# How corners count: VOC's own from 1, the last pixel in the box; the same from 0; or edges, from 0 to the
# width.
Corners = Literal["from_1", "from_0", "edges"]
CORNERS: tuple[Corners, ...] = get_args(Corners)
_SHIFTS = {"from_1": (-1.0, 0.0), "from_0": (0.0, 1.0), "edges": (0.0, 0.0)}
_NAMES = ("xmin", "ymin", "xmax", "ymax")
_DECLARED = re.compile(rb"""\A\s*<\?xml[^>]*?encoding\s*=\s*["']([A-Za-z0-9._-]{1,40})["']""")
# Characters that a file of these holds although its declaration names the smaller set.
_LARGER = {"gb2312": "gb18030", "gbk": "gb18030", "big5": "big5hkscs", "shift_jis": "cp932"}
_NOT_UTF8 = re.compile("gb|big5|shift|sjis|euc|johab|iso.?2022|cp|windows|mac|koi8|iso|latin|utf.?8|hz")


class VocObject(NamedTuple):
    """`title`: its class, None where it has no name. `corners` [4]: as given, NaN where there are none.
    `outline` [4]: half open, of an outline that takes the box's place."""

    title: str | None
    corners: np.ndarray
    outline: np.ndarray | None
    difficult: bool


class Annotation(NamedTuple):
    """`name`: of the file, without ending; `size`: (H, W), None where it is not given."""

    name: str
    filename: str | None
    size: tuple[int, int] | None
    objects: tuple[VocObject, ...]


class Refused(Exception):
    """An annotation with a DOCTYPE."""


class Unreadable(Exception):
    """An annotation that is no XML: why, with line and column where they are known."""


def read_annotation(path: pathlib.Path, name: str) -> Annotation:
    """
    Raises:
      FileNotFoundError: it is absent.
      Refused, Unreadable: see there.
    """
    try:
        root = _parse(read_file(path))
    except FileNotFoundError:
        raise
    except OSError as error:
        raise Unreadable(error.strerror or str(error)) from error
    except (ValueError, AssertionError) as error:
        raise Unreadable("no XML") from error
    size = tuple(_number(root.find(f"size/{side}")) for side in ("height", "width"))
    # Some tools write no size, or 0.
    listed = (int(size[0]), int(size[1])) if all(0 < side < 2**31 for side in size) else None
    objects = tuple(_object(node) for node in root.findall("object"))
    return Annotation(name, root.findtext("filename"), listed, objects)


def _parse(content: bytes) -> ElementTree.Element:
    """The root of an XML file that declares nothing: ElementTree's own parser would expand its entities."""

    def refuse(*_: object) -> NoReturn:
        raise Refused

    content, encoding = _recoded(content)
    builder, parser = ElementTree.TreeBuilder(), expat.ParserCreate(encoding)
    parser.StartElementHandler, parser.EndElementHandler = builder.start, builder.end
    parser.CharacterDataHandler, parser.StartDoctypeDeclHandler = builder.data, refuse
    try:
        parser.Parse(content, True)
    except (expat.ExpatError, LookupError) as error:
        raise Unreadable(_why(content, error)) from error
    return builder.close()


def _recoded(content: bytes) -> tuple[bytes, str | None]:
    """The content in an encoding that expat reads (it knows of several bytes a character only UTF), and which
    that is where the declaration says another."""
    declared = _DECLARED.match(content)
    given = declared[1].decode().lower() if declared else ""
    if not _NOT_UTF8.match(given) or given == "utf-8":
        return content, None
    try:
        encoding = codecs.lookup(given).name
        return content.decode(_LARGER.get(encoding, encoding)).encode(), "utf-8"
    except LookupError as error:
        raise Unreadable(f"encoding {given} is not known") from error
    except UnicodeDecodeError as error:
        raise Unreadable(f"no {given} as it declares: {_place(content, error.start)}") from error


def _why(content: bytes, error: Exception) -> str:
    """What is wrong, with line and column."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as broken:
        if not content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            where = _place(content, broken.start)
            return f"no UTF-8, and no other encoding is declared: {where}"
        return str(error)
    lines = text.split("\n")
    number = getattr(error, "lineno", 0)
    bare = re.search(r"&(?!#?\w+;)", lines[number - 1]) if 0 < number <= len(lines) else None
    return f"{error}; a bare & is written &amp;" if bare else str(error)


def _place(content: bytes, offset: int) -> str:
    before = content[:offset].split(b"\n")
    return f"line {len(before)}, column {len(before[-1])}"


def _object(node: ElementTree.Element) -> VocObject:
    title = printable((node.findtext("name") or "").strip())
    corners = np.array([_number(node.find(f"bndbox/{corner}")) for corner in _NAMES])
    outline = None if np.isfinite(corners).all() else _outline(node)
    return VocObject(title or None, corners, outline, _flag(node.findtext("difficult")))


def _outline(node: ElementTree.Element) -> np.ndarray | None:
    """The box [4] around an outline; None where there is none."""
    x, y = (
        [_number(part) for part in node.iterfind("polygon//*") if re.fullmatch(f"{axis}[0-9]*", part.tag)]
        for axis in "xy"
    )
    turned = [_number(node.find(f"robndbox/{part}")) for part in ("cx", "cy", "w", "h", "angle")]
    if np.isfinite(turned).all():
        cx, cy, width, height, angle = turned
        across = abs(width * np.cos(angle)) + abs(height * np.sin(angle))
        down = abs(width * np.sin(angle)) + abs(height * np.cos(angle))
        return np.array([cx - across / 2, cy - down / 2, cx + across / 2, cy + down / 2])
    if len(x) < 2 or len(y) < 2 or not np.isfinite(x + y).all():
        return None
    return np.array([min(x), min(y), max(x), max(y)])


def half_open(corners: np.ndarray, convention: Corners) -> np.ndarray:
    """Corners as given -> a box [4] from edge to edge, the right way round or not.

    Equal corners, a click without a drag, are a box of no area whatever the convention.

    >>> half_open(np.array([1.0, 1.0, 60.0, 40.0]), "from_1"), half_open(np.array([9.0, 0, 0, 9]), "from_0")
    (array([ 0.,  0., 60., 40.]), array([10.,  0.,  0., 10.]))
    """
    first, second = corners[:2], corners[2:]
    if not (first != second).all():
        return corners
    low, high = _SHIFTS[convention]
    straight = first < second
    return np.concatenate([first + np.where(straight, low, high), second + np.where(straight, high, low)])


def _flag(text: str | None) -> bool:
    given = (text or "").strip().lower()
    try:
        return float(given) != 0
    except ValueError:
        return given in ("true", "yes")


def _number(node: ElementTree.Element | None) -> float:
    if node is None or node.text is None:
        return float("nan")
    try:
        return float(node.text)
    except ValueError:
        return float("nan")
