"""The digits of reference_loss.py: split and spoilt, a small network, and a reference model of it."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

CLASSES, HIDDEN, LEARNING_RATE = 10, 128, 1e-3
# Of the examples: to learn from, and for the reference; the rest is the test.
TRAINING, HOLDOUT = 1000, 300
# The reference is not trained until it knows its own wrong labels by heart.
REFERENCE_STEPS = 300


class Examples(NamedTuple):
    """images [N, 64] in 0 .. 1, labels int32 [N] as learned from, wrong bool [N]: the label was spoilt."""

    images: np.ndarray
    labels: np.ndarray
    wrong: np.ndarray


class Problem(NamedTuple):
    """What one seed learns from and is tested on, and its number."""

    training: Examples
    holdout: Examples
    test: Examples
    seed: np.ndarray


def load() -> tuple[np.ndarray, np.ndarray]:
    """scikit-learn's 1,797 digits: images [N, 64] in 0 .. 1 and labels [N]."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    return (images / 16).astype(np.float32), labels.astype(np.int32)


def split(images: np.ndarray, labels: np.ndarray, *, seed: int, wrong: float) -> Problem:
    """Three parts, the first two with a share of wrong labels, each any of the other classes."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(images))
    spoilt = rng.random(len(images)) < wrong
    other = (labels + rng.integers(1, CLASSES, len(images))) % CLASSES

    def part(places: np.ndarray, spoil: bool) -> Examples:
        changed = spoilt[places] & spoil
        return Examples(images[places], np.where(changed, other[places], labels[places]), changed)

    parts = np.split(order, [TRAINING, TRAINING + HOLDOUT])
    return Problem(part(parts[0], True), part(parts[1], True), part(parts[2], False), np.uint32(seed))


def init(key: jax.Array) -> dict[str, jax.Array]:
    """Two layers."""
    one, two = jax.random.split(key)
    scale = jax.nn.initializers.he_normal()
    weights = {"hidden": scale(one, (64, HIDDEN)), "classes": scale(two, (HIDDEN, CLASSES))}
    return weights | {"hidden_bias": jnp.zeros(HIDDEN), "classes_bias": jnp.zeros(CLASSES)}


def logits_of(params: dict[str, jax.Array], images: jax.Array) -> jax.Array:
    """[N, 10]."""
    hidden = jax.nn.relu(images @ params["hidden"] + params["hidden_bias"][None])
    return hidden @ params["classes"] + params["classes_bias"][None]


def losses_of(params: dict[str, jax.Array], images: jax.Array, labels: jax.Array) -> jax.Array:
    """Cross-entropy, [N]."""
    return optax.softmax_cross_entropy_with_integer_labels(logits_of(params, images), labels)


def fit_reference(examples: Examples, key: jax.Array, batch: int) -> dict[str, jax.Array]:
    """The reference model: the plain mean of batches drawn evenly."""
    optimizer, start = optax.adam(LEARNING_RATE), init(key)

    def step(state, key):
        params, momenta = state
        drawn = jax.random.choice(key, len(examples.images), (batch,), replace=False)
        images, labels = examples.images[drawn], examples.labels[drawn]
        gradient = jax.grad(lambda params: losses_of(params, images, labels).mean())(params)
        updates, momenta = optimizer.update(gradient, momenta)
        return (optax.apply_updates(params, updates), momenta), None

    state = (start, optimizer.init(start))
    return jax.lax.scan(step, state, jax.random.split(jax.random.fold_in(key, 1), REFERENCE_STEPS))[0][0]
