"""Training of a pose network from flags to report."""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import numpy as np
import rich
import tyro

from hardmine_jax import training
from hardmine_jax.data.pose.batches import train_crops
from hardmine_jax.data.pose.records import PoseDataset
from hardmine_jax.data.problems import DataError
from hardmine_jax.data.stream import TrainBatches, endless_batches
from hardmine_jax.errors import UserError
from hardmine_jax.job import exchange
from hardmine_jax.tasks.config_json import plain, write_json
from hardmine_jax.tasks.facts import data_files, run_facts
from hardmine_jax.tasks.flags import first_flags, warn_of, warn_of_changes, warn_skipped
from hardmine_jax.tasks.phases import phase
from hardmine_jax.tasks.pose import pictures, report
from hardmine_jax.tasks.pose.config import Config, build, load_config, save_config, settle
from hardmine_jax.tasks.pose.datasets import DATASETS, load_dataset
from hardmine_jax.tasks.pose.evaluation import Evaluator
from hardmine_jax.tasks.pose.facts import category_names, count_people, count_scored, note_few_people
from hardmine_jax.tasks.pose.people import mean_pose_of, place_pose
from hardmine_jax.tasks.pose.presets import PRESETS
from hardmine_jax.tasks.pose.protocol import Protocol, prepare_protocol, score_protocol
from hardmine_jax.tasks.pose.score import COCO_PEOPLE, mean_oks, note_crowded, pck, score
from hardmine_jax.tasks.pose.trained_on import check_trained_on
from hardmine_jax.tasks.rows import evenly_spaced
from hardmine_jax.tasks.run import all_unreadable, check_data, check_run, keep_begun, open_run, run_training
from hardmine_jax.tasks.run_config import fill_in, shard_of
from hardmine_jax.tasks.trainer import begin, fit, make_trainer
from hardmine_jax.training.metrics_log import mean_speeds


def train(config: Config, dataset: PoseDataset) -> dict | None:
    """Trains (with --eval-only restores), evaluates on everybody, writes the report.

    Args:
      config: settled.

    Returns:
      What result.json holds; None when a signal stopped the run, and in processes other than the first.
    """
    run, functions = config.run, build(config, dataset.skeleton)
    if not len(dataset.validation):
        raise DataError(
            f"{dataset.name} has nobody to validate on: add images, or give --validation-annotations"
        )
    check_run(run)
    check_trained_on(run, dataset)
    protocol = prepare_protocol(config, dataset)
    parallel, state = make_trainer(run, functions)
    batches = make_batches(config, dataset)
    starting = functools.partial(begin, run, functions)
    with open_run(run, state, batches, best_metric="pck", begin=starting) as opened:
        if opened.restored and (run.folder / "config.json").exists():
            warn_of_changes(run.folder, load_config(run.folder)[0], config)
        evaluator = make_evaluator(config, dataset, parallel, functions.predict)
        finishing = functools.partial(finish, config, dataset, protocol, evaluator)
        if run.eval_only:
            keep_begun(opened, batches, lambda: save_config(config, dataset.skeleton, dataset.categories))
            return finishing(parallel.put_state(opened.state), opened.step, [])
        save_config(config, dataset.skeleton, dataset.categories)
        fitted = fit(
            run,
            opened.state,
            parallel=parallel,
            batches=batches,
            checkpoints=opened.checkpoints,
            evaluate=evaluator.quick,
        )
        if fitted.stopped:
            print(f"stopped at step {fitted.step}, saved: the same command goes on from there")
            return None
        unreadable = all_unreadable(batches)
    return finishing(fitted.state, fitted.step, unreadable)


def make_batches(config: Config, dataset: PoseDataset) -> TrainBatches:
    """The training stream, at its beginning."""
    return endless_batches(
        dataset.train,
        train_crops(config.image_size, dataset.skeleton, config.augment),
        seed=config.run.seed,
        num_workers=config.run.num_workers,
        **shard_of(config.run)._asdict(),
    )


def make_evaluator(
    config: Config, dataset: PoseDataset, parallel: training.Parallel, predict: Callable
) -> Evaluator:
    """Scores of a placed state on the validation split."""
    evaluate = parallel.evaluate_step(
        lambda state, batch: predict(training.evaluation_variables(state), batch["image"])
    )
    return Evaluator(
        dataset,
        evaluate,
        shard=shard_of(config.run),
        size=config.image_size,
        padding=config.augment.padding,
        num_people=config.evaluate_people,
        max_people=config.max_people or COCO_PEOPLE,
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
    max_people = config.max_people or COCO_PEOPLE
    with phase(f"evaluating {len(dataset.validation):,} examples", "evaluated them"):
        evaluated = people, keypoints, scores = evaluator.run(state)
        result = score(keypoints, scores, people, skeleton, max_people=max_people)
        result |= score_protocol(protocol, config, dataset, evaluator, state, evaluated)
    if not exchange.is_main():
        return None
    baseline = place_pose(mean_pose_of(dataset.train), people)
    result["mean_pose_pck"] = pck(baseline, people)
    lines = training.read_metrics(config.run.folder / "metrics.jsonl")
    for name, rate in zip(skeleton.names, mean_unit_rates(lines, skeleton.num_keypoints), strict=True):
        result["per_joint"][name]["unit_rate"] = rate
    result |= {"steps": step, **mean_speeds(lines), "people": len(people.names)}
    write_json(config.run.folder / "result.json", result)
    hardest = np.argsort(mean_oks(keypoints, people, skeleton), kind="stable")[:8]
    typical = evenly_spaced(len(people.names), 12)
    shown = [evaluator.pictures(people, keypoints, rows) for rows in (hardest, typical)]
    crowded = note_crowded(people, max_people=max_people)
    warn_of(crowded)
    notes = crowded + note_few_people(keypoints, people)
    notes += [dataset.skipped.report()] if dataset.skipped else []
    if unreadable:
        notes.append(
            f"{len(unreadable)} training images could not be read any more: records {unreadable[:5]}"
        )
    path = report.write_report(
        config.run.folder / "report.html",
        title=f"Pose on {dataset.name}: {config.model}, {config.mining}",
        config=plain(config),
        result=result,
        pictures=pictures.report_pictures(lines, result, skeleton, *shown),
        notes=notes,
        facts=run_facts(
            files=data_files(config),
            categories=category_names(config, dataset),
            counts=[("trained on", count_people(dataset.train)), ("validated on", count_scored(people))],
            seconds=lines[-1]["seconds"] if lines else None,
        ),
    )
    rich.print(report.result_table(result))
    print(f"wrote {path} (open it in a browser) and result.json beside it")
    return result


def mean_unit_rates(lines: list[dict], num_keypoints: int) -> list[float | None]:
    """How often each keypoint was kept over the whole training; a log line speaks for its steps."""
    lines = [line for line in lines if line.get("unit_rate") is not None]
    if not lines:
        return [None] * num_keypoints
    if any(np.shape(line["unit_rate"]) != (num_keypoints,) for line in lines):
        raise UserError(f"metrics.jsonl is of a run with other keypoints than {num_keypoints}: move it away")
    weights = np.diff([0] + [line["step"] for line in lines])
    return np.average([line["unit_rate"] for line in lines], axis=0, weights=weights).tolist()


def parse(
    arguments: Sequence[str] | None = None, *, prog: str | None = None, description: str | None = None
) -> Config:
    """The command line: --preset gives the defaults, the other flags change them."""
    default = PRESETS[first_flags(arguments, {"preset": tuple(PRESETS)}, prog=prog)["preset"]]
    config = tyro.cli(Config, prog=prog, default=default, args=arguments, description=description)
    steps, folder = DATASETS[config.dataset].steps, f"pose_{config.dataset}_{config.preset}"
    run = fill_in(config.run, default.run, steps=steps, folder=folder)
    return dataclasses.replace(config, run=run)


def main(
    arguments: Sequence[str] | None = None, *, prog: str | None = None, description: str | None = None
) -> int:
    """0 when done or stopped by a signal, otherwise see `exit_codes.run_to_exit_code`.

    Args:
      arguments: of the command line, without the name of the command; prog: that name.
      description: what --help begins with.
    """
    config = parse(arguments, prog=prog, description=description)

    def body() -> None:
        # Where the keypoints are known, what is wrong is said before data is prepared for it.
        known = DATASETS[config.dataset].skeleton
        settled = config if known is None else settle(config, known)
        with exchange.first_of_host(), phase("preparing the data", "prepared the data"):
            dataset = load_dataset(settled)
        check_data(dataset)
        warn_skipped(dataset.skipped)
        train(settle(config, dataset.skeleton) if known is None else settled, dataset)

    return run_training(config, config.run, body)
