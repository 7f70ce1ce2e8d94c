"""Prepared examples on disk: a tensorflow-datasets builder in array_record (no TensorFlow needed).

One example an image, images as they stood in their files, in the order given. What an example holds besides
its image is the business of `pose/records.py` (people) and `detection/records.py` (objects).
"""

import contextlib
import errno
import io
import itertools
import os
import pathlib
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from hardmine_jax.data import cache
from hardmine_jax.data.code_hash import code_hash
from hardmine_jax.data.contents import check_contents, write_contents
from hardmine_jax.data.problems import DataError, UnreadableImage

_EXAMPLES_A_SHARD = 4096
SPLITS = ("train", "validation")
# For each split its examples in order, as dictionaries of the features.
Examples = Mapping[str, Iterable[dict]]
# Called once a picture; shows who waits how far it is.
Advance = Callable[[], None]
IMAGE_FEATURES = {
    "name": tfds.features.Text(),
    "image_id": tfds.features.Scalar(np.int64),
    "image": tfds.features.Image(),
}


class ExampleReader:
    """Random access to the examples of a split, their images as encoded bytes.

    Opens its files at the first example, so it pickles small and each worker process gets its own readers.
    """

    def __init__(self, folder: pathlib.Path, split: str):
        self.folder = folder
        self.split = split
        self._examples = None

    def __getitem__(self, index: int) -> dict:
        """
        Raises:
          UnreadableImage: the example is damaged.
          DataError: the files cannot be read at all.
          OSError: just now they cannot.
        """
        examples = self._open()
        try:
            example = examples[index]
        except RuntimeError as error:
            # array_record's, of storage as of data, for each example of which it has a checksum.
            if not any(word in str(error) for word in ("mismatch", "orrupt", "nvalid")):
                raise OSError(errno.EIO, f"cannot read just now ({error})", str(self.folder)) from error
            raise self._lost(index, error) from error
        if example is None:
            raise self._lost(index, EOFError("the file is too short"))
        return example

    def _lost(self, index: int, error: Exception) -> UnreadableImage:
        return UnreadableImage(f"{damaged(self.folder, error)}: example {index} of {self.split}")

    def _open(self) -> Any:
        if self._examples is None:
            try:
                builder = tfds.builder_from_directory(os.fspath(self.folder / "examples"))
                decoders = {"image": tfds.decode.SkipDecoding()}
                self._examples = builder.as_data_source(split=self.split, decoders=decoders)
            except (OSError, ValueError) as error:
                raise damaged(self.folder, error) from error
        return self._examples

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_examples": None}

    def __repr__(self) -> str:
        return f"{self.folder.parent.name}/{self.folder.name}, {self.split}"


class ExampleBuilder(tfds.core.GeneratorBasedBuilder):  # type: ignore[misc]  # It comes without types.
    """One example an image, in the order given; `features` are those besides IMAGE_FEATURES."""

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, *, features: dict, examples: Examples, data_dir: pathlib.Path):
        self._features = {**IMAGE_FEATURES, **features}
        self._given = examples
        super().__init__(data_dir=os.fspath(data_dir), file_format="array_record")

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(self._features))

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[dict]]:
        return {split: self._generate_examples(examples) for split, examples in self._given.items()}

    def _generate_examples(self, examples: Iterable[dict]) -> Iterator[dict]:
        yield from examples

    def _download_and_prepare(self, dl_manager: Any, download_config: Any) -> None:
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


def write_examples(folder: pathlib.Path, features: dict, examples: Examples) -> None:
    """Fills `folder / "examples"`, what `ExampleReader(folder, split)` reads."""
    with tfds.core.registered.skip_registration(), contextlib.redirect_stdout(io.StringIO()):
        builder = ExampleBuilder(features=features, examples=examples, data_dir=folder / "tfds")
        with _storage_errors(folder):
            builder.download_and_prepare(download_config=tfds.download.DownloadConfig(try_download_gcs=False))
    # One fixed name, so that nothing else has to know how tensorflow-datasets lays out its folders.
    pathlib.Path(builder.data_dir).rename(folder / "examples")
    shutil.rmtree(folder / "tfds")


@contextlib.contextmanager
def _storage_errors(folder: pathlib.Path) -> Iterator[None]:
    """Within it array_record's errors of writing, which have no number, become OSErrors, which have."""
    try:
        yield
    except RuntimeError as error:
        for number in (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EFBIG, errno.ESTALE):
            if os.strerror(number) in str(error):
                raise OSError(number, os.strerror(number), str(folder)) from error
        raise


def prepare_folder(
    name: str,
    *,
    made_from: dict,
    build: Callable[[pathlib.Path, Advance], None],
    cache_dir: str | os.PathLike | None,
) -> pathlib.Path:
    """The folder of a dataset in the cache, filled by `build(temporary folder, advance)` unless it is there.

    Args:
      name: of the dataset, and of its folder in the cache.
      made_from: JSON-able; everything the examples follow from: paths, hashes of files, options, and the
        `code_hash` of the module that reads them.
      build: calls `advance()` once a picture.
      cache_dir: see `cache.cache_root`.

    Raises:
      DataError: it is there, and damaged; or it cannot be made.
    """
    key = cache.fingerprint({"name": name, "code": code_hash(__file__), "made_from": made_from})
    folder = cache.cache_root(cache_dir) / name / key
    advance = Progress(name, folder)

    def build_and_describe(temporary: pathlib.Path) -> None:
        build(temporary, advance)
        write_contents(temporary)

    cache.build_once(folder, build_and_describe)
    try:
        check_contents(folder)
    except (ValueError, RecursionError, IsADirectoryError) as error:
        raise damaged(folder, error) from error
    return folder


def damaged(folder: pathlib.Path, error: Exception) -> DataError:
    return DataError(f"prepared data {folder} is damaged: delete that folder ({error})")


class Progress:
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
