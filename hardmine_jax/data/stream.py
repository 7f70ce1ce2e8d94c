"""From a source of records to batches: endless and shuffled to train, ordered and finite to evaluate.

A batch is a dictionary of numpy arrays: "image" u8 [B, H, W, 3] RGB, "keypoints" f32 [B, K, 2] in pixels of
that image, "visibility" i32 [B, K], "index" i32 [B] (position in the source, -1 on padding), "inverse" f32
[B, 2, 3] (pixels of the image to those of the original), "where" bool [B] (False on padding).
"""

import dataclasses
import functools
import logging
from collections.abc import Callable
from typing import NamedTuple

import cv2
import grain
import numpy as np
from absl import flags

from hardmine_jax.data.problems import DataError, UnreadableImage
from hardmine_jax.data.records import Records
from hardmine_jax.data.workers import end_with_parent, explain_worker, start_tracker, starting_workers

_logger = logging.getLogger(__name__)
# Reading threads build a batch each; two keep ahead of a step and leave the cores to it.
_READ_THREADS = 2
_ADVICE = "or read with fewer input processes, or with none"
# (record, rng) -> example, a dictionary of numpy arrays of one shape for all records.
Augment = Callable[[dict, np.random.Generator], dict]


class Reading(NamedTuple):
    """How records become examples that are not varied.

    Attributes:
      read: record -> example; raises UnreadableImage for a record whose place is to be padding.
      padding: what stands where there is no record, without "where".
    """

    read: Callable[[dict], dict]
    padding: dict


@dataclasses.dataclass(frozen=True)
class _TrainReader:
    """(position in the source, rng) -> example; a class because worker processes get it pickled."""

    source: Records
    augment: Augment

    def __call__(self, index: int, rng: np.random.Generator) -> dict:
        _keep_opencv_to_one_thread()
        for tries in range(len(self.source)):
            try:
                record = self.source[(index + tries) % len(self.source)]
                example = self.augment(record, rng)
            except UnreadableImage:
                continue
            # An unreadable record's place is taken by the next readable one; the batches' owner counts them.
            return {**example, "where": np.True_, "unreadable": np.int32(tries), "wanted": np.int32(index)}
        raise UnreadableImage(f"none of the {len(self.source)} images can be read any more")


@dataclasses.dataclass(frozen=True)
class _Shard:
    """One process's examples of a stream: of each batch of all processes its part, `batch_size` in a row."""

    stream: grain.MapDataset
    batch_size: int
    shard_index: int
    shard_count: int

    def __len__(self) -> int:
        return len(self.stream) // self.shard_count

    def __getitem__(self, index: int) -> dict:
        batch, row = divmod(index, self.batch_size)
        return self.stream[(batch * self.shard_count + self.shard_index) * self.batch_size + row]


def _shard(stream: grain.MapDataset, batch_size: int, shard_index: int, shard_count: int) -> grain.MapDataset:
    if shard_count == 1:
        return stream
    return grain.MapDataset.source(_Shard(stream, batch_size, shard_index, shard_count))


class TrainBatches:
    """Endless iterator over training batches that can be stopped and resumed anywhere.

    The stream of examples is numbered from 0; what example i is and how it is augmented follows from (seed,
    i) alone. So the position is one number, and threads, worker processes or shards do not change what comes.

    Attributes:
      unreadable: positions in the source of the images that turned out unreadable on this iterator's way.
    """

    def __init__(self, batches: grain.MapDataset, *, num_records: int, num_workers: int, prefetch: int):
        self._batches = batches
        self._num_records = num_records
        self._num_workers = num_workers
        self._prefetch = prefetch
        self._position = 0
        self._iterator: grain.DatasetIterator | None = None
        self.unreadable: set[int] = set()

    def __iter__(self) -> "TrainBatches":
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        batch = self._read_by_workers() if self._num_workers else self._read()
        self._position += 1
        self._count(batch.pop("wanted"), batch.pop("unreadable"))
        return batch

    def get_state(self) -> dict[str, int]:
        """The position, JSON-able: batches taken since the stream's beginning."""
        return {"batches": self._position}

    def set_state(self, state: dict[str, int]) -> None:
        """Goes to a position; the next batch is the one that followed when `get_state` gave it."""
        self.close()
        self._position = int(state["batches"])

    def close(self) -> None:
        """Ends reading threads and worker processes; the next batch starts new ones."""
        if self._iterator is not None:
            self._iterator.close()
        self._iterator = None

    def _read(self) -> dict[str, np.ndarray]:
        if self._iterator is None:
            self._iterator = self._start()
        batch: dict[str, np.ndarray] = next(self._iterator)
        return batch

    def _read_by_workers(self) -> dict[str, np.ndarray]:
        for again in (False, True):
            try:
                if self._iterator is None:
                    start_tracker()
                with starting_workers():
                    batch = self._read()
                # Workers' arrays lie in shared memory that has to be given back before the interpreter ends.
                return {name: np.array(value) for name, value in batch.items()}
            except (RuntimeError, OSError) as error:
                problem = explain_worker(error)
                if problem is None:
                    raise
                self.close()
                if again or problem.sure:
                    raise DataError(f"{problem.line}; {_ADVICE}") from problem.cause
                _logger.warning("%s: all input processes start again", problem.line)
        raise AssertionError("the second time it ends otherwise")

    def _start(self) -> grain.DatasetIterator:
        rest = self._batches.slice(slice(self._position, None))
        reading = grain.ReadOptions(num_threads=_READ_THREADS, prefetch_buffer_size=self._prefetch)
        if not self._num_workers:
            return iter(rest.to_iter_dataset(reading))
        ahead = max(1, self._prefetch // self._num_workers)
        if not flags.FLAGS.is_parsed():
            # grain's worker processes read absl flags, which only a script run by absl's `app` has parsed.
            flags.FLAGS.mark_as_parsed()
        processes = grain.MultiprocessingOptions(num_workers=self._num_workers, per_worker_buffer_size=ahead)
        reading = grain.ReadOptions(num_threads=1, prefetch_buffer_size=ahead)
        return iter(rest.to_iter_dataset(reading).mp_prefetch(processes, worker_init_fn=end_with_parent))

    def _count(self, wanted: np.ndarray, tries: np.ndarray) -> None:
        pairs = zip(wanted.tolist(), tries.tolist(), strict=True)
        passed_over = {(first + step) % self._num_records for first, count in pairs for step in range(count)}
        for index in sorted(passed_over - self.unreadable):
            _logger.warning("record %d cannot be read any more: the next one takes its place", index)
        self.unreadable |= passed_over


def endless_batches(
    source: Records,
    augment: Augment,
    *,
    batch_size: int,
    seed: int,
    num_workers: int = 0,
    prefetch: int = 4,
    shard_index: int = 0,
    shard_count: int = 1,
) -> TrainBatches:
    """Endless batches, shuffled anew each epoch, each example augmented from (seed, its place in the stream).

    Args:
      source: records by position; picklable, as `augment`, where `num_workers` > 0.
      augment: `pose.batches.train_crops(...)`, `detection.batches.train_images(...)` or another; where it
        raises UnreadableImage the next record takes the place.
      batch_size: examples a batch, in this process; always whole, also where the source is smaller than that.
      seed: 0 to 2**32 - 1.
      num_workers: 0 reads in two threads of this process; else so many processes do it (the script then needs
        an `if __name__ == "__main__":` guard). The batches are the same.
      prefetch: batches made ahead, 1 or more.
      shard_index: which of `shard_count` processes this is. Their batches, one after another, are that of one
        process with `shard_count` times the batch: no example twice, none lost.

    Raises:
      ValueError: an empty source, or a number out of its range.
    """
    _check(source, batch_size, shard_index, shard_count)
    if not 0 <= seed < 2**32 or num_workers < 0 or prefetch < 1:
        raise ValueError(
            f"seed={seed} must be 0..2**32-1, num_workers={num_workers} >= 0, prefetch={prefetch} >= 1"
        )
    read = _TrainReader(source, augment)
    stream = grain.MapDataset.range(len(source)).seed(seed).shuffle().repeat().random_map(read)
    # Cut after the shuffle: the shards then share one stream, and each epoch of it holds every example once.
    sharded = _shard(stream, batch_size, shard_index, shard_count)
    batches = sharded.batch(batch_size, drop_remainder=True)
    return TrainBatches(batches, num_records=len(source), num_workers=num_workers, prefetch=prefetch)


def ordered_batches(
    source: Records,
    reading: Reading,
    *,
    batch_size: int,
    shard_index: int = 0,
    shard_count: int = 1,
) -> grain.IterDataset:
    """The whole source once, in order; iterate it as often as wanted.

    The last batch is filled up with "where" False, as is the place of an image that turns out unreadable.
    Every shard gets the same number of batches.

    Args:
      reading: `pose.batches.evaluation_crops(...)`, `detection.batches.evaluation_images(...)` or another.
      batch_size, shard_index, shard_count: as for `endless_batches`.

    Raises:
      ValueError: an empty source, or a number out of its range.
    """
    _check(source, batch_size, shard_index, shard_count)
    a_step = batch_size * shard_count
    read = functools.partial(_read_or_pad, source=source, reading=reading)
    examples = grain.MapDataset.range(-(-len(source) // a_step) * a_step).map(read)
    batches = _shard(examples, batch_size, shard_index, shard_count).batch(batch_size, drop_remainder=True)
    return batches.to_iter_dataset(grain.ReadOptions(num_threads=_READ_THREADS, prefetch_buffer_size=4))


def _check(source: Records, batch_size: int, shard_index: int, shard_count: int) -> None:
    if not len(source):
        raise ValueError("the source has no records: nothing to make batches of")
    if batch_size < 1 or not 0 <= shard_index < shard_count:
        raise ValueError(
            f"batch_size={batch_size} must be >= 1, shard_index={shard_index} in 0..{shard_count - 1}"
        )


@functools.cache
def _keep_opencv_to_one_thread() -> None:
    """Once in each process that reads: OpenCV's threads cost more than they bring for the size of a crop, and
    fight with the reading threads."""
    cv2.setNumThreads(0)


def _read_or_pad(index: int, *, source: Records, reading: Reading) -> dict:
    _keep_opencv_to_one_thread()
    if index < len(source):
        try:
            return {**reading.read(source[index]), "where": np.True_}
        except UnreadableImage as error:
            _logger.warning("left out of the evaluation: %s", error)
    return {**reading.padding, "where": np.False_}
