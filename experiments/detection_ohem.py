"""OHEM: Fast R-CNN trained on each image's k hardest regions (Shrivastava and others, arXiv 1604.03540).

    python experiments/detection_ohem.py                                # made-up shapes, under 5 minutes
    python experiments/detection_ohem.py --dataset voc --data-dir DIR   # any folder in PASCAL VOC's layout
    python experiments/detection_ohem.py --dataset coco --annotations JSON --images DIR  # any COCO boxes
    python experiments/detection_ohem.py --preset vgg16 --dataset voc --data-dir VOC2007 \
        --train-split trainval --validation-split test --init-from vgg16.pth  # as published, GPU or TPU

The first two are measured on 2 CPU cores (README has the scores). The last is the paper's VOC 2007 model:
VGG16 with ImageNet weights, selective search, short side 600, 2 images and 128 regions a step, SGD at 0.001
for 30,000 steps and at 0.0001 for 10,000; table 1 there gives mAP 69.9 with OHEM, 67.2 with random regions.
Stopped or killed, the same command goes on to the same bits.
"""

import contextlib
import dataclasses
import functools
import pathlib
import resource
import sys
from collections.abc import Callable
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import rich
import tyro

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))

import detection_bootstrap  # noqa: E402
import detection_evaluation  # noqa: E402
import detection_plots  # noqa: E402
import detection_report  # noqa: E402
import detection_task  # noqa: E402
import running  # noqa: E402
import warm_start  # noqa: E402
from detection_evaluation import Batching, Evaluator, MinedRecorder  # noqa: E402
from rows import evenly_spaced  # noqa: E402

from hardmine_jax import training  # noqa: E402
from hardmine_jax.data import coco_detection, synthetic_shapes, voc  # noqa: E402
from hardmine_jax.data.detection_augment import DetectionAugmentConfig  # noqa: E402
from hardmine_jax.data.detection_pipeline import detection_train_batches  # noqa: E402
from hardmine_jax.data.detection_records import DetectionDataset  # noqa: E402
from hardmine_jax.data.problems import DataError  # noqa: E402
from hardmine_jax.data.proposals import SearchConfig, SourceProposals, prepare  # noqa: E402
from hardmine_jax.models import fast_rcnn  # noqa: E402
from hardmine_jax.models.torch_weights import WarmStart  # noqa: E402
from hardmine_jax.models.vgg import VGGTrunk  # noqa: E402
from hardmine_jax.training import exchange  # noqa: E402
from hardmine_jax.training.distributed import PATIENCE_SECONDS  # noqa: E402

ModelName = Literal["laptop", "vgg16", "resnet50"]
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
    model: ModelName = "laptop"
    init_from: pathlib.Path | None = None
    image_size: tuple[int, int] = (112, 112)
    max_boxes: int | None = None
    mining: detection_task.MiningName = "ohem"
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


# The laptop preset on photographs: half a VGA picture.
_PHOTOGRAPHS = Config(
    image_size=(240, 320),
    k=64,
    steps=1000,
    evaluate_every=200,
    evaluate_images=40,
    search=SearchConfig(max_proposals=600, scale=0.5),
)
_VGG16 = Config(
    preset="vgg16",
    model="vgg16",
    image_size=(1024, 1024),
    k=64,
    batch_size=2,
    steps=40_000,
    ema_decay=0.0,
    evaluate_every=5000,
    evaluate_images=500,
    checkpoint_every=1000,
    log_every=100,
    num_workers=8,
    optimizer=training.OptimizerConfig(
        name="sgd", learning_rate=1e-3, schedule="step", milestones=(0.75,), momentum=0.9, weight_decay=5e-4
    ),
    search=SearchConfig(max_proposals=2000),
    augment=DetectionAugmentConfig(short_sides=(600,), colour=0.0),
)
DATASETS = ("synthetic", "voc", "coco")


def defaults(preset: PresetName, dataset: str) -> Config:
    """What flags that are not given are."""
    if preset == "vgg16":
        return _VGG16
    return Config() if dataset == "synthetic" else _PHOTOGRAPHS


def make_model(config: Config, num_classes: int, *, axis_name: str | None = None) -> fast_rcnn.FastRCNN:
    """The network that `config.model` names."""
    dtype = jnp.dtype(config.dtype)
    common = dict(num_classes=num_classes, dtype=dtype)
    if config.model == "laptop":
        widths = ((16,), (32, 32), (64, 64))
        trunk = VGGTrunk(widths, norm="batch", dtype=dtype, axis_name=axis_name)
        return fast_rcnn.FastRCNN(trunk=trunk, hidden=(256, 256), dropout=0.0, pooling="align", **common)
    if config.model == "resnet50":
        frozen = config.init_from is not None
        trunk = fast_rcnn.ResNetTrunk(50, frozen_norm=frozen, dtype=dtype, axis_name=axis_name)
        return fast_rcnn.FastRCNN(trunk=trunk, hidden=(1024, 1024), dropout=0.0, pooling="align", **common)
    return fast_rcnn.FastRCNN(trunk=VGGTrunk(dtype=dtype), **common)


def make_mining(config: Config) -> detection_task.Mining:
    return detection_task.Mining(config.mining, config.k, config.nms)


def make_predict(config: Config, num_classes: int):
    """`(variables, batch) -> detections` as the config asks for; see `detection_task.make_predict`."""
    decoding = detection_task.Decoding(
        iou_threshold=config.test_nms,
        min_score=config.min_score,
        max_detections=config.max_detections,
        sigmoid=config.mining == "focal",
    )
    return detection_task.make_predict(make_model(config, num_classes), decoding)


_DATA_FLAGS = {
    "synthetic": (),
    "voc": ("data_dir", "train_split", "validation_split"),
    "coco": ("annotations", "images", "validation_annotations", "validation_images"),
}


def load_dataset(config: Config) -> DetectionDataset:
    """The dataset that the flags name, prepared.

    Raises:
      ValueError: a flag that the dataset does not use.
      DataError: there is no such data.
    """
    running.check_data_flags(config, _DATA_FLAGS, config.dataset, "change --dataset")
    if config.dataset == "synthetic":
        return synthetic_shapes.load(cache_dir=config.cache_dir)
    if config.dataset == "voc":
        splits = {"train": config.train_split or "train", "validation": config.validation_split or "val"}
        return voc.load(config.data_dir, **splits, cache_dir=config.cache_dir)
    return coco_detection.load(
        config.annotations,
        config.images,
        validation_annotations=config.validation_annotations,
        validation_images=config.validation_images,
        cache_dir=config.cache_dir,
    )


@dataclasses.dataclass(frozen=True)
class SplitProposals:
    """Proposals of both splits, `[position]` -> [P, 4] in original pixels."""

    train: SourceProposals
    validation: SourceProposals


def find_proposals(config: Config, dataset: DetectionDataset) -> SplitProposals:
    """Selective search over both splits, or what it found before; tells of images without any."""
    found = SplitProposals(
        *(
            prepare(source, config.search, cache_dir=config.cache_dir)
            for source in (dataset.train, dataset.validation)
        )
    )
    for split in (found.train, found.validation):
        running.tell_skipped(split.skipped)
    return found


def settle(config: Config) -> Config:
    """The config, checked: what can be known to fail is found before anything is prepared or compiled."""
    least = {
        "accumulate": 1, "steps": 1, "log_every": 1, "evaluate_images": 1, "keep_last": 1, "k": 1,
        "rounds": 1, "max_detections": 1, "evaluate_every": 0, "checkpoint_every": 0, "num_workers": 0,
    }  # fmt: skip
    running.check_counts(config, least)
    running.check_batch_size(config)
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
            raise ValueError(f"{running.flag(name)} {getattr(config, name)} must lie in 0 .. 1")
    if not 0 <= config.ema_decay < 1:
        raise ValueError(f"--ema-decay {config.ema_decay} must lie in [0, 1)")
    if config.mining == "bootstrap" and config.rounds > config.steps:
        raise ValueError(f"--rounds {config.rounds} is more than --steps {config.steps}: lower --rounds")
    return config


def make_trainer(config: Config, num_classes: int) -> tuple[training.Parallel, training.TrainState]:
    """The compiled step on the devices, and the state it starts from."""
    ema_decay = config.ema_decay or None

    def make_step(axis_name: str | None):
        synchronised = axis_name if config.sync_batch_norm else None
        model = make_model(config, num_classes, axis_name=synchronised)
        loss = detection_task.make_loss(model, make_mining(config))
        return training.make_train_step(
            loss, axis_name=axis_name, accumulate=config.accumulate, ema_decay=ema_decay
        )

    parallel = training.parallelise(make_step, kind=config.parallel)
    model = make_model(config, num_classes)
    weights_key, run_key = jax.random.split(jax.random.key(config.seed))
    variables = jax.jit(functools.partial(init_variables, model, config.image_size))(weights_key)
    optimizer = training.make_optimizer(config.optimizer, steps=config.steps)
    state = training.create_state(
        variables, apply_fn=model.apply, optimizer=optimizer, key=run_key, ema_decay=ema_decay
    )
    return parallel, state


def init_variables(model: fast_rcnn.FastRCNN, size: tuple[int, int], key: jax.Array) -> dict:
    """Random weights of trunk and head."""

    def both(module: nn.Module, images: jax.Array):
        features = module.features(images)
        return module.head(jnp.zeros((1, 7, 7, features.shape[-1]), features.dtype))

    return model.init(key, jnp.zeros((1, *size, 3)), method=both)


def begin(config: Config, state: training.TrainState) -> training.TrainState:
    """The state that a run without a checkpoint starts from."""
    if config.init_from is None:
        return state

    def fill(state_dict: dict, variables: dict) -> WarmStart:
        filled = fast_rcnn.from_torch(state_dict, variables)
        return WarmStart(filled, ("class_logits", "box_deltas"), ())

    return warm_start.start_from(config.init_from, state, None if config.model == "laptop" else fill)


def make_evaluator(
    config: Config, dataset: DetectionDataset, proposals: SplitProposals, parallel: training.Parallel
) -> Evaluator:
    """Scores of a placed state on the validation split."""
    predict = make_predict(config, len(dataset.classes))
    run = parallel.evaluate_step(lambda state, batch: predict(training.evaluation_variables(state), batch))
    return Evaluator(
        dataset, proposals.validation, run, batching=make_batching(config), num_images=config.evaluate_images
    )


def make_recorder(
    config: Config, dataset: DetectionDataset, proposals: SplitProposals, parallel: training.Parallel
) -> MinedRecorder:
    """Writes down what is mined on a few training images."""
    choice = detection_task.make_choice(make_model(config, len(dataset.classes)), make_mining(config))
    choose = parallel.evaluate_step(lambda state, batch: choice(training.evaluation_variables(state), batch))
    return MinedRecorder(
        config.workdir, dataset.train, proposals.train, choose, batching=make_batching(config)
    )


def make_batching(config: Config) -> Batching:
    short_side = max(config.augment.short_sides, default=None)
    limits = config.max_boxes, config.search.max_proposals
    return Batching(running.share(config.batch_size), config.image_size, *limits, short_side)


def make_batches(config: Config, dataset: DetectionDataset, proposals: SplitProposals):
    """The training stream, at its beginning; with a pool of backgrounds where --mining is bootstrap."""
    batches = detection_train_batches(
        dataset.train,
        proposals.train,
        size=config.image_size,
        config=config.augment,
        seed=config.seed,
        max_boxes=config.max_boxes,
        max_proposals=config.search.max_proposals,
        num_workers=config.num_workers,
        **running.share(config.batch_size)._asdict(),
    )
    if config.mining != "bootstrap":
        return batches
    pool = detection_bootstrap.first_pool(
        proposals.train.counts,
        an_image=config.k,
        max_proposals=config.search.max_proposals,
        seed=config.seed,
    )
    return detection_bootstrap.PooledBatches(batches, pool, max_proposals=config.search.max_proposals)


def train(config: Config, dataset: DetectionDataset) -> dict | None:
    """Trains (with --eval-only restores), evaluates on all images, writes the report.

    Returns:
      What result.json holds; None when a signal stopped the run, and in processes other than the first.
    """
    running.check_run(config)
    config = settle_with(settle(config), dataset)
    with exchange.first_of_host():
        proposals = find_proposals(config, dataset)
    parallel, state = make_trainer(config, len(dataset.classes))
    with contextlib.ExitStack() as stack:
        batches = make_batches(config, dataset, proposals)
        starting = functools.partial(begin, config)
        run = running.open_run(config, state, batches, best_metric="map", begin=starting)
        opened = stack.enter_context(run)
        if opened.restored and (config.workdir / "config.json").exists():
            running.tell_changes(config.workdir, load_config(config.workdir)[0], config)
        evaluator = make_evaluator(config, dataset, proposals, parallel)
        recorder = make_recorder(config, dataset, proposals, parallel)
        finishing = functools.partial(finish, config, dataset, evaluator, recorder)
        if config.eval_only:
            running.keep_begun(opened, batches, lambda: save_config(config, dataset.classes))
            return finishing(parallel.put_state(opened.state), opened.step, {}, [])
        save_config(config, dataset.classes)

        def evaluate(state: training.TrainState) -> dict[str, float]:
            recorder.record(state, int(parallel.get(state.step)))
            return evaluator.quick(state)

        grow = functools.partial(grow_pool, config, dataset, proposals, parallel)
        fitted = fit(config, parallel, opened, batches, evaluate, grow)
        if fitted.stopped:
            print(f"stopped at step {fitted.step}, saved: the same command goes on from there")
            return None
        memory = {"step_memory_mb": step_memory(parallel, fitted.state, batches)}
        unreadable = running.all_unreadable(batches)
    return finishing(fitted.state, fitted.step, memory, unreadable)


def fit(
    config: Config,
    parallel: training.Parallel,
    opened: running.Opened,
    batches,
    evaluate: Callable,
    grow: Callable,
) -> training.FitResult:
    """The whole training; of bootstrap in rounds, before each of which but the first `grow(state, batches,
    number)` adds to the pool."""
    ends, state, step = [config.steps], opened.state, opened.step
    if config.mining == "bootstrap":
        ends = detection_bootstrap.round_ends(config.steps, config.rounds)
    for number, end in enumerate(ends):
        if step >= end and end < config.steps:
            continue
        # A run that goes on within a round has its pool already.
        if number and step < end and number > batches.number:
            grow(state, batches, number)
        fitted = training.fit(
            state,
            parallel=parallel,
            batches=batches,
            batch_size=config.batch_size,
            steps=end,
            workdir=config.workdir,
            checkpoints=opened.checkpoints,
            evaluate=evaluate,
            learning_rate=training.make_schedule(config.optimizer, steps=config.steps),
            log_every=config.log_every,
            evaluate_every=config.evaluate_every or None,
            checkpoint_every=config.checkpoint_every or None,
            must_save=end == config.steps,
        )
        state, step = parallel.get(fitted.state), fitted.step
        if fitted.stopped:
            break
    return fitted


def grow_pool(
    config: Config,
    dataset: DetectionDataset,
    proposals: SplitProposals,
    parallel: training.Parallel,
    state: training.TrainState,
    batches: detection_bootstrap.PooledBatches,
    number: int,
) -> None:
    """The pool of a round of bootstrap, counted from 0; what was found goes to rounds.json."""
    search = detection_task.false_positives(make_model(config, len(dataset.classes)), count=config.k)
    run = parallel.evaluate_step(lambda state, batch: search(training.evaluation_variables(state), batch))
    pool, found = detection_bootstrap.grow_pool(
        batches.pool,
        functools.partial(run, parallel.put_state(state)),
        make_batching(config).batches(dataset.train, proposals.train),
        max_proposals=config.search.max_proposals,
    )
    batches.set_pool(pool, number=number)
    rounds = exchange.from_main(lambda: detection_bootstrap.read_rounds(config.workdir), "rounds")
    found = {"round": number + 1, "after_step": int(state.step), **found}
    with running.told_of_errors(config.workdir / "rounds.json"):
        running.write_json(config.workdir / "rounds.json", [*rounds[: number - 1], found])
    print(f"round {number + 1}: {found['false_positives']} false positives, {found['members']} in the pool")


def step_memory(parallel: training.Parallel, state: training.TrainState, batches) -> float | None:
    """MB that the compiled step takes beside its arguments and results, on one device."""
    batch = parallel.put_batch(next(batches))
    # What the training ran is in jit's cache: nothing compiles here.
    analysis = parallel.train_step.lower(state, batch).compile().memory_analysis()
    return None if analysis is None else round(analysis.temp_size_in_bytes / 1e6, 1)


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


def finish(
    config: Config,
    dataset: DetectionDataset,
    evaluator: Evaluator,
    recorder: MinedRecorder,
    state: training.TrainState,
    step: int,
    memory: dict,
    unreadable: list[int],
) -> dict | None:
    """The last evaluation, by all processes; the table, result.json and report.html, by the first."""
    evaluated = evaluator.run(state)
    if not exchange.is_main():
        return None
    lines = training.read_metrics(config.workdir / "metrics.jsonl")
    result = detection_evaluation.score(evaluated, dataset.classes)
    result |= {
        "proposal_recall": evaluator.recall(evaluated),
        "steps": step,
        "images": len(evaluated.rows),
        "seconds": lines[-1]["seconds"] if lines else None,
        "images_per_second": running.mean_speed(lines),
        # Linux counts in KB. The largest that this process ever was, evaluation included.
        "peak_memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3, 1),
        **memory,
    }
    if config.mining == "bootstrap":
        result["rounds"] = detection_bootstrap.read_rounds(config.workdir)
    running.write_json(config.workdir / "result.json", result)
    path = write_report(config, dataset, evaluator, recorder, evaluated, result, lines, unreadable)
    rich.print(detection_report.result_table(result))
    print(f"wrote {path} (open it in a browser) and result.json beside it")
    return result


def write_report(
    config, dataset, evaluator, recorder, evaluated, result, lines, unreadable: list[int]
) -> pathlib.Path:
    """report.html with its pictures."""
    mistakes = [
        detection_plots.count_mistakes(found, truth)
        for found, truth in zip(evaluated.found, evaluated.truth, strict=True)
    ]
    hardest = np.argsort(-np.array(mistakes), kind="stable")[:6]
    typical = evenly_spaced(len(evaluated.rows), 9)
    skipped = dataset.skipped
    notes = [skipped.report()] if skipped.reasons or skipped.noted else []
    if result["classes_without_objects"]:
        names = ", ".join(result["classes_without_objects"])
        notes.append(f"not in the mean, since no validation image has them: {names}")
    if unreadable:
        notes.append(
            f"{len(unreadable)} training images could not be read any more: records {unreadable[:5]}"
        )
    return detection_report.write_report(
        config.workdir / "report.html",
        title=f"Detection on {dataset.name}: {config.model}, {config.mining}",
        config=running.plain(config),
        result=result,
        pictures=detection_plots.report_pictures(
            lines,
            result,
            dataset.classes,
            curves=detection_evaluation.curves(evaluated, dataset.classes),
            mined=recorder.pictures(),
            typical=evaluator.pictures(evaluated, typical),
            hardest=evaluator.pictures(evaluated, hardest),
        ),
        notes=notes,
    )


def save_config(config: Config, classes: tuple[str, ...]) -> None:
    """config.json: what prediction needs beside the weights."""
    running.write_json(
        config.workdir / "config.json", {"config": running.plain(config), "classes": list(classes)}
    )


def load_config(workdir: pathlib.Path) -> tuple[Config, tuple[str, ...]]:
    """What `save_config` wrote.

    Raises:
      DataError: no config.json there, or not one of this script.
    """
    config, classes = running.read_config(
        workdir, {"config": Config, "classes": None}, script="detection_ohem"
    )
    if not isinstance(classes, tuple) or not classes or not all(isinstance(name, str) for name in classes):
        path = workdir / "config.json"
        raise DataError(f"{path} has no classes: give the --workdir of a detection_ohem run")
    return config, classes


def parse(arguments: list[str] | None = None) -> Config:
    """The command line: --preset and --dataset give the defaults, the other flags change them."""
    first = running.first_flags(arguments, {"preset": ("laptop", "vgg16"), "dataset": DATASETS})
    default = defaults(**first)
    config = tyro.cli(Config, default=default, args=arguments, description=__doc__)
    workdir = config.workdir or pathlib.Path("runs") / f"detection_{config.dataset}_{config.preset}"
    return running.shorten_warmup(dataclasses.replace(config, workdir=workdir), default)


def main(arguments: list[str] | None = None) -> int:
    """0 when done or stopped by a signal, otherwise after one line see `running.run_to_exit_code`."""
    config = parse(arguments)

    def body() -> None:
        # What can be known to be wrong is said before data is prepared for it.
        settled = settle(config)
        with exchange.first_of_host():
            dataset = load_dataset(settled)
        running.check_data(dataset)
        running.tell_skipped(dataset.skipped)
        train(settled, dataset)

    return running.run_training(config, body)


if __name__ == "__main__":
    sys.exit(main())
