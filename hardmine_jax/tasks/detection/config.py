"""What a detection run is asked to do, and the network, mining and prediction that follow from it."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable
from typing import Annotated, Literal, NamedTuple

import jax
import tyro

from hardmine_jax import training
from hardmine_jax.data.detection.augment import DetectionAugmentConfig
from hardmine_jax.data.detection.proposals import SearchConfig
from hardmine_jax.data.detection.records import DetectionDataset
from hardmine_jax.data.problems import DataError
from hardmine_jax.errors import UserError
from hardmine_jax.models import fast_rcnn
from hardmine_jax.tasks.config_json import find_workdir, plain, read_config, write_json
from hardmine_jax.tasks.detection import networks
from hardmine_jax.tasks.detection.loss import make_choice, make_loss
from hardmine_jax.tasks.detection.predict import Decoding, false_positives, make_predict
from hardmine_jax.tasks.detection.rois import Mining, MiningName
from hardmine_jax.tasks.flags import check_counts, check_numbers, flag
from hardmine_jax.tasks.run_config import RunConfig, check_devices, check_run_config, check_saved
from hardmine_jax.tasks.trainer import Functions
from hardmine_jax.training import OptimizerConfig

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
      model: the network: laptop (five convolutions, RoIAlign), vgg16 as published, resnet50 with RoIAlign.
        With --init-from a resnet50 keeps its batch statistics.
      image_size: height and width of the input that images are scaled into, multiples of 16.
      max_boxes: room for so many objects an image, by default as many as the dataset's fullest image has.
      mining: which regions of each image carry the gradient.
      k: how many (ohem, masked, random, bootstrap); B/N of the paper.
      nms: of the suppression among hard regions: more overlap than this and only the harder one stays.
      rounds: of bootstrap: training, then adding false positives to the pool.
      evaluate_images: validation images that are evaluated while training; the last evaluation takes all.
      test_nms: overlap above which the worse of two detections of one class goes.
      min_score: detections below it are dropped.
      max_detections: an image.
      search: how selective search makes the proposals, and how many at most.
      augment: how training examples are varied; evaluated is at the largest of its short sides.
      run: what every run has.
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
    model: networks.ModelName = "laptop"
    image_size: tuple[int, int] = (112, 112)
    max_boxes: int | None = None
    mining: MiningName = "ohem"
    k: int = 32
    nms: float = 0.7
    rounds: int = 4
    evaluate_images: int = 60
    test_nms: float = 0.3
    min_score: float = 0.01
    max_detections: int = 100
    search: SearchConfig = SearchConfig(max_proposals=256)
    augment: DetectionAugmentConfig = DetectionAugmentConfig()
    run: Annotated[RunConfig, tyro.conf.arg(name="")] = RunConfig(
        batch_size=4,
        steps=1400,
        ema_decay=0.99,
        evaluate_every=350,
        optimizer=OptimizerConfig(
            name="adamw", learning_rate=1e-3, warmup_steps=50, weight_decay=0.01, clip_norm=5.0
        ),
    )


class DetectionFunctions(NamedTuple):
    """What a config comes to, made once.

    Attributes:
      of_run: what every task has.
      choose: `(variables, batch) -> what is mined`, see `loss.make_choice`.
      find_false_positives: `(variables, batch) -> where they are`, see `predict.false_positives`.
    """

    of_run: Functions
    choose: Callable[[dict, dict], dict[str, jax.Array]]
    find_false_positives: Callable[[dict, dict], dict[str, jax.Array]]


def make_model(config: Config, num_classes: int, axis_name: str | None = None) -> fast_rcnn.FastRCNN:
    """The network that the config asks for; batch statistics over a mapped axis where one is named."""
    return networks.make_model(
        config.model,
        num_classes,
        dtype=config.run.dtype,
        axis_name=axis_name,
        frozen_norm=config.run.init_from is not None,
    )


def build(config: Config, num_classes: int, *, labels: tuple[int, ...] | None = None) -> DetectionFunctions:
    """What a settled config comes to; `labels` are of the classes that prediction looks for, None for all."""

    model_for = functools.partial(make_model, config, num_classes)
    model, mining = model_for(), Mining(config.mining, config.k, config.nms)
    decoding = Decoding(
        iou_threshold=config.test_nms,
        min_score=config.min_score,
        max_detections=config.max_detections,
        sigmoid=config.mining == "focal",
        labels=labels,
    )
    training_functions = Functions(
        apply=model.apply,
        init=functools.partial(networks.init_variables, model, config.image_size),
        loss_for=lambda axis: make_loss(model_for(axis if config.run.sync_batch_norm else None), mining),
        predict=make_predict(model, decoding),
        published=networks.published_weights(config.model),
    )
    return DetectionFunctions(
        training_functions, make_choice(model, mining), false_positives(model, count=config.k)
    )


def settle(config: Config) -> Config:
    """The config, checked: what can be known to fail is found before anything is prepared or compiled."""
    check_config(config)
    check_devices(config.run)
    return config


def check_config(config: Config) -> None:
    """Raises UserError for what no machine could run."""
    check_numbers(config)
    check_counts(config, {"evaluate_images": 1, "k": 1, "rounds": 1, "max_detections": 1})
    check_run_config(config.run)
    if config.search.max_proposals < config.k:
        raise UserError(
            f"--k {config.k} is more than --search.max-proposals {config.search.max_proposals}: lower --k"
        )
    if any(side < 32 or side % 16 for side in config.image_size):
        raise UserError(
            f"--image-size {config.image_size}: height and width must be multiples of 16, and 32 or more"
        )
    for name in ("nms", "test_nms", "min_score"):
        if not 0 <= getattr(config, name) <= 1:
            raise UserError(f"{flag(name)} {getattr(config, name)} must lie in 0 .. 1")
    if config.mining == "bootstrap" and config.rounds > config.run.length:
        raise UserError(f"--rounds {config.rounds} is more than --steps {config.run.steps}: lower --rounds")


def settle_with_data(config: Config, dataset: DetectionDataset) -> Config:
    """The config with its `max_boxes`, checked against what there is to train and to validate on."""
    if not len(dataset.validation):
        raise DataError(
            f"{dataset.name} has no image to validate on: add images, or name a validation split or file"
        )
    most = max(int(source.objects_per_image.max()) for source in (dataset.train, dataset.validation))
    if config.max_boxes is not None and config.max_boxes < most:
        raise UserError(f"--max-boxes {config.max_boxes}: an image of {dataset.name} has {most}: give more")
    numbers = len(dataset.train) * config.search.max_proposals
    if config.mining == "bootstrap" and numbers >= 2**31:
        raise UserError(
            f"--mining bootstrap numbers {numbers} proposals in 31 bits: lower --search.max-proposals"
        )
    return dataclasses.replace(config, max_boxes=config.max_boxes or max(most, 1))


def room_for_boxes(config: Config) -> int:
    """`max_boxes` of a config that is settled with its data."""
    assert config.max_boxes is not None, "no max_boxes: `settle_with_data` fills it in"
    return config.max_boxes


def save_config(config: Config, classes: tuple[str, ...]) -> None:
    """config.json: what prediction needs beside the weights."""
    write_json(config.run.folder / "config.json", {"config": plain(config), "classes": list(classes)})


def load_config(workdir: pathlib.Path) -> tuple[Config, tuple[str, ...]]:
    """What `save_config` wrote.

    Raises:
      DataError: no config.json there, or not one of this script.
    """
    config, classes = read_config(
        workdir, {"config": Config, "classes": None}, script="hardmine detection train"
    )
    if not isinstance(classes, tuple) or not classes or not all(isinstance(name, str) for name in classes):
        path = workdir / "config.json"
        raise DataError(f"{path} has no classes: give the --workdir of a hardmine detection train run")
    with check_saved(workdir, config.run):
        check_config(config)
    return config, classes


class TrainedRun(NamedTuple):
    """A run to predict with or to score.

    Attributes:
      config: of the training; classes: what it was trained on, in the order of the labels.
      variables: of one of its checkpoints; step: where that was saved.
      predict: `(variables, batch) -> detections`, see `predict.make_predict`.
    """

    config: Config
    classes: tuple[str, ...]
    variables: dict
    predict: Callable[[dict, dict], dict[str, jax.Array]]
    step: int


def load_run(checkpoint: pathlib.Path, *, which: Literal["best", "latest"] = "best") -> TrainedRun:
    """The run in a workdir, or one checkpoint of it.

    Raises:
      DataError: no run of this task is there.
      CheckpointError: it has no checkpoint that can be read.
    """
    config, classes = load_config(find_workdir(checkpoint, script="hardmine detection train"))
    step, variables = training.load_step(checkpoint, which=which)
    return TrainedRun(config, classes, variables, build(config, len(classes)).of_run.predict, step)
