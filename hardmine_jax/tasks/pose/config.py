"""What a pose run is asked to do, and the network, loss and prediction that follow from it."""

import dataclasses
import math
import pathlib
import sys
from typing import Literal

import flax.linen as nn
import jax

from hardmine_jax import training
from hardmine_jax.data.pose.augment import AugmentConfig
from hardmine_jax.job.distributed import PATIENCE_SECONDS
from hardmine_jax.mining import schedule
from hardmine_jax.pose import Skeleton
from hardmine_jax.tasks.config_json import plain, read_config, write_json
from hardmine_jax.tasks.flags import check_counts, flag
from hardmine_jax.tasks.pose import networks, predict
from hardmine_jax.tasks.pose.loss import Head
from hardmine_jax.tasks.pose.networks import OWN_INPUTS, Early, HRNetConfig, Inputs
from hardmine_jax.tasks.run import check_batch_size

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
        keypoint file; or --data-dir in COCO 2017's layout; or neither, which downloads COCO 2017), or mpii
        (from --data-dir).
      data_dir: folder of lspet, of COCO 2017 or of MPII.
      annotations: COCO keypoint JSON.
      images: folder that the JSON's file names are relative to.
      validation_annotations: a second JSON to validate on; without it a tenth of the images.
      validation_images: its folder, if not --images.
      category: which category of the JSON, by name or id, if several have keypoints.
      sigmas: OKS constants, one a keypoint, over the file's own.
      flip_pairs: names that a mirror swaps, two by two, over those found by left/right in the names.
      edges: names that a line joins, two by two, over the file's own.
      cache_dir: where prepared data lies; $HARDMINE_CACHE or ~/.cache/hardmine_jax.
      workdir: everything that the run writes; runs/pose_<dataset>_<preset> by default.
      model: the network.
      init_from: weights to start from: a published file of HRNet, SimpleBaseline or a ResNet (.pth,
        .safetensors, .npz), or the --workdir of a run; what does not fit keeps its initial value and is told.
      image_size: height and width of the crops, multiples of 32 (64 for the published hourglasses).
      mining: which labelled keypoints of each image carry the gradient.
      k: how many (ohkm, random), or at least how many (threshold); by default two thirds of the keypoints,
        at most the 8 of CPN.
      k_schedule: constant, or k falls from all keypoints to --k, linearly or as a cosine.
      k_steps: share of the run over which it falls.
      min_loss: of threshold mining, as a share of what an empty heatmap costs.
      mined_heads: of a network with several heatmaps, those that --mining is for: refine are CPN's RefineNet
        or the last hourglass, global the heatmaps before.
      supervised_heads: those that are in the loss; refine always is.
      heatmap_sigma: of the target Gaussians, in heatmap pixels (a quarter of image pixels).
      global_sigmas: the same for the heatmaps before the last; by default wider by as much as published.
      batch_size: images a step, over all devices and processes.
      accumulate: micro-batches a step is split into, to save memory.
      steps: length of the run, by default the preset's for the dataset. The preset's warm-up is at most a
        tenth of it.
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
      evaluate_every: steps between evaluations on --evaluate-people people, beside those after the first
        and the last step; 0 only those.
      evaluate_people: validation people in those; the last evaluation takes all.
      checkpoint_every: steps between checkpoints; 0 with evaluations only.
      log_every: steps between log lines.
      keep_last: latest checkpoints kept, beside the best.
      boxes: COCO results JSON of a person detector: the last evaluation is by COCO's procedure on these, too.
      inputs: how the network sees images and pixels, for networks that released code trained.
      decode: heatmap maxima to coordinates.
      flip_test: average with the mirrored image's heatmaps when evaluating.
      optimizer: optimizer and learning rate.
      augment: how training examples are varied.
    """

    preset: PresetName = "laptop"
    dataset: Literal["synthetic", "lspet", "coco", "mpii"] = "synthetic"
    data_dir: pathlib.Path | None = None
    annotations: pathlib.Path | None = None
    images: pathlib.Path | None = None
    validation_annotations: pathlib.Path | None = None
    validation_images: pathlib.Path | None = None
    category: str | None = None
    sigmas: tuple[float, ...] | None = None
    flip_pairs: tuple[tuple[str, str], ...] | None = None
    edges: tuple[tuple[str, str], ...] | None = None
    cache_dir: pathlib.Path | None = None
    workdir: pathlib.Path | None = None
    model: networks.ModelName = "laptop"
    init_from: pathlib.Path | None = None
    hrnet: HRNetConfig = HRNetConfig()
    image_size: tuple[int, int] = (96, 96)
    mining: Literal["none", "ohkm", "random", "threshold"] = "ohkm"
    k: int | None = None
    k_schedule: Literal["constant", "linear", "cosine"] = "constant"
    k_steps: float = 0.5
    min_loss: float = 0.25
    mined_heads: tuple[Head, ...] = ("refine",)
    supervised_heads: tuple[Head, ...] = ("global", "refine")
    heatmap_sigma: float = 1.5
    global_sigmas: tuple[float, ...] | None = None
    batch_size: int = 32
    accumulate: int = 1
    steps: int | None = None
    seed: int = 0
    dtype: Literal["float32", "bfloat16"] = "float32"
    ema_decay: float = 0.998
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
    evaluate_every: int = 200
    evaluate_people: int = 200
    checkpoint_every: int = 200
    log_every: int = 20
    keep_last: int = 2
    boxes: pathlib.Path | None = None
    inputs: Inputs = OWN_INPUTS
    decode: Literal["dark", "quarter", "argmax"] = "dark"
    flip_test: bool = True
    optimizer: training.OptimizerConfig = training.OptimizerConfig(
        name="adamw", learning_rate=4e-3, warmup_steps=100, weight_decay=0.01, clip_norm=1.0
    )
    augment: AugmentConfig = AugmentConfig(scale=0.25, rotation=30.0, half_body_probability=0.0)


def make_model(config: Config, num_keypoints: int, *, axis_name: str | None = None) -> nn.Module:
    """The network that the config asks for."""
    return networks.make_model(
        config.model, num_keypoints, dtype=config.dtype, axis_name=axis_name, hrnet=config.hrnet
    )


def make_predict(config: Config, skeleton: Skeleton):
    """`(variables, images) -> keypoints and scores` as the config asks for; see `predict.make_predict`."""
    model = make_model(config, skeleton.num_keypoints)
    return predict.make_predict(
        model, skeleton, sigma=config.heatmap_sigma, decode=config.decode, flip_test=config.flip_test,
        inputs=config.inputs,
    )  # fmt: skip


def settle(config: Config, skeleton: Skeleton) -> Config:
    """The config with its `k`; what can be known to fail is found before anything is compiled or moved."""
    num_keypoints = skeleton.num_keypoints
    default_k = min(8, -(-2 * num_keypoints // 3))
    config = dataclasses.replace(config, k=default_k if config.k is None else config.k)
    if not 1 <= config.k <= num_keypoints:
        raise ValueError(
            f"--k {config.k} must lie in 1 .. {num_keypoints}, the number of keypoints: lower --k"
        )
    if config.mining == "none" and config.k_schedule != "constant":
        raise ValueError(
            f"--k-schedule {config.k_schedule} means nothing to --mining none, which keeps all: drop one"
        )
    if not 0 < config.k_steps <= 1:
        raise ValueError(f"--k-steps {config.k_steps} is a share of the run: it must lie in (0, 1]")
    check_batch_size(config)
    multiple = networks.side_multiple(config.model)
    if any(side < multiple or side % multiple for side in config.image_size):
        raise ValueError(
            f"--image-size {config.image_size}: height and width must be multiples of {multiple}"
        )
    check_heads(config)
    least = {"accumulate": 1, "steps": 1, "log_every": 1, "evaluate_people": 1, "keep_last": 1}
    check_counts(config, least | {"evaluate_every": 0, "checkpoint_every": 0, "num_workers": 0})
    if not (0 < config.heatmap_sigma < math.inf and 0 <= config.ema_decay < 1 and config.min_loss >= 0):
        raise ValueError(
            f"--heatmap-sigma {config.heatmap_sigma} must be above 0, --ema-decay {config.ema_decay} "
            f"in [0, 1), --min-loss {config.min_loss} at least 0"
        )
    mirrored = config.augment.flip_probability > 0 or config.flip_test
    if mirrored and not skeleton.flip_pairs and num_keypoints > 1:
        print(
            f"note: no left/right pairs among {', '.join(skeleton.names[:4])} ...: mirrored images keep the "
            "names. Give --flip-pairs, or --augment.flip-probability 0 --no-flip-test",
            file=sys.stderr,
        )
    return config


def check_heads(config: Config) -> None:
    """Raises ValueError for heads that the network does not have, or that would leave it untrained."""
    early = networks.early_heatmaps(config.model, sigma=config.heatmap_sigma)
    default = Config()
    for name in ("mined_heads", "supervised_heads", "global_sigmas"):
        if not early.sigmas and getattr(config, name) != getattr(default, name):
            raise ValueError(
                f"{flag(name)} means nothing to {config.model} with its one set of heatmaps: drop it"
            )
    if "refine" not in config.supervised_heads:
        raise ValueError("--supervised-heads must name refine, which is the prediction: add it")
    if config.mining != "none" and not set(config.mined_heads) & set(config.supervised_heads):
        raise ValueError(
            f"--mined-heads {' '.join(config.mined_heads)}: none of these is supervised, so that nothing is "
            "mined: add one, or --mining none"
        )
    sigmas = config.global_sigmas
    if sigmas is not None and (len(sigmas) != len(early.sigmas) or not all(0 < s < math.inf for s in sigmas)):
        raise ValueError(
            f"--global-sigmas {' '.join(map(str, sigmas))}: {config.model} needs {len(early.sigmas)}, above 0"
        )
    hrnet = config.hrnet
    if hrnet != HRNetConfig() and networks.split(config.model)[0] != "hrnet":
        raise ValueError(f"--hrnet.* means nothing to {config.model}: drop it, or change --model")
    if not 0 <= hrnet.heatmap_branch <= 3:
        raise ValueError(f"--hrnet.heatmap-branch {hrnet.heatmap_branch} must lie in 0 .. 3")


def k_at(step: jax.Array, config: Config, num_keypoints: int) -> int | jax.Array:
    """How many keypoints of an image are kept at a step, counted from 0: traced unless it is constant."""
    if config.k_schedule == "constant":
        return config.k
    steps = max(1, round(config.k_steps * config.steps))
    return schedule(step, start=num_keypoints, k=config.k, steps=steps, shape=config.k_schedule)


def early_heatmaps(config: Config) -> Early:
    """How the heatmaps before the last are supervised."""
    early = networks.early_heatmaps(config.model, sigma=config.heatmap_sigma)
    return early if config.global_sigmas is None else early._replace(sigmas=config.global_sigmas)


def save_config(config: Config, skeleton: Skeleton) -> None:
    """config.json: what prediction needs beside the weights."""
    content = {"config": plain(config), "skeleton": plain(skeleton)}
    write_json(config.workdir / "config.json", content)


def load_config(workdir: pathlib.Path) -> tuple[Config, Skeleton]:
    """What `save_config` wrote.

    Raises:
      DataError: no config.json there, or not one of this script.
    """
    config, skeleton = read_config(workdir, {"config": Config, "skeleton": Skeleton}, script="pose_ohkm")
    return config, skeleton
