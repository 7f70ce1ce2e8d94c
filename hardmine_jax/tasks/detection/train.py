"""Training of a detector from flags to report."""

import dataclasses
import functools
import pathlib
import resource
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import rich
import tyro

from hardmine_jax import training
from hardmine_jax.data.detection.batches import train_images
from hardmine_jax.data.detection.records import DetectionDataset
from hardmine_jax.data.stream import TrainBatches, endless_batches
from hardmine_jax.detection import AveragePrecision
from hardmine_jax.job import exchange
from hardmine_jax.tasks.config_json import plain, write_json
from hardmine_jax.tasks.detection import bootstrap, pictures, report
from hardmine_jax.tasks.detection.config import (
    Config,
    build,
    load_config,
    notes_on_data,
    room_for_boxes,
    save_config,
    settle,
    settle_with_data,
)
from hardmine_jax.tasks.detection.datasets import DATASETS, SplitProposals, find_proposals, load_dataset
from hardmine_jax.tasks.detection.evaluation import (
    Batching,
    Evaluated,
    Evaluator,
    count_mistakes,
    curves,
    score,
    voc_precision,
)
from hardmine_jax.tasks.detection.facts import count_objects, count_scored, note_few_images
from hardmine_jax.tasks.detection.presets import PRESETS, defaults
from hardmine_jax.tasks.detection.recorder import MinedRecorder
from hardmine_jax.tasks.detection.trained_on import check_trained_on
from hardmine_jax.tasks.facts import data_files, run_facts
from hardmine_jax.tasks.flags import first_flags, warn_of, warn_of_changes, warn_skipped
from hardmine_jax.tasks.phases import phase
from hardmine_jax.tasks.rows import evenly_spaced
from hardmine_jax.tasks.run import all_unreadable, check_data, check_run, keep_begun, open_run, run_training
from hardmine_jax.tasks.run_config import fill_in, shard_of
from hardmine_jax.tasks.trainer import begin, fit, make_trainer, step_memory
from hardmine_jax.training.metrics_log import mean_speeds


def train(config: Config, dataset: DetectionDataset) -> dict | None:
    """Trains (with --eval-only restores), evaluates on all images, writes the report.

    Args:
      config: settled.

    Returns:
      What result.json holds; None when a signal stopped the run, and in processes other than the first.
    """
    check_run(config.run)
    check_trained_on(config.run, dataset)
    config = settle_with_data(config, dataset)
    if exchange.is_main():
        warn_of(notes_on_data(config, dataset))
    run, functions = config.run, build(config, len(dataset.classes), classes=dataset.classes)
    with exchange.first_of_host(), phase("finding proposals", "found proposals"):
        proposals = find_proposals(config, dataset)
    parallel, state = make_trainer(run, functions.of_run)
    batches, batching = make_batches(config, dataset, proposals), make_batching(config)
    starting = functools.partial(begin, run, functions.of_run)
    with open_run(run, state, batches, best_metric="map", begin=starting) as opened:
        if opened.restored and (run.folder / "config.json").exists():
            warn_of_changes(run.folder, load_config(run.folder)[0], config)
        predict, choose, search = (
            _on_devices(parallel, function)
            for function in (functions.of_run.predict, functions.choose, functions.find_false_positives)
        )
        few = config.evaluate_images
        evaluator = Evaluator(dataset, proposals.validation, predict, batching=batching, num_images=few)
        recorder = MinedRecorder(run.folder, dataset.train, proposals.train, choose, batching=batching)
        finishing = functools.partial(finish, config, dataset, evaluator, recorder)
        saving = functools.partial(save_config, config, dataset.classes, dataset.category_ids)
        if run.eval_only:
            keep_begun(opened, batches, saving)
            return finishing(parallel.put_state(opened.state), opened.step, {}, [])
        saving()

        def evaluate(state: training.TrainState) -> dict[str, float]:
            recorder.record(state, int(parallel.get(state.step)))
            return evaluator.quick(state)

        def grow(pooled: bootstrap.PooledBatches, state: training.TrainState, number: int) -> None:
            searching = functools.partial(search, parallel.put_state(state))
            images = batching.batches(dataset.train, proposals.train)
            bootstrap.grow(run.folder, pooled, searching, images, number=number, step=int(state.step))

        fitting = functools.partial(
            fit,
            run,
            parallel=parallel,
            batches=batches,
            checkpoints=opened.checkpoints,
            evaluate=evaluate,
        )
        if isinstance(batches, bootstrap.PooledBatches):
            ends, growing = bootstrap.round_ends(run.length, config.rounds), functools.partial(grow, batches)
            fitted = bootstrap.fit_in_rounds(fitting, opened, ends, batches, growing, get=parallel.get)
        else:
            fitted = fitting(opened.state)
        if fitted.stopped:
            print(f"stopped at step {fitted.step}, saved: the same command goes on from there")
            return None
        memory = {"step_memory_mb": step_memory(parallel, fitted.state, batches)}
        unreadable = all_unreadable(batches)
    return finishing(fitted.state, fitted.step, memory, unreadable)


def _on_devices(parallel: training.Parallel, function: Callable) -> Callable:
    """`(variables, batch) -> outputs` as `(placed state, batch) -> outputs`."""
    return parallel.evaluate_step(lambda state, batch: function(training.evaluation_variables(state), batch))


def make_batching(config: Config) -> Batching:
    """How both splits become batches that are evaluated."""
    short_side = max(config.augment.short_sides, default=None)
    shard, size = shard_of(config.run), config.image_size
    return Batching(shard, size, room_for_boxes(config), config.search.max_proposals, short_side)


def make_batches(
    config: Config, dataset: DetectionDataset, proposals: SplitProposals
) -> TrainBatches | bootstrap.PooledBatches:
    """The training stream, at its beginning; with a pool of backgrounds where --mining is bootstrap."""
    images = train_images(
        proposals.train,
        size=config.image_size,
        config=config.augment,
        max_boxes=room_for_boxes(config),
        max_proposals=config.search.max_proposals,
    )
    workers, shard = config.run.num_workers, shard_of(config.run)._asdict()
    batches = endless_batches(dataset.train, images, seed=config.run.seed, num_workers=workers, **shard)
    if config.mining != "bootstrap":
        return batches
    pool = bootstrap.first_pool(
        proposals.train.counts,
        an_image=config.k,
        max_proposals=config.search.max_proposals,
        seed=config.run.seed,
    )
    return bootstrap.PooledBatches(batches, pool, max_proposals=config.search.max_proposals)


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
    with phase(f"evaluating {len(dataset.validation):,} images", "evaluated them"):
        evaluated = evaluator.run(state)
    if not exchange.is_main():
        return None
    lines = training.read_metrics(config.run.folder / "metrics.jsonl")
    measured = voc_precision(evaluated, dataset.classes)
    result = score(evaluated, measured, max_detections=config.max_detections)
    result |= {
        "proposal_recall": evaluator.recall(evaluated),
        "steps": step,
        "images": len(evaluated.rows),
        "seconds": lines[-1]["seconds"] if lines else None,
        **mean_speeds(lines),
        # Linux counts in KB. The largest that this process ever was, evaluation included.
        "peak_memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3, 1),
        **memory,
    }
    if config.mining == "bootstrap":
        result["rounds"] = bootstrap.read_rounds(config.run.folder)
    write_json(config.run.folder / "result.json", result)
    path = write_report(config, dataset, evaluator, recorder, evaluated, measured, result, lines, unreadable)
    rich.print(report.result_table(result))
    print(f"wrote {path} (open it in a browser) and result.json beside it")
    return result


def write_report(
    config: Config,
    dataset: DetectionDataset,
    evaluator: Evaluator,
    recorder: MinedRecorder,
    evaluated: Evaluated,
    measured: AveragePrecision,
    result: dict[str, Any],
    lines: list[dict[str, Any]],
    unreadable: list[int],
) -> pathlib.Path:
    """report.html with its pictures."""
    mistakes = [
        count_mistakes(found, truth) for found, truth in zip(evaluated.found, evaluated.truth, strict=True)
    ]
    hardest = np.argsort(-np.array(mistakes), kind="stable")[:6]
    typical = evenly_spaced(len(evaluated.rows), 9)
    skipped, notes = dataset.skipped, note_few_images(evaluated, dataset.classes)
    notes += [skipped.report()] if skipped.reasons or skipped.noted else []
    if result["classes_without_objects"]:
        names = ", ".join(result["classes_without_objects"])
        notes.append(f"not in the mean, since no validation image has them: {names}")
    if unreadable:
        notes.append(
            f"{len(unreadable)} training images could not be read any more: records {unreadable[:5]}"
        )
    return report.write_report(
        config.run.folder / "report.html",
        title=f"Detection on {dataset.name}: {config.model}, {config.mining}",
        config=plain(config),
        result=result,
        pictures=pictures.report_pictures(
            lines,
            result,
            dataset.classes,
            curves=curves(measured),
            mined=recorder.pictures(),
            typical=evaluator.pictures(evaluated, typical),
            hardest=evaluator.pictures(evaluated, hardest),
        ),
        notes=notes,
        facts=run_facts(
            files=data_files(config),
            categories=dataset.classes,
            counts=[("trained on", count_objects(dataset.train)), ("validated on", count_scored(evaluated))],
            seconds=result["seconds"],
        ),
    )


def parse(
    arguments: Sequence[str] | None = None, *, prog: str | None = None, description: str | None = None
) -> Config:
    """The command line: --preset and --dataset give the defaults, the other flags change them."""
    default = defaults(**first_flags(arguments, {"preset": PRESETS, "dataset": tuple(DATASETS)}, prog=prog))
    config = tyro.cli(Config, prog=prog, default=default, args=arguments, description=description)
    folder = f"detection_{config.dataset}_{config.preset}"
    run = fill_in(config.run, default.run, steps=default.run.steps, folder=folder)
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
        # What can be known to be wrong is said before data is prepared for it.
        settled = settle(config)
        with exchange.first_of_host(), phase("preparing the data", "prepared the data"):
            dataset = load_dataset(settled)
        check_data(dataset)
        warn_skipped(dataset.skipped)
        train(settled, dataset)

    return run_training(config, config.run, body)
