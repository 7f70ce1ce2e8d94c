"""From what a config comes to, to the compiled step, the state it starts from, and the whole training."""

import contextlib
import dataclasses
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, cast

import jax

from hardmine_jax import training
from hardmine_jax.job.exchange import is_main
from hardmine_jax.models.torch_weights import WarmStart
from hardmine_jax.tasks.phases import first_in_phase, phase, tell_scores
from hardmine_jax.tasks.run_config import RunConfig, profiled_steps
from hardmine_jax.tasks.warm_start import FindOutputs, start_from
from hardmine_jax.training import LossFunction
from hardmine_jax.training.flops import Utilisation
from hardmine_jax.training.loop import Batches
from hardmine_jax.training.profile import profiled
from hardmine_jax.training.sharding import CompiledStep


class Functions(NamedTuple):
    """What a config comes to, made once: functions of the network, its loss and its prediction.

    Attributes:
      apply: `model.apply`.
      init: random key -> variables.
      loss_for: name of the mapped axis, or None -> the loss function of `training.make_train_step`.
      predict: `(variables, what the task evaluates) -> predictions`.
      published: `(state_dict, variables) -> WarmStart` of published weights; None where there are none.
      find_outputs: how the outputs of another run are matched with this one's by name, see `start_from`.
    """

    apply: Callable[..., Any]
    init: Callable[[jax.Array], Mapping[str, Any]]
    loss_for: Callable[[str | None], LossFunction]
    predict: Callable[[dict, Any], dict[str, jax.Array]]
    published: Callable[[dict, dict], WarmStart] | None = None
    find_outputs: FindOutputs = lambda path: None


def make_trainer(
    run: RunConfig, functions: Functions, *, devices: Sequence[jax.Device] | None = None
) -> tuple[training.Parallel, training.TrainState]:
    """The compiled step on the devices, all of them by default, and the state it starts from."""
    ema_decay = run.ema_decay or None
    alone = len(jax.devices() if devices is None else devices) == 1

    def make_step(axis_name: str | None) -> training.Step:
        return training.make_train_step(
            functions.loss_for(axis_name),
            axis_name=axis_name,
            accumulate=run.accumulate,
            ema_decay=ema_decay,
            gradient_dtype=None if alone else run.gradient_dtype,
        )

    some = {} if devices is None else {"devices": devices}
    parallel = training.parallelise(make_step, kind=run.parallel, **some)
    weights_key, run_key = jax.random.split(jax.random.key(run.seed))
    with phase("building the network", "built the network"):
        state = training.create_state(
            jax.jit(functions.init)(weights_key),
            apply_fn=functions.apply,
            optimizer=training.make_optimizer(run.optimizer, steps=run.length),
            key=run_key,
            ema_decay=ema_decay,
        )
    return parallel, state


def begin(run: RunConfig, functions: Functions, state: training.TrainState) -> training.TrainState:
    """The state that a run without a checkpoint starts from.

    Raises:
      WeightsError: --init-from cannot be used; with --eval-only, does not have all weights.
    """
    if run.init_from is None:
        return state
    find_outputs, complete = functions.find_outputs, run.eval_only
    return start_from(run.init_from, state, functions.published, find_outputs=find_outputs, complete=complete)


def fit(
    run: RunConfig,
    state: training.TrainState,
    *,
    parallel: training.Parallel,
    batches: Batches,
    checkpoints: training.Checkpoints,
    evaluate: Callable[[training.TrainState], dict[str, float]],
    end: int | None = None,
) -> training.FitResult:
    """Trains from `state` up to step `end`, by default the run's last; tells of compiling and evaluations.

    Only the run's last state has to be saved: a part before it is followed by another.
    """
    last = run.length if end is None else end
    use = Utilisation(parallel, batch_size=run.batch_size, dtype=run.dtype)
    told = first_in_phase(use.counted(parallel.train_step), "compiling the training step", "compiled it")

    def evaluate_and_tell(state: training.TrainState) -> dict[str, float]:
        started = time.perf_counter()
        scores = evaluate(state)
        tell_scores(int(parallel.get(state.step)), scores, time.perf_counter() - started)
        return scores

    with _profiled(run, told, at=int(state.step)) as step:
        return training.fit(
            state,
            parallel=dataclasses.replace(parallel, train_step=cast(CompiledStep, step)),
            batches=batches,
            batch_size=run.batch_size,
            steps=last,
            workdir=run.folder,
            checkpoints=checkpoints,
            evaluate=evaluate_and_tell,
            learning_rate=training.make_schedule(run.optimizer, steps=run.length),
            speed=use.speed,
            log_every=run.log_every,
            evaluate_every=run.evaluate_every or None,
            checkpoint_every=run.checkpoint_every or None,
            must_save=last == run.length,
        )


@contextlib.contextmanager
def _profiled(run: RunConfig, step: training.Step, *, at: int) -> Iterator[training.Step]:
    """Within it the step is traced as --profile-steps has it; after `at` steps were made."""
    steps = profiled_steps(run)
    if steps is None or at >= steps.last:
        # A round of bootstrapping may come after the one that was traced.
        if steps is not None and at < run.length and is_main() and not (run.folder / "profile").exists():
            late = f"note: the run is at step {at}: nothing is left of --profile-steps {run.profile_steps}"
            print(late, file=sys.stderr)
        yield step
        return
    with profiled(step, at=at, steps=steps, folder=run.folder / "profile") as traced:
        yield traced


def step_memory(parallel: training.Parallel, state: training.TrainState, batches: Batches) -> float | None:
    """MB that the compiled step takes beside its arguments and results, on one device."""
    batch = parallel.put_batch(next(batches))
    # What the training ran is in jit's cache: nothing compiles here.
    analysis = parallel.train_step.lower(state, batch).compile().memory_analysis()
    return None if analysis is None else round(analysis.temp_size_in_bytes / 1e6, 1)
