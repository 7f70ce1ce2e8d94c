"""Objects in boxes from any folder in PASCAL VOC layout.

    DIR/JPEGImages/NAME.jpg              or .jpeg, .png, .bmp, in any case
    DIR/Annotations/NAME.xml             <annotation> with <size> and an <object> for each object: <name>,
                                         <bndbox> of <xmin> <ymin> <xmax> <ymax>, <difficult>
    DIR/ImageSets/Main/train.txt, ...    the NAMEs of a split, one a line; a folder without ImageSets/Main is
                                         split by a hash of the names, about a tenth to validate on

VOC's pixels count from 1 and xmax and ymax belong to the box (devkit, section 4.2), so the half-open box is
(xmin - 1, ymin - 1, xmax, ymax). Equal corners, a click without a drag, are a box of no area nevertheless.

Everingham et al., "The PASCAL Visual Object Classes (VOC) Challenge", IJCV 2010.
"""

import os
import pathlib
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Sequence
from typing import NamedTuple, NoReturn
from xml.parsers import expat

import numpy as np

from hardmine_jax.data import cache, listing
from hardmine_jax.data.code_hash import code_hash
from hardmine_jax.data.detection import records
from hardmine_jax.data.detection.records import DetectionDataset, ObjectPicture
from hardmine_jax.data.images import read_file
from hardmine_jax.data.problems import DataError, printable

LAYOUT = "DIR/JPEGImages/*.jpg, DIR/Annotations/*.xml and DIR/ImageSets/Main/train.txt"
_IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp")
_CORNERS = ("xmin", "ymin", "xmax", "ymax")


def load(
    data_dir: str | os.PathLike | None,
    *,
    train: str = "train",
    validation: str | None = "val",
    classes: Sequence[str] | None = None,
    cache_dir: str | os.PathLike | None = None,
) -> DetectionDataset:
    """The images that two lists of ImageSets/Main name, with the objects of their annotations.

    `skipped` tells what was left out or odd; see `records.prepare`. Besides: a listed image without
    annotation, an annotation that is no XML or has a DOCTYPE (whose entities can fill the memory), objects
    without a name or of none of the `classes`. Noted: an image in both lists.

    Args:
      data_dir: the folder that holds JPEGImages/ and Annotations/.
      train: name of the list to train on, without .txt; not used where there is no ImageSets/Main.
      validation: name of the list to validate on; None to hold nothing back, here or where there is no
        ImageSets/Main.
      classes: names in the order of their labels; by default all that the listed annotations name, sorted.
      cache_dir: where prepared data is kept; see `cache.cache_root`.

    Raises:
      DataError: no folder or one without that layout, no such list, no object to train on.
    """
    folder = _checked_folder(data_dir)
    lists = folder / "ImageSets" / "Main"
    wanted = [name for name in (train, validation) if name is not None]
    files = [_list_file(lists, name) for name in wanted] if lists.is_dir() else []
    made_from = {
        "folder": os.fspath(folder),
        "lists": [[os.fspath(file), cache.file_hash(file)] for file in files],
        "whole": validation is None,
        "annotations": cache.folder_hash(folder / "Annotations"),
        "images": cache.folder_hash(folder / "JPEGImages"),
        "classes": None if classes is None else list(classes),
        "code": code_hash(__file__),
    }
    return records.prepare(
        "voc",
        made_from=made_from,
        read=lambda report: _read(folder, files, validation is None, classes, report),
        expected=f"annotated objects in readable images: {LAYOUT} in DIR={folder}",
        cache_dir=cache_dir,
    )


def _checked_folder(data_dir: str | os.PathLike | None) -> pathlib.Path:
    if data_dir is None:
        raise DataError(f"voc needs data_dir, DIR with {LAYOUT}")
    folder = pathlib.Path(data_dir).expanduser().resolve()
    if not folder.is_dir():
        raise DataError(f"no folder {folder}: give the one that holds {LAYOUT}")
    for part in ("JPEGImages", "Annotations"):
        if not (folder / part).is_dir():
            raise DataError(f"no folder {part} in {folder}: expected {LAYOUT}")
    return folder


def _list_file(lists: pathlib.Path, name: str) -> pathlib.Path:
    file = listing.inside(lists, f"{name}.txt")
    if file is None or not os.path.isfile(file):
        there = ", ".join(sorted(path.stem for path in lists.glob("*.txt"))) or "none"
        raise DataError(f"no list {name}.txt in {lists}: choose among {there}")
    return file


class _Object(NamedTuple):
    title: str
    box: np.ndarray
    difficult: bool


class _Annotation(NamedTuple):
    name: str
    filename: str | None
    size: tuple[int, int] | None
    objects: tuple[_Object, ...]


def _read(
    folder: pathlib.Path,
    files: Sequence[pathlib.Path],
    whole: bool,
    classes: Sequence[str] | None,
    report: records.Report,
) -> tuple[tuple[str, ...], records.Splits]:
    names = _split_names(folder, files, whole)
    numbers = {name: number for number, name in enumerate(dict.fromkeys(sum(names, [])), 1)}
    for name in sorted(set(names[0]) & set(names[1])):
        report.note("image in the training and in the validation list", name)
    annotations = {name: _annotation(folder / "Annotations", name, report) for name in numbers}
    if numbers and not any(annotations.values()):
        found = report.skipped[0][0] if report.skipped else "nothing"
        raise DataError(
            f"none of the {len(numbers)} annotations in {folder / 'Annotations'} can be read (the first: "
            f"{found}, {next(iter(numbers))}): expected {LAYOUT}"
        )
    if classes is None:
        classes = sorted({thing.title for read in annotations.values() if read for thing in read.objects})
    images = _images(folder / "JPEGImages")
    splits = {}
    for split, listed in zip(("train", "validation"), names, strict=True):
        readable = [one for name in listed if (one := annotations[name]) is not None]
        splits[split] = _pictures(folder / "JPEGImages", images, readable, numbers, classes, report)
    return tuple(classes), splits


def _split_names(folder: pathlib.Path, files: Sequence[pathlib.Path], whole: bool) -> list[list[str]]:
    if files:
        listed = [_listed(file, folder / "Annotations") for file in files]
        return [*listed, []] if whole else listed
    annotated = {path.stem for path in (folder / "Annotations").glob("*.xml")}
    names = sorted(annotated | set(_images(folder / "JPEGImages")))
    return [names, []] if whole else list(listing.tenth_apart(names, names))


def _listed(file: pathlib.Path, annotations: pathlib.Path) -> list[str]:
    """The names in a list, each once; lists of one class have a second column of -1, 0 or 1."""
    try:
        lines = [line.strip() for line in file.read_text("utf-8-sig").splitlines()]
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read {file}: {error}") from error
    names = []
    for line in filter(None, lines):
        whole = listing.inside(annotations, f"{line}.xml")
        plain = re.sub(r"\s+(-1|0|1)$", "", line)
        names.append(line if whole is not None and os.path.isfile(whole) else plain)
    return list(dict.fromkeys(names))


def _images(folder: pathlib.Path) -> dict[str, str]:
    """Name without its ending -> file name."""
    found: dict[str, str] = {}
    for name in sorted(os.listdir(folder)):
        stem, suffix = os.path.splitext(name)
        if suffix.lower() in _IMAGE_SUFFIXES:
            found.setdefault(stem, name)
    return found


def _annotation(folder: pathlib.Path, name: str, report: records.Report) -> _Annotation | None:
    path = listing.inside(folder, f"{name}.xml")
    if path is None:
        report.skip("name that leads out of the folder", name)
        return None
    try:
        root = _parse(read_file(path))
    except FileNotFoundError:
        report.skip("annotation absent", name)
        return None
    except _Refused:
        report.skip("annotation with a DOCTYPE", name)
        return None
    except (OSError, ValueError, LookupError, expat.ExpatError, AssertionError):
        report.skip("annotation unreadable", name)
        return None
    objects = [_object(node, name, report) for node in root.findall("object")]
    size = tuple(_number(root.find(f"size/{side}")) for side in ("height", "width"))
    # Some tools write no size, or 0.
    listed = (int(size[0]), int(size[1])) if all(0 < side < 2**31 for side in size) else None
    return _Annotation(name, root.findtext("filename"), listed, tuple(filter(None, objects)))


class _Refused(Exception):
    pass


def _parse(content: bytes) -> ElementTree.Element:
    """The root of an XML file that declares nothing: ElementTree's own parser would expand its entities."""

    def refuse(*_: object) -> NoReturn:
        raise _Refused

    builder, parser = ElementTree.TreeBuilder(), expat.ParserCreate()
    parser.StartElementHandler, parser.EndElementHandler = builder.start, builder.end
    parser.CharacterDataHandler, parser.StartDoctypeDeclHandler = builder.data, refuse
    parser.Parse(content, True)
    return builder.close()


def _object(node: ElementTree.Element, name: str, report: records.Report) -> _Object | None:
    title = printable((node.findtext("name") or "").strip())
    if not title:
        report.skip("object without a name", name)
        return None
    box = np.array([_number(node.find(f"bndbox/{corner}")) for corner in _CORNERS])
    if (box[:2] < box[2:]).all():
        box[:2] -= 1
    return _Object(title, box, (node.findtext("difficult") or "").strip().lower() in ("1", "true"))


def _number(node: ElementTree.Element | None) -> float:
    if node is None or node.text is None:
        return float("nan")
    try:
        return float(node.text)
    except ValueError:
        return float("nan")


def _pictures(
    folder: pathlib.Path,
    images: dict[str, str],
    annotations: Sequence[_Annotation],
    numbers: dict[str, int],
    classes: Sequence[str],
    report: records.Report,
) -> Iterator[ObjectPicture]:
    labels = {title: label for label, title in enumerate(classes, 1)}
    for annotation in annotations:
        chosen = [thing for thing in annotation.objects if thing.title in labels]
        for thing in annotation.objects:
            if thing.title not in labels:
                report.skip("object of none of the classes", f"{annotation.name}#{thing.title}")
        yield ObjectPicture(
            name=annotation.name,
            image_id=numbers[annotation.name],
            image=_image_file(folder, images, annotation),
            boxes=np.array([thing.box for thing in chosen]).reshape(-1, 4),
            labels=np.array([labels[thing.title] for thing in chosen], np.int32),
            difficult=np.array([thing.difficult for thing in chosen], bool),
            names=tuple(thing.title for thing in chosen),
            size=annotation.size,
        )


def _image_file(folder: pathlib.Path, images: dict[str, str], annotation: _Annotation) -> pathlib.Path:
    """By the annotation's own name, as VOC has it; by its <filename> where there is no such image."""
    if annotation.name in images:
        return folder / images[annotation.name]
    named = listing.inside(folder, annotation.filename)
    # Not the path's own method, which raises for a name too long.
    return named if named is not None and os.path.isfile(named) else folder / f"{annotation.name}.jpg"
