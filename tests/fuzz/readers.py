"""Every reader of somebody's file, with a whole file to spoil, and what may come of a spoiled one.

    python tests/fuzz/readers.py KIND FIRST COUNT     # from the root; one line of JSON an input
    python tests/fuzz/readers.py all FIRST COUNT

Input number n of a kind is always the same (but of checkpoints, whose files orbax names by chance). A reader
takes it ("read"), takes it and counts what it left out ("skipped"), or raises its documented error with one
line ("refused"). Anything else is a failure: another exception, a warning, more than TIME_LIMIT seconds (then
the process ends with a traceback of where it hung).
"""

import faulthandler
import functools
import io
import json
import os
import pathlib
import resource
import shutil
import sys
import tempfile
import time
import warnings
import zipfile
from collections.abc import Callable, Iterator
from typing import NamedTuple

sys.path[:0] = [str(pathlib.Path(__file__).parent), str(pathlib.Path(__file__).parents[2])]
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import cv2  # noqa: E402
import mutations  # noqa: E402
import numpy as np  # noqa: E402
import optax  # noqa: E402
import scipy.io  # noqa: E402

from hardmine_jax import training  # noqa: E402
from hardmine_jax.data import coco_download, coco_json, images  # noqa: E402
from hardmine_jax.data.detection import coco as coco_detection  # noqa: E402
from hardmine_jax.data.detection import proposals, voc  # noqa: E402
from hardmine_jax.data.pose import coco as coco_keypoints  # noqa: E402
from hardmine_jax.data.pose import coco_truth, lspet, mpii, person_boxes  # noqa: E402
from hardmine_jax.data.pose.augment import evaluate_crop  # noqa: E402
from hardmine_jax.data.problems import DataError, Skipped, UnreadableImage, gather  # noqa: E402
from hardmine_jax.models.torch_files import read_torch_file  # noqa: E402
from hardmine_jax.models.torch_weights import WeightsError  # noqa: E402
from hardmine_jax.tasks.charts import series  # noqa: E402
from hardmine_jax.tasks.config_json import change  # noqa: E402
from hardmine_jax.tasks.detection import config as detection_config  # noqa: E402
from hardmine_jax.tasks.photos import InputError  # noqa: E402
from hardmine_jax.tasks.pose import config as pose_config  # noqa: E402
from hardmine_jax.tasks.pose import photo_boxes, predict_photos  # noqa: E402
from hardmine_jax.tasks.pose.protocol import score_heads  # noqa: E402
from hardmine_jax.training.metrics_log import mean_speeds  # noqa: E402

TIME_LIMIT = 10
HEIGHT, WIDTH = 40, 60


class Kind(NamedTuple):
    """A reader under attack.

    Attributes:
      make: fills a folder, and tells which file in it is to be spoiled; a folder stands for any file in it.
      spoil: how.
      read: reads the folder; what was left out, or None.
      errors: that may be raised.
    """

    make: Callable[[pathlib.Path], pathlib.Path]
    spoil: mutations.Spoil
    read: Callable[[pathlib.Path], Skipped | None]
    errors: tuple[type[Exception], ...] = (DataError,)


class Outcome(NamedTuple):
    """What came of an input: read, skipped, refused, or a failure; and the line, or the exception."""

    kind: str
    number: int
    result: str
    said: str
    seconds: float
    peak_mb: float


@functools.cache
def encoded(suffix: str, seed: int = 0, *, progressive: bool = False) -> bytes:
    options = [cv2.IMWRITE_JPEG_PROGRESSIVE, 1] if progressive else []
    noise = np.random.default_rng(seed).integers(0, 255, (HEIGHT // 8, WIDTH // 6, 3), np.uint8)
    image = cv2.resize(noise, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
    return cv2.imencode(suffix, image, options)[1].tobytes()


def _write(path: pathlib.Path, content: bytes | str | dict | list) -> pathlib.Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, dict | list):
        content = json.dumps(content)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def _photos(folder: pathlib.Path, names: list[str]) -> None:
    for seed, name in enumerate(names):
        _write(folder / name, encoded(pathlib.Path(name).suffix, seed))


def _joints() -> np.ndarray:
    rng = np.random.default_rng(3)
    x, y = rng.uniform(1, WIDTH - 1, (14, 4)), rng.uniform(1, HEIGHT - 1, (14, 4))
    return np.stack([x, y, np.ones((14, 4))], 1)


def make_lspet(folder: pathlib.Path, *, compressed: bool) -> pathlib.Path:
    _photos(folder / "images", [f"im{number:05d}.jpg" for number in range(1, 5)])
    scipy.io.savemat(folder / "joints.mat", {"joints": _joints()}, do_compression=compressed)
    return folder / "joints.mat"


def read_lspet(folder: pathlib.Path) -> Skipped:
    return _everything(lspet.load(folder, cache_dir=folder / "cache"))


def _everything(dataset) -> Skipped:
    """Reads every record, as a training would."""
    for source in (dataset.train, dataset.validation):
        for row in range(len(source)):
            record = source[row]
            if "keypoints" in record:
                evaluate_crop(record, size=(32, 32), skeleton=dataset.skeleton)
    return dataset.skipped


_NOSE = {
    "id": 1, "name": "mouse", "keypoints": ["nose", "left_ear", "right_ear"], "skeleton": [[1, 2], [1, 3]],
    "sigmas": [0.1, 0.1, 0.1],
}  # fmt: skip


def make_coco(folder: pathlib.Path) -> pathlib.Path:
    names = [f"{number}.png" for number in range(4)]
    _photos(folder / "images", names)
    images = [{"id": n, "file_name": name, "height": HEIGHT, "width": WIDTH} for n, name in enumerate(names)]
    annotations = [
        {"id": 10 + n, "image_id": n, "category_id": 1, "keypoints": [5, 6, 2, 20, 30, 1, 40 - n, 9, 2],
         "bbox": [3, 4, 40, 30.5], "area": 700.5, "iscrowd": 0, "num_keypoints": 3}
        for n in range(4)
    ]  # fmt: skip
    return _write(folder / "a.json", {"images": images, "annotations": annotations, "categories": [_NOSE]})


def make_coco_outlines(folder: pathlib.Path) -> pathlib.Path:
    """Of three objects there are outlines and no box."""
    path = make_coco(folder)
    content = json.loads(path.read_text())
    runs = {"size": [HEIGHT, WIDTH], "counts": [HEIGHT + 5, 7, HEIGHT - 7, 7]}
    outlines = ([[3, 4, 43, 4, 43, 34.5]], runs, runs | {"counts": "]17Q10"})
    for annotation, outline in zip(content["annotations"], outlines, strict=False):
        del annotation["bbox"]
        annotation["segmentation"] = outline
    return _write(path, content)


def read_coco_keypoints(folder: pathlib.Path) -> Skipped:
    return _everything(coco_keypoints.load(folder / "a.json", folder / "images", cache_dir=folder / "cache"))


def read_coco_detection(folder: pathlib.Path) -> Skipped:
    return _everything(coco_detection.load(folder / "a.json", folder / "images", cache_dir=folder / "cache"))


def read_coco_truth(folder: pathlib.Path) -> Skipped:
    file = coco_json.load_file(folder / "a.json", folder / "images")
    return coco_truth.annotations(file, num_keypoints=3)[1]


def make_boxes(folder: pathlib.Path, *, named: bool = False, whole: bool = False) -> pathlib.Path:
    content = json.loads(make_coco(folder).read_text())
    boxes = [{"image_id": n % 4, "category_id": 1, "bbox": [n, 2, 20.5, 30], "score": 0.5} for n in range(6)]
    if named:
        names = [image["file_name"] for image in content["images"]]
        boxes = [
            box | {"file_name": names[n % len(names)], "category": "nose"} for n, box in enumerate(boxes)
        ]
    if whole:
        unnamed = [{name: value for name, value in box.items() if name != "file_name"} for box in boxes]
        boxes = {"images": content["images"], "annotations": unnamed, "categories": content["categories"]}
    return _write(folder / "boxes.json", boxes)


def read_boxes(folder: pathlib.Path) -> Skipped:
    images = person_boxes.CocoImages(coco_json.load_file(folder / "a.json", folder / "images"))
    boxes = person_boxes.load(folder / "boxes.json", images, num_keypoints=3)
    skeleton = coco_keypoints.Skeleton(tuple(_NOSE["keypoints"]), (), tuple(_NOSE["sigmas"]), ())
    for row in range(len(boxes)):
        evaluate_crop(boxes[row], size=(32, 32), skeleton=skeleton)
    return boxes.skipped


def read_photo_boxes(folder: pathlib.Path) -> Skipped:
    problems = []
    boxes = photo_boxes.read_boxes(folder / "boxes.json", skip=lambda *found: problems.append(found))
    paths = sorted((folder / "images").iterdir())
    photos = predict_photos.read_photos(paths, boxes, skip=lambda *found: problems.append(found))
    results = [predict_photos.coco_results(photo, np.ones((len(photo.boxes), 3, 3))) for photo in photos]
    assert json.dumps(results) and all(photo.image.size for photo in photos)
    assert predict_photos.category_notes(photos, [coco_json.Category(1, "nose")], chosen=False) is not None
    return gather(problems)


def make_voc(folder: pathlib.Path) -> pathlib.Path:
    _photos(folder / "JPEGImages", ["a.jpg", "b.jpg", "c.png"])
    for name, difficult in (("a", 0), ("b", 1), ("c", 0)):
        _write(folder / "Annotations" / f"{name}.xml", _XML.format(name=name, difficult=difficult))
    _write(folder / "ImageSets" / "Main" / "val.txt", "c\n")
    return _write(folder / "ImageSets" / "Main" / "train.txt", "a\nb\n")


_XML = (
    "<annotation><filename>{name}.jpg</filename><size><width>60</width><height>40</height></size>"
    "<object><name>dog</name><difficult>{difficult}</difficult><bndbox><xmin>3</xmin><ymin>4</ymin>"
    "<xmax>30</xmax><ymax>20.5</ymax></bndbox></object><object><name>cat</name><bndbox><xmin>1</xmin>"
    "<ymin>1</ymin><xmax>60</xmax><ymax>40</ymax></bndbox></object></annotation>"
)


def make_voc_xml(folder: pathlib.Path) -> pathlib.Path:
    make_voc(folder)
    return folder / "Annotations" / "a.xml"


def read_voc(folder: pathlib.Path) -> Skipped:
    return _everything(voc.load(folder, cache_dir=folder / "cache"))


def make_mpii(folder: pathlib.Path, name: str = "train.json") -> pathlib.Path:
    names = [f"{number:03d}.jpg" for number in range(3)]
    _photos(folder / "images", names)
    joints = _joints().transpose(2, 0, 1)[0, :, :2]
    joints = np.concatenate([joints, joints[:2]]).tolist()
    person = {"center": [30, 20], "scale": 0.2, "joints": joints, "joints_vis": [1] * 16,
              "headbox": [3, 4, 20, 30]}  # fmt: skip
    for split in ("train", "valid"):
        _write(folder / "annot" / f"{split}.json", [person | {"image": image} for image in names])
    return folder / "annot" / name


def make_mpii_matrix(folder: pathlib.Path) -> pathlib.Path:
    make_mpii(folder)
    rng = np.random.default_rng(0)
    content = {"headboxes_src": rng.integers(1, 40, (2, 2, 3)), "pos_gt_src": rng.uniform(1, 40, (16, 2, 3)),
               "jnt_missing": np.zeros((16, 3))}  # fmt: skip
    scipy.io.savemat(folder / "annot" / "gt_valid.mat", content, do_compression=True)
    return folder / "annot" / "gt_valid.mat"


def read_mpii(folder: pathlib.Path) -> Skipped:
    return _everything(mpii.load(folder, cache_dir=folder / "cache"))


def read_mpii_truth(folder: pathlib.Path) -> None:
    truth = mpii.load_truth(folder)
    score_heads(np.zeros((3, 16, 2)), np.arange(3), truth)


def make_image(folder: pathlib.Path, suffix: str, *, progressive: bool = False) -> pathlib.Path:
    return _write(folder / f"image{suffix}", encoded(suffix, progressive=progressive))


def read_image(folder: pathlib.Path) -> Skipped | None:
    (path,) = folder.iterdir()
    opened = images.open_image(path, None)
    record = {"image": path.read_bytes(), "name": "x", "index": 0, "box": np.float32([1, 2, 300, 200]),
              "keypoints": np.zeros((17, 2)), "visibility": np.zeros(17, int)}  # fmt: skip
    try:
        evaluate_crop(record, size=(32, 32), skeleton=coco_keypoints.COCO_SKELETON)
    except UnreadableImage:
        if not isinstance(opened, str):
            raise
    return Skipped({opened: ("x",)}) if isinstance(opened, str) else None


def _state():
    rng = np.random.default_rng(0)
    layer = {"kernel": rng.normal(size=(3, 3, 3, 8)).astype(np.float32), "bias": np.ones(8, np.float32)}
    variables = {"params": {"conv": layer}, "batch_stats": {"norm": {"mean": np.ones(8, np.float32)}}}
    key = np.array([0, 7], np.uint32)
    return training.create_state(variables, apply_fn=None, optimizer=optax.adam(0.1), key=key, ema_decay=0.9)


def make_checkpoint(folder: pathlib.Path) -> pathlib.Path:
    checkpoints = training.Checkpoints(folder, best_metric="pck")
    checkpoints.save(5, _state(), {"index": 3}, metrics={"pck": 0.5})
    checkpoints.close()
    return folder / "checkpoints"


def read_variables(folder: pathlib.Path) -> None:
    training.load_variables(folder)


def read_latest(folder: pathlib.Path) -> Skipped | None:
    checkpoints = training.Checkpoints(folder, best_metric="pck")
    try:
        return None if checkpoints.restore_latest(_state()) else Skipped({"no checkpoint there": ("5",)})
    finally:
        checkpoints.close()


def make_pose_config(folder: pathlib.Path) -> pathlib.Path:
    pose_config.save_config(
        change(pose_config.Config(), workdir=folder, steps=3, k=8), coco_keypoints.COCO_SKELETON
    )
    return folder / "config.json"


def read_pose_config(folder: pathlib.Path) -> None:
    pose_config.load_config(folder)
    pose_config.load_categories(folder)


def make_detection_config(folder: pathlib.Path) -> pathlib.Path:
    detection_config.save_config(change(detection_config.Config(), workdir=folder), ("dog", "cat"))
    return folder / "config.json"


def read_detection_config(folder: pathlib.Path) -> None:
    _, classes = detection_config.load_config(folder)
    detection_config.load_category_ids(folder, classes)


_ARRAYS = {
    "conv.weight": np.arange(54, dtype=np.float32).reshape(2, 3, 3, 3),
    "bn.bias": np.ones(2, np.float32),
}


def make_torch(folder: pathlib.Path, *, zipped: bool) -> pathlib.Path:
    import torch

    tensors = {name: torch.from_numpy(x) for name, x in _ARRAYS.items()}
    torch.save({"state_dict": tensors}, folder / "a.pth", _use_new_zipfile_serialization=zipped)
    return folder / "a.pth"


def make_safetensors(folder: pathlib.Path) -> pathlib.Path:
    from safetensors.numpy import save_file

    save_file(_ARRAYS, folder / "a.safetensors")
    return folder / "a.safetensors"


def make_npz(folder: pathlib.Path) -> pathlib.Path:
    np.savez_compressed(folder / "a.npz", **_ARRAYS)
    return folder / "a.npz"


def read_weights(folder: pathlib.Path) -> None:
    (path,) = folder.iterdir()
    read_torch_file(path)


def make_proposals(folder: pathlib.Path) -> pathlib.Path:
    boxes = np.float32([[1, 2, 30, 40], [0, 0, 5, 5], [3, 3, 9, 9]])
    np.save(folder / "a.npy", boxes)
    return folder / "a.npy"


def read_proposals(folder: pathlib.Path) -> Skipped | None:
    found = proposals._read(folder / "a.npy")
    return Skipped({"damaged: made again": ("a",)}) if found is None else None


def make_metrics(folder: pathlib.Path) -> pathlib.Path:
    lines = [{"step": n, "seconds": 1.5 * n, "loss": 0.5, "unit_rate": [0.1, 0.2], "images_per_second": 3.0}
             for n in range(1, 4)]  # fmt: skip
    return _write(folder / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in lines))


def read_metrics(folder: pathlib.Path) -> Skipped | None:
    lines = training.read_metrics(folder / "metrics.jsonl")
    mean_speeds(lines)
    for key in ("loss", "images_per_second"):
        series(lines, key)
    training.MetricsLog(folder, after=2).__exit__()
    return None if len(lines) == 3 else Skipped({"lines cut off": ("x",)})


def make_archive(folder: pathlib.Path) -> pathlib.Path:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("train2017/a.jpg", encoded(".jpg"))
        archive.writestr("annotations/../../b.json", "{}" * 50)
    return _write(folder / "a.zip", buffer.getvalue())


def read_archive(folder: pathlib.Path) -> None:
    coco_download._unpack(folder / "a.zip", "http://x/a.zip", folder / "into")
    outside = {path.name for path in folder.iterdir()} - {"a.zip", "into"}
    assert not outside, outside


_BYTES, _JSON, _MATRIX = mutations.spoil_bytes, mutations.spoil_json, mutations.spoil_packed_matrix
_CHECKPOINT, _WEIGHTS = (training.CheckpointError,), (WeightsError,)
_make = functools.partial
KINDS = {
    "joints.mat": Kind(_make(make_lspet, compressed=False), _BYTES, read_lspet),
    "joints.mat, packed": Kind(_make(make_lspet, compressed=True), _MATRIX, read_lspet),
    "COCO keypoints JSON": Kind(make_coco, _JSON, read_coco_keypoints),
    "COCO detection JSON": Kind(make_coco, _JSON, read_coco_detection),
    "COCO outlines JSON": Kind(make_coco_outlines, _JSON, read_coco_detection),
    "COCO truth JSON": Kind(make_coco, _JSON, read_coco_truth),
    "person boxes JSON": Kind(make_boxes, _JSON, read_boxes),
    "boxes of photos JSON": Kind(_make(make_boxes, named=True), _JSON, read_photo_boxes, (InputError,)),
    "boxes of photos, COCO JSON": Kind(
        _make(make_boxes, named=True, whole=True), _JSON, read_photo_boxes, (InputError,)
    ),
    "VOC XML": Kind(make_voc_xml, mutations.spoil_xml, read_voc),
    "VOC list": Kind(make_voc, _BYTES, read_voc),
    "MPII JSON": Kind(make_mpii, _JSON, read_mpii),
    "MPII truth JSON": Kind(_make(make_mpii, name="valid.json"), _JSON, read_mpii_truth),
    "MPII gt_valid.mat": Kind(make_mpii_matrix, _MATRIX, read_mpii_truth),
    "JPEG": Kind(_make(make_image, suffix=".jpg"), _BYTES, read_image),
    "JPEG, progressive": Kind(_make(make_image, suffix=".jpg", progressive=True), _BYTES, read_image),
    "PNG": Kind(_make(make_image, suffix=".png"), mutations.spoil_png, read_image),
    "BMP": Kind(_make(make_image, suffix=".bmp"), _BYTES, read_image),
    "GIF": Kind(_make(make_image, suffix=".gif"), _BYTES, read_image),
    "WebP": Kind(_make(make_image, suffix=".webp"), _BYTES, read_image),
    "TIFF": Kind(_make(make_image, suffix=".tiff"), _BYTES, read_image),
    "checkpoint, load_variables": Kind(make_checkpoint, _BYTES, read_variables, _CHECKPOINT),
    "checkpoint, restore_latest": Kind(make_checkpoint, _BYTES, read_latest, _CHECKPOINT),
    "config.json, pose": Kind(make_pose_config, _JSON, read_pose_config),
    "config.json, detection": Kind(make_detection_config, _JSON, read_detection_config),
    ".pth": Kind(_make(make_torch, zipped=True), mutations.spoil_zip, read_weights, _WEIGHTS),
    ".pth before 1.6": Kind(_make(make_torch, zipped=False), _BYTES, read_weights, _WEIGHTS),
    ".safetensors": Kind(make_safetensors, _BYTES, read_weights, _WEIGHTS),
    ".npz": Kind(make_npz, mutations.spoil_zip, read_weights, _WEIGHTS),
    "proposals .npy": Kind(make_proposals, _BYTES, read_proposals),
    "metrics.jsonl": Kind(make_metrics, mutations.spoil_json_lines, read_metrics, (ValueError,)),
    "archive .zip": Kind(make_archive, mutations.spoil_zip, read_archive),
}


def outcomes(name: str, first: int, count: int) -> Iterator[Outcome]:
    """Inputs first .. first + count - 1 of a kind, one after another."""
    kind = KINDS[name]
    with tempfile.TemporaryDirectory() as scratch:
        whole = pathlib.Path(scratch) / "whole"
        whole.mkdir()
        target = kind.make(whole).relative_to(whole)
        # What is not spoiled is read: and whatever is done once only is done before time counts.
        once = shutil.copytree(whole, pathlib.Path(scratch) / "once")
        skipped = kind.read(once)
        assert skipped is None or not skipped.reasons, skipped
        for number in range(first, first + count):
            rng = np.random.default_rng((sorted(KINDS).index(name), number))
            folder = shutil.copytree(whole, pathlib.Path(scratch) / "spoiled")
            spoil(rng, folder / target, kind.spoil)
            yield _attempt(name, number, folder)
            shutil.rmtree(folder)


def spoil(rng: np.random.Generator, path: pathlib.Path, how: mutations.Spoil) -> None:
    """The file; of a folder any file, which may also be lost."""
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file())
        path = files[rng.integers(len(files))]
        if rng.random() < 0.1:
            path.unlink()
            return
    path.write_bytes(how(rng, path.read_bytes()))


def _attempt(name: str, number: int, folder: pathlib.Path) -> Outcome:
    started, kind = time.perf_counter(), KINDS[name]
    faulthandler.dump_traceback_later(TIME_LIMIT, exit=True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            skipped = kind.read(folder)
        lost = skipped is not None and (skipped.reasons or skipped.noted)
        result, said = ("skipped", skipped.report()) if lost else ("read", "")
    except kind.errors as error:
        result, said = "refused", str(error)
    except Exception as error:  # That is what is looked for.
        result, said = "FAILED", f"{type(error).__name__}: {error}"[:300]
    finally:
        faulthandler.cancel_dump_traceback_later()
    if result in ("skipped", "refused") and not (said.isprintable() and 0 < len(said) < 4000):
        result, said = "FAILED", f"not one line to read: {said[:300]!r}"
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    return Outcome(name, number, result, said, time.perf_counter() - started, peak)


def main(name: str, first: str, count: str) -> None:
    for kind in KINDS if name == "all" else [name]:
        for outcome in outcomes(kind, int(first), int(count)):
            print(json.dumps(outcome._asdict()), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
