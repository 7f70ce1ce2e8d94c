"""What the READMEs print of Python runs as printed, and every recipe learns from the units that it says."""

import contextlib
import functools
import io
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from hardmine_jax.detection import iou
from hardmine_jax.pose import encode_heatmaps
from tests.readme import documents

# The one about an exported network has a test of its own.
SNIPPETS = {
    f"{path} {number}": snippet
    for path, text in documents.TEXTS.items()
    for number, snippet in enumerate(documents.snippets(text))
    if snippet != documents.exported_snippet()
}
FIRST = f"{documents.TOP} 0"
RECIPES = {
    heading: documents.snippets(section)
    for heading, section in documents.sections(documents.TEXTS[documents.RECIPES_OF]).items()
}


@functools.cache
def _run(snippet: str) -> tuple[dict, str]:
    """The names that it leaves behind, and what it prints."""
    names, printed = {}, io.StringIO()
    # optax.adam itself promotes the step to a float.
    promotion = "standard" if "optax.adam" in snippet else "strict"
    (place,) = (place for place, one in SNIPPETS.items() if one == snippet)
    with jax.numpy_dtype_promotion(promotion), contextlib.redirect_stdout(printed):
        exec(compile(snippet, f"{place}, counted from 0", "exec"), names)
    return names, printed.getvalue()


@pytest.mark.parametrize("place", SNIPPETS)
def test_snippet_runs(place):
    names, printed = _run(SNIPPETS[place])
    if place == FIRST:
        assert re.fullmatch(r"loss \d+\.\d+, 8 of 19 keypoints kept, gradient \(8, 5\)\n", printed)
    else:
        assert not printed
    assert all(np.isfinite(leaf).all() and np.any(leaf) for leaf in jax.tree.leaves(names["gradient"]))


def _hardest(losses: jax.Array, k: int, where: jax.Array | bool = True) -> np.ndarray:
    """bool [..., N], by sorting: the oracle of `top_k`."""
    losses, where = np.asarray(losses), np.broadcast_to(where, losses.shape)
    order = np.argsort(np.where(where, -losses, np.inf), axis=-1, kind="stable")
    keep = np.zeros(losses.shape, bool)
    np.put_along_axis(keep, order[..., :k], True, axis=-1)
    return keep & where


def _assert_learns_from(keep, losses_of, params, loss, gradient) -> None:
    """Loss and gradient are those of the mean of the kept losses, and of nothing else."""
    weights = jnp.asarray(keep / np.sum(keep), jnp.float32)
    mean, expected = jax.value_and_grad(lambda params: (losses_of(params) * weights).sum())(params)
    np.testing.assert_allclose(loss, mean, rtol=1e-5)
    for one, other in zip(jax.tree.leaves(gradient), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


_cross_entropy = optax.softmax_cross_entropy_with_integer_labels


def _check_own(names):
    """The 8 hardest images of the batch, whichever device they lie on."""
    images, labels, params = (names[name] for name in ("images", "labels", "params"))

    def losses_of(params):
        return _cross_entropy(names["Classifier"]().apply({"params": params}, images), labels)

    loss = names["loss_function"](params, images, labels)
    _assert_learns_from(_hardest(losses_of(params), 8), losses_of, params, loss, names["gradient"])


def _check_linen(names):
    """All joints in the first step, in the last the 2 hardest of each image."""
    state, labelled = names["state"], names["labelled"]
    batch = (names["images"], names["keypoints"], labelled)
    np.testing.assert_array_equal(names["train_step"](state.replace(step=0), *batch)[2], labelled)
    _, loss, keep, gradient = names["train_step"](state, *batch)

    def losses_of(params):
        targets = encode_heatmaps((batch[1] + 0.5) / 4 - 0.5, size=(12, 12), sigma=1.0, where=labelled)
        return ((state.apply_fn(params, batch[0]) - targets) ** 2).mean((1, 2))

    expected = _hardest(losses_of(state.params), 2, labelled)
    np.testing.assert_array_equal(keep, expected)
    assert int(state.step) == 10 and expected.sum(1).max() == 2
    _assert_learns_from(expected, losses_of, state.params, loss, gradient)


def _check_nnx(names):
    """Loss and gradient are those of the 64 hardest of the 1,000 regions; the head learns."""
    features, labels = names["features"], names["labels"]
    graph, params = nnx.split(names["head"])
    # The module's own variables otherwise, which the step changes.
    params = jax.tree.map(jnp.copy, params)

    def losses_of(params):
        return _cross_entropy(nnx.merge(graph, params)(features), labels)

    keep = _hardest(losses_of(params), 64)
    before = np.asarray(losses_of(params))
    loss, mined, gradient = names["train_step"](names["head"], names["optimizer"], features, labels)
    np.testing.assert_array_equal(np.sort(mined.indices), np.flatnonzero(keep))
    _assert_learns_from(keep, losses_of, params, loss, gradient)
    after = np.asarray(_cross_entropy(names["head"](features), labels))
    assert after[keep].mean() < before[keep].mean()


def _check_pixels(names):
    """Pixels below 0.7, or the hardest sixteenth where these are fewer; never one that nobody labelled."""
    network, images, params = (names[name] for name in ("network", "images", "params"))
    differentiate = jax.value_and_grad(names["loss_function"], has_aux=True)

    def check(params, labels, choose):
        where = np.asarray(labels != 255).reshape(-1)

        def losses_of(params):
            logits = network.apply(params, images)
            return _cross_entropy(logits, jnp.where(labels == 255, 0, labels)).reshape(-1)

        expected = choose(np.asarray(losses_of(params)), where)
        assert 0 < expected.sum() < where.sum()
        (loss, keep), gradient = differentiate(params, images, labels)
        np.testing.assert_array_equal(keep, expected)
        _assert_learns_from(expected, losses_of, params, loss, gradient)

    # As initialised the network is sure of no pixel; so much steeper it is sure of many, and right by chance.
    steeper = jax.tree.map(lambda x: 10 * x, params)
    check(steeper, names["labels"], lambda losses, where: where & (np.exp(-losses) < 0.7))
    right = jax.tree.map(jnp.copy, params)
    right["params"]["layers_2"]["bias"] = 9.0 * jnp.eye(19)[0]
    labels = jnp.where(names["labels"] == 255, 255, 0)
    check(right, labels, lambda losses, where: _hardest(losses, losses.size // 16, where))


def _check_ssd(names):
    """Three negatives a positive in each image, none in the one without; divided by the positives alone."""
    labels, targets, features = (names[name] for name in ("labels", "targets", "features"))
    positive, negative = np.asarray(labels > 0), np.asarray(names["negative"])
    counts = positive.sum(1)
    np.testing.assert_array_equal(negative.sum(1), 3 * counts)
    assert counts[3] == 0 and counts[:3].min() > 5 and not negative[labels != 0].any()

    def confidence(params):
        return _cross_entropy(features @ params["classes"], jnp.maximum(labels, 0))

    for row in range(3):
        expected = _hardest(confidence(names["params"])[row], 3 * counts[row], labels[row] == 0)
        np.testing.assert_array_equal(negative[row], expected)

    def loss_function(params):
        distance = jnp.abs(features @ params["boxes"] - targets)
        smooth = jnp.where(distance < 1, distance**2 / 2, distance - 0.5).sum(-1)
        return ((confidence(params) * (positive | negative)).sum() + (smooth * positive).sum()) / counts.sum()

    expected = jax.grad(loss_function)(names["params"])
    for name, gradient in names["gradient"].items():
        np.testing.assert_allclose(gradient, expected[name], rtol=1e-4, atol=1e-6)


def _check_anchors(names):
    """The 64 hardest of each image that do not overlap, of those that are object or background."""
    anchors, batch = names["anchors"], (names["images"], names["boxes"], names["labels"])
    variables, model = names["variables"], names["model"]
    overlaps = np.where(batch[2][:, None] > 0, iou(anchors, batch[1]), 0.0)
    nearest, positive = overlaps.argmax(2), overlaps.max(2) >= 0.5
    where = positive | (overlaps.max(2) < 0.4)
    answer = np.where(positive, np.take_along_axis(np.asarray(batch[2]), nearest, 1), 0)
    objects = np.take_along_axis(np.asarray(batch[1]), nearest[..., None], 1)
    objects = np.where(positive[..., None], objects, anchors)
    assert positive.any(1).all() and not where.all(1).any()

    def losses_of(params):
        run = {**variables, "params": params}
        (logits, deltas), _ = model.apply(run, batch[0], train=True, mutable=["batch_stats"])
        yes = jax.nn.one_hot(answer - 1, 3)
        classes = 0.5 * optax.sigmoid_binary_cross_entropy(logits, yes).sum(-1)
        centres, sides = anchors[..., :2] + anchors[..., 2:], anchors[..., 2:] - anchors[..., :2]
        moved = (objects[..., :2] + objects[..., 2:] - centres) / 2 / sides
        grown = jnp.log((objects[..., 2:] - objects[..., :2]) / sides)
        difference = deltas - jnp.concatenate([moved, grown], -1)
        return classes + jnp.where(positive, 10 * optax.huber_loss(difference, delta=0.1).sum(-1), 0.0)

    losses = np.asarray(jax.jit(losses_of)(variables["params"]))

    def mined(threshold):
        keep = np.zeros(losses.shape, bool)
        for row in range(2):
            among = np.asarray(iou(anchors[row], anchors[row]))
            for index in np.argsort(-np.where(where[row], losses[row], -np.inf), kind="stable"):
                if keep[row].sum() < 64 and not (among[index, keep[row]] > threshold).any():
                    keep[row, index] = True
        return keep

    keep = mined(0.7)
    np.testing.assert_array_equal(names["keep"], keep)
    # Here suppression matters.
    assert (mined(1.0) != keep).any()
    _assert_learns_from(keep, jax.jit(losses_of), variables["params"], names["loss"], names["gradient"])


def _check_images(names):
    """The 16 hardest of 128 images."""

    def losses_of(params):
        return names["image_losses"](params, names["images"], names["labels"])

    keep = _hardest(losses_of(names["params"]), 16)
    np.testing.assert_array_equal(np.sort(names["indices"]), np.flatnonzero(keep))
    _assert_learns_from(keep, losses_of, names["params"], names["loss"], names["gradient"])


def _check_devices(names):
    """The 16 hardest of the whole batch, as on one device; devices differ in how many they keep."""

    def losses_of(params):
        hidden = jax.nn.relu(names["features"] @ params["hidden"])
        return _cross_entropy(hidden @ params["classes"], names["labels"])

    keep = _hardest(losses_of(names["params"]), 16)
    np.testing.assert_array_equal(names["keep"], keep)
    assert names["mesh"].size == 8 and len(set(keep.reshape(8, -1).sum(1).tolist())) > 1
    _assert_learns_from(keep, losses_of, names["params"], names["loss"], names["gradient"])


def _check_equinox(names):
    """The 8 hardest words of each sentence, fewer where it has fewer, none of the padding."""
    words = names["words"]
    model = names["Tagger"](jax.random.key(0))

    def losses_of(model):
        return _cross_entropy(jax.vmap(model)(words), words % 17)

    keep = _hardest(losses_of(model), 8, words != 0)
    np.testing.assert_array_equal(names["keep"], keep)
    assert keep.sum(1).tolist() == [5] + 15 * [8]
    _assert_learns_from(keep, losses_of, model, names["loss"], names["gradient"])


def _check_tokens(names):
    """The 0.6 of all that is no padding whose loss exceeds the reference's the most."""
    tokens, token_losses = names["tokens"], names["token_losses"]
    losses = np.asarray(token_losses(names["params"], tokens))
    excess, where = (
        losses - np.asarray(token_losses(names["reference"], tokens)),
        np.asarray(tokens[:, 1:] != 0),
    )
    wanted = int(np.ceil(0.6 * where.sum()))
    keep = _hardest(excess.reshape(-1), wanted, where.reshape(-1)).reshape(excess.shape)
    np.testing.assert_array_equal(names["keep"], keep)
    assert (keep != _hardest(losses.reshape(-1), wanted, where.reshape(-1)).reshape(keep.shape)).any()
    _assert_learns_from(
        keep, lambda params: token_losses(params, tokens), names["params"], names["loss"], names["gradient"]
    )


def _check_towers(names):
    """The loss among 32 that teach more together than a draw does."""
    images, texts, keep = names["images"], names["texts"], np.asarray(names["keep"])
    assert keep.sum() == 32

    def loss_function(params):
        return names["pair_losses"](params, images[keep], texts[keep]).sum() / 32

    loss, gradient = jax.value_and_grad(loss_function)(names["params"])
    np.testing.assert_allclose(names["loss"], loss, rtol=1e-5)
    chex.assert_trees_all_close(names["gradient"], gradient, rtol=1e-4, atol=1e-6)
    scores = names["pair_losses"](names["params"], images, texts) - names["pair_losses"](
        names["reference"], images, texts
    )
    rng = np.random.default_rng(0)
    drawn = [rng.choice(128, 32, replace=False) for _ in range(50)]
    assert scores[keep][:, keep].sum() > max(float(scores[one][:, one].sum()) for one in drawn)


def _check_triplets(names):
    """Of each anchor the furthest of its class and the nearest of another, by loops."""
    distances, labels = (
        np.asarray(names["distances_of"](names["params"], names["images"])),
        np.arange(32) // 4,
    )
    further = []
    for a in range(32):
        same = [n for n in range(32) if labels[n] == labels[a] and n != a]
        further.append(distances[a, same].max() - distances[a, labels != labels[a]].min())
    assert np.asarray(names["found"].where).all()
    np.testing.assert_allclose(names["loss"], np.log1p(np.exp(np.float64(further))).mean(), rtol=1e-4)
    assert all(np.isfinite(leaf).all() and leaf.any() for leaf in names["gradient"].values())


CHECKS = {
    "In a loss of your own": _check_own,
    "OHKM in a Flax Linen training loop": _check_linen,
    "OHEM in a Flax NNX training loop": _check_nnx,
    "Pixel OHEM for segmentation": _check_pixels,
    "Three hard negatives for each positive (SSD)": _check_ssd,
    "OHEM or focal loss on the anchors of a RetinaNet": _check_anchors,
    "Selective backprop over whole images": _check_images,
    "The hardest of all devices, under `jax.shard_map`": _check_devices,
    "With Equinox: the hardest words of each sentence": _check_equinox,
    "Rho-1: the tokens that a reference model finds easier": _check_tokens,
    "JEST: a sub-batch for a pair of towers": _check_towers,
    "The hardest triplets of a batch": _check_triplets,
}


def test_every_recipe_is_one_short_snippet_with_a_check():
    assert list(RECIPES) == list(CHECKS)
    assert len(RECIPES) == 12 and documents.TEXTS[documents.RECIPES_OF].startswith("# Twelve recipes\n")
    for heading, snippets in RECIPES.items():
        lines = [line for line in snippets[0].splitlines() if line.strip()]
        assert len(snippets) == 1 and 12 <= len(lines) <= 25, heading


@pytest.mark.parametrize("heading", CHECKS)
def test_recipe_learns_from_what_it_says(heading):
    CHECKS[heading](_run(RECIPES[heading][0])[0])


def test_first_snippet_is_short():
    lines = [line for line in SNIPPETS[FIRST].splitlines() if line.strip()]
    assert len(lines) <= 25
