"""The ways to choose of reference_loss.py, and a training run by each."""

import functools
import math
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax
import reference_loss_digits as digits

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


def train(problem: digits.Problem, *, options: Options) -> Curve:
    """One run, from its reference on."""
    keys = jax.random.split(jax.random.key(problem.seed), 3)
    reference = jnp.zeros(digits.TRAINING)
    if options.method == "rho":
        model = digits.fit_reference(problem.holdout, keys[2], options.kept)
        reference = digits.losses_of(model, problem.training.images, problem.training.labels)
    return _run(problem, reference, digits.init(keys[0]), keys[1], options)


def _mined(
    params: dict, examples: digits.Examples, reference: jax.Array, key: jax.Array, options: Options
) -> tuple[jax.Array, tuple[jax.Array, None]]:
    """(loss, (which of the candidates it is of, None)), by two passes."""
    k = options.kept
    select = {
        "uniform": functools.partial(random_k, key, k=k),
        "rank": functools.partial(rank_sample, key, beta=BETA, k=k),
    }.get(options.method, functools.partial(top_k, k=k))
    hard = mine(
        lambda params, images, labels, reference: digits.losses_of(params, images, labels),
        select,
        capacity=k,
        in_axes=(None, 0, 0, 0),
        score_fn=(lambda losses, *mapped: losses - mapped[-1]) if options.method == "rho" else None,
    )
    mined = hard(params, examples.images, examples.labels, reference)
    kept = jnp.zeros(len(examples.labels), bool).at[mined.indices].max(mined.keep)
    return masked_mean(mined.losses, where=mined.keep), (kept, None)


def _pruned(
    params: dict, examples: digits.Examples, scores: jax.Array, key: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """(loss, (which of the candidates it is of, their losses)), by what is known of them."""
    weights = prune_weights(key, scores, rate=RATE)
    losses = digits.losses_of(params, examples.images, examples.labels)
    loss = masked_mean(losses, where=jnp.ones(losses.shape, bool), weights=weights)
    return loss, (weights > 0, losses)


def _run(
    problem: digits.Problem, reference: jax.Array, params: dict, key: jax.Array, options: Options
) -> Curve:
    optimizer, examples = optax.adam(digits.LEARNING_RATE), problem.training
    # Of these about `kept` are learned from: less than half are dropped.
    candidates = 3 * options.kept // 2 if options.method == "prune" else options.candidates

    def step(state, one):
        params, momenta, table = state
        of_choice, drawn = one
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

    def evaluated(state, many):
        state, (kept, wrong) = jax.lax.scan(step, state, many)
        right = digits.logits_of(state[0], problem.test.images).argmax(-1) == problem.test.labels
        return state, (right.mean(dtype=jnp.float32), kept.sum(), wrong.sum())

    shape = (options.evaluations, options.evaluate_every)
    keys, order = jax.random.split(key, shape), _epochs(jax.random.fold_in(key, 1), (*shape, candidates))
    state = (params, optimizer.init(params), score_table.init(digits.TRAINING))
    steps = options.evaluate_every * jnp.arange(1, options.evaluations + 1)
    return Curve(steps, *jax.lax.scan(evaluated, state, (keys, order))[1])


def _epochs(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Indices of the training set, epoch after epoch, each in an order of its own."""
    number = math.prod(shape)
    keys = jax.random.split(key, -(-number // digits.TRAINING))
    orders = jax.lax.map(lambda key: jax.random.permutation(key, digits.TRAINING), keys)
    return orders.reshape(-1)[:number].reshape(shape)


def lines(config: Any, images: np.ndarray, labels: np.ndarray) -> list[dict]:
    """One for each method, share of wrong labels and seed, by reference_loss.py's config."""
    names = list(range(config.first_seed, config.first_seed + config.seeds))
    pairs = [(wrong, seed) for wrong in config.wrong for seed in names]
    problems = [digits.split(images, labels, seed=seed, wrong=wrong) for wrong, seed in pairs]
    problem, found = jax.tree.map(lambda *leaves: np.stack(leaves), *problems), []
    evaluations = config.steps // config.evaluate_every
    for method in config.methods:
        options = Options(method, config.candidates, config.kept, config.evaluate_every, evaluations)
        # All runs of a method side by side: one program.
        curves = jax.device_get(jax.jit(jax.vmap(functools.partial(train, options=options)))(problem))
        for place, (wrong, seed) in enumerate(pairs):
            curve = jax.tree.map(lambda leaf, place=place: leaf[place], curves)
            found.append({"wrong": wrong, "variant": method, "seed": seed} | _numbers(curve))
    return found


def _numbers(curve: Curve) -> dict:
    last, kept = max(1, len(curve.accuracy) // 5), curve.kept.sum()
    return {
        "accuracy": float(curve.accuracy[-last:].mean()),
        "wrong_kept": float(curve.wrong.sum() / kept),
        "kept_a_step": float(kept / curve.steps[-1]),
        "curve": [round(float(value), 4) for value in curve.accuracy],
        "steps": curve.steps.tolist(),
    }
