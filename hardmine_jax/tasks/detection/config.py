"""What a detection run is asked to do, and the network, mining and prediction that follow from it."""

import dataclasses
import pathlib
from typing import Literal

from hardmine_jax import training
from hardmine_jax.data.detection.augment import DetectionAugmentConfig
from hardmine_jax.data.detection.proposals import SearchConfig
from hardmine_jax.data.detection.records import DetectionDataset
from hardmine_jax.data.problems import DataError
from hardmine_jax.job.distributed import PATIENCE_SECONDS
from hardmine_jax.models import fast_rcnn
from hardmine_jax.tasks.config_json import plain, read_config, write_json
from hardmine_jax.tasks.detection import networks, predict
from hardmine_jax.tasks.detection.predict import Decoding
from hardmine_jax.tasks.detection.rois import Mining, MiningName
from hardmine_jax.tasks.flags import check_counts, flag
from hardmine_jax.tasks.run import check_batch_size

PresetName = Literal["laptop", "vgg16"]


@dataclasses.dataclass(frozen=True)
class Config:
    """Train a detector on hard regions, evaluate it, and write a report.

    Attributes:
      preset: gives the defaults of everything else.
      dataset: synthetic (made here), voc (a folder with Annotations/, ImageSets/Main/ and JPEGImages/, from
        --data-dir) or coco (--annotations and --images of any COCO detection file).
      data_dir: folder of voc.
      train_split: which ImageSets/Main/*.txt of voc to train on; train by default.
      validation_split: which one to validate on; val by default.
      annotations: COCO detection JSON.
      images: folder that the JSON's file names are relative to.
      validation_annotations: a second JSON to validate on; without it a tenth of the images.
      validation_images: its folder, if not --images.
      cache_dir: where prepared data and proposals lie; $HARDMINE_CACHE or ~/.cache/hardmine_jax.
      workdir: everything that the run writes; runs/detection_<dataset>_<preset> by default.
      model: the network: laptop (five convolutions, RoIAlign), vgg16 as published, resnet50 with RoIAlign.
      init_from: weights to start from: torchvision's vgg16, or torchvision's or timm's resnet50 (.pth,
        .safetensors, .npz); or the --workdir of a run. A resnet50 then keeps its batch statistics.
      image_size: height and width of the input that images are scaled into, multiples of 16.
      max_boxes: room for so many objects an image, by default as many as the dataset's fullest image has.
      mining: which regions of each image carry the gradient.
      k: how many (ohem, masked, random, bootstrap); B/N of the paper.
      nms: of the suppression among hard regions: more overlap than this and only the harder one stays.
      rounds: of bootstrap: training, then adding false positives to the pool.
      batch_size: images a step, over all devices and processes.
      accumulate: micro-batches a step is split into, to save memory.
      steps: length of the run. The preset's warm-up is at most a tenth of it.
      seed: of weights, order and augmentation.
      dtype: of the computation; weights stay float32.
      ema_decay: of the averaged weights that are evaluated; 0 evaluates the last ones.
      sync_batch_norm: batch statistics over all devices (jit always does).
      parallel: how the step runs on the devices.
      num_workers: input processes; 0 reads in two threads.
      distributed: this is one process of a job of several, started with the same flags, which share every
        batch (launch/README.md).
      coordinator: HOST:PORT of process 0. This and the next two only where JAX does not find them by itself,
        as it does on Cloud TPU and under Slurm.
      num_processes: how many there are.
      process_id: which one this is, from 0.
      patience: seconds that a process may keep the others waiting in training before it counts as hanging and
        the job ends, to be started again; 0 waits for ever.
      resume: go on from the last checkpoint in --workdir.
      eval_only: no training, evaluate the last checkpoint.
      evaluate_every: steps between evaluations on --evaluate-images images, beside those after the first
        and the last step; 0 only those.
      evaluate_images: validation images in those; the last evaluation takes all.
      checkpoint_every: steps between checkpoints; 0 with evaluations only.
      log_every: steps between log lines.
      keep_last: latest checkpoints kept, beside the best.
      test_nms: overlap above which the worse of two detections of one class goes.
      min_score: detections below it are dropped.
      max_detections: an image.
      optimizer: optimizer and learning rate.
      search: how selective search makes the proposals, and how many at most.
      augment: how training examples are varied; evaluated is at the largest of its short sides.
    """

    preset: PresetName = "laptop"
    dataset: Literal["synthetic", "voc", "coco"] = "synthetic"
    data_dir: pathlib.Path | None = None
    train_split: str | None = None
    validation_split: str | None = None
    annotations: pathlib.Path | None = None
    images: pathlib.Path | None = None
    validation_annotations: pathlib.Path | None = None
    validation_images: pathlib.Path | None = None
    cache_dir: pathlib.Path | None = None
    workdir: pathlib.Path | None = None
    model: networks.ModelName = "laptop"
    init_from: pathlib.Path | None = None
    image_size: tuple[int, int] = (112, 112)
    max_boxes: int | None = None
    mining: MiningName = "ohem"
    k: int = 32
    nms: float = 0.7
    rounds: int = 4
    batch_size: int = 4
    accumulate: int = 1
    steps: int = 1400
    seed: int = 0
    dtype: Literal["float32", "bfloat16"] = "float32"
    ema_decay: float = 0.99
    sync_batch_norm: bool = True
    parallel: Literal["auto", "jit", "pmap", "shard_map"] = "auto"
    num_workers: int = 0
    distributed: bool = False
    coordinator: str | None = None
    num_processes: int | None = None
    process_id: int | None = None
    patience: float = PATIENCE_SECONDS
    resume: bool = True
    eval_only: bool = False
    evaluate_every: int = 350
    evaluate_images: int = 60
    checkpoint_every: int = 200
    log_every: int = 20
    keep_last: int = 2
    test_nms: float = 0.3
    min_score: float = 0.01
    max_detections: int = 100
    optimizer: training.OptimizerConfig = training.OptimizerConfig(
        name="adamw", learning_rate=1e-3, warmup_steps=50, weight_decay=0.01, clip_norm=5.0
    )
    search: SearchConfig = SearchConfig(max_proposals=256)
    augment: DetectionAugmentConfig = DetectionAugmentConfig()


def make_model(config: Config, num_classes: int, *, axis_name: str | None = None) -> fast_rcnn.FastRCNN:
    """The network that the config asks for."""
    frozen = config.init_from is not None
    return networks.make_model(
        config.model, num_classes, dtype=config.dtype, axis_name=axis_name, frozen_norm=frozen
    )


def make_mining(config: Config) -> Mining:
    return Mining(config.mining, config.k, config.nms)


def make_predict(config: Config, num_classes: int):
    """`(variables, batch) -> detections` as the config asks for; see `predict.make_predict`."""
    decoding = Decoding(
        iou_threshold=config.test_nms,
        min_score=config.min_score,
        max_detections=config.max_detections,
        sigmoid=config.mining == "focal",
    )
    return predict.make_predict(make_model(config, num_classes), decoding)


def settle(config: Config) -> Config:
    """The config, checked: what can be known to fail is found before anything is prepared or compiled."""
    least = {
        "accumulate": 1, "steps": 1, "log_every": 1, "evaluate_images": 1, "keep_last": 1, "k": 1,
        "rounds": 1, "max_detections": 1, "evaluate_every": 0, "checkpoint_every": 0, "num_workers": 0,
    }  # fmt: skip
    check_counts(config, least)
    check_batch_size(config)
    if config.search.max_proposals < config.k:
        raise ValueError(
            f"--k {config.k} is more than --search.max-proposals {config.search.max_proposals}: lower --k"
        )
    if any(side < 32 or side % 16 for side in config.image_size):
        raise ValueError(
            f"--image-size {config.image_size}: height and width must be multiples of 16, and 32 or more"
        )
    for name in ("nms", "test_nms", "min_score"):
        if not 0 <= getattr(config, name) <= 1:
            raise ValueError(f"{flag(name)} {getattr(config, name)} must lie in 0 .. 1")
    if not 0 <= config.ema_decay < 1:
        raise ValueError(f"--ema-decay {config.ema_decay} must lie in [0, 1)")
    if config.mining == "bootstrap" and config.rounds > config.steps:
        raise ValueError(f"--rounds {config.rounds} is more than --steps {config.steps}: lower --rounds")
    return config


def settle_with(config: Config, dataset: DetectionDataset) -> Config:
    """The config with its `max_boxes`, checked against what there is to train and to validate on."""
    if not len(dataset.validation):
        raise DataError(
            f"{dataset.name} has no image to validate on: add images, or name a validation split or file"
        )
    most = max(int(source.objects_per_image.max()) for source in (dataset.train, dataset.validation))
    if config.max_boxes is not None and config.max_boxes < most:
        raise ValueError(f"--max-boxes {config.max_boxes}: an image of {dataset.name} has {most}: give more")
    numbers = len(dataset.train) * config.search.max_proposals
    if config.mining == "bootstrap" and numbers >= 2**31:
        raise ValueError(
            f"--mining bootstrap numbers {numbers} proposals in 31 bits: lower --search.max-proposals"
        )
    return dataclasses.replace(config, max_boxes=config.max_boxes or max(most, 1))


def save_config(config: Config, classes: tuple[str, ...]) -> None:
    """config.json: what prediction needs beside the weights."""
    write_json(config.workdir / "config.json", {"config": plain(config), "classes": list(classes)})


def load_config(workdir: pathlib.Path) -> tuple[Config, tuple[str, ...]]:
    """What `save_config` wrote.

    Raises:
      DataError: no config.json there, or not one of this script.
    """
    config, classes = read_config(workdir, {"config": Config, "classes": None}, script="detection_ohem")
    if not isinstance(classes, tuple) or not classes or not all(isinstance(name, str) for name in classes):
        path = workdir / "config.json"
        raise DataError(f"{path} has no classes: give the --workdir of a detection_ohem run")
    return config, classes
