"""The ways to choose of reference_loss.py, and a training run by each."""

import functools
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax
from reference_loss_digits import (
    LEARNING_RATE,
    TRAINING,
    Examples,
    Problem,
    fit_reference,
    init,
    logits_of,
    losses_of,
    split,
)

from hardmine_jax.mining import masked_mean, mine, prune_weights, random_k, rank_sample, score_table, top_k

Method = Literal["uniform", "ohem", "rho", "rank", "prune"]
METHODS: tuple[Method, ...] = get_args(Method)
BETA, RATE = 2.0, 0.5


class Options(NamedTuple):
    """How a run is made; `evaluations` times `evaluate_every` steps."""

    method: Method
    candidates: int
    kept: int
    evaluate_every: int
    evaluations: int


class Curve(NamedTuple):
    """[evaluations]: steps so far, test accuracy, examples since the last one, those with a wrong label."""

    steps: jax.Array
    accuracy: jax.Array
    kept: jax.Array
    wrong: jax.Array


def train(problem: Problem, *, options: Options) -> Curve:
    """One run, from its reference on."""
    keys = jax.random.split(jax.random.key(problem.seed), 3)
    reference = jnp.zeros(TRAINING)
    if options.method == "rho":
        model = fit_reference(problem.holdout, keys[2], options.kept)
        reference = losses_of(model, problem.training.images, problem.training.labels)
    return _run(problem, reference, init(keys[0]), keys[1], options)


def _mined(
    params: dict, examples: Examples, reference: jax.Array, key: jax.Array, options: Options
) -> tuple[jax.Array, tuple[jax.Array, None]]:
    """(loss, (which of the candidates it is of, None)), by two passes."""
    k = options.kept
    select = {
        "uniform": functools.partial(random_k, key, k=k),
        "rank": functools.partial(rank_sample, key, beta=BETA, k=k),
    }.get(options.method, functools.partial(top_k, k=k))
    hard = mine(
        lambda params, images, labels, reference: losses_of(params, images, labels),
        select,
        capacity=k,
        in_axes=(None, 0, 0, 0),
        score_fn=(lambda losses, *mapped: losses - mapped[-1]) if options.method == "rho" else None,
    )
    mined = hard(params, examples.images, examples.labels, reference)
    kept = jnp.zeros(len(examples.labels), bool).at[mined.indices].max(mined.keep)
    return masked_mean(mined.losses, where=mined.keep), (kept, None)


def _pruned(
    params: dict, examples: Examples, scores: jax.Array, key: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """(loss, (which of the candidates it is of, their losses)), by what is known of them."""
    weights = prune_weights(key, scores, rate=RATE)
    losses = losses_of(params, examples.images, examples.labels)
    loss = masked_mean(losses, where=jnp.ones(losses.shape, bool), weights=weights)
    return loss, (weights > 0, losses)


def _run(problem: Problem, reference: jax.Array, params: dict, key: jax.Array, options: Options) -> Curve:
    optimizer, examples = optax.adam(LEARNING_RATE), problem.training
    # Of these about `kept` are learned from: less than half are dropped.
    candidates = 3 * options.kept // 2 if options.method == "prune" else options.candidates

    def step(state, key):
        params, momenta, table = state
        of_draw, of_choice = jax.random.split(key)
        drawn = jax.random.choice(of_draw, TRAINING, (candidates,), replace=False)
        here = jax.tree.map(lambda leaf: leaf[drawn], examples)

        def loss(params):
            if options.method == "prune":
                return _pruned(params, here, score_table.read(table, drawn)[0], of_choice)
            return _mined(params, here, reference[drawn], of_choice, options)

        gradient, (kept, losses) = jax.grad(loss, has_aux=True)(params)
        if losses is not None:
            table = score_table.update(table, drawn, losses, where=kept)
        updates, momenta = optimizer.update(gradient, momenta)
        return (optax.apply_updates(params, updates), momenta, table), (kept.sum(), (kept & here.wrong).sum())

    def evaluated(state, keys):
        state, (kept, wrong) = jax.lax.scan(step, state, keys)
        right = logits_of(state[0], problem.test.images).argmax(-1) == problem.test.labels
        return state, (right.mean(dtype=jnp.float32), kept.sum(), wrong.sum())

    keys = jax.random.split(key, (options.evaluations, options.evaluate_every))
    state = (params, optimizer.init(params), score_table.init(TRAINING))
    steps = options.evaluate_every * jnp.arange(1, options.evaluations + 1)
    return Curve(steps, *jax.lax.scan(evaluated, state, keys)[1])


def lines(config: Any, images: np.ndarray, labels: np.ndarray) -> list[dict]:
    """One for each share of wrong labels, method and seed, by reference_loss.py's config."""
    found, names = [], list(range(config.first_seed, config.first_seed + config.seeds))
    evaluations = config.steps // config.evaluate_every
    for wrong in config.wrong:
        problems = [split(images, labels, seed=seed, wrong=wrong) for seed in names]
        problem = jax.tree.map(lambda *leaves: np.stack(leaves), *problems)
        for method in config.methods:
            options = Options(method, config.candidates, config.kept, config.evaluate_every, evaluations)
            run = jax.jit(jax.vmap(functools.partial(train, options=options)))
            curves = jax.device_get(run(problem))
            for place, seed in enumerate(names):
                curve = jax.tree.map(lambda leaf, place=place: leaf[place], curves)
                found.append({"wrong": wrong, "variant": method, "seed": seed} | _numbers(curve))
    return found


def _numbers(curve: Curve) -> dict:
    last = max(1, len(curve.accuracy) // 5)
    kept = curve.kept.sum()
    return {
        "accuracy": float(curve.accuracy[-last:].mean()),
        "wrong_kept": float(curve.wrong.sum() / kept),
        "kept_a_step": float(kept / curve.steps[-1]),
        "curve": [round(float(value), 4) for value in curve.accuracy],
        "steps": curve.steps.tolist(),
    }
