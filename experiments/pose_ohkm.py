"""OHKM: keypoint heatmaps trained on each person's k worst keypoints (CPN, arXiv 1711.07319, section 3.2.2).

    python experiments/pose_ohkm.py                                # made-up people, under 5 minutes
    python experiments/pose_ohkm.py --dataset lspet --data-dir DIR # Leeds Sports Pose, 20 minutes
    python experiments/pose_ohkm.py --dataset coco --annotations JSON --images DIR  # keypoints of your own
    python experiments/pose_ohkm.py --preset hrnet_w32 --data-dir COCO --init-from hrnet_w32-36af842e.pth \
        --boxes COCO_val2017_detections_AP_H_56_person.json                         # as published, TPU or GPU

The first two are measured on 2 CPU cores (README has the scores). The other presets carry the schedules of
released code, and `--mining none` but for CPN; with ImageNet weights, the detector's boxes above and the flip
test it gets on COCO val2017 (AP; README of deep-high-resolution-net.pytorch): HRNet-W32 74.4, W48 75.1, at
384x288 75.8 and 76.3; SimpleBaseline-50 70.4, -101 71.4, -152 72.0. CPN-50 69.7, at 384x288 72.3, CPN-101
there 72.9 (README of tf-cpn, boxes of human AP 55.3 on minival). On MPII's validation people (PCKh@0.5;
README of pytorch_stacked_hourglass) Hourglass of two stacks 88.5, of eight 90.1. Stopped or killed, the same
command goes on to the same bits.
"""

import dataclasses
import functools
import math
import pathlib
import sys
from collections.abc import Mapping
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import rich
import tyro

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))

import plots  # noqa: E402
import pose_networks  # noqa: E402
import pose_protocol  # noqa: E402
import pose_task  # noqa: E402
import report  # noqa: E402
import running  # noqa: E402
import warm_start  # noqa: E402
from pose_evaluation import Evaluator, mean_pose  # noqa: E402
from pose_networks import HRNetConfig  # noqa: E402
from rows import evenly_spaced  # noqa: E402

from hardmine_jax import training  # noqa: E402
from hardmine_jax.data import coco_keypoints, lspet, mpii, synthetic_pose  # noqa: E402
from hardmine_jax.data.augment import AugmentConfig  # noqa: E402
from hardmine_jax.data.pipeline import TrainBatches, train_batches  # noqa: E402
from hardmine_jax.data.records import DataError, PoseDataset  # noqa: E402
from hardmine_jax.mining import schedule  # noqa: E402
from hardmine_jax.models import cpn  # noqa: E402
from hardmine_jax.pose import Skeleton  # noqa: E402
from hardmine_jax.training import exchange  # noqa: E402
from hardmine_jax.training.distributed import PATIENCE_SECONDS  # noqa: E402

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
    model: pose_networks.ModelName = "laptop"
    init_from: pathlib.Path | None = None
    hrnet: HRNetConfig = HRNetConfig()
    image_size: tuple[int, int] = (96, 96)
    mining: Literal["none", "ohkm", "random", "threshold"] = "ohkm"
    k: int | None = None
    k_schedule: Literal["constant", "linear", "cosine"] = "constant"
    k_steps: float = 0.5
    min_loss: float = 0.25
    mined_heads: tuple[pose_task.Head, ...] = ("refine",)
    supervised_heads: tuple[pose_task.Head, ...] = ("global", "refine")
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
    inputs: pose_task.Inputs = pose_task.OWN_INPUTS
    decode: Literal["dark", "quarter", "argmax"] = "dark"
    flip_test: bool = True
    optimizer: training.OptimizerConfig = training.OptimizerConfig(
        name="adamw", learning_rate=4e-3, warmup_steps=100, weight_decay=0.01, clip_norm=1.0
    )
    augment: AugmentConfig = AugmentConfig(scale=0.25, rotation=30.0, half_body_probability=0.0)


def _published(
    preset: PresetName,
    model: pose_networks.ModelName,
    *,
    steps: int,
    milestones: tuple[float, ...],
    augment: AugmentConfig,
    image_size: tuple[int, int] = (256, 192),
    heatmap_sigma: float = 2.0,
    batch_size: int = 128,
    learning_rate: float = 1e-3,
    factor: float = 0.1,
    weight_decay: float = 0.0,
    **more,
) -> Config:
    """A released training: Adam with steps at the milestones; mining only where it was published with it."""
    optimizer = training.OptimizerConfig(
        name="adam", learning_rate=learning_rate, schedule="step", milestones=milestones, factor=factor,
        weight_decay=weight_decay,
    )  # fmt: skip
    common = dict(
        dtype="bfloat16", ema_decay=0.0, evaluate_every=11_700, evaluate_people=2000, checkpoint_every=1000,
        log_every=100, num_workers=16,
    )  # fmt: skip
    given = dict(dataset="coco", mining="none") | more
    return Config(
        preset=preset, model=model, steps=steps, augment=augment, image_size=image_size,
        heatmap_sigma=heatmap_sigma, batch_size=batch_size, optimizer=optimizer, **common, **given,
    )  # fmt: skip


# COCO 2017 has 149,813 people with labelled keypoints to train on.
_COCO_PEOPLE = 149_813
_HRNET = dict(
    steps=210 * _COCO_PEOPLE // 128, milestones=(170 / 210, 200 / 210),
    augment=AugmentConfig(scale=0.35, rotation=45.0, half_body_probability=0.3, colour=0.0),
)  # fmt: skip
_SIMPLE_BASELINE = dict(
    steps=140 * _COCO_PEOPLE // 128, milestones=(90 / 140, 120 / 140),
    augment=AugmentConfig(scale=0.3, rotation=40.0, half_body_probability=0.0, colour=0.0),
)  # fmt: skip
# 24 million crops, the rate halved after every 3.6 million.
_CPN = dict(
    steps=24_000_000 // 32, milestones=tuple(0.15 * number for number in range(1, 7)), factor=0.5,
    batch_size=32, learning_rate=5e-4, weight_decay=1e-5, mining="ohkm", k=8,
    augment=AugmentConfig(scale=0.35, rotation=45.0, half_body_probability=0.0, colour=0.0),
)  # fmt: skip
_HOURGLASS = dict(
    steps=200_000, milestones=(0.5,), factor=0.2, batch_size=16, image_size=(256, 256), heatmap_sigma=1.0,
    dataset="mpii", augment=AugmentConfig(scale=0.25, rotation=30.0, half_body_probability=0.0),
)  # fmt: skip
_LARGE = dict(image_size=(384, 288), heatmap_sigma=3.0)
_CPN_SMALL, _CPN_LARGE = cpn.target_sigmas(), cpn.target_sigmas((23, 17, 13, 9))
PRESETS: Mapping[PresetName, Config] = {
    "laptop": Config(),
    "hrnet_w32": _published("hrnet_w32", "hrnet_w32", **_HRNET),
    "hrnet_w48": _published("hrnet_w48", "hrnet_w48", **_HRNET),
    "hrnet_w32_384": _published("hrnet_w32_384", "hrnet_w32", **_HRNET, **_LARGE),
    "hrnet_w48_384": _published("hrnet_w48_384", "hrnet_w48", **_HRNET, **_LARGE),
    "simple_baseline_50": _published("simple_baseline_50", "simple_baseline_50", **_SIMPLE_BASELINE),
    "simple_baseline_101": _published("simple_baseline_101", "simple_baseline_101", **_SIMPLE_BASELINE),
    "simple_baseline_152": _published("simple_baseline_152", "simple_baseline_152", **_SIMPLE_BASELINE),
    "cpn_50": _published(
        "cpn_50", "cpn_50", **_CPN, heatmap_sigma=_CPN_SMALL[-1], global_sigmas=_CPN_SMALL
    ),
    "cpn_50_384": _published(
        "cpn_50_384", "cpn_50", **_CPN, image_size=(384, 288), heatmap_sigma=_CPN_LARGE[-1],
        global_sigmas=_CPN_LARGE,
    ),
    "cpn_101_384": _published(
        "cpn_101_384", "cpn_101", **_CPN, image_size=(384, 288), heatmap_sigma=_CPN_LARGE[-1],
        global_sigmas=_CPN_LARGE,
    ),
    "hourglass_2": _published("hourglass_2", "hourglass_2", **_HOURGLASS),
    "hourglass_8": _published("hourglass_8", "hourglass_8", **_HOURGLASS),
}  # fmt: skip
# Steps of the laptop preset: under 5 minutes on 2 CPU cores (synthetic), under 20 (photographs).
LAPTOP_STEPS = {"synthetic": 700, "lspet": 3600, "coco": 3600, "mpii": 3600}


def make_model(config: Config, num_keypoints: int, *, axis_name: str | None = None) -> nn.Module:
    """The network that the config asks for."""
    return pose_networks.make_model(
        config.model, num_keypoints, dtype=config.dtype, axis_name=axis_name, hrnet=config.hrnet
    )


def make_predict(config: Config, skeleton: Skeleton):
    """`(variables, images) -> keypoints and scores` as the config asks for; see `pose_task.make_predict`."""
    model = make_model(config, skeleton.num_keypoints)
    return pose_task.make_predict(
        model, skeleton, sigma=config.heatmap_sigma, decode=config.decode, flip_test=config.flip_test,
        inputs=config.inputs,
    )  # fmt: skip


_SKELETONS = {
    "synthetic": coco_keypoints.COCO_SKELETON, "lspet": lspet.LSP_SKELETON, "mpii": mpii.MPII_SKELETON,
}  # fmt: skip
_DATA_FLAGS = {
    "synthetic": (),
    "lspet": ("data_dir",),
    "mpii": ("data_dir",),
    "COCO 2017": ("data_dir",),
    "coco": (
        "annotations", "images", "validation_annotations", "validation_images", "category", "sigmas",
        "flip_pairs", "edges",
    ),
}  # fmt: skip


def load_dataset(config: Config) -> PoseDataset:
    """The dataset that the flags name, prepared.

    Raises:
      ValueError: a flag that the dataset does not use.
      DataError: there is no such data.
    """
    official = config.dataset == "coco" and config.annotations is None and config.images is None
    kind = "COCO 2017" if official else config.dataset
    advice = "add --annotations JSON and --images DIR" if official else "change --dataset"
    running.check_data_flags(config, _DATA_FLAGS, kind, advice)
    if kind == "synthetic":
        return synthetic_pose.load(cache_dir=config.cache_dir)
    if kind == "lspet":
        return lspet.load(config.data_dir, cache_dir=config.cache_dir)
    if kind == "mpii":
        return mpii.load(config.data_dir, cache_dir=config.cache_dir)
    if official:
        return coco_keypoints.load_official(config.data_dir, cache_dir=config.cache_dir)
    return coco_keypoints.load(
        cache_dir=config.cache_dir, **{name: getattr(config, name) for name in _DATA_FLAGS["coco"]}
    )


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
    running.check_batch_size(config)
    multiple = pose_networks.side_multiple(config.model)
    if any(side < multiple or side % multiple for side in config.image_size):
        raise ValueError(
            f"--image-size {config.image_size}: height and width must be multiples of {multiple}"
        )
    check_heads(config)
    least = {"accumulate": 1, "steps": 1, "log_every": 1, "evaluate_people": 1, "keep_last": 1}
    running.check_counts(config, least | {"evaluate_every": 0, "checkpoint_every": 0, "num_workers": 0})
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
    early = pose_networks.early_heatmaps(config.model, sigma=config.heatmap_sigma)
    default = Config()
    for name in ("mined_heads", "supervised_heads", "global_sigmas"):
        if not early.sigmas and getattr(config, name) != getattr(default, name):
            raise ValueError(
                f"{running.flag(name)} means nothing to {config.model} with its one set of heatmaps: drop it"
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
    if hrnet != HRNetConfig() and pose_networks.split(config.model)[0] != "hrnet":
        raise ValueError(f"--hrnet.* means nothing to {config.model}: drop it, or change --model")
    if not 0 <= hrnet.heatmap_branch <= 3:
        raise ValueError(f"--hrnet.heatmap-branch {hrnet.heatmap_branch} must lie in 0 .. 3")


def k_at(step: jax.Array, config: Config, num_keypoints: int) -> int | jax.Array:
    """How many keypoints of an image are kept at a step, counted from 0: traced unless it is constant."""
    if config.k_schedule == "constant":
        return config.k
    steps = max(1, round(config.k_steps * config.steps))
    return schedule(step, start=num_keypoints, k=config.k, steps=steps, shape=config.k_schedule)


def early_heatmaps(config: Config) -> pose_networks.Early:
    """How the heatmaps before the last are supervised."""
    early = pose_networks.early_heatmaps(config.model, sigma=config.heatmap_sigma)
    return early if config.global_sigmas is None else early._replace(sigmas=config.global_sigmas)


def begin(config: Config, state: training.TrainState) -> training.TrainState:
    """The state that a run without a checkpoint starts from."""
    if config.init_from is None:
        return state
    return warm_start.start_from(config.init_from, state, pose_networks.published_weights(config.model))


def make_trainer(config: Config, skeleton: Skeleton) -> tuple[training.Parallel, training.TrainState]:
    """The compiled step on the devices, and the state it starts from."""
    ema_decay = config.ema_decay or None

    def make_step(axis_name: str | None):
        synchronised = axis_name if config.sync_batch_norm else None
        model = make_model(config, skeleton.num_keypoints, axis_name=synchronised)

        def step(state: training.TrainState, batch: dict):
            # The loss is made where the step is traced: that is how k knows the number of the step.
            loss = pose_task.make_loss(
                model,
                mining=config.mining,
                k=k_at(state.step, config, skeleton.num_keypoints),
                min_loss=config.min_loss,
                sigma=config.heatmap_sigma,
                early=early_heatmaps(config),
                supervised=config.supervised_heads,
                mined=config.mined_heads,
                inputs=config.inputs,
                axis_name=axis_name,
            )
            train_step = training.make_train_step(
                loss, axis_name=axis_name, accumulate=config.accumulate, ema_decay=ema_decay
            )
            return train_step(state, batch)

        return step

    parallel = training.parallelise(make_step, kind=config.parallel)
    model = make_model(config, skeleton.num_keypoints)
    weights_key, run_key = jax.random.split(jax.random.key(config.seed))
    variables = jax.jit(model.init)(weights_key, jnp.zeros((1, *config.image_size, 3)))
    optimizer = training.make_optimizer(config.optimizer, steps=config.steps)
    state = training.create_state(
        variables, apply_fn=model.apply, optimizer=optimizer, key=run_key, ema_decay=ema_decay
    )
    return parallel, state


def make_evaluator(config: Config, dataset: PoseDataset, parallel: training.Parallel) -> Evaluator:
    """Scores of a placed state on the validation split."""
    predict = make_predict(config, dataset.skeleton)
    run = parallel.evaluate_step(
        lambda state, batch: predict(training.evaluation_variables(state), batch["image"])
    )
    return Evaluator(
        dataset,
        run,
        share=running.share(config.batch_size),
        size=config.image_size,
        padding=config.augment.padding,
        num_people=config.evaluate_people,
    )


def train(config: Config, dataset: PoseDataset) -> dict | None:
    """Trains (with --eval-only restores), evaluates on everybody, writes the report.

    Returns:
      What result.json holds; None when a signal stopped the run, and in processes other than the first.
    """
    config = settle(config, dataset.skeleton)
    if not len(dataset.validation):
        raise DataError(
            f"{dataset.name} has nobody to validate on: add images, or give --validation-annotations"
        )
    running.check_run(config)
    protocol = pose_protocol.prepare(config, dataset)
    parallel, state = make_trainer(config, dataset.skeleton)
    batches = make_batches(config, dataset)
    starting = functools.partial(begin, config)
    with running.open_run(config, state, batches, best_metric="pck", begin=starting) as opened:
        if opened.restored and (config.workdir / "config.json").exists():
            running.tell_changes(config.workdir, load_config(config.workdir)[0], config)
        evaluator = make_evaluator(config, dataset, parallel)
        finishing = functools.partial(finish, config, dataset, protocol, evaluator)
        if config.eval_only:
            running.keep_begun(opened, batches, lambda: save_config(config, dataset.skeleton))
            return finishing(parallel.put_state(opened.state), opened.step, [])
        save_config(config, dataset.skeleton)
        fitted = training.fit(
            opened.state,
            parallel=parallel,
            batches=batches,
            batch_size=config.batch_size,
            steps=config.steps,
            workdir=config.workdir,
            checkpoints=opened.checkpoints,
            evaluate=evaluator.quick,
            learning_rate=training.make_schedule(config.optimizer, steps=config.steps),
            log_every=config.log_every,
            evaluate_every=config.evaluate_every or None,
            checkpoint_every=config.checkpoint_every or None,
        )
        if fitted.stopped:
            print(f"stopped at step {fitted.step}, saved: the same command goes on from there")
            return None
        unreadable = running.all_unreadable(batches)
    return finishing(fitted.state, fitted.step, unreadable)


def make_batches(config: Config, dataset: PoseDataset) -> TrainBatches:
    """The training stream, at its beginning."""
    return train_batches(
        dataset.train,
        size=config.image_size,
        skeleton=dataset.skeleton,
        config=config.augment,
        seed=config.seed,
        num_workers=config.num_workers,
        **running.share(config.batch_size)._asdict(),
    )


def finish(
    config: Config,
    dataset: PoseDataset,
    protocol: pose_protocol.Protocol,
    evaluator: Evaluator,
    state: training.TrainState,
    step: int,
    unreadable: list[int],
) -> dict | None:
    """The last evaluation, by all processes; the table, result.json and report.html, by the first."""
    skeleton = dataset.skeleton
    evaluated = people, keypoints, scores = evaluator.run(state)
    result = pose_task.score(keypoints, scores, people, skeleton)
    result |= pose_protocol.score(protocol, config, dataset, evaluator, state, evaluated)
    if not exchange.is_main():
        return None
    baseline = pose_task.place_pose(mean_pose(dataset.train), people)
    result["mean_pose_pck"] = pose_task.pck(baseline, people)
    lines = training.read_metrics(config.workdir / "metrics.jsonl")
    for name, rate in zip(skeleton.names, mean_unit_rates(lines, skeleton.num_keypoints), strict=True):
        result["per_joint"][name]["unit_rate"] = rate
    result |= {"steps": step, "images_per_second": running.mean_speed(lines), "people": len(people.names)}
    running.write_json(config.workdir / "result.json", result)
    hardest = np.argsort(pose_task.mean_oks(keypoints, people, skeleton), kind="stable")[:8]
    typical = evenly_spaced(len(people.names), 12)
    hardest, typical = (evaluator.pictures(people, keypoints, rows) for rows in (hardest, typical))
    notes = [dataset.skipped.report()] if dataset.skipped.count else []
    if unreadable:
        notes.append(
            f"{len(unreadable)} training images could not be read any more: records {unreadable[:5]}"
        )
    path = report.write_report(
        config.workdir / "report.html",
        title=f"Pose on {dataset.name}: {config.model}, {config.mining}",
        config=running.plain(config),
        result=result,
        pictures=plots.report_pictures(lines, result, skeleton, hardest, typical),
        notes=notes,
    )
    rich.print(report.result_table(result))
    print(f"wrote {path} (open it in a browser) and result.json beside it")
    return result


def mean_unit_rates(lines: list[dict], num_keypoints: int) -> list[float | None]:
    """How often each keypoint was kept over the whole training; a log line speaks for its steps."""
    lines = [line for line in lines if line.get("unit_rate") is not None]
    if not lines:
        return [None] * num_keypoints
    weights = np.diff([0] + [line["step"] for line in lines])
    return np.average([line["unit_rate"] for line in lines], axis=0, weights=weights).tolist()


def save_config(config: Config, skeleton: Skeleton) -> None:
    """config.json: what prediction needs beside the weights."""
    content = {"config": running.plain(config), "skeleton": running.plain(skeleton)}
    running.write_json(config.workdir / "config.json", content)


def load_config(workdir: pathlib.Path) -> tuple[Config, Skeleton]:
    """What `save_config` wrote.

    Raises:
      DataError: no config.json there, or not one of this script.
    """
    config, skeleton = running.read_config(
        workdir, {"config": Config, "skeleton": Skeleton}, script="pose_ohkm"
    )
    return config, skeleton


def parse(arguments: list[str] | None = None) -> Config:
    """The command line: --preset gives the defaults, the other flags change them."""
    default = PRESETS[running.first_flags(arguments, {"preset": tuple(PRESETS)})["preset"]]
    config = tyro.cli(Config, default=default, args=arguments, description=__doc__)
    steps = LAPTOP_STEPS[config.dataset] if config.steps is None else config.steps
    workdir = config.workdir or pathlib.Path("runs") / f"pose_{config.dataset}_{config.preset}"
    return running.shorten_warmup(dataclasses.replace(config, steps=steps, workdir=workdir), default)


def main(arguments: list[str] | None = None) -> int:
    """0 when done or stopped by a signal, otherwise after one line see `running.run_to_exit_code`."""
    config = parse(arguments)

    def body() -> None:
        settled = config
        if config.dataset in _SKELETONS:
            # What can be known to be wrong is said before data is prepared for it.
            settled = settle(config, _SKELETONS[config.dataset])
        with exchange.first_of_host():
            dataset = load_dataset(settled)
        running.check_data(dataset)
        running.tell_skipped(dataset.skipped)
        train(settled, dataset)

    return running.run_training(config, body)


if __name__ == "__main__":
    sys.exit(main())
