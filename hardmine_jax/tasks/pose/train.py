"""Training of a pose network from flags to report."""

import dataclasses
import functools
import pathlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import rich
import tyro

from hardmine_jax import training
from hardmine_jax.data.pose.batches import train_batches
from hardmine_jax.data.pose.records import PoseDataset
from hardmine_jax.data.problems import DataError
from hardmine_jax.data.stream import TrainBatches
from hardmine_jax.job import exchange
from hardmine_jax.pose import Skeleton
from hardmine_jax.tasks import warm_start
from hardmine_jax.tasks.config_json import plain, write_json
from hardmine_jax.tasks.flags import first_flags, shorten_warmup, tell_changes, tell_skipped
from hardmine_jax.tasks.pose import networks, pictures, report
from hardmine_jax.tasks.pose.config import (
    Config,
    early_heatmaps,
    k_at,
    load_config,
    make_model,
    make_predict,
    save_config,
    settle,
)
from hardmine_jax.tasks.pose.datasets import LAPTOP_STEPS, SKELETONS, load_dataset
from hardmine_jax.tasks.pose.evaluation import Evaluator
from hardmine_jax.tasks.pose.loss import make_loss
from hardmine_jax.tasks.pose.people import mean_pose_of, place_pose
from hardmine_jax.tasks.pose.presets import PRESETS
from hardmine_jax.tasks.pose.protocol import Protocol, prepare_protocol, score_protocol
from hardmine_jax.tasks.pose.score import mean_oks, pck, score
from hardmine_jax.tasks.rows import evenly_spaced
from hardmine_jax.tasks.run import (
    all_unreadable,
    check_data,
    check_run,
    keep_begun,
    open_run,
    run_training,
    shard_of,
)
from hardmine_jax.training.metrics_log import mean_speed


def begin(config: Config, state: training.TrainState) -> training.TrainState:
    """The state that a run without a checkpoint starts from."""
    if config.init_from is None:
        return state
    return warm_start.start_from(config.init_from, state, networks.published_weights(config.model))


def make_trainer(config: Config, skeleton: Skeleton) -> tuple[training.Parallel, training.TrainState]:
    """The compiled step on the devices, and the state it starts from."""
    ema_decay = config.ema_decay or None

    def make_step(axis_name: str | None):
        synchronised = axis_name if config.sync_batch_norm else None
        model = make_model(config, skeleton.num_keypoints, axis_name=synchronised)

        def step(state: training.TrainState, batch: dict):
            # The loss is made where the step is traced: that is how k knows the number of the step.
            loss = make_loss(
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
        shard=shard_of(config.batch_size),
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
    check_run(config)
    protocol = prepare_protocol(config, dataset)
    parallel, state = make_trainer(config, dataset.skeleton)
    batches = make_batches(config, dataset)
    starting = functools.partial(begin, config)
    with open_run(config, state, batches, best_metric="pck", begin=starting) as opened:
        if opened.restored and (config.workdir / "config.json").exists():
            tell_changes(config.workdir, load_config(config.workdir)[0], config)
        evaluator = make_evaluator(config, dataset, parallel)
        finishing = functools.partial(finish, config, dataset, protocol, evaluator)
        if config.eval_only:
            keep_begun(opened, batches, lambda: save_config(config, dataset.skeleton))
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
        unreadable = all_unreadable(batches)
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
        **shard_of(config.batch_size)._asdict(),
    )


def finish(
    config: Config,
    dataset: PoseDataset,
    protocol: Protocol,
    evaluator: Evaluator,
    state: training.TrainState,
    step: int,
    unreadable: list[int],
) -> dict | None:
    """The last evaluation, by all processes; the table, result.json and report.html, by the first."""
    skeleton = dataset.skeleton
    evaluated = people, keypoints, scores = evaluator.run(state)
    result = score(keypoints, scores, people, skeleton)
    result |= score_protocol(protocol, config, dataset, evaluator, state, evaluated)
    if not exchange.is_main():
        return None
    baseline = place_pose(mean_pose_of(dataset.train), people)
    result["mean_pose_pck"] = pck(baseline, people)
    lines = training.read_metrics(config.workdir / "metrics.jsonl")
    for name, rate in zip(skeleton.names, mean_unit_rates(lines, skeleton.num_keypoints), strict=True):
        result["per_joint"][name]["unit_rate"] = rate
    result |= {"steps": step, "images_per_second": mean_speed(lines), "people": len(people.names)}
    write_json(config.workdir / "result.json", result)
    hardest = np.argsort(mean_oks(keypoints, people, skeleton), kind="stable")[:8]
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
        config=plain(config),
        result=result,
        pictures=pictures.report_pictures(lines, result, skeleton, hardest, typical),
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


def parse(arguments: Sequence[str] | None = None, *, description: str | None = None) -> Config:
    """The command line: --preset gives the defaults, the other flags change them."""
    default = PRESETS[first_flags(arguments, {"preset": tuple(PRESETS)})["preset"]]
    config = tyro.cli(Config, default=default, args=arguments, description=description)
    steps = LAPTOP_STEPS[config.dataset] if config.steps is None else config.steps
    workdir = config.workdir or pathlib.Path("runs") / f"pose_{config.dataset}_{config.preset}"
    return shorten_warmup(dataclasses.replace(config, steps=steps, workdir=workdir), default)


def main(arguments: Sequence[str] | None = None, *, description: str | None = None) -> int:
    """0 when done or stopped by a signal, otherwise see `exit_codes.run_to_exit_code`.

    Args:
      arguments: of the command line, without the name of the command.
      description: what --help begins with.
    """
    config = parse(arguments, description=description)

    def body() -> None:
        settled = config
        if config.dataset in SKELETONS:
            # What can be known to be wrong is said before data is prepared for it.
            settled = settle(config, SKELETONS[config.dataset])
        with exchange.first_of_host():
            dataset = load_dataset(settled)
        check_data(dataset)
        tell_skipped(dataset.skipped)
        train(settled, dataset)

    return run_training(config, body)
