"""Objects in boxes from any folder in PASCAL VOC layout.

    DIR/JPEGImages/NAME.jpg              or .jpeg, .png, .bmp, in any case
    DIR/Annotations/NAME.xml             <annotation> with <size> and an <object> for each object: <name>,
                                         <bndbox> of <xmin> <ymin> <xmax> <ymax>, <difficult>; see
                                         `voc_xml.py`
    DIR/ImageSets/Main/train.txt, ...    the NAMEs of a split, one a line; a folder without ImageSets/Main is
                                         split by a hash of the names, about a tenth to validate on

A line of a list may also be a path, with its ending (JPEGImages/NAME.jpg), or a pair of an image and its
annotation, as Paddle writes them (JPEGImages/NAME.jpg Annotations/NAME.xml).

VOC's pixels count from 1 and xmax and ymax belong to the box (devkit, section 4.2), so the half-open box is
(xmin - 1, ymin - 1, xmax, ymax). VoTT, CVAT and others count from 0: `corners` says so, and a box that begins
at 0 is noted where they should count from 1. Boxes all in 0..1 are taken for parts of the picture's sides.

Everingham et al., "The PASCAL Visual Object Classes (VOC) Challenge", IJCV 2010.
"""

import os
import pathlib
import re
from collections.abc import Mapping, Sequence

import numpy as np

from hardmine_jax.data import cache, listing
from hardmine_jax.data.code_hash import code_hash
from hardmine_jax.data.detection import records, voc_xml
from hardmine_jax.data.detection.records import DetectionDataset, Listed, ObjectPicture
from hardmine_jax.data.detection.regions import are_relative
from hardmine_jax.data.detection.voc_xml import Annotation, Corners, VocObject
from hardmine_jax.data.images import Orientation
from hardmine_jax.data.problems import DataError, Report

LAYOUT = "DIR/JPEGImages/*.jpg, DIR/Annotations/*.xml and DIR/ImageSets/Main/train.txt"
_IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp")
_FROM_ZERO = "box that begins at pixel 0, where VOC's begin at 1 (counted from 0?)"


def load(
    data_dir: str | os.PathLike | None,
    *,
    train: str = "train",
    validation: str | None = "val",
    classes: Sequence[str] | None = None,
    corners: Corners = "from_1",
    orientation: Orientation = "auto",
    cache_dir: str | os.PathLike | None = None,
) -> DetectionDataset:
    """The images that two lists of ImageSets/Main name, with the objects of their annotations.

    `skipped` tells what was left out or odd; see `records.prepare`. Besides: a listed image without
    annotation, an annotation that is no XML or has a DOCTYPE (whose entities can fill the memory), objects
    without a name (training leaves them alone) or of none of the `classes` (which are background: who names
    classes wants the others not to be found). Noted: an image in both lists.

    Args:
      data_dir: the folder that holds JPEGImages/ and Annotations/.
      train: name of the list to train on, without .txt; not used where there is no ImageSets/Main.
      validation: name of the list to validate on; None to hold nothing back, here or where there is no
        ImageSets/Main.
      classes: names in the order of their labels; by default all that the listed annotations name, sorted.
      corners: how the numbers in <bndbox> count: "from_1" as VOC's own, the last pixel in the box; "from_0"
        the same from 0; "edges" from 0 to the width of the picture.
      cache_dir: where prepared data is kept; see `cache.cache_root`.

    Raises:
      DataError: no folder or one without that layout, no such list, no object to train on.
      ValueError: unknown `corners`.
    """
    if corners not in voc_xml.CORNERS:
        raise ValueError(f"corners={corners!r}: choose among {', '.join(voc_xml.CORNERS)}")
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
        "corners": corners,
        "code": code_hash(__file__),
    }
    return records.prepare(
        "voc",
        made_from=made_from,
        read=lambda report: _read(folder, files, validation is None, classes, corners, report),
        expected=f"annotated objects in readable images: {LAYOUT} in DIR={folder}",
        orientation=orientation,
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


def _read(
    folder: pathlib.Path,
    files: Sequence[pathlib.Path],
    whole: bool,
    classes: Sequence[str] | None,
    corners: Corners,
    report: Report,
) -> Listed:
    names = _split_names(folder, files, whole)
    numbers = {name: number for number, name in enumerate(dict.fromkeys([*names[0], *names[1]]), 1)}
    annotations = {name: _annotation(folder / "Annotations", name, report) for name in numbers}
    if numbers and not any(annotations.values()):
        found, where = report.skipped[0] if report.skipped else ("nothing", next(iter(numbers)))
        raise DataError(
            f"none of the {len(numbers)} annotations in {folder / 'Annotations'} can be read (the first: "
            f"{found}, {where}): expected {LAYOUT}"
        )
    things = [thing for read in annotations.values() if read for thing in read.objects]
    if classes is None:
        classes = sorted({thing.title for thing in things if thing.title})
    relative = are_relative(thing.corners if thing.outline is None else thing.outline for thing in things)
    images = _Images(folder / "JPEGImages")
    splits = {}
    for split, listed in zip(("train", "validation"), names, strict=True):
        readable = [(one, image) for name, image in listed.items() if (one := annotations[name]) is not None]
        splits[split] = [
            _picture(one, images.find(one, image), numbers[one.name], classes, corners, relative, report)
            for one, image in readable
        ]
    return Listed(tuple(classes), splits)


# The names in a list, and where it has pairs the image of each.
_Names = Mapping[str, str | None]


def _split_names(folder: pathlib.Path, files: Sequence[pathlib.Path], whole: bool) -> list[_Names]:
    if files:
        listed = [_listed(file, folder / "Annotations") for file in files]
        return [*listed, {}] if whole else listed
    annotated = {path.stem for path in (folder / "Annotations").glob("*.xml")}
    images = _Images(folder / "JPEGImages").by_stem
    # NAME.jpg.xml is of NAME.jpg.
    names = sorted(annotated | {stem for stem, file in images.items() if file not in annotated})
    splits = [names, []] if whole else listing.tenth_apart(names, names)
    return [dict.fromkeys(split) for split in splits]


def _listed(file: pathlib.Path, annotations: pathlib.Path) -> _Names:
    """The names in a list, each once; lists of one class have a second column of -1, 0 or 1."""
    try:
        lines = [line.strip() for line in file.read_text("utf-8-sig").splitlines()]
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read {file}: {error}") from error
    names: dict[str, str | None] = {}
    for line in filter(None, lines):
        plain = re.sub(r"\s+(-1|0|1)$", "", line)
        pair = re.fullmatch(r"(\S.*\.\w+)[\s,]+(\S.*\.xml)", line, re.IGNORECASE)
        image, given = (pair[1], pair[2]) if pair else (None, plain)
        known = (name for name in (line, *_spellings(given)) if _is_there(annotations, f"{name}.xml"))
        names.setdefault(next(known, given if pair else plain), image)
    return names


def _spellings(given: str) -> tuple[str, ...]:
    """What a name may mean: as it stands, without its ending, without the folders before it."""
    text = given.strip().replace("\\", "/")
    bare = re.sub(r"\.(xml|jpe?g|png|bmp)$", "", text, flags=re.IGNORECASE)
    below = re.sub(r"^(.*/)?(JPEGImages|Annotations)/", "", bare)
    return given.strip(), text, bare, below, below.rsplit("/", 1)[-1]


def _is_there(folder: pathlib.Path, name: str) -> bool:
    path = listing.inside(folder, name)
    # Not the path's own method, which raises for a name too long.
    return path is not None and os.path.isfile(path)


def _annotation(folder: pathlib.Path, name: str, report: Report) -> Annotation | None:
    path = listing.inside(folder, f"{name}.xml")
    if path is None:
        report.skip("name that leads out of the folder", name)
        return None
    try:
        return voc_xml.read_annotation(path, name)
    except FileNotFoundError:
        report.skip("annotation absent", name)
    except voc_xml.Refused:
        report.skip("annotation with a DOCTYPE", name)
    except voc_xml.Unreadable as error:
        report.skip("annotation unreadable", f"{name}: {error}")
    return None


def _picture(
    annotation: Annotation,
    image: pathlib.Path,
    number: int,
    classes: Sequence[str],
    corners: Corners,
    relative: bool,
    report: Report,
) -> ObjectPicture:
    labels: dict[str | None, int] = {title: label for label, title in enumerate(classes, 1)}
    chosen = []
    for thing in annotation.objects:
        if thing.title is None:
            report.skip("object without a name", annotation.name)
        elif thing.title not in labels:
            report.skip("object of none of the classes", f"{annotation.name}#{thing.title}")
            continue
        chosen.append(thing)
        if corners == "from_1" and not relative and 0 <= thing.corners.min() < 1:
            report.note(_FROM_ZERO, f"{annotation.name}#{thing.title or 'nameless'}")
    return ObjectPicture(
        name=annotation.name,
        image_id=number,
        image=image,
        boxes=np.array([_box(thing, corners, relative) for thing in chosen]).reshape(-1, 4),
        labels=np.array([labels.get(thing.title, 0) for thing in chosen], np.int32),
        difficult=np.array([thing.difficult for thing in chosen], bool),
        names=tuple(thing.title or "nameless" for thing in chosen),
        size=annotation.size,
        relative=relative,
    )


def _box(thing: VocObject, corners: Corners, relative: bool) -> np.ndarray:
    if thing.outline is not None:
        return thing.outline
    return thing.corners if relative else voc_xml.half_open(thing.corners, corners)


class _Images:
    """The image files of a folder.

    Attributes:
      by_stem: name without its ending -> file name.
    """

    def __init__(self, folder: pathlib.Path):
        self._folder = folder
        self.by_stem: dict[str, str] = {}
        for name in sorted(os.listdir(folder)):
            stem, suffix = os.path.splitext(name)
            if suffix.lower() in _IMAGE_SUFFIXES:
                self.by_stem.setdefault(stem, name)

    def find(self, annotation: Annotation, named: str | None) -> pathlib.Path:
        """What the list names beside the annotation; else the image of the annotation's own name, as VOC has
        it; else that of its <filename>, with or without ending."""
        for given in filter(None, (named, annotation.name, annotation.filename)):
            for name in _spellings(given):
                if name in self.by_stem:
                    return self._folder / self.by_stem[name]
                for ending in ("", *_IMAGE_SUFFIXES):
                    path = listing.inside(self._folder, f"{name}{ending}")
                    if path is not None and os.path.isfile(path):
                        return path
        return self._folder / f"{annotation.name}.jpg"
