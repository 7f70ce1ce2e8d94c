"""Training of a detector from flags to report."""

import contextlib
import dataclasses
import functools
import pathlib
import resource
from collections.abc import Callable, Sequence

import jax
import numpy as np
import rich
import tyro

from hardmine_jax import training
from hardmine_jax.data.detection.batches import detection_train_batches
from hardmine_jax.data.detection.records import DetectionDataset
from hardmine_jax.job import exchange
from hardmine_jax.tasks import warm_start
from hardmine_jax.tasks.config_json import plain, write_json
from hardmine_jax.tasks.detection import bootstrap, networks, pictures, report
from hardmine_jax.tasks.detection.config import (
    Config,
    load_config,
    make_mining,
    make_model,
    make_predict,
    save_config,
    settle,
    settle_with,
)
from hardmine_jax.tasks.detection.datasets import DATASETS, SplitProposals, find_proposals, load_dataset
from hardmine_jax.tasks.detection.evaluation import Batching, Evaluator, count_mistakes, curves, score
from hardmine_jax.tasks.detection.loss import make_choice, make_loss
from hardmine_jax.tasks.detection.predict import false_positives
from hardmine_jax.tasks.detection.presets import defaults
from hardmine_jax.tasks.detection.recorder import MinedRecorder
from hardmine_jax.tasks.flags import first_flags, shorten_warmup, tell_changes, tell_skipped
from hardmine_jax.tasks.rows import evenly_spaced
from hardmine_jax.tasks.run import (
    Opened,
    all_unreadable,
    check_data,
    check_run,
    keep_begun,
    open_run,
    run_training,
    shard_of,
    told_of_errors,
)
from hardmine_jax.training.metrics_log import mean_speed


def make_trainer(config: Config, num_classes: int) -> tuple[training.Parallel, training.TrainState]:
    """The compiled step on the devices, and the state it starts from."""
    ema_decay = config.ema_decay or None

    def make_step(axis_name: str | None):
        synchronised = axis_name if config.sync_batch_norm else None
        model = make_model(config, num_classes, axis_name=synchronised)
        loss = make_loss(model, make_mining(config))
        return training.make_train_step(
            loss, axis_name=axis_name, accumulate=config.accumulate, ema_decay=ema_decay
        )

    parallel = training.parallelise(make_step, kind=config.parallel)
    model = make_model(config, num_classes)
    weights_key, run_key = jax.random.split(jax.random.key(config.seed))
    variables = jax.jit(functools.partial(networks.init_variables, model, config.image_size))(weights_key)
    optimizer = training.make_optimizer(config.optimizer, steps=config.steps)
    state = training.create_state(
        variables, apply_fn=model.apply, optimizer=optimizer, key=run_key, ema_decay=ema_decay
    )
    return parallel, state


def begin(config: Config, state: training.TrainState) -> training.TrainState:
    """The state that a run without a checkpoint starts from."""
    if config.init_from is None:
        return state

    return warm_start.start_from(config.init_from, state, networks.published_weights(config.model))


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
    choice = make_choice(make_model(config, len(dataset.classes)), make_mining(config))
    choose = parallel.evaluate_step(lambda state, batch: choice(training.evaluation_variables(state), batch))
    return MinedRecorder(
        config.workdir, dataset.train, proposals.train, choose, batching=make_batching(config)
    )


def make_batching(config: Config) -> Batching:
    short_side = max(config.augment.short_sides, default=None)
    limits = config.max_boxes, config.search.max_proposals
    return Batching(shard_of(config.batch_size), config.image_size, *limits, short_side)


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
        **shard_of(config.batch_size)._asdict(),
    )
    if config.mining != "bootstrap":
        return batches
    pool = bootstrap.first_pool(
        proposals.train.counts,
        an_image=config.k,
        max_proposals=config.search.max_proposals,
        seed=config.seed,
    )
    return bootstrap.PooledBatches(batches, pool, max_proposals=config.search.max_proposals)


def train(config: Config, dataset: DetectionDataset) -> dict | None:
    """Trains (with --eval-only restores), evaluates on all images, writes the report.

    Returns:
      What result.json holds; None when a signal stopped the run, and in processes other than the first.
    """
    check_run(config)
    config = settle_with(settle(config), dataset)
    with exchange.first_of_host():
        proposals = find_proposals(config, dataset)
    parallel, state = make_trainer(config, len(dataset.classes))
    with contextlib.ExitStack() as stack:
        batches = make_batches(config, dataset, proposals)
        starting = functools.partial(begin, config)
        run = open_run(config, state, batches, best_metric="map", begin=starting)
        opened = stack.enter_context(run)
        if opened.restored and (config.workdir / "config.json").exists():
            tell_changes(config.workdir, load_config(config.workdir)[0], config)
        evaluator = make_evaluator(config, dataset, proposals, parallel)
        recorder = make_recorder(config, dataset, proposals, parallel)
        finishing = functools.partial(finish, config, dataset, evaluator, recorder)
        if config.eval_only:
            keep_begun(opened, batches, lambda: save_config(config, dataset.classes))
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
        unreadable = all_unreadable(batches)
    return finishing(fitted.state, fitted.step, memory, unreadable)


def fit(
    config: Config,
    parallel: training.Parallel,
    opened: Opened,
    batches,
    evaluate: Callable,
    grow: Callable,
) -> training.FitResult:
    """The whole training; of bootstrap in rounds, before each of which but the first `grow(state, batches,
    number)` adds to the pool."""
    ends, state, step = [config.steps], opened.state, opened.step
    if config.mining == "bootstrap":
        ends = bootstrap.round_ends(config.steps, config.rounds)
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
    batches: bootstrap.PooledBatches,
    number: int,
) -> None:
    """The pool of a round of bootstrap, counted from 0; what was found goes to rounds.json."""
    search = false_positives(make_model(config, len(dataset.classes)), count=config.k)
    run = parallel.evaluate_step(lambda state, batch: search(training.evaluation_variables(state), batch))
    pool, found = bootstrap.grow_pool(
        batches.pool,
        functools.partial(run, parallel.put_state(state)),
        make_batching(config).batches(dataset.train, proposals.train),
        max_proposals=config.search.max_proposals,
    )
    batches.set_pool(pool, number=number)
    rounds = exchange.from_main(lambda: bootstrap.read_rounds(config.workdir), "rounds")
    found = {"round": number + 1, "after_step": int(state.step), **found}
    with told_of_errors(config.workdir / "rounds.json"):
        write_json(config.workdir / "rounds.json", [*rounds[: number - 1], found])
    print(f"round {number + 1}: {found['false_positives']} false positives, {found['members']} in the pool")


def step_memory(parallel: training.Parallel, state: training.TrainState, batches) -> float | None:
    """MB that the compiled step takes beside its arguments and results, on one device."""
    batch = parallel.put_batch(next(batches))
    # What the training ran is in jit's cache: nothing compiles here.
    analysis = parallel.train_step.lower(state, batch).compile().memory_analysis()
    return None if analysis is None else round(analysis.temp_size_in_bytes / 1e6, 1)


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
    result = score(evaluated, dataset.classes)
    result |= {
        "proposal_recall": evaluator.recall(evaluated),
        "steps": step,
        "images": len(evaluated.rows),
        "seconds": lines[-1]["seconds"] if lines else None,
        "images_per_second": mean_speed(lines),
        # Linux counts in KB. The largest that this process ever was, evaluation included.
        "peak_memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3, 1),
        **memory,
    }
    if config.mining == "bootstrap":
        result["rounds"] = bootstrap.read_rounds(config.workdir)
    write_json(config.workdir / "result.json", result)
    path = write_report(config, dataset, evaluator, recorder, evaluated, result, lines, unreadable)
    rich.print(report.result_table(result))
    print(f"wrote {path} (open it in a browser) and result.json beside it")
    return result


def write_report(
    config, dataset, evaluator, recorder, evaluated, result, lines, unreadable: list[int]
) -> pathlib.Path:
    """report.html with its pictures."""
    mistakes = [
        count_mistakes(found, truth) for found, truth in zip(evaluated.found, evaluated.truth, strict=True)
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
    return report.write_report(
        config.workdir / "report.html",
        title=f"Detection on {dataset.name}: {config.model}, {config.mining}",
        config=plain(config),
        result=result,
        pictures=pictures.report_pictures(
            lines,
            result,
            dataset.classes,
            curves=curves(evaluated, dataset.classes),
            mined=recorder.pictures(),
            typical=evaluator.pictures(evaluated, typical),
            hardest=evaluator.pictures(evaluated, hardest),
        ),
        notes=notes,
    )


def parse(arguments: Sequence[str] | None = None, *, description: str | None = None) -> Config:
    """The command line: --preset and --dataset give the defaults, the other flags change them."""
    first = first_flags(arguments, {"preset": ("laptop", "vgg16"), "dataset": DATASETS})
    default = defaults(**first)
    config = tyro.cli(Config, default=default, args=arguments, description=description)
    workdir = config.workdir or pathlib.Path("runs") / f"detection_{config.dataset}_{config.preset}"
    return shorten_warmup(dataclasses.replace(config, workdir=workdir), default)


def main(arguments: Sequence[str] | None = None, *, description: str | None = None) -> int:
    """0 when done or stopped by a signal, otherwise see `exit_codes.run_to_exit_code`.

    Args:
      arguments: of the command line, without the name of the command.
      description: what --help begins with.
    """
    config = parse(arguments, description=description)

    def body() -> None:
        # What can be known to be wrong is said before data is prepared for it.
        settled = settle(config)
        with exchange.first_of_host():
            dataset = load_dataset(settled)
        check_data(dataset)
        tell_skipped(dataset.skipped)
        train(settled, dataset)

    return run_training(config, body)
