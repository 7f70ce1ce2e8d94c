"""What a pose run is asked to do, and the network, loss and prediction that follow from it."""

import dataclasses
import functools
import math
import pathlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import tyro

from hardmine_jax import training
from hardmine_jax.data.coco_json import Category, whole_id
from hardmine_jax.data.images import Orientation
from hardmine_jax.data.pose.augment import AugmentConfig
from hardmine_jax.data.pose.sided_names import unpaired_names
from hardmine_jax.data.problems import DataError
from hardmine_jax.errors import UserError
from hardmine_jax.pose import Skeleton
from hardmine_jax.tasks.config_json import find_workdir, names_of_donor, plain, read_config, write_json
from hardmine_jax.tasks.flags import check_counts, check_numbers, flag
from hardmine_jax.tasks.pose import networks
from hardmine_jax.tasks.pose.donor import match_outputs
from hardmine_jax.tasks.pose.loss import Head, MiningName, Over, Supervision, make_loss
from hardmine_jax.tasks.pose.mining import check_mining, mining_of
from hardmine_jax.tasks.pose.networks import OWN_INPUTS, HRNetConfig, Inputs
from hardmine_jax.tasks.pose.predict import make_predict
from hardmine_jax.tasks.run_config import RunConfig, check_devices, check_run_config, check_saved
from hardmine_jax.tasks.trainer import Functions
from hardmine_jax.tasks.warm_start import Outputs
from hardmine_jax.training import LossFunction, OptimizerConfig

PresetName = Literal[
    "laptop", "hrnet_w32", "hrnet_w48", "hrnet_w32_384", "hrnet_w48_384", "simple_baseline_50",
    "simple_baseline_101", "simple_baseline_152", "cpn_50", "cpn_50_384", "cpn_101_384", "hourglass_2",
    "hourglass_8",
]  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Config:
    """Train a keypoint network on hard keypoints, evaluate it, and write a report.

    Attributes:
      preset: gives the defaults of everything else.
      dataset: synthetic (made here), lspet (from --data-dir) or coco (--annotations and --images of any COCO
        keypoint file; or --data-dir in COCO 2017's layout; or neither, which downloads COCO 2017 once you
        have said yes), or mpii (from --data-dir).
      data_dir: folder of lspet, of COCO 2017 or of MPII.
      annotations: COCO keypoint JSON.
      images: folder that the JSON's file names are relative to.
      validation_annotations: a second JSON to validate on; without it a tenth of the images.
      validation_images: its folder, if not --images.
      download: COCO 2017 (20 GB, 60 GB in the end) without being asked.
      category: which category of the JSON, by name or id, if several have keypoints; several names with the
        same keypoints, or all, are trained on as one.
      sigmas: OKS constants, one a keypoint, over the file's own.
      flip_pairs: names that a mirror swaps, two by two, over those found by left/right in the names.
      edges: names that a line joins, two by two, over the file's own.
      exif_orientation: how the JSON counts the pixels of photographs that EXIF turns: upright, stored, or
        auto (the default), which is by their listed width and height, and upright where both fit.
      point_side: pixels of the square around somebody who is one point and has no box; a quarter of the
        picture's shorter side by default.
      model: the network.
      image_size: height and width of the crops, multiples of 32 (64 for the published hourglasses).
      mining: which labelled keypoints of each image carry the gradient.
      k: how many (ohkm, random), or at least how many (threshold); by default two thirds of the keypoints,
        at most the 8 of CPN.
      k_schedule: constant, or k falls from all keypoints to --k, linearly or as a cosine.
      k_steps: share of the run over which it falls.
      easy_weight: of the loss over all labelled keypoints, added to the mined one: easy keypoints keep a
        gradient. By default it is not added.
      min_loss: of threshold mining, as a share of what an empty heatmap costs.
      mining_over: image, --k of each image; or batch, as many times the images, wherever they are hard (ohkm,
        threshold; of a part of the batch with --accumulate). By default image; sleap is over the batch.
      hard_weight: of the mined loss, beside --easy-weight. By default 1; sleap adds 5 times the mined loss
        to the whole one, as SLEAP does: --hard-weight 5 --easy-weight 1.
      keypoint_weights: NAME=WEIGHT of keypoints whose loss counts more or less than 1, in the choice too, as
        left_wrist=1.5 right_wrist=1.5.
      mined_heads: of a network with several heatmaps, those that --mining is for: refine are CPN's RefineNet
        or the last hourglass, global the heatmaps before.
      supervised_heads: those that are in the loss; refine always is.
      heatmap_sigma: of the target Gaussians, in heatmap pixels (a quarter of image pixels).
      global_sigmas: the same for the heatmaps before the last; by default wider by as much as published.
      evaluate_people: validation people that are evaluated while training; the last evaluation takes all.
      max_people: of an image so many people count in AP and AR, those with the best scores; by default 20,
        as COCO has it.
      boxes: COCO results JSON of a person detector: the last evaluation is by COCO's procedure on these, too;
        boxes of other categories than the one that is trained on are left out.
      box_category: which of the boxes are of that category where the detector numbers or names it otherwise.
      box_min_score: boxes with a lower score are left out; by default all are taken.
      inputs: how the network sees images and pixels, for networks that released code trained.
      decode: heatmap maxima to coordinates.
      flip_test: average with the mirrored image's heatmaps when evaluating.
      augment: how training examples are varied.
      run: what every run has.
    """

    preset: PresetName = "laptop"
    dataset: Literal["synthetic", "lspet", "coco", "mpii"] = "synthetic"
    data_dir: pathlib.Path | None = None
    annotations: pathlib.Path | None = None
    images: pathlib.Path | None = None
    validation_annotations: pathlib.Path | None = None
    validation_images: pathlib.Path | None = None
    download: bool = False
    category: str | tuple[str, ...] | None = None
    sigmas: tuple[float, ...] | None = None
    flip_pairs: tuple[tuple[str, str], ...] | None = None
    edges: tuple[tuple[str, str], ...] | None = None
    exif_orientation: Orientation | None = None
    point_side: float | None = None
    model: networks.ModelName = "laptop"
    hrnet: HRNetConfig = HRNetConfig()
    image_size: tuple[int, int] = (96, 96)
    mining: MiningName = "ohkm"
    k: int | None = None
    k_schedule: Literal["constant", "linear", "cosine"] = "constant"
    k_steps: float = 0.5
    easy_weight: float | None = None
    min_loss: float = 0.25
    mining_over: Over | None = None
    hard_weight: float | None = None
    keypoint_weights: tuple[str, ...] | None = None
    mined_heads: tuple[Head, ...] = ("refine",)
    supervised_heads: tuple[Head, ...] = ("global", "refine")
    heatmap_sigma: float = 1.5
    global_sigmas: tuple[float, ...] | None = None
    evaluate_people: int = 200
    max_people: int | None = None
    boxes: pathlib.Path | None = None
    box_category: str | None = None
    box_min_score: float | None = None
    inputs: Inputs = OWN_INPUTS
    decode: Literal["dark", "quarter", "argmax"] = "dark"
    flip_test: bool = True
    augment: AugmentConfig = AugmentConfig(scale=0.25, rotation=30.0, half_body_probability=0.0)
    run: Annotated[RunConfig, tyro.conf.arg(name="")] = RunConfig(
        batch_size=32,
        ema_decay=0.998,
        optimizer=OptimizerConfig(
            name="adamw", learning_rate=4e-3, warmup_steps=100, weight_decay=0.01, clip_norm=1.0
        ),
    )


def make_model(config: Config, num_keypoints: int, axis_name: str | None = None) -> nn.Module:
    """The network that the config asks for; batch statistics over a mapped axis where one is named."""
    return networks.make_model(
        config.model,
        num_keypoints,
        dtype=config.run.dtype,
        axis_name=axis_name,
        ablations=config.hrnet,
        remat=config.run.remat == "blocks",
    )


def build(config: Config, skeleton: Skeleton, *, with_second: bool = False) -> Functions:
    """What a settled config comes to; `with_second` as `predict.make_predict` has it."""

    model_for = functools.partial(make_model, config, skeleton.num_keypoints)

    def loss_for(axis_name: str | None) -> LossFunction:
        synchronised = model_for(axis_name if config.run.sync_batch_norm else None)
        mining, supervision = mining_of(config, skeleton), supervision_of(config)
        return make_loss(synchronised, mining, supervision, inputs=config.inputs, axis_name=axis_name)

    model = model_for()
    predict = make_predict(
        model,
        skeleton,
        sigma=config.heatmap_sigma,
        decode=config.decode,
        flip_test=config.flip_test,
        inputs=config.inputs,
        with_second=with_second,
    )

    def init_for(num_keypoints: int) -> Callable[[jax.Array], Mapping[str, Any]]:
        network = make_model(config, num_keypoints)
        return lambda key: network.init(key, jnp.zeros((1, *config.image_size, 3)))

    def find_outputs(path: pathlib.Path) -> Outputs | None:
        theirs = names_of_donor(path, load_config, script="hardmine pose train")
        return None if theirs is None else match_outputs(theirs, skeleton, init_for)

    return Functions(
        apply=model.apply,
        init=init_for(skeleton.num_keypoints),
        loss_for=loss_for,
        predict=predict,
        published=networks.NETWORKS[config.model].published,
        find_outputs=find_outputs,
    )


def supervision_of(config: Config) -> Supervision:
    """What the heatmaps are to be, as the flags ask for."""
    early = networks.NETWORKS[config.model].early(config.heatmap_sigma)
    if config.global_sigmas is not None:
        early = early._replace(sigmas=config.global_sigmas)
    return Supervision(
        config.heatmap_sigma, early, config.supervised_heads, config.mined_heads, config.inputs.origin
    )


def settle(config: Config, skeleton: Skeleton) -> Config:
    """The config with its `k`; what can be known to fail is found before anything is compiled or moved."""
    config = check_config(config, skeleton)
    check_devices(config.run)
    if config.augment.flip_probability > 0 or config.flip_test:
        warn_of_sides(config, skeleton)
    return config


def check_config(config: Config, skeleton: Skeleton) -> Config:
    """The config with its `k`; raises UserError for what no machine could run."""
    check_numbers(config)
    num_keypoints = skeleton.num_keypoints
    default_k = min(8, -(-2 * num_keypoints // 3))
    k = default_k if config.k is None else config.k
    config = dataclasses.replace(config, k=k)
    if not 1 <= k <= num_keypoints:
        raise UserError(f"--k {k} must lie in 1 .. {num_keypoints}, the number of keypoints: lower --k")
    check_mining(config, skeleton)
    if not 0 < config.k_steps <= 1:
        raise UserError(f"--k-steps {config.k_steps} is a share of the run: it must lie in (0, 1]")
    check_run_config(config.run)
    multiple = networks.NETWORKS[config.model].side_multiple
    if any(side < multiple or side % multiple for side in config.image_size):
        raise UserError(f"--image-size {config.image_size}: height and width must be multiples of {multiple}")
    check_heads(config)
    check_counts(config, {"evaluate_people": 1})
    check_scoring(config)
    if not (0 < config.heatmap_sigma < math.inf and config.min_loss >= 0):
        raise UserError(
            f"--heatmap-sigma {config.heatmap_sigma} must be above 0, --min-loss {config.min_loss} at least 0"
        )
    return config


def check_scoring(config: Config) -> None:
    """Raises UserError for flags of an evaluation that cannot be."""
    if config.max_people is not None:
        check_counts(config, {"max_people": 1})
    for name in ("box_category", "box_min_score"):
        if getattr(config, name) is not None and config.boxes is None:
            raise UserError(f"{flag(name)} means nothing without --boxes: add it, or drop this")
    if config.box_min_score is not None and not math.isfinite(config.box_min_score):
        raise UserError(f"--box-min-score {config.box_min_score} must be a finite number")


def warn_of_sides(config: Config, skeleton: Skeleton) -> None:
    """One line about keypoints that keep their names in mirrored images, and should not."""
    advice = (
        "mirrored images keep the names. Give --flip-pairs, or --augment.flip-probability 0 --no-flip-test"
    )
    alone = () if config.flip_pairs is not None else unpaired_names(skeleton.names, skeleton.flip_pairs)
    if not skeleton.flip_pairs and skeleton.num_keypoints > 1:
        names = f"no left/right pairs among {', '.join(skeleton.names[:4])} ..."
    elif alone:
        names = f"{len(alone)} keypoints look sided and have no partner ({', '.join(alone[:20])})"
    else:
        return
    print(f"note: {names}: {advice}", file=sys.stderr)


def check_heads(config: Config) -> None:
    """Raises UserError for heads that the network does not have, or that would leave it untrained."""
    early = networks.NETWORKS[config.model].early(config.heatmap_sigma)
    default = Config()
    for name in ("mined_heads", "supervised_heads", "global_sigmas"):
        if not early.sigmas and getattr(config, name) != getattr(default, name):
            raise UserError(
                f"{flag(name)} means nothing to {config.model} with its one set of heatmaps: drop it"
            )
    if "refine" not in config.supervised_heads:
        raise UserError("--supervised-heads must name refine, which is the prediction: add it")
    if config.mining != "none" and not set(config.mined_heads) & set(config.supervised_heads):
        raise UserError(
            f"--mined-heads {' '.join(config.mined_heads)}: none of these is supervised, so that nothing is "
            "mined: add one, or --mining none"
        )
    sigmas = config.global_sigmas
    if sigmas is not None and (len(sigmas) != len(early.sigmas) or not all(0 < s < math.inf for s in sigmas)):
        raise UserError(
            f"--global-sigmas {' '.join(map(str, sigmas))}: {config.model} needs {len(early.sigmas)}, above 0"
        )
    hrnet = config.hrnet
    if hrnet != HRNetConfig() and not networks.NETWORKS[config.model].is_hrnet:
        raise UserError(f"--hrnet.* means nothing to {config.model}: drop it, or change --model")
    if not 0 <= hrnet.heatmap_branch <= 3:
        raise UserError(f"--hrnet.heatmap-branch {hrnet.heatmap_branch} must lie in 0 .. 3")
    width = config.image_size[1] // (4 * 2**hrnet.heatmap_branch)
    if not 0 <= config.inputs.flip_shift < width:
        raise UserError(
            f"--inputs.flip-shift {config.inputs.flip_shift} must lie in 0 .. {width - 1}, less than the "
            "width of the heatmaps"
        )


def save_config(config: Config, skeleton: Skeleton, categories: Sequence[Category] = ()) -> None:
    """config.json: what prediction needs beside the weights."""
    named = [category._asdict() for category in categories]
    content: dict[str, Any] = {"config": plain(config), "skeleton": plain(skeleton)}
    content |= {"categories": named} if named else {}
    write_json(config.run.folder / "config.json", content)


def load_config(workdir: pathlib.Path) -> tuple[Config, Skeleton]:
    """What `save_config` wrote.

    Raises:
      DataError: no config.json there, or not one of this script.
    """
    config, skeleton = read_config(
        workdir, {"config": Config, "skeleton": Skeleton}, script="hardmine pose train"
    )
    with check_saved(workdir, config.run):
        return check_config(config, skeleton), skeleton


def load_categories(workdir: pathlib.Path) -> tuple[Category, ...]:
    """The COCO categories that a run was trained on, as `save_config` wrote them; none that it does not know.

    Raises:
      DataError: as for `load_config`.
    """
    script = "hardmine pose train"
    (listed,) = read_config(workdir, {"categories": None}, script=script, absent={"categories": []})
    try:
        given = [(whole_id(entry["id"]), entry["name"]) for entry in listed]
        found = tuple(Category(number, name) for number, name in given if number is not None)
        if len(found) == len(given) and all(isinstance(one.name, str) for one in found):
            return found
    except (TypeError, KeyError):
        pass
    raise DataError(f"{workdir / 'config.json'} has odd categories: give the --workdir of a {script} run")


class TrainedRun(NamedTuple):
    """A run to predict with, to export or to score.

    Attributes:
      config: of the training; skeleton: what it was trained on.
      variables: of one of its checkpoints; step: where that was saved.
      predict: `(variables, images) -> keypoints and scores`, see `predict.make_predict`.
      categories: of the COCO file that it was trained on; none where it had none, or is of an older version.
    """

    config: Config
    skeleton: Skeleton
    variables: dict
    predict: Callable[[dict, jax.Array], dict[str, jax.Array]]
    step: int
    categories: tuple[Category, ...] = ()


def load_run(
    checkpoint: pathlib.Path, *, which: Literal["best", "latest"] = "best", with_second: bool = False
) -> TrainedRun:
    """The run in a workdir, or one checkpoint of it; `with_second` as `predict.make_predict` has it.

    Raises:
      DataError: no run of this task is there.
      CheckpointError: it has no checkpoint that can be read.
    """
    workdir = find_workdir(checkpoint, script="hardmine pose train")
    config, skeleton = load_config(workdir)
    categories = load_categories(workdir)
    step, variables = training.load_step(checkpoint, which=which)
    predict = build(config, skeleton, with_second=with_second).predict
    return TrainedRun(config, skeleton, variables, predict, step, categories)
