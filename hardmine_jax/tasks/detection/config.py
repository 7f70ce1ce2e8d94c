"""What a detection run is asked to do, and the network, mining and prediction that follow from it."""

import dataclasses
import functools
import math
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Literal, NamedTuple

import jax
import tyro

from hardmine_jax import training
from hardmine_jax.data.detection.augment import DetectionAugmentConfig
from hardmine_jax.data.detection.proposals import SearchConfig
from hardmine_jax.data.detection.records import DetectionDataset
from hardmine_jax.data.detection.voc_xml import Corners
from hardmine_jax.data.images import Orientation
from hardmine_jax.data.problems import DataError
from hardmine_jax.errors import UserError
from hardmine_jax.models import fast_rcnn
from hardmine_jax.tasks.config_json import (
    change,
    find_workdir,
    names_of_donor,
    plain,
    read_config,
    write_json,
)
from hardmine_jax.tasks.detection import networks
from hardmine_jax.tasks.detection.donor import match_outputs
from hardmine_jax.tasks.detection.loss import make_choice, make_loss
from hardmine_jax.tasks.detection.predict import Decoding, false_positives, make_predict
from hardmine_jax.tasks.detection.rois import FOREGROUND, Mining, MiningName
from hardmine_jax.tasks.flags import check_counts, check_numbers, flag
from hardmine_jax.tasks.run_config import RunConfig, check_devices, check_run_config, check_saved
from hardmine_jax.tasks.trainer import Functions
from hardmine_jax.tasks.warm_start import Outputs
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
      voc_corners: how the numbers of voc's boxes count: from_1, VOC's own, the default; from_0, the last
        pixel in the box; edges, from 0 to the picture's width (VoTT, CVAT).
      exif_orientation: how boxes count the pixels of a photograph that EXIF turns: upright, as viewers show
        it; stored; or auto, the default, as the listed size or the boxes tell, and otherwise upright, with a
        note.
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
      min_negatives: of hard_negatives, so many background regions at least of each image, 0 by default: from
        an image without objects nothing is learned then.
      ratio: of hard_negatives, background regions for each one with an object, 3 by default as published.
      foreground_quota: of ohem and masked, so many regions with an object at most, the rest of --k is hard
        background; by default whatever is hard.
      background_overlap: of random, what a background region must overlap an object by, 0.1 by default as
        published: from an image without objects nothing is learned then; 0 takes any.
      nms: of the suppression among hard regions: more overlap than this and only the harder one stays.
      rounds: of bootstrap: training, then adding false positives to the pool.
      evaluate_images: validation images that are evaluated while training; the last evaluation takes all.
      test_nms: overlap above which the worse of two detections of one class goes.
      min_score: detections below it are dropped.
      max_detections: an image; COCO's scores are by so many, but not by fewer than the 100 that are its rule.
      search: how selective search makes the proposals, and how many at most.
      augment: how training examples are varied; evaluated is at the largest of its short sides.
      run: what every run has.
    """

    preset: PresetName = "laptop"
    dataset: Literal["synthetic", "voc", "coco"] = "synthetic"
    data_dir: pathlib.Path | None = None
    train_split: str | None = None
    validation_split: str | None = None
    voc_corners: Corners | None = None
    exif_orientation: Orientation | None = None
    annotations: pathlib.Path | None = None
    images: pathlib.Path | None = None
    validation_annotations: pathlib.Path | None = None
    validation_images: pathlib.Path | None = None
    model: networks.ModelName = "laptop"
    image_size: tuple[int, int] = (112, 112)
    max_boxes: int | None = None
    mining: MiningName = "ohem"
    k: int = 32
    min_negatives: int | None = None
    ratio: float | None = None
    foreground_quota: int | None = None
    background_overlap: float | None = None
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
        remat=config.run.remat == "blocks",
    )


def make_mining(config: Config) -> Mining:
    """What the config says of mining; what it does not say is as published."""
    given = {name: getattr(config, name) for name in _OF_SOME_MINING}
    chosen = {name: value for name, value in given.items() if value is not None}
    return Mining(config.mining, config.k, config.nms, **chosen)


def build(
    config: Config,
    num_classes: int,
    *,
    classes: Sequence[str] | None = None,
    labels: tuple[int, ...] | None = None,
) -> DetectionFunctions:
    """What a settled config comes to.

    Args:
      classes: their names, by which the weights of another run are taken over; None where nobody knows.
      labels: of the classes that prediction looks for, None for all.
    """
    model_for = functools.partial(make_model, config, num_classes)

    def find_outputs(path: pathlib.Path) -> Outputs | None:
        theirs = names_of_donor(path, load_config, script="hardmine detection train")
        return None if theirs is None or classes is None else match_outputs(theirs, classes)

    model, mining = model_for(), make_mining(config)
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
        find_outputs=find_outputs,
    )
    return DetectionFunctions(
        training_functions, make_choice(model, mining), false_positives(model, count=config.k)
    )


# Flags that some kinds of mining read.
_OF_SOME_MINING: Mapping[str, tuple[MiningName, ...]] = {
    "min_negatives": ("hard_negatives",),
    "ratio": ("hard_negatives",),
    "foreground_quota": ("ohem", "masked"),
    "background_overlap": ("random",),
}


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
    check_mining(config)
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


def check_mining(config: Config) -> None:
    """Raises UserError for a flag that this mining does not read, or out of its range."""
    for name, kinds in _OF_SOME_MINING.items():
        if getattr(config, name) is not None and config.mining not in kinds:
            use = " or ".join(kinds)
            raise UserError(f"{flag(name)} means nothing to --mining {config.mining}: drop it, or use {use}")
    if config.ratio is not None and not 0 <= config.ratio < math.inf:
        raise UserError(f"--ratio {config.ratio} must be at least 0 and finite")
    if config.foreground_quota is not None and not 0 <= config.foreground_quota <= config.k:
        raise UserError(f"--foreground-quota {config.foreground_quota} must lie in 0 .. {config.k}, --k")
    most, negatives, overlap = config.search.max_proposals, config.min_negatives, config.background_overlap
    if not 0 <= (negatives or 0) <= most:
        raise UserError(f"--min-negatives {negatives} must lie in 0 .. {most}, --search.max-proposals")
    if not 0 <= (overlap or 0) < FOREGROUND:
        raise UserError(f"--background-overlap {overlap} must be at least 0 and below {FOREGROUND}")


def notes_on_data(config: Config, dataset: DetectionDataset) -> list[str]:
    """What a settled config does not get out of this data, sentences for people."""
    said, mining = [], make_mining(config)
    empty, several = (
        int((dataset.train.targets_per_image == 0).sum()),
        f"of {len(dataset.train):,} images to train on",
    )
    if empty and mining.kind == "hard_negatives" and not mining.min_negatives:
        said.append(
            f"{empty:,} {several} show no object, and teach nothing with --mining hard_negatives: "
            f"--min-negatives {config.k} would take so many background regions of each"
        )
    if empty and mining.kind == "random" and mining.background_overlap > 0:
        said.append(
            f"{empty:,} {several} show no object, and teach nothing with --mining random, whose background "
            f"overlaps an object by {mining.background_overlap:g}: --background-overlap 0 takes any"
        )
    most = max(int(source.targets_per_image.max(initial=0)) for source in (dataset.train, dataset.validation))
    return said + many_objects(most, config)


def many_objects(most: int, config: Config) -> list[str]:
    """A sentence where an image shows more objects, `most`, than can be found."""
    if most <= config.max_detections:
        return []
    return [f"an image shows {most} objects, of which --max-detections {config.max_detections} can be found"]


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


def save_config(config: Config, classes: Sequence[str], category_ids: Sequence[int | str] = ()) -> None:
    """config.json: what prediction needs beside the weights. The ids are 1, 2 ... where none are given."""
    ids = list(category_ids) or list(range(1, len(classes) + 1))
    content = {"config": plain(config), "classes": list(classes), "category_ids": ids}
    write_json(config.run.folder / "config.json", content)


_SCRIPT = "hardmine detection train"


def load_config(workdir: pathlib.Path) -> tuple[Config, tuple[str, ...]]:
    """What `save_config` wrote.

    Raises:
      DataError: no config.json there, or not one of this script.
    """
    config, classes = read_config(workdir, {"config": Config, "classes": None}, script=_SCRIPT)
    if not isinstance(classes, tuple) or not classes or not all(isinstance(name, str) for name in classes):
        path = workdir / "config.json"
        raise DataError(f"{path} has no classes: give the --workdir of a {_SCRIPT} run")
    with check_saved(workdir, config.run):
        check_config(config)
    return config, classes


def load_category_ids(workdir: pathlib.Path, classes: Sequence[str]) -> tuple[int | str, ...]:
    """The ids that the classes have in the file that a run was trained on; 1, 2 ... of a run of an older
    version.

    Raises:
      DataError: as for `load_config`.
    """
    absent = {"category_ids": list(range(1, len(classes) + 1))}
    (ids,) = read_config(workdir, {"category_ids": None}, script=_SCRIPT, absent=absent)
    if isinstance(ids, tuple) and len(ids) == len(classes) and all(type(one) in (int, str) for one in ids):
        return ids
    raise DataError(
        f"{workdir / 'config.json'} has no category id for each class: give the --workdir of a {_SCRIPT} run"
    )


class TrainedRun(NamedTuple):
    """A run to predict with or to score.

    Attributes:
      config: of the training; classes: what it was trained on, in the order of the labels.
      variables: of one of its checkpoints; step: where that was saved.
      predict: `(variables, batch) -> detections`, see `predict.make_predict`.
      category_ids: of the classes in the file that it was trained on.
    """

    config: Config
    classes: tuple[str, ...]
    variables: dict
    predict: Callable[[dict, dict], dict[str, jax.Array]]
    step: int
    category_ids: tuple[int | str, ...] = ()


def load_run(
    checkpoint: pathlib.Path,
    *,
    which: Literal["best", "latest"] = "best",
    max_detections: int | None = None,
) -> TrainedRun:
    """The run in a workdir, or one checkpoint of it.

    Args:
      max_detections: an image, for `predict`; None for as many as in training.

    Raises:
      DataError: no run of this task is there.
      CheckpointError: it has no checkpoint that can be read.
      UserError: max_detections below 1.
    """
    workdir = find_workdir(checkpoint, script=_SCRIPT)
    config, classes = load_config(workdir)
    if max_detections is not None:
        config = change(config, max_detections=max_detections)
    ids = load_category_ids(workdir, classes)
    check_counts(config, {"max_detections": 1})
    step, variables = training.load_step(checkpoint, which=which)
    return TrainedRun(config, classes, variables, build(config, len(classes)).of_run.predict, step, ids)
