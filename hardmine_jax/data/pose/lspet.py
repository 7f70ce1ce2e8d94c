"""Leeds Sports Pose and its extended training set, from a folder in their own layout.

    DIR/joints.mat              `joints`, x and y in pixels and a flag:
                                [14, 3, N] extended set, flag 1 = labelled (else x and y mean nothing)
                                [3, 14, N] original set, flag 1 = occluded (its README calls it visibility;
                                published training code inverts it, taking all joints as labelled)
    DIR/images/im00001.jpg ...  numbered from 1; any number of leading zeros, .jpg, .jpeg or .png

Extended (10,000 images): Johnson and Everingham, "Learning Effective Human Pose Estimation from Inaccurate
Annotation", CVPR 2011. Original (2,000): the same, "Clustered Pose and Nonlinear Appearance Models for Human
Pose Estimation", BMVC 2010.
"""

import os
import pathlib
import re

import numpy as np

from hardmine_jax.data import cache, matlab
from hardmine_jax.data.code_hash import code_hash
from hardmine_jax.data.pose import records
from hardmine_jax.data.pose.records import Person, Picture, usable
from hardmine_jax.data.problems import DataError, Report
from hardmine_jax.pose import Skeleton

LSP_SKELETON = Skeleton(
    names=(
        "right_ankle", "right_knee", "right_hip", "left_hip", "left_knee", "left_ankle", "right_wrist",
        "right_elbow", "right_shoulder", "left_shoulder", "left_elbow", "left_wrist", "neck", "head_top",
    ),
    flip_pairs=((0, 5), (1, 4), (2, 3), (6, 11), (7, 10), (8, 9)),
    # LSP has no OKS constants of its own; CrowdPose (Li et al., CVPR 2019) labels the same 14 joints.
    sigmas=(0.089, 0.087, 0.107, 0.107, 0.087, 0.089, 0.062, 0.072, 0.079, 0.079, 0.072, 0.062, 0.079, 0.079),
    edges=(
        (0, 1), (1, 2), (2, 3), (3, 4), (4, 5), (6, 7), (7, 8), (8, 12), (12, 9), (9, 10), (10, 11), (12, 13),
        (8, 2), (9, 3),
    ),
)  # fmt: skip
LAYOUT = "DIR/joints.mat and DIR/images/im00001.jpg, im00002.jpg, ..."
WHERE = "Leeds Sports Pose Extended, sam.johnson.io/research/lspet.html"


def load(
    data_dir: str | os.PathLike | None,
    *,
    num_validation: int | None = None,
    cache_dir: str | os.PathLike | None = None,
) -> records.PoseDataset:
    """People of LSP or LSP-extended, one an image; the last `num_validation` listed are validated on.

    The box is the tight one around the labelled joints, the area that box's. Joints labelled outside the
    image count as not labelled. Pixels are counted as they are stored, whatever EXIF says.

    Args:
      data_dir: the folder that holds joints.mat and images/.
      num_validation: people at the end of joints.mat kept from training, absent images counted. By default
        1,000 (of the original 2,000 that is the published split), of fewer than 2,000 people a tenth.
      cache_dir: where prepared data is kept; see `cache.cache_root`.

    Raises:
      DataError: no folder, no or a strange joints.mat, no image that is listed, nobody left to train on.
    """
    if num_validation is not None and num_validation < 0:
        raise ValueError(f"num_validation={num_validation} < 0: give the number of people to validate on")
    folder = _checked_folder(data_dir)
    made_from = {
        "folder": os.fspath(folder),
        "joints": cache.file_hash(folder / "joints.mat"),
        "images": cache.folder_hash(folder / "images"),
        "num_validation": num_validation,
        "code": code_hash(__file__),
    }
    return records.prepare(
        "lspet",
        made_from=made_from,
        read=lambda report: _read(folder, num_validation, report),
        expected=f"readable images of people with labelled joints: {LAYOUT} in DIR={folder}",
        cache_dir=cache_dir,
    )


def _checked_folder(data_dir: str | os.PathLike | None) -> pathlib.Path:
    if data_dir is None:
        raise DataError(f"lspet needs data_dir, DIR with {LAYOUT} (from {WHERE})")
    folder = pathlib.Path(data_dir).expanduser().resolve()
    if not folder.is_dir():
        raise DataError(f"no folder {folder}: give the one that holds {LAYOUT} (from {WHERE})")
    if not (folder / "joints.mat").is_file():
        raise DataError(f"no joints.mat in {folder}: expected {LAYOUT} (from {WHERE})")
    if not (folder / "images").is_dir():
        raise DataError(f"no folder images in {folder}: expected {LAYOUT} (from {WHERE})")
    return folder


def _read(
    folder: pathlib.Path, num_validation: int | None, report: Report
) -> tuple[Skeleton, records.Splits]:
    keypoints, visibility = read_joints(folder / "joints.mat")
    if num_validation is None:
        num_validation = _usual_validation(len(keypoints))
    if num_validation >= len(keypoints):
        raise DataError(
            f"{folder / 'joints.mat'} lists {len(keypoints)} people: num_validation={num_validation} leaves "
            "none to train on, take fewer"
        )
    files = _numbered_images(folder / "images")
    if not any(number in files for number in range(1, len(keypoints) + 1)):
        raise DataError(
            f"none of the {len(keypoints)} images of {folder / 'joints.mat'} is in {folder / 'images'}: "
            f"expected im00001.jpg ... im{len(keypoints):05d}.jpg (from {WHERE})"
        )
    first_validation = len(keypoints) - num_validation
    everybody = [
        _picture(folder / "images", files, number, keypoints[number - 1], visibility[number - 1])
        for number in range(1, len(keypoints) + 1)
    ]
    return LSP_SKELETON, {
        "train": usable(everybody[:first_validation], report, orientation="stored"),
        "validation": usable(everybody[first_validation:], report, orientation="stored"),
    }


def _usual_validation(num_people: int) -> int:
    return 1000 if num_people >= 2000 else min(-(-num_people // 10), num_people - 1)


def read_joints(path: pathlib.Path) -> tuple[np.ndarray, np.ndarray]:
    """joints.mat of either set -> keypoints [N, 14, 2] in pixels, visibility [N, 14] (0, 1 or 2)."""
    joints = _load_matrix(path)
    # MATLAB drops the last axis when it is 1.
    joints = joints[:, :, None] if joints.ndim == 2 else joints
    if joints.shape[:2] == (14, 3):
        joints = joints.transpose(2, 0, 1)
        return joints[..., :2], np.where(joints[..., 2] > 0, 2, 0)
    if joints.shape[:2] == (3, 14):
        joints = joints.transpose(2, 1, 0)
        return joints[..., :2], np.where(joints[..., 2] > 0, 1, 2)
    raise DataError(
        f"joints in {path} has shape {list(joints.shape)}, expected [14, 3, N] (LSP extended) or "
        "[3, 14, N] (LSP)"
    )


def _load_matrix(path: pathlib.Path) -> np.ndarray:
    joints = matlab.load(path, ["joints"], where=WHERE).get("joints")
    if joints is None:
        raise DataError(f"{path} holds no variable joints: expected joints [14, 3, N] (from {WHERE})")
    if joints.ndim not in (2, 3) or joints.dtype.kind not in "fiu" or joints.size == 0:
        raise DataError(
            f"joints in {path} is {joints.dtype} of shape {list(joints.shape)}, expected numbers of shape "
            "[14, 3, N] (LSP extended) or [3, 14, N] (LSP)"
        )
    return joints.astype(np.float64)


def _numbered_images(folder: pathlib.Path) -> dict[int, str]:
    """Number in the name -> file name; LSP counts with 4 digits, its extension with 5."""
    names: dict[int, str] = {}
    for name in sorted(os.listdir(folder)):
        if match := re.fullmatch(r"im(\d+)\.(jpg|jpeg|png)", name, re.IGNORECASE):
            names.setdefault(int(match[1]), name)
    return names


def _picture(
    folder: pathlib.Path, files: dict[int, str], number: int, keypoints: np.ndarray, visibility: np.ndarray
) -> Picture:
    name = files.get(number, f"im{number:05d}.jpg")
    person = Person(keypoints, visibility, annotation_id=number)
    return Picture(name, number, folder / name, (person,))
