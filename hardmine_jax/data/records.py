"""Prepared people: a tensorflow-datasets builder in array_record (no TensorFlow needed) with one example an
image, read as one record a person.

A record is numpy: "image" bytes as they stood in the file, "keypoints" float32 [K, 2] in pixels of that
image, "visibility" int32 [K] (0 not labelled or outside, 1 occluded, 2 visible), "box" float32 [4] xyxy,
"area" float32 square pixels, "image_id", "annotation_id", "index" (position in the source) int, "name" str.
"""

import contextlib
import dataclasses
import io
import itertools
import json
import operator
import os
import pathlib
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping

import numpy as np
import tensorflow_datasets as tfds

from hardmine_jax.data import cache, pictures
from hardmine_jax.data.pictures import Person, Picture, decode_image, usable
from hardmine_jax.data.problems import DataError, Skipped, gather
from hardmine_jax.pose import Skeleton

__all__ = [
    "DataError", "Person", "Picture", "PersonSource", "PoseBuilder", "PoseDataset", "Skipped",
    "decode_image", "prepare", "usable",
]  # fmt: skip

_SUMMARY = "summary.json"
_EXAMPLES_A_SHARD = 4096
# What `read` of a dataset's file gives: its skeleton, and the pictures of each split in order.
Splits = Mapping[str, Iterable[Picture]]
Skip = Callable[[str, str], None]


@dataclasses.dataclass(frozen=True)
class PoseDataset:
    """A prepared dataset: two sources of records, what they have in common, and what was left out."""

    name: str
    skeleton: Skeleton
    train: "PersonSource"
    validation: "PersonSource"
    skipped: Skipped
    folder: pathlib.Path


class PersonSource:
    """Random access to the records of a split; what grain calls a RandomAccessDataSource.

    Opens its files at the first record, so it pickles small and each worker process gets its own readers.
    """

    def __init__(self, folder: pathlib.Path, split: str):
        self._folder = folder
        self._split = split
        # [P, 2]: which example of the split, which person in it.
        self._people = np.load(folder / f"{split}_people.npy")
        self._examples = None

    def __len__(self) -> int:
        return len(self._people)

    def __getitem__(self, index: int) -> dict:
        index = operator.index(index)
        if not -len(self) <= index < len(self):
            raise IndexError(f"record {index} of {len(self)} in {self!r}")
        index %= len(self)
        example_index, person = (int(value) for value in self._people[index])
        example = self._open()[example_index]
        return {
            "image": example["image"],
            "keypoints": example["keypoints"][person],
            "visibility": example["visibility"][person],
            "box": example["box"][person],
            "area": example["area"][person],
            "image_id": np.int64(example["image_id"]),
            "annotation_id": example["annotation_id"][person],
            "name": example["name"].decode(),
            "index": index,
        }

    def _open(self):
        if self._examples is None:
            try:
                builder = tfds.builder_from_directory(os.fspath(self._folder / "examples"))
                decoders = {"image": tfds.decode.SkipDecoding()}
                self._examples = builder.as_data_source(split=self._split, decoders=decoders)
            except (OSError, ValueError) as error:
                raise _damaged(self._folder, error) from error
        return self._examples

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_examples": None}

    def __repr__(self) -> str:
        folder = f"{self._folder.parent.name}/{self._folder.name}"
        return f"PersonSource({folder}, {self._split}, {len(self)} people)"


class PoseBuilder(tfds.core.GeneratorBasedBuilder):
    """One example an image, images as they are in their files, in the order given."""

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, *, num_keypoints: int, splits: Splits, data_dir: pathlib.Path):
        self._num_keypoints = num_keypoints
        self._splits = splits
        super().__init__(data_dir=os.fspath(data_dir), file_format="array_record")

    def _info(self) -> tfds.core.DatasetInfo:
        features = tfds.features
        k = self._num_keypoints
        people = {
            "keypoints": features.Tensor(shape=(None, k, 2), dtype=np.float32),
            "visibility": features.Tensor(shape=(None, k), dtype=np.int32),
            "box": features.Tensor(shape=(None, 4), dtype=np.float32),
            "area": features.Tensor(shape=(None,), dtype=np.float32),
            "annotation_id": features.Tensor(shape=(None,), dtype=np.int64),
        }
        image = {"name": features.Text(), "image_id": features.Scalar(np.int64), "image": features.Image()}
        return tfds.core.DatasetInfo(builder=self, features=features.FeaturesDict({**image, **people}))

    def _split_generators(self, dl_manager) -> dict[str, Iterator[dict]]:
        return {split: self._generate_examples(pictures) for split, pictures in self._splits.items()}

    def _generate_examples(self, pictures: Iterable[Picture]) -> Iterator[dict]:
        for picture in pictures:
            people = {name: np.stack(values) for name, values in _columns(picture.people).items()}
            yield {"name": picture.name, "image_id": picture.image_id, "image": picture.image, **people}

    def _download_and_prepare(self, dl_manager, download_config) -> None:
        # GeneratorBasedBuilder's own writer keeps a split in memory to shuffle it, and from 1 GB on asks for
        # TensorFlow; tensorflow-datasets' sequential writer does neither.
        # `self.info` knows the final folder only, and this runs in a temporary one.
        info = self._info()
        writer = tfds.core.SequentialWriter(info, _EXAMPLES_A_SHARD, file_format="array_record")
        for split, examples in self._split_generators(dl_manager).items():
            writer.initialize_splits([split])
            while chunk := list(itertools.islice(examples, 256)):
                writer.add_examples({split: chunk})
        writer.close_all()
        self.info.set_splits(info.splits)


def _columns(people: tuple[Person, ...]) -> dict[str, list]:
    return {
        "keypoints": [np.float32(person.keypoints) for person in people],
        "visibility": [np.int32(person.visibility) for person in people],
        "box": [np.float32(person.box) for person in people],
        "area": [np.float32(person.area) for person in people],
        "annotation_id": [np.int64(person.annotation_id) for person in people],
    }


def prepare(
    name: str,
    *,
    made_from: dict,
    read: Callable[[Skip], tuple[Skeleton, Splits]],
    expected: str,
    cache_dir: str | os.PathLike | None = None,
) -> PoseDataset:
    """The dataset from the cache, or made now and put there.

    Args:
      name: of the dataset, and of its folder in the cache.
      made_from: JSON-able; everything the records follow from (paths, hashes of files, options, the hash of
        the file that `read` is in). The code that all datasets share is added here.
      read: called only when the data is not in the cache, with `skip(reason, name)` for what it leaves out;
        gives the skeleton and for "train" and "validation" the pictures in order. Their people need a box and
        an area; `usable` fills both in, and takes out what cannot be trained on.
      expected: what should have been where, for the error when there is nobody to train on.
      cache_dir: see `cache.cache_root`.

    Raises:
      DataError: when nobody usable is in the training split, or the cache cannot be written.
    """
    code = [cache.file_hash(file) for file in (__file__, pictures.__file__)]
    key = cache.fingerprint({"name": name, "code": code, "made_from": made_from})
    folder = cache.cache_root(cache_dir) / name / key

    def build(temporary: pathlib.Path) -> None:
        problems: list[tuple[str, str]] = []
        skeleton, splits = read(lambda reason, record: problems.append((reason, record)))
        tell = _Teller(name, folder)
        _write(temporary, skeleton, splits, problems, tell)
        if not len(PersonSource(temporary, "train")):
            raise DataError(f"{name}: nobody to train on ({gather(problems).report()}): expected {expected}")

    cache.build_once(folder, build)
    return _load(folder, name)


class _Teller:
    """One line to the terminal at the first picture, and one every half minute after it.

    Not before the first picture: for data that is none the error is the only line.
    """

    def __init__(self, name: str, folder: pathlib.Path):
        self._name, self._folder = name, folder
        self._count, self._due = 0, 0.0

    def __call__(self) -> None:
        if not self._count or time.monotonic() > self._due:
            progress = f": {self._count} images so far" if self._count else " (once for this data)"
            print(f"preparing {self._name} in {self._folder}{progress}", file=sys.stderr, flush=True)
            self._due = time.monotonic() + 30
        self._count += 1


def _write(
    folder: pathlib.Path,
    skeleton: Skeleton,
    splits: Splits,
    problems: list[tuple[str, str]],
    tell: Callable[[], None],
) -> None:
    """Fills `folder`; `problems` grows while the pictures are read."""
    people: dict[str, list[tuple[int, int]]] = {"train": [], "validation": []}
    counted = {split: _counted(splits.get(split, ()), people[split], tell) for split in people}
    with tfds.core.registered.skip_registration(), contextlib.redirect_stdout(io.StringIO()):
        builder = PoseBuilder(num_keypoints=skeleton.num_keypoints, splits=counted, data_dir=folder / "tfds")
        builder.download_and_prepare(download_config=tfds.download.DownloadConfig(try_download_gcs=False))
    # One fixed name, so that nothing else has to know how tensorflow-datasets lays out its folders.
    pathlib.Path(builder.data_dir).rename(folder / "examples")
    shutil.rmtree(folder / "tfds")
    for split, index in people.items():
        np.save(folder / f"{split}_people.npy", np.array(index, np.int32).reshape(-1, 2))
    summary = {"skeleton": dataclasses.asdict(skeleton), "skipped": gather(problems).reasons}
    (folder / _SUMMARY).write_text(json.dumps(summary))


def _counted(
    pictures: Iterable[Picture], index: list[tuple[int, int]], tell: Callable[[], None]
) -> Iterator[Picture]:
    for example, picture in enumerate(pictures):
        tell()
        index.extend((example, person) for person in range(len(picture.people)))
        yield picture


def _load(folder: pathlib.Path, name: str) -> PoseDataset:
    try:
        summary = json.loads((folder / _SUMMARY).read_text())
        skipped = Skipped({reason: tuple(names) for reason, names in summary["skipped"].items()})
        train, validation = PersonSource(folder, "train"), PersonSource(folder, "validation")
        return PoseDataset(name, Skeleton(**summary["skeleton"]), train, validation, skipped, folder)
    except (OSError, ValueError, KeyError) as error:
        raise _damaged(folder, error) from error


def _damaged(folder: pathlib.Path, error: Exception) -> DataError:
    return DataError(f"prepared data {folder} is damaged: delete that folder ({error})")
