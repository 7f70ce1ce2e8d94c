"""MPII Human Pose, in the JSON layout that SimpleBaseline and HRNet made of it.

    DIR/annot/train.json, valid.json   [{"image": "015601864.jpg", "center": [x, y], "scale": 3.02,
                                         "joints": [[x, y] x 16], "joints_vis": [0 or 1 x 16]}, ...]
    DIR/annot/gt_valid.mat             for PCKh: `headboxes_src` [2, 2, N], `pos_gt_src` [16, 2, N] and
                                       `jnt_missing` [16, N], people in the order of valid.json
    DIR/images/015601864.jpg ...

In these files pixels are counted from 1, in records from 0. `scale` is a person's height over 200 pixels.
Occluded joints are not told from visible ones: `joints_vis` 1 is labelled. An entry of valid.json may carry
the box of the head itself, "headbox": [x1, y1, x2, y2]; where all do, gt_valid.mat may be absent.

Andriluka et al., "2D Human Pose Estimation: New Benchmark and State of the Art Analysis", CVPR 2014.
"""

import json
import os
import pathlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from hardmine_jax.data import cache, listing, matlab
from hardmine_jax.data.code_hash import code_hash
from hardmine_jax.data.pose import records
from hardmine_jax.data.pose.records import Person, Picture, tight_box, usable
from hardmine_jax.data.problems import DataError, Report
from hardmine_jax.pose import Skeleton

MPII_SKELETON = Skeleton(
    names=(
        "right_ankle", "right_knee", "right_hip", "left_hip", "left_knee", "left_ankle", "pelvis", "thorax",
        "upper_neck", "head_top", "right_wrist", "right_elbow", "right_shoulder", "left_shoulder",
        "left_elbow", "left_wrist",
    ),
    flip_pairs=((0, 5), (1, 4), (2, 3), (10, 15), (11, 14), (12, 13)),
    # MPII has no OKS constants of its own: COCO's, the pelvis as a hip, and CrowdPose's for neck and head.
    sigmas=(
        0.089, 0.087, 0.107, 0.107, 0.087, 0.089, 0.107, 0.079, 0.079, 0.079, 0.062, 0.072, 0.079, 0.079,
        0.072, 0.062,
    ),
    edges=(
        (0, 1), (1, 2), (2, 6), (3, 6), (3, 4), (4, 5), (6, 7), (7, 8), (8, 9), (10, 11), (11, 12), (12, 7),
        (13, 7), (13, 14), (14, 15),
    ),
)  # fmt: skip
_FILES = {"train": "train.json", "validation": "valid.json"}
LAYOUT = "DIR/annot/train.json, DIR/annot/valid.json and DIR/images/*.jpg"
WHERE = "images from human-pose.mpi-inf.mpg.de, annot/ as linked by HRNet's and SimpleBaseline's README"
_ENTRY = '[{"image": name, "center": [x, y], "scale": s, "joints": 16 x [x, y], "joints_vis": 16 x v}, ...]'


def load(
    data_dir: str | os.PathLike | None, *, cache_dir: str | os.PathLike | None = None
) -> records.PoseDataset:
    """People of MPII: train.json to train, valid.json to validate.

    The box is the square of 200 scale pixels around the centre, moved down by 15 scale: padded by 1.25 it is
    the released crop. The area is that of the tight box around the labelled joints. `annotation_id` is the
    person's place in the JSON file, from 0; `image_id` the number that names the file.

    Args:
      data_dir: the folder that holds annot/ and images/.
      cache_dir: where prepared data is kept; see `cache.cache_root`.

    Raises:
      DataError: no folder or file, JSON of another kind, no image that is listed, nobody left to train on.
    """
    folder = _checked_folder(data_dir)
    entries = {split: _entries(folder / "annot" / name) for split, name in _FILES.items()}
    named = {image for people in entries.values() for image in _names(people)}
    paths = [path for name in named if (path := listing.inside(folder / "images", name)) is not None]
    made_from = {
        "folder": os.fspath(folder),
        "annotations": [cache.file_hash(folder / "annot" / name) for name in _FILES.values()],
        "images": cache.files_hash(paths),
        "code": code_hash(__file__),
    }

    def read(report: Report) -> tuple[Skeleton, records.Splits]:
        if not any(os.path.isfile(path) for path in paths):  # Path's own raises for a name too long.
            raise DataError(
                f"none of the {len(named)} images that {folder / 'annot'} lists is in {folder / 'images'}: "
                f"expected {LAYOUT} ({WHERE})"
            )
        return MPII_SKELETON, {
            # Pixels as they are stored, as the released code reads them.
            split: usable(
                _pictures(people, folder / "images", _FILES[split], report), report, orientation="stored"
            )
            for split, people in entries.items()
        }

    return records.prepare(
        "mpii",
        made_from=made_from,
        read=read,
        expected=f"readable images of people with labelled joints: {LAYOUT} in DIR={folder}",
        cache_dir=cache_dir,
    )


def _checked_folder(data_dir: str | os.PathLike | None) -> pathlib.Path:
    if data_dir is None:
        raise DataError(f"mpii needs data_dir, DIR with {LAYOUT} ({WHERE})")
    folder = pathlib.Path(data_dir).expanduser().resolve()
    for path in (folder, folder / "annot", folder / "images"):
        if not path.is_dir():
            raise DataError(f"no folder {path}: give DIR with {LAYOUT} ({WHERE})")
    return folder


def _entries(path: pathlib.Path) -> list[dict]:
    if not path.is_file():
        raise DataError(f"no file {path}: expected {LAYOUT} ({WHERE})")
    try:
        entries = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path} is no JSON ({error}): expected {_ENTRY}") from error
    if not isinstance(entries, list) or not any(isinstance(entry, dict) for entry in entries):
        raise DataError(f"{path} is no list of people: expected {_ENTRY}")
    return [entry if isinstance(entry, dict) else {} for entry in entries]


def _names(people: list[dict]) -> list[str]:
    return [name for entry in people if isinstance(name := entry.get("image"), str)]


def _pictures(people: list[dict], folder: pathlib.Path, file: str, report: Report) -> Iterator[Picture]:
    """One an image, in the order of first appearance."""
    shown: dict[str, list[Person]] = {}
    paths: dict[str, pathlib.Path] = {}
    for place, entry in enumerate(people):
        name, person = entry.get("image"), _person(entry, place)
        path = listing.inside(folder, name)
        if path is None or not isinstance(name, str):
            report.skip("image missing, no path or outside the image folder", f"{file} entry {place}")
        elif isinstance(person, str):
            report.skip(person, f"{name}#{place}")
        else:
            shown.setdefault(name, []).append(person)
            paths[name] = path
    for name, found in shown.items():
        number = listing.id_number(pathlib.PurePath(name).stem.lstrip("0") or "0")
        yield Picture(name, number, paths[name], tuple(found))


def _person(entry: dict, place: int) -> Person | str:
    """The person, or the reason why there is none."""
    try:
        keypoints, where = _joints(entry)
        centre, scale = np.array(entry["center"], np.float64).reshape(2), float(entry["scale"])
    except (KeyError, ValueError, TypeError, OverflowError):
        return "joints, joints_vis, center or scale that are not numbers, or not 16 x 2, 16, 2 and 1 of them"
    if not where.any():
        return "no labelled joint"
    # The released code moves the centre before it counts from 0, and leaves one that is not known (-1) there.
    down = 15 * scale if centre[0] != -1 else 0.0
    with np.errstate(over="ignore", invalid="ignore"):  # `usable` skips boxes that are not finite.
        middle = centre + [-1, down - 1]
        x1, y1, x2, y2 = tight_box(keypoints, where)
        box = np.concatenate([middle - 100 * scale, middle + 100 * scale])
        area = (x2 - x1) * (y2 - y1)
    return Person(keypoints, 2 * where.astype(np.int32), box, area, place)


def _joints(entry: dict) -> tuple[np.ndarray, np.ndarray]:
    """Keypoints [16, 2] counted from 0, and which are labelled [16]; raises what numpy does."""
    keypoints = np.array(entry["joints"], np.float64).reshape(16, 2) - 1
    where = np.array(entry["joints_vis"], np.float64).reshape(16) > 0
    return keypoints, where & np.isfinite(keypoints).all(-1)


class Truth(NamedTuple):
    """What the validation people are scored against, in the order of valid.json (`annotation_id`).

    Attributes:
      keypoints: float64 [N, 16, 2] in pixels counted from 0.
      where: bool [N, 16], True is labelled.
      head_sizes: float64 [N] pixels, 0.6 times the diagonal of the head's box.
    """

    keypoints: np.ndarray
    where: np.ndarray
    head_sizes: np.ndarray


def load_truth(data_dir: str | os.PathLike | None) -> Truth:
    """The ground truth of PCKh: annot/gt_valid.mat, or valid.json where its entries carry a "headbox".

    Raises:
      DataError: neither, or they do not fit.
    """
    folder = _checked_folder(data_dir) / "annot"
    people = _entries(folder / "valid.json")
    path = folder / "gt_valid.mat"
    if path.is_file():
        return _truth_of_matrix(path, len(people))
    try:
        joints = zip(*(_joints(entry) for entry in people), strict=True)
        keypoints, where = (np.stack(arrays) for arrays in joints)
        heads = np.array([entry["headbox"] for entry in people], np.float64).reshape(-1, 2, 2)
    except (KeyError, ValueError, TypeError, OverflowError) as error:
        raise DataError(
            f"PCKh needs the heads: no {path}, and not every entry of {folder / 'valid.json'} has joints and "
            f'a "headbox" [x1, y1, x2, y2] ({WHERE})'
        ) from error
    return Truth(keypoints, where, _head_sizes(heads))


def _head_sizes(corners: np.ndarray) -> np.ndarray:
    """[N, 2 corners, 2] -> [N]."""
    return 0.6 * np.linalg.norm(corners[:, 1] - corners[:, 0], axis=-1)


def _truth_of_matrix(path: pathlib.Path, count: int) -> Truth:
    wanted = {"headboxes_src": (2, 2, count), "pos_gt_src": (16, 2, count), "jnt_missing": (16, count)}
    content = matlab.load(path, list(wanted), where=WHERE)
    # MATLAB drops the last axis when it is 1.
    shapes = {name: content[name].shape if name in content else () for name in wanted}
    if any(_longer(shapes[name]) != _longer(shape) for name, shape in wanted.items()):
        raise DataError(
            f"{path} does not belong to valid.json and its {count} people: expected {wanted}, found {shapes}"
        )
    heads, joints, missing = (
        np.asarray(content[name], np.float64).reshape(shape) for name, shape in wanted.items()
    )
    return Truth(joints.transpose(2, 0, 1) - 1, missing.T == 0, _head_sizes(heads.transpose(2, 0, 1)))


def _longer(shape: tuple[int, ...]) -> list[int]:
    return [side for side in shape if side != 1]
