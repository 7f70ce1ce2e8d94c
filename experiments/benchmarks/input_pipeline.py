"""Images a second of the input pipeline alone: decoding, augmentation, batches; no model.

    python experiments/benchmarks/input_pipeline.py
    python experiments/benchmarks/input_pipeline.py --data-dir ../shared/data/lspet --image-size 256 192

About half a minute on 2 CPU cores; there it measured 1,200 images a second in threads, 2,000 in 2 processes.
"""

import dataclasses
import os
import statistics
import sys
import time

import cv2
import numpy as np
import rich
import rich.table

from hardmine_jax.data.images import decode_image
from hardmine_jax.data.pose import lspet, synthetic
from hardmine_jax.data.pose.augment import AugmentConfig, augment, evaluate_crop
from hardmine_jax.data.pose.batches import evaluation_crops, train_crops
from hardmine_jax.data.pose.records import PoseDataset
from hardmine_jax.data.problems import DataError
from hardmine_jax.data.stream import endless_batches, ordered_batches
from hardmine_jax.tasks.flags import parse_flags


@dataclasses.dataclass(frozen=True)
class Config:
    """What is read, and how.

    Attributes:
      data_dir: folder of LSP or LSP-extended; synthetic people without one.
      image_size: height and width of the network's input.
      batch_size: images a batch.
      seconds: how long each row is measured.
      num_workers: a row for each; 0 is threads of this process.
    """

    data_dir: str | None = None
    image_size: tuple[int, int] = (128, 128)
    batch_size: int = 32
    seconds: float = 5.0
    num_workers: tuple[int, ...] = (0, 2)


def rate(take, *, images: int, seconds: float) -> float:
    """Images a second over calls of `take()`, `images` each, after one that does not count."""
    take()
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        take()
        count += images
    return count / (time.perf_counter() - start)


def milliseconds(function, records: list[dict], *, repeats: int = 5) -> float:
    """Median over `repeats` of the time a record takes, in this thread alone."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        for record in records:
            function(record)
        times.append((time.perf_counter() - start) / len(records) * 1e3)
    return statistics.median(times)


def stages(dataset: PoseDataset, size: tuple[int, int]) -> dict[str, float]:
    """Milliseconds an image of each part of the work."""
    cv2.setNumThreads(0)
    records = [dataset.train[index] for index in range(min(200, len(dataset.train)))]
    rng, options = np.random.default_rng(0), {"size": size, "skeleton": dataset.skeleton}
    return {
        "read the record": milliseconds(lambda record: dataset.train[record["index"]], records),
        "decode it, full size": milliseconds(lambda record: decode_image(record["image"]), records),
        "augment (with decoding)": milliseconds(
            lambda record: augment(record, rng, config=AugmentConfig(), **options), records
        ),
        "evaluation crop (with decoding)": milliseconds(
            lambda record: evaluate_crop(record, **options), records
        ),
    }


def pipelines(dataset: PoseDataset, config: Config) -> dict[str, float]:
    """Images a second of whole batches."""
    crops = train_crops(config.image_size, dataset.skeleton, AugmentConfig())
    rates = {}
    for workers in config.num_workers:
        options = {"batch_size": config.batch_size, "num_workers": workers}
        batches = endless_batches(dataset.train, crops, seed=0, **options)
        name = f"training, {workers} processes" if workers else "training, threads (num_workers 0)"
        rates[name] = rate(
            lambda batches=batches: next(batches), images=config.batch_size, seconds=config.seconds
        )
        batches.close()
    start = time.perf_counter()
    reading = evaluation_crops(config.image_size, dataset.skeleton)
    batches = ordered_batches(dataset.validation, reading, batch_size=config.batch_size)
    count = sum(int(batch["where"].sum()) for batch in batches)
    rates["evaluation, threads"] = count / (time.perf_counter() - start)
    return rates


def main(config: Config) -> None:
    """Prints both tables."""
    dataset = lspet.load(config.data_dir) if config.data_dir else synthetic.load()
    height, width = config.image_size
    title = f"{dataset.name} {height}x{width}, {os.cpu_count()} cores"
    table = rich.table.Table("one image, one thread", "ms", title=title)
    for name, value in stages(dataset, config.image_size).items():
        table.add_row(name, f"{value:.3f}")
    rich.print(table)
    table = rich.table.Table(f"batches of {config.batch_size}", "images/s")
    for name, value in pipelines(dataset, config).items():
        table.add_row(name, f"{value:,.0f}")
    rich.print(table)


if __name__ == "__main__":
    try:
        main(parse_flags(Config))
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
